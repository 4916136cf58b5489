import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.distributed import checkpoint as dcp

from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig, load
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.types import InputError


def built() -> DualEncoder:
    torch.manual_seed(0)
    config = DualEncoderConfig(embed_dim=16, text=TextConfig(width=16, layers=1, heads=2, context_length=16))
    return DualEncoder.from_config(config, Tokenizer.train(["red apple"], 270)).eval()


class Trained(nn.Module):
    """What a checkpoint holds the state of: the model and an objective with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.model = built()
        self.objective = nn.Linear(16, 100)


def description(model: DualEncoder) -> dict[str, Any]:
    return {"config": dataclasses.asdict(model.config), "tokenizer": model.tokenizer.to_json()}


def same(loaded: DualEncoder) -> bool:
    image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    model = built()
    with torch.no_grad():
        return torch.equal(loaded.encode_image(image), model.encode_image(image)) and torch.equal(
            loaded.encode_text(["apple"]), model.encode_text(["apple"])
        )


@pytest.fixture
def single_file(tmp_path) -> Path:
    trained = Trained()
    torch.save(
        {"state_dict": trained.state_dict(), "dual_encoder": description(trained.model), "epoch": 0},
        tmp_path / "last.ckpt",
    )
    return tmp_path / "last.ckpt"


def write_shards(folder: Path) -> None:
    """As Lightning's ModelParallelStrategy does, on two ranks."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    trained = Trained()
    mesh = init_device_mesh("cpu", (2,))
    for unit in (trained.model.image, trained.model.text, trained.objective):
        fully_shard(unit, mesh=mesh)
    dcp.save({"state_dict": get_model_state_dict(trained), "optimizer_0": {"lr": 0.1}}, checkpoint_id=folder)
    if distributed.get_rank() == 0:
        torch.save({"dual_encoder": description(trained.model)}, folder / "meta.pt")


@pytest.fixture(scope="module")
def shards(pool, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "ckpt"
    pool(2, write_shards, folder)
    return folder


def test_a_checkpoint_file_loads_as_the_model_alone(single_file):
    assert same(load(single_file))


def test_a_sharded_checkpoint_loads_in_one_plain_process(shards):
    assert same(load(shards))
    assert not distributed.is_initialized()


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_pickle_is_executed(shards, tmp_path):
    ran, payload = tmp_path / "ran", Payload(tmp_path / "ran")
    torch.save({"state_dict": {}, "dual_encoder": payload}, tmp_path / "evil.ckpt")
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps(payload))
    index, rest = (tmp_path / name for name in ("index", "rest"))
    for folder in (index, rest):
        folder.mkdir()
        for file in shards.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    (index / ".metadata").write_bytes(pickle.dumps(payload))
    torch.save({"dual_encoder": payload}, rest / "meta.pt")
    for path in (tmp_path / "evil.ckpt", tmp_path / "raw.ckpt", index, rest):
        with pytest.raises(InputError):
            load(path)
    assert not ran.exists()
    pickle.loads(pickle.dumps(payload))
    assert ran.exists()  # the payload is live


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_model_is_refused_in_one_line_that_names_it(tmp_path, shards):
    assert "does not exist" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refusal(tmp_path / "empty")
    (tmp_path / "garbage.ckpt").write_bytes(b"garbage" * 100)
    assert "garbage.ckpt" in refusal(tmp_path / "garbage.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    assert "list" in refusal(tmp_path / "list.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "dual_encoder" in refusal(tmp_path / "other.ckpt")
    (tmp_path / "cut").mkdir()
    for file in shards.iterdir():
        data = file.read_bytes()
        keep = len(data) // 2 if file.suffix == ".distcp" else len(data)
        (tmp_path / "cut" / file.name).write_bytes(data[:keep])
    assert "damaged" in refusal(tmp_path / "cut")


def test_a_damaged_folder_is_refused_in_one_line_that_names_the_fault(tmp_path):
    built().save(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    state, values = load_file(weights), json.loads(config.read_text())

    save_file({k: v for k, v in state.items() if k != "image.projection.weight"}, weights)
    assert "image.projection.weight" in refusal(tmp_path)
    save_file({**state, "extra": torch.zeros(1)}, weights)
    assert "extra" in refusal(tmp_path)
    save_file(state, weights)

    config.write_text(json.dumps({**values, "embed_dim": 17}))
    assert "size mismatch" in refusal(tmp_path)
    config.write_text(json.dumps({**values, "colour": 1}))
    assert "colour" in refusal(tmp_path)
    config.write_text("{")
    assert "config.json" in refusal(tmp_path)
    config.write_text("[]")
    assert "config.json" in refusal(tmp_path)
    config.write_text(json.dumps(values))

    (tmp_path / "tokenizer.json").write_text("{}")
    assert "tokenizer" in refusal(tmp_path)
    weights.write_bytes(b"garbage")
    assert "model.safetensors" in refusal(tmp_path)
    weights.unlink()
    assert "model.safetensors" in refusal(tmp_path)

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig, load
from mofi_lightning.encoders.label_space import LabelSpace, LabelSpaceConfig
from mofi_lightning.types import InputError


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Three-dimensional word vectors."""
    folder = tmp_path / "words"
    folder.mkdir()
    np.save(folder / "tiny_emb.npy", np.array([[3, 0, 0], [0, 4, 0], [0, 0, 5]], dtype=np.float32))
    pq.write_table(pa.table({"index": ["red", "cat", "dog"]}), folder / "tiny_index.parquet")
    return folder


def test_images_are_mapped_and_texts_embedded_as_unit_vectors(words):
    space = LabelSpace(8, LabelSpaceConfig(3, str(words)))
    image = F.normalize(torch.randn(4, 8), dim=1)
    expected = F.normalize(image @ space.map.weight.T, dim=1)
    torch.testing.assert_close(space.map_image(image), expected)
    torch.testing.assert_close(
        space.encode_text(["Cat", "red dog", "zzz"]),
        torch.tensor([[0, 1, 0], [3 / 34**0.5, 0, 5 / 34**0.5], [0, 0, 0]]),
    )
    assert list(space.state_dict()) == ["map.weight"]  # the text model is no part of the weights


def test_the_text_model_is_read_once(words):
    space = LabelSpace(8, LabelSpaceConfig(3, str(words)))
    first = space.encode_text(["cat"])
    for file in words.iterdir():
        file.unlink()
    assert torch.equal(space.encode_text(["cat"]), first)


def test_a_text_model_that_is_unknown_gone_or_another_is_refused(words):
    with pytest.raises(InputError, match="do not say which text model"):
        LabelSpace(8, LabelSpaceConfig(3)).encode_text(["cat"])
    with pytest.raises(InputError, match="'/nowhere' is neither a folder nor"):
        LabelSpace(8, LabelSpaceConfig(3, "/nowhere")).encode_text(["cat"])
    with pytest.raises(InputError, match="makes vectors of 3 dimensions and the label vectors have 4"):
        LabelSpace(8, LabelSpaceConfig(4, str(words))).encode_text(["cat"])


def test_a_model_keeps_its_label_space_in_its_folder(words, tmp_path):
    model = DualEncoder.from_config(DualEncoderConfig(embed_dim=8)).eval()
    model.save(tmp_path / "without")
    assert load(tmp_path / "without").label_space is None
    assert "label_space" not in json.loads((tmp_path / "without" / "config.json").read_text())

    model.label_space = LabelSpace(8, LabelSpaceConfig(3, str(words), True))
    model.save(tmp_path / "with")
    loaded = load(tmp_path / "with").label_space
    assert loaded.config == model.label_space.config
    assert torch.equal(loaded.map.weight, model.label_space.map.weight)
    assert "label_space.map.weight" in load_file(tmp_path / "with" / "model.safetensors")


def test_a_damaged_label_space_is_refused_in_one_line(words, tmp_path):
    model = DualEncoder.from_config(DualEncoderConfig(embed_dim=8))
    model.label_space = LabelSpace(8, LabelSpaceConfig(3, str(words)))
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    weights = load_file(tmp_path / "model.safetensors")
    for broken in ({"dim": 3}, {**config["label_space"], "colour": 1}, {**config["label_space"], "dim": "3"}):
        (tmp_path / "config.json").write_text(json.dumps({**config, "label_space": broken}))
        with pytest.raises(InputError, match="does not give dim, model and descriptions"):
            load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "label_space": 3}))
    with pytest.raises(InputError, match="label_space is no JSON object"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    del weights["label_space.map.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"1 missing \(label_space\.map\.weight\)"):
        load(tmp_path)

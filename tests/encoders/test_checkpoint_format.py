"""Parts of checkpoints, read from folders of any number of ranks and from one file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed import checkpoint as dcp

from mofi_lightning.encoders import checkpoint, checkpoint_format
from mofi_lightning.types import InputError

ROWS = 11


def table() -> torch.Tensor:
    return torch.arange(ROWS * 6, dtype=torch.float64).view(ROWS, 2, 3)


def write(folder: Path) -> None:
    """A table split over the ranks: with three of them 4, 4 and 3 rows; and what every rank has whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    whole = {"state_dict.small": torch.ones(2, dtype=torch.bfloat16), "state_dict.one": torch.tensor(7)}
    if distributed.get_world_size() > 1:
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        split = distribute_tensor(table(), mesh, [Shard(0)])
    else:
        split = table()
    dcp.save(
        {"state_dict.objective.table": split, "optimizer_0.state.x": torch.ones(3), **whole},
        checkpoint_id=folder,
    )
    if distributed.get_rank() == 0:
        torch.save({"dual_encoder": {"config": {}}, "global_step": 5}, folder / "meta.pt")


@pytest.fixture(params=["file", 1, 3])
def path(request, pool, tmp_path) -> Path:
    if request.param != "file":
        pool(request.param, write, tmp_path / "folder")
        return tmp_path / "folder"
    state = {"objective.table": table(), "small": torch.ones(2, dtype=torch.bfloat16), "one": torch.tensor(7)}
    torch.save({"state_dict": state, "dual_encoder": {"config": {}}, "global_step": 5}, tmp_path / "one.ckpt")
    return tmp_path / "one.ckpt"


@pytest.mark.parametrize("at_once", [1, 3, ROWS])
def test_rows_come_in_order_and_not_more_than_so_many_at_once(path, monkeypatch, at_once):
    monkeypatch.setattr(checkpoint_format, "_PIECE_BYTES", at_once * 6 * 8)
    pieces = list(checkpoint.read_rows(path, "objective.table"))
    assert max(len(rows) for _, rows in pieces) <= at_once
    assert [first for first, _ in pieces] == [0, *torch.tensor([len(r) for _, r in pieces]).cumsum(0)[:-1]]
    assert torch.equal(torch.cat([rows for _, rows in pieces]), table())


def test_other_types_are_read_by_rows_too(path):
    ((first, rows),) = checkpoint.read_rows(path, "small")
    assert first == 0 and rows.dtype == torch.bfloat16 and rows.tolist() == [1, 1]


def test_shapes_and_description_are_read_without_the_tensors(path):
    assert checkpoint.tensor_shapes(path) == {"objective.table": (ROWS, 2, 3), "small": (2,), "one": ()}
    assert checkpoint.read_meta(path) == {"dual_encoder": {"config": {}}, "global_step": 5}


def test_a_tensor_that_is_not_there_is_named(path):
    with pytest.raises(InputError, match=r"has no tensor 'objective.rows'"):
        list(checkpoint.read_rows(path, "objective.rows"))


def test_a_damaged_shard_is_told(pool, tmp_path):
    pool(1, write, tmp_path / "folder")
    (shard,) = (tmp_path / "folder").glob("*.distcp")
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(InputError, match=r"damaged: 'objective.table' is unreadable"):
        list(checkpoint.read_rows(tmp_path / "folder", "objective.table"))


def test_averages_take_the_place_of_what_they_average(tmp_path):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = nn.Linear(2, 2)

    state = {f"model.{name}": value for name, value in Model().state_dict().items()}
    average = {"average.model/image/weight": torch.full((2, 2), 3.0), "average.objective/x": torch.ones(1)}
    torch.save({"state_dict": average | state, "dual_encoder": {"config": {}}}, tmp_path / "one.ckpt")
    weights = checkpoint.read(tmp_path / "one.ckpt").weights
    assert weights.keys() == {"image.weight", "image.bias"}
    assert torch.equal(weights["image.weight"], torch.full((2, 2), 3.0))
    assert torch.equal(weights["image.bias"], state["model.image.bias"])

"""Checkpoints are written whole or not at all, while training goes on, and all ranks know how it ended."""

from __future__ import annotations

import logging
import os
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from tests.training.resuming import STEPS, model, train
from torch.distributed import checkpoint as dcp

from mofi_lightning.distributed import rank, world_size
from mofi_lightning.encoders import checkpoint
from mofi_lightning.encoders.checkpoint_format import is_complete, load_tensors
from mofi_lightning.training import StepCheckpoint
from mofi_lightning.training.checkpoints.folders import latest_checkpoint, remove_superseded
from mofi_lightning.training.checkpoints.writing import CheckpointWriter
from mofi_lightning.types import InputError

META = {"dual_encoder": {"config": {}}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_what_was_there_when_the_write_began(tmp_path):
    # large enough that the write has not come to the end of it when it is changed
    tensors = {"state_dict.a": torch.ones(2**25), "state_dict.b": torch.arange(5.0)}
    writer = CheckpointWriter(None)
    writer.begin(tensors, META, tmp_path / "step=1.ckpt", None)
    for tensor in tensors.values():
        tensor.zero_()
    assert writer.wait() is None
    wanted = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    load_tensors(tmp_path / "step=1.ckpt", wanted)
    assert bool((wanted["state_dict.a"] == 1).all()) and wanted["state_dict.b"].tolist() == [0, 1, 2, 3, 4]
    assert names(tmp_path) == ["step=1.ckpt"]


def test_a_checkpoint_takes_the_place_of_an_earlier_one_of_its_name(tmp_path):
    writer = CheckpointWriter(None)
    for value in (1.0, 2.0):
        writer.begin({"state_dict.a": torch.tensor([value])}, META, tmp_path / "step=1.ckpt", None)
    assert writer.wait() is None
    assert [rows.tolist() for _, rows in checkpoint.read_rows(tmp_path / "step=1.ckpt", "a")] == [[2.0]]
    assert names(tmp_path) == ["step=1.ckpt"]


def test_the_bytes_of_a_tensor_are_in_the_order_of_its_rows_whatever_its_memory_format(tmp_path):
    kernel = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    writer = CheckpointWriter(None)
    for name, value in (("a", kernel.contiguous(memory_format=torch.channels_last)), ("t", kernel.mT)):
        writer.begin({f"state_dict.{name}": value}, META, tmp_path / f"{name}.ckpt", None)
        assert writer.wait() is None
        (rows,) = (rows for _, rows in checkpoint.read_rows(tmp_path / f"{name}.ckpt", name))
        assert torch.equal(rows, value) and rows.is_contiguous()


def test_the_rows_of_a_checkpoint_that_kept_the_memory_format_are_read_in_their_order(tmp_path):
    kernel = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    dcp.save({"state_dict.a": kernel}, storage_writer=dcp.FileSystemWriter(tmp_path), no_dist=True)
    rows = torch.cat([rows for _, rows in checkpoint.read_rows(tmp_path, "a")])
    assert torch.equal(rows, kernel)


class Unplain(Callback):
    """Keeps what only pickle reads."""

    def state_dict(self) -> dict[str, Any]:
        return {"rate": 1.0, "where": SmallDisk}

    def on_train_batch_start(self, *args: Any) -> None:
        raise AssertionError("a step is made")


def train_unplain(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        train(root, callbacks=[Unplain(), StepCheckpoint(2)])
    return str(caught.value)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_state_that_could_not_be_read_back_is_refused_before_the_first_step(pool, tmp_path, ranks):
    for said in pool(ranks, train_unplain, tmp_path):
        assert "'callbacks', 'Unplain' of the checkpoint could not be read back" in said
        assert "SmallDisk" in said and "return plain values" in said
    assert not (tmp_path / "checkpoints").exists()


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    writer = CheckpointWriter(None)
    for value in (SmallDisk, lambda: None, np.float64(1)):
        with pytest.raises(InputError, match=r"^'mine' of the checkpoint could not be read back"):
            writer.begin({}, {**META, "mine": value}, tmp_path / "step=1.ckpt", None)
    assert not names(tmp_path)


def without_room(source: Path, target: Path, replace: Any = os.replace) -> None:
    """As `os.replace`, but no new checkpoint takes its place."""
    if source.name.endswith("ckpt.partial"):
        raise OSError(28, "No space left on device")
    replace(source, target)


def test_an_error_while_a_checkpoint_takes_anothers_place_leaves_the_other(tmp_path, monkeypatch):
    writer = CheckpointWriter(None)
    path = tmp_path / "step=1.ckpt"
    writer.begin({"state_dict.a": torch.ones(1)}, META, path, None)
    assert writer.wait() is None
    monkeypatch.setattr(os, "replace", without_room)
    writer.begin({"state_dict.a": torch.zeros(1)}, META, path, None)
    assert writer.wait() == "No space left on device"
    assert names(tmp_path) == [path.name] and is_complete(path)


@pytest.mark.parametrize("found_by", ["last", "its path", "a write that fails"])
def test_a_checkpoint_that_was_being_replaced_when_the_process_died_is_put_back(
    tmp_path, monkeypatch, found_by
):
    writer = CheckpointWriter(None)
    path = tmp_path / "checkpoints" / "step=00000001.ckpt"
    writer.begin({"state_dict.a": torch.ones(1)}, META, path, None)
    assert writer.wait() is None
    path.rename(path.with_name(f"{path.name}.replaced.partial"))
    if found_by == "last":
        assert latest_checkpoint(tmp_path) == path
    elif found_by == "its path":
        assert checkpoint.checkpoint_at(path) == path and is_complete(path)
    else:
        monkeypatch.setattr(os, "replace", without_room)
        writer.begin({"state_dict.a": torch.zeros(1)}, META, path, None)
        assert writer.wait() == "No space left on device"
        assert names(path.parent) == [path.name] and is_complete(path)


def test_what_is_being_written_or_was_cut_off_is_no_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    writer = CheckpointWriter(None)
    for step in (1, 2, 3):
        writer.begin({"state_dict.a": torch.ones(1)}, META, folder / f"step={step:08d}.ckpt", None)
    writer.wait()
    newest = folder / "step=00000003.ckpt"
    newest.rename(folder / "step=00000003.ckpt.partial")
    assert latest_checkpoint(tmp_path) == folder / "step=00000002.ckpt"
    (folder / "step=00000002.ckpt" / "meta.pt").unlink()
    assert latest_checkpoint(tmp_path) == folder / "step=00000001.ckpt"
    remove_superseded(folder / "step=00000002.ckpt", 1)
    assert names(folder) == ["step=00000002.ckpt"]


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_are_kept(tmp_path, keep):
    train(tmp_path, callbacks=[StepCheckpoint(1, keep_last=keep)])
    kept = [f"step={step:08d}.ckpt" for step in range(STEPS - keep + 1, STEPS + 1)]
    assert names(tmp_path / "checkpoints") == kept


class SmallDisk(Callback):
    """Files of rank `where` end at 20 kB from step `first` to step `last`: the disk is full."""

    def __init__(self, first: int, last: int, where: int = 0) -> None:
        self.first, self.last, self.where = first, last, where
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        step = trainer.global_step + 1
        if step in (self.first, self.last + 1):
            trainer.strategy.finish_saving()  # what began before ends as it began
        if rank() == self.where and step == self.first:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, self.limits[1]))
        if step == self.last + 1:
            self.lift()

    def lift(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


def fill_disk(root: Path, first: int, last: int, where: int, every: int) -> dict[str, Any]:
    """Train with a disk that is full for some steps; what is said of it, and what is there afterwards."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mofi_lightning.training.checkpoints.callback")
    logger.addHandler(handler)
    disk, error = SmallDisk(first, last, where), ""
    try:
        train(root, callbacks=[disk, StepCheckpoint(every)])
    except InputError as raised:
        error = str(raised)
    finally:
        disk.lift()
        logger.removeHandler(handler)
    if world_size() > 1:
        dist.barrier()
    return {"said": said, "error": error, "left": names(root / "checkpoints")}


@pytest.mark.parametrize(("ranks", "where"), [(1, 0), (2, 1)])
def test_training_goes_on_when_a_checkpoint_cannot_be_written(pool, tmp_path, ranks, where):
    results = pool(ranks, fill_disk, tmp_path, 3, 4, where, 2)
    folder = tmp_path / "checkpoints"
    assert [result["error"] for result in results] == [""] * ranks
    (said,) = results[0]["said"]
    assert said == (
        f"checkpoint {folder}/step=00000004.ckpt could not be written: File too large; training goes on, the "
        f"newest intact checkpoint is {folder}/step=00000002.ckpt"
    )
    assert results[0]["left"] == ["step=00000006.ckpt"]
    checkpoint.check_resumable(folder / "step=00000006.ckpt")
    assert not any(result["said"] for result in results[1:])


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("every", "left"), [(4, ["step=00000004.ckpt"]), (1000, [])])
def test_training_ends_with_one_line_when_the_last_step_cannot_be_saved(pool, tmp_path, ranks, every, left):
    results = pool(ranks, fill_disk, tmp_path, 5, STEPS, 0, every)
    folder = tmp_path / "checkpoints"
    intact = (
        f"the newest intact checkpoint is {folder}/{left[0]}" if left else "there is no intact checkpoint yet"
    )
    for result in results:
        assert result["left"] == left
        assert result["error"] == (
            f"checkpoint {folder}/step=00000006.ckpt could not be written: File too large; {intact}"
        )
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("every", [4, 1000])
def test_a_run_that_ends_before_its_last_step_is_saved(tmp_path, every):
    train(tmp_path, stop=4, callbacks=[StepCheckpoint(every)])
    assert names(tmp_path / "checkpoints") == ["step=00000004.ckpt"]


class SaveNow(Callback):
    """Saves at once after a step, twice, and looks at what is there."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 3:
            (saving,) = (c for c in trainer.callbacks if isinstance(c, StepCheckpoint))  # type: ignore[attr-defined]
            saving.save_now(trainer)
            self.newest = latest_checkpoint(Path(trainer.default_root_dir))
            saving.save_now(trainer)


@pytest.mark.parametrize("every", [3, 1000])
def test_what_is_saved_now_is_on_the_disk_when_the_call_returns(tmp_path, every):
    now = SaveNow()
    train(tmp_path, callbacks=[StepCheckpoint(every), now])
    assert now.newest is not None and now.newest.name == "step=00000003.ckpt"


def test_checkpoints_of_a_trainer_without_our_strategy_are_refused(tmp_path):
    from mofi_lightning.testing import SyntheticDataModule

    run = Trainer(
        accelerator="cpu",
        max_steps=1,
        max_epochs=-1,
        logger=False,
        callbacks=[StepCheckpoint()],
        default_root_dir=tmp_path,
    )
    with pytest.raises(InputError, match=r"SingleDeviceStrategy; give the trainer strategy=SingleProcess"):
        run.fit(model(), datamodule=SyntheticDataModule(rows=8, num_entities=101))

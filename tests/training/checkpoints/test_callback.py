"""Checkpoints: when they are written, and what is said of one that does not fit."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything
from tests.training.runs import ENCODER, module, train_mofi, trainer

from mofi_lightning.objectives import MOFI, EntitySoftmax
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import PretrainingModule, StepCheckpoint
from mofi_lightning.training.checkpoints.folders import latest_checkpoint
from mofi_lightning.training.checkpoints.mismatch import explain_mismatch
from mofi_lightning.types import InputError


def data() -> SyntheticDataModule:
    return SyntheticDataModule(rows=24, num_entities=101)


@pytest.mark.parametrize("every", [2, 3, 1000])
def test_the_last_step_is_saved_once(tmp_path, every):
    seed_everything(3, verbose=False)
    run = trainer(tmp_path, 4, callbacks=[StepCheckpoint(every)], enable_checkpointing=True)
    saved: list[str] = []
    original = run.save_checkpoint
    run.save_checkpoint = lambda path, **options: saved.append(Path(path).name) or original(path, **options)
    run.fit(module(), datamodule=data())
    assert saved == [f"step={step:08d}.ckpt" for step in range(1, 5) if step % every == 0 or step == 4]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step=00000004.ckpt"]


def resume_with(root: str, checkpoint: str, embed_dim: int, margin_only: bool) -> str:
    """What is said of a checkpoint of another model."""
    encoder = dataclasses.replace(ENCODER, embed_dim=embed_dim)
    entity = functools.partial(EntitySoftmax, num_sampled=40)
    objective = entity if margin_only else functools.partial(MOFI, entity=entity)
    model = PretrainingModule(encoder, objective)
    with pytest.raises(InputError) as caught, explain_mismatch(Path(checkpoint), model):
        trainer(Path(root), 6).fit(model, datamodule=data(), ckpt_path=checkpoint, weights_only=True)
    return str(caught.value)


def test_a_checkpoint_of_another_model_is_refused_by_its_first_differing_parameter(tmp_path):
    train_mofi(str(tmp_path), torch.float32, 2, stop=2)
    newest = str(latest_checkpoint(tmp_path))
    said = resume_with(str(tmp_path / "b"), newest, 32, False)
    assert newest in said and "model.image.projection.weight is [16, 192] there and [32, 192] here" in said
    assert "it has no objective." in resume_with(str(tmp_path / "b"), newest, 16, True)


def test_a_sharded_checkpoint_of_another_model_is_refused_on_every_rank(pool, tmp_path):
    pool(2, train_mofi, str(tmp_path), torch.float32, 2, 1, None, 2)
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and newest.is_dir()
    for said in pool(2, resume_with, str(tmp_path / "b"), str(newest), 32, False):
        assert "model.image.projection.weight is [16, 192] there and [32, 192] here" in said


def test_another_error_stays_what_it_is(tmp_path):
    model = module()
    trainer(tmp_path, 2, callbacks=[StepCheckpoint()], enable_checkpointing=True).fit(
        model, datamodule=data()
    )
    with (
        pytest.raises(ValueError, match=r"^unrelated$"),
        explain_mismatch(latest_checkpoint(tmp_path), model),
    ):
        raise ValueError("unrelated")

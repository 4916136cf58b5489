"""Entity tables that grow from a checkpoint: rows find their entities in any vocabulary, on any ranks."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import seed_everything
from tests.training.runs import ENCODER, trainer, whole
from torch import Tensor
from torch.nn import functional as F

from mofi_lightning import Batch, InputError, ObjectiveSpec
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.encoders import checkpoint_format
from mofi_lightning.encoders.dual_encoder import DualEncoder
from mofi_lightning.functional import margin_statistics
from mofi_lightning.objectives import CLIP, MOFI, EntitySoftmax, MultiTask, Objective
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import Optimization, PretrainingModule, StepCheckpoint
from mofi_lightning.training.checkpoints.consolidation import write_one_file
from mofi_lightning.training.checkpoints.folders import latest_checkpoint
from mofi_lightning.training.entity_tables import grow_tables
from mofi_lightning.training.warm_start import initialise

OLD, KEPT, NEW = 41, 30, 26


def vocabulary(ids: list[str]) -> EntityVocabulary:
    return EntityVocabulary.from_columns(ids, ids, [""] * len(ids), [1] * len(ids))


def old_ids() -> list[str]:
    return [f"Q{i}" for i in range(OLD)]


def new_ids() -> list[str]:
    """Some of the old ones among new ones, in another order."""
    ids = old_ids()[OLD - KEPT :] + [f"N{i}" for i in range(NEW)]
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(5))
    return [ids[i] for i in order]


def fit(root: str, ids: list[str], objective: Any, steps: int = 3, **options: Any) -> dict[str, Tensor]:
    """Train in fp64 with a checkpoint at the end; the state at the start, whole."""
    torch.set_default_dtype(torch.float64)
    try:
        seed_everything(3, verbose=False)
        data = SyntheticDataModule(rows=24, num_entities=len(ids))
        data.vocabulary = vocabulary(ids)
        model = PretrainingModule(ENCODER, objective, Optimization(lr=1e-2, warmup_steps=1), **options)
        states: list[dict[str, Tensor]] = []

        def remember() -> None:
            states.append({name: whole(value) for name, value in model.state_dict().items()})

        model.on_fit_start = remember  # type: ignore[method-assign]
        callbacks = [StepCheckpoint(steps)]
        run = trainer(Path(root), steps, callbacks=callbacks, enable_checkpointing=True)
        run.fit(model, datamodule=data)
        return states[0]
    finally:
        torch.set_default_dtype(torch.float32)


class Old(NamedTuple):
    """A checkpoint, and the table and second moment in it."""

    path: Path
    table: Tensor
    second_moment: Tensor


def read_old(root: Path) -> Old:
    path = latest_checkpoint(root)
    parts = []
    for name in ("table", "second_moment"):
        rows = [rows for _, rows in checkpoint_format.read_rows(path, f"objective.{name}")]
        parts.append(torch.cat(rows))
    return Old(path, *parts)


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Old:
    """Of one process, with the entity softmax alone."""
    root = tmp_path_factory.mktemp("old")
    fit(str(root), old_ids(), functools.partial(EntitySoftmax, num_sampled=20))
    return read_old(root)


def objective(ids: list[str], make: Any = EntitySoftmax, embed_dim: int = 16) -> Objective:
    made: Objective = make(ObjectiveSpec(embed_dim, 32, vocabulary(ids), text_feature_dim=32))
    return made.double()


def assert_moved(old: Old, table: Tensor, second_moment: Tensor, start: Tensor) -> None:
    """Row by row, by the ids."""
    where = {name: i for i, name in enumerate(old_ids())}
    for row, name in enumerate(new_ids()):
        if name in where:
            assert torch.equal(table[row], old.table[where[name]])
            assert torch.equal(second_moment[row], old.second_moment[where[name]])
        else:
            assert torch.equal(table[row], start[row]) and second_moment[row].eq(0).all()
    assert second_moment.ne(0).any()


@pytest.mark.parametrize("world", (1, 2, 3))
def test_rows_and_moments_go_to_their_entities_whatever_the_ranks_of_either_run(world, pool, old, tmp_path):
    writers = 3 - world if world < 3 else 2
    root = tmp_path / "old"
    pool(writers, fit, str(root), old_ids(), functools.partial(EntitySoftmax, num_sampled=20))
    given = read_old(root)
    torch.testing.assert_close(given.table, old.table, rtol=0, atol=1e-9)
    start = objective(new_ids()).table
    for state in pool(
        world, functools.partial(fit, init_from=str(given.path)), str(tmp_path), new_ids(), MOFI
    ):
        prefix = "objective.objectives.entity"
        assert_moved(given, state[f"{prefix}.table"], state[f"{prefix}.second_moment"], start)


@torch.no_grad()
def test_on_the_old_entities_the_grown_run_has_the_loss_of_the_old_one(old, monkeypatch):
    monkeypatch.setattr(checkpoint_format, "_PIECE_BYTES", 7 * 16 * 8)  # rows come in many pieces
    torch.manual_seed(1)
    images = torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8)
    entity = torch.arange(12) * 3  # Q0, Q3, ...
    models = [DualEncoder.from_config(ENCODER).double().eval() for _ in range(3)]
    before = objective(old_ids())
    initialise(models[0], before, str(old.path), vocabulary(old_ids()))
    assert torch.equal(before.table, old.table)
    expected = before.eval()(models[0](Batch(image=images)), Batch(entity=entity)).loss

    reversed_ids = old_ids()[::-1]
    permuted = objective(reversed_ids)
    initialise(models[1], permuted, str(old.path), vocabulary(reversed_ids))
    assert not torch.equal(permuted.table, old.table)
    loss = permuted.eval()(models[1](Batch(image=images)), Batch(entity=OLD - 1 - entity)).loss
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-9)

    ids = [f"N{i}" for i in range(NEW)] + reversed_ids
    grown = objective(ids)
    report = initialise(models[2], grown, str(old.path), vocabulary(ids))
    assert report.endswith("entity table: 41 of 67 rows by entity id, 26 new (at random)")
    features = models[2](Batch(image=images)).image
    found = margin_statistics(features, grown.table[NEW:], OLD - 1 - entity, grown.margin, grown.scale)
    torch.testing.assert_close((found.logsumexp - found.target_logit).mean(), expected, rtol=0, atol=1e-9)
    entity = NEW + OLD - 1 - entity
    assert grown.eval()(models[2](Batch(image=images)), Batch(entity=entity)).loss > expected


def test_coverage_goes_on_where_the_moved_rows_stood(old):
    grown = objective(new_ids())
    grow_tables(grown, old.path, vocabulary(new_ids()))
    features = DualEncoder.from_config(ENCODER).double()(Batch(image=torch.zeros(2, 3, 32, 32)))
    with torch.no_grad():
        logs = grown(features, Batch(entity=torch.zeros(2, dtype=torch.int64))).logs
    moved = old.second_moment[OLD - KEPT :].ne(0).sum()
    assert 0 < moved < KEPT
    torch.testing.assert_close(logs["coverage"], moved / len(new_ids()), check_dtype=False)


def test_new_rows_start_from_vectors_if_there_are_some(old, tmp_path):
    file = tmp_path / "vectors.parquet"
    vectors = torch.randn(len(new_ids()), 16, generator=torch.Generator().manual_seed(0))
    pq.write_table(pa.table({"id": new_ids(), "vector": vectors.tolist()}), file)
    grown = objective(new_ids(), functools.partial(EntitySoftmax, label_vectors=str(file)))
    (line,) = grow_tables(grown, old.path, vocabulary(new_ids()))
    assert (
        line
        == "entity table: 30 of 56 rows by entity id, 26 new (from vectors), 11 of the checkpoint left out"
    )
    start = F.normalize(vectors, dim=1)[:, None].double()
    assert_moved(old, grown.table, grown.second_moment, start)


def test_a_table_that_is_not_there_or_is_another_is_told_and_keeps_its_start(old, tmp_path):
    two = functools.partial(MultiTask, objectives={"a": EntitySoftmax, "b": EntitySoftmax})
    for made, expected in (
        (
            objective(new_ids(), two),
            ["entity table objective.objectives.a keeps", "objective.objectives.b keeps"],
        ),
        (
            objective(new_ids(), functools.partial(EntitySoftmax, sub_centers=2)),
            [r"entity table of another shape, keeps its start: [41, 1, 16] for [56, 2, 16]"],
        ),
        (objective(new_ids(), embed_dim=8), ["[41, 1, 16] for [56, 1, 8]"]),
        (objective(new_ids(), CLIP), []),
    ):
        start = {name: value.clone() for name, value in made.state_dict().items()}
        lines = grow_tables(made, old.path, vocabulary(new_ids()))
        assert len(lines) == len(expected)
        assert all(part in line for part, line in zip(expected, lines, strict=True))
        assert all(torch.equal(value, start[name]) for name, value in made.state_dict().items())


def test_of_a_run_or_a_model_folder_only_the_encoders_are_taken(old):
    made = objective(new_ids())
    root = old.path.parent.parent
    assert grow_tables(made, root, vocabulary(new_ids())) == []
    assert grow_tables(made, root / "model", vocabulary(new_ids())) == []
    assert made.second_moment.eq(0).all()


def copied(old: Old, run: Path, folder: str = "checkpoints") -> Path:
    target = run / folder / old.path.name
    copy = shutil.copytree if old.path.is_dir() else shutil.copy
    target.parent.mkdir(parents=True)
    copy(old.path, target)
    return target


def test_without_the_vocabulary_of_the_checkpoint_rows_are_not_guessed(old, tmp_path):
    path = copied(old, tmp_path / "run")
    message = "vocabulary.arrow of its run .* lies neither beside it nor in the folders above; copy it there"
    with pytest.raises(InputError, match=message):
        grow_tables(objective(new_ids()), path, vocabulary(new_ids()))
    vocabulary(new_ids()).save(tmp_path / "run" / "vocabulary.arrow")  # of another run
    with pytest.raises(InputError, match=message):
        grow_tables(objective(new_ids()), path, vocabulary(new_ids()))
    # where the data set is the same, its own will do
    (line,) = grow_tables(objective(old_ids()), path, vocabulary(old_ids()))
    assert line == "entity table: 41 of 41 rows by entity id"


def test_a_consolidated_file_grows_as_its_checkpoint_does(old, tmp_path):
    write_one_file(old.path, tmp_path / "whole.ckpt")
    vocabulary(old_ids()).save(tmp_path / "vocabulary.arrow")
    grown = objective(new_ids())
    start = grown.table.clone()
    grow_tables(grown, tmp_path / "whole.ckpt", vocabulary(new_ids()))
    assert_moved(old, grown.table, grown.second_moment, start)


@pytest.mark.parametrize(
    ("folder", "place"), (("checkpoints", ""), ("checkpoints/best", ""), ("checkpoints", "checkpoints"))
)
def test_the_vocabulary_lies_in_the_folder_of_the_run_or_beside_the_checkpoint(folder, place, old, tmp_path):
    path = copied(old, tmp_path, folder)
    vocabulary(old_ids()).save(tmp_path / place)
    assert grow_tables(objective(new_ids()), path, vocabulary(new_ids()))[0].startswith(
        "entity table: 30 of 56"
    )

"""A run that is stopped anywhere goes on as if it had not been, on any number of ranks and workers."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from mofi_lightning.data.mixing import MixingLoader
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.types import InputError

# 48 rows in 3 steps a pass, 20 rows in 2.5 steps a pass: 15 steps are 5 and 6 whole passes
ROWS_OF_A_STEP = {"i2e": 16, "pairs": 8}
PASSES = {"i2e": 5, "pairs": 6}
STEPS = 15
STOP = 4  # in the middle of the second pass over both

Batches = list[dict[str, list[tuple[str, torch.Tensor, torch.Tensor, list[int]]]]]


@pytest.fixture(scope="module")
def sources(tmp_path_factory, rows, vocabulary) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mofi_lightning.data.writing.CHUNK_BYTES", 20_000)
        write_dataset(rows[:48], folder / "i2e", vocabulary)
        write_dataset((row._replace(entities=(), scores=()) for row in rows[50:70]), folder / "pairs")
    return {name: folder / name for name in ROWS_OF_A_STEP}


@pytest.fixture
def make_loaders(sources, make_data):
    """One loader for each rank, of the first `count` sources."""

    def make(count: int, ranks: int, num_workers: int, state: dict | None = None) -> list[MixingLoader]:
        taken = {name: (sources[name], n) for name, n in list(ROWS_OF_A_STEP.items())[:count]}
        loaders = [
            make_data(taken, STEPS, rank, ranks, num_workers=num_workers).train_dataloader()
            for rank in range(ranks)
        ]
        for loader in loaders if state is not None else []:
            loader.load_state_dict(state)
        return loaders

    return make


def read(loaders: list[MixingLoader], steps: int = STEPS) -> Batches:
    """The next global batches: of each source the rows of all ranks, in the order of the ranks."""
    batches: Batches = []
    # the shorter argument first: zip must not take one batch more from a rank
    for _, *shares in zip(range(steps), *loaders, strict=False):
        whole, start = {}, 0
        for source, rows in list(ROWS_OF_A_STEP.items())[: len(loaders[0].state_dict()["sources"])]:
            part = slice(start, start + rows // len(loaders))
            start = part.stop
            whole[source] = [
                (key, image, entity, ids[mask.bool()].tolist())
                for b in shares
                for key, image, entity, ids, mask in zip(
                    *(b[field][part] for field in ("key", "image", "entity")),
                    *(column[part] for column in b["text"]),
                    strict=True,
                )
            ]
        assert all(len(b["key"]) == start for b in shares)
        batches.append(whole)
    return batches


def assert_same(ours: Batches, theirs: Batches) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for source, rows in one.items():
            assert [row[0] for row in rows] == [row[0] for row in other[source]]
            for mine, yours in zip(rows, other[source], strict=True):
                assert (
                    torch.equal(mine[1], yours[1]) and torch.equal(mine[2], yours[2]) and mine[3] == yours[3]
                )


def assert_nothing_lost_or_repeated(batches: Batches, all_rows: dict[str, set[str]]) -> None:
    for source in batches[0]:
        keys = [row[0] for batch in batches for row in batch[source]]
        assert Counter(keys) == dict.fromkeys(all_rows[source], PASSES[source])
        # a step may hold the end of one pass and the begin of the next, so n passes are whole when read
        seen, steps_read = Counter(), 0
        for batch in batches:
            seen.update(row[0] for row in batch[source])
            steps_read += len(batch[source])
            complete, started = steps_read // len(all_rows[source]), -(-steps_read // len(all_rows[source]))
            assert all(complete <= seen[key] <= started for key in all_rows[source])


def stop_and_resume(make_loaders, count: int, before: tuple[int, int], after: tuple[int, int]) -> Batches:
    """All batches of a run that stops in the middle of a pass and goes on with (ranks, workers) `after`."""
    loaders = make_loaders(count, *before)
    first = read(loaders, STOP)
    states = [loader.state_dict() for loader in loaders]
    assert all(state == states[0] for state in states), "what rank 0 saves serves all ranks"
    del loaders
    resumed = make_loaders(count, *after, state=json.loads(json.dumps(states[0])))
    return first + read(resumed)


@pytest.fixture
def all_rows(rows) -> dict[str, set[str]]:
    return {"i2e": {row.key for row in rows[:48]}, "pairs": {row.key for row in rows[50:70]}}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_resumed_run_reads_what_the_undisturbed_one_reads(make_loaders, all_rows, count, workers, ranks):
    undisturbed = read(make_loaders(count, ranks, 0))
    continued = stop_and_resume(make_loaders, count, (ranks, workers), (ranks, workers))
    assert_same(continued, undisturbed)
    assert_nothing_lost_or_repeated(continued, all_rows)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, 0), (4, 0)),
        ((2, 0), (1, 1)),
        ((4, 1), (2, 2)),
    ],
)
def test_ranks_and_workers_may_change_at_a_resume(make_loaders, all_rows, before, after):
    continued = stop_and_resume(make_loaders, 2, before, after)
    assert_same(continued, read(make_loaders(2, 1, 0)))
    assert_nothing_lost_or_repeated(continued, all_rows)


@pytest.mark.parametrize("stop", [0, 1, 14, 15])
def test_a_run_can_stop_before_its_first_and_after_its_last_batch(make_loaders, stop):
    (loader,) = make_loaders(1, 1, 0)
    first = read([loader], stop)
    resumed = make_loaders(1, 1, 0, loader.state_dict())
    assert len(resumed[0]) == STEPS
    assert_same(first + read(resumed), read(make_loaders(1, 1, 0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": {"i2e": 16}}, "'i2e' with 32 of 170 rows a batch.* with 16 of 170"),
        ({"seed": 2}, "seed"),
        ({"sources": {"i2e": 32, "more": 8}}, "'more' with nothing"),
    ],
)
def test_a_state_of_another_run_is_refused(i2e, make_data, change, message):
    state = make_data({"i2e": (i2e, 32)}).train_dataloader().state_dict()
    taken = {name: (i2e, n) for name, n in change.pop("sources", {"i2e": 32}).items()}
    with pytest.raises(InputError, match=message):
        make_data(taken, **change).train_dataloader().load_state_dict(state)


def test_a_moved_data_set_resumes_and_one_with_other_rows_is_refused(
    sources, rows, vocabulary, make_data, tmp_path
):
    loader = make_data({"i2e": (sources["i2e"], 16)}).train_dataloader()
    next(iter(loader))
    state = loader.state_dict()
    moved = make_data({"i2e": (Path(shutil.copytree(sources["i2e"], tmp_path / "moved")), 16)})
    moved.train_dataloader().load_state_dict(state)
    one_other = [rows[0]._replace(text="another text"), *rows[1:48]]
    write_dataset(one_other, tmp_path / "other", vocabulary)
    other = make_data({"i2e": (tmp_path / "other", 16)}).train_dataloader()
    with pytest.raises(InputError, match=r"read source 'i2e' with 16 of 48 rows .*fingerprint") as refusal:
        other.load_state_dict(state)
    assert "the checkpoint's data set" in str(refusal.value) and "\n" not in str(refusal.value)

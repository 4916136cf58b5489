from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mofi_lightning.data.batching import BatchBuilder, Stream
from mofi_lightning.data.mixing import Mixture
from mofi_lightning.data.order import CHUNKS_PER_GROUP, PassOrder
from mofi_lightning.data.schema import Row
from mofi_lightning.data.texts import TextSampling
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.types import InputError


def assert_same(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one["key"] == other["key"]
        for name in ("image", "entity"):
            assert torch.equal(one[name], other[name])
        for one_tokens, other_tokens in zip(one["text"], other["text"], strict=True):
            assert torch.equal(one_tokens, other_tokens)


def test_the_number_of_workers_changes_nothing(i2e, make_data):
    sources = {"i2e": (i2e, 32)}
    assert_same(
        make_data(sources, num_workers=2).train_dataloader(),
        make_data(sources, num_workers=0).train_dataloader(),
    )


def test_global_generators_change_nothing_and_are_not_advanced(i2e, make_data):
    sources = {"i2e": (i2e, 32)}
    expected = list(make_data(sources).train_dataloader())
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert_same(make_data(sources, num_workers=1).train_dataloader(), expected)
    assert_same(make_data(sources).train_dataloader(), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_source_repeats_at_its_own_pace_and_every_row_comes_once_a_pass(i2e, plain, rows, make_data):
    # 170 rows, 34 a step: 5 steps a pass; 50 rows, 10 a step: 5 steps a pass in half the time of the other
    data = make_data({"i2e": (i2e, 34), "pairs": (plain, 20)}, max_steps=10, num_workers=1)
    batches = list(data.train_dataloader())
    assert {len(batch["key"]) for batch in batches} == {54}
    for first in (0, 5):
        seen = [key for batch in batches[first : first + 5] for key in batch["key"][:34]]
        assert Counter(seen) == Counter(row.key for row in rows)
    assert seen != [key for batch in batches[:5] for key in batch["key"][:34]]
    from_pairs = Counter(key for batch in batches for key in batch["key"][34:])
    assert from_pairs == Counter({row.key: 4 for row in rows[:50]})
    assert all((batch["entity"][34:] == -1).all() for batch in batches)


def test_rows_change_from_pass_to_pass(i2e, make_data):
    batches = list(make_data({"i2e": (i2e, 170)}, max_steps=2).train_dataloader())
    first, second = (dict(zip(b["key"], b["image"], strict=True)) for b in batches)
    assert first.keys() == second.keys()
    assert sum(torch.equal(first[key], second[key]) for key in first) < len(first) / 20


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batch_of_one_process(i2e, plain, make_data, world_size):
    sources = {"i2e": (i2e, 32), "pairs": (plain, 16)}
    whole = list(make_data(sources).train_dataloader())
    ranks = [
        list(make_data(sources, rank=r, world_size=world_size).train_dataloader()) for r in range(world_size)
    ]
    for step, batch in enumerate(whole):
        shares = [rank[step] for rank in ranks]
        for source in (slice(0, 32), slice(32, 48)):
            share = slice(source.start // world_size, source.stop // world_size)
            keys = [key for part in shares for key in part["key"][share]]
            assert keys == batch["key"][source]
            for name in ("image", "entity"):
                assert torch.equal(torch.cat([part[name][share] for part in shares]), batch[name][source])


def test_ranks_are_disjoint_and_complete_over_a_pass(i2e, rows, make_data):
    ranks = [make_data({"i2e": (i2e, 34)}, 5, rank, 2).train_dataloader() for rank in (0, 1)]
    keys = [{key for batch in rank for key in batch["key"]} for rank in ranks]
    assert not keys[0] & keys[1]
    assert keys[0] | keys[1] == {row.key for row in rows}


def test_rows_that_ranks_cannot_share_are_refused(i2e, make_data):
    with pytest.raises(InputError, match=r"'i2e' gives 33 rows to each batch, which 2 rank"):
        make_data({"i2e": (i2e, 33)}, world_size=2).train_dataloader()


@pytest.fixture
def damaged(tmp_path, rows) -> tuple[Path, set[str]]:
    """A data set of 30 rows, two without an image and one with a flipped byte; the keys of these."""
    bad = {rows[3].key, rows[4].key}
    some = [row._replace(image=b"no image") if row.key in bad else row for row in rows[:30]]
    write_dataset((row._replace(entities=(), scores=()) for row in some), tmp_path / "damaged")
    (chunk,) = (tmp_path / "damaged" / "shards").glob("*.bin")
    data = bytearray(chunk.read_bytes())
    data[data.index(rows[9].image) + 100] ^= 1
    chunk.write_bytes(data)
    return tmp_path / "damaged", bad | {rows[9].key}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_rows_are_replaced_counted_and_logged_once(damaged, rows, make_data, num_workers, caplog):
    path, bad = damaged
    data = make_data({"pairs": (path, 10)}, max_steps=6, num_workers=num_workers)
    batches = list(data.train_dataloader())
    keys = [key for batch in batches for key in batch["key"]]
    assert len(keys) == 60
    assert set(keys) == {row.key for row in rows[:30]} - bad
    # two passes: each bad row counts once a pass, also where bad rows follow each other
    assert data.bad_rows == {"pairs: no JPEG, PNG, GIF or WebP image": 4, "pairs: damaged row": 2}
    assert len(caplog.records) == 2
    again = list(make_data({"pairs": (path, 10)}, max_steps=6).train_dataloader())
    assert [key for batch in again for key in batch["key"]] == keys


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_source_without_any_usable_row_ends_with_one_line(tmp_path, make_data, num_workers, rows):
    write_dataset((row._replace(image=b"x", entities=(), scores=()) for row in rows[:30]), tmp_path / "bad")
    loader = make_data({"pairs": (tmp_path / "bad", 10)}, num_workers=num_workers).train_dataloader()
    with pytest.raises(InputError, match="'pairs' has no usable row") as caught:
        next(iter(loader))
    assert "\n" not in str(caught.value)


def test_a_shorter_source_than_a_batch_repeats_within_the_batch(tmp_path, rows, make_data):
    write_dataset((row._replace(entities=(), scores=()) for row in rows[:3]), tmp_path / "few")
    (batch,) = make_data({"pairs": (tmp_path / "few", 6)}, max_steps=1).train_dataloader()
    assert Counter(batch["key"]) == Counter({row.key: 2 for row in rows[:3]})


def test_texts_come_from_the_probabilities_of_the_data_module(i2e, make_data, tokenizer, vocabulary):
    data = make_data({"i2e": (i2e, 32)}, max_steps=2, texts=TextSampling(0, 1, 0))
    for batch in data.train_dataloader():
        for n, entity in enumerate(batch["entity"].tolist()):
            if entity >= 0:
                expected = tokenizer([vocabulary.names[entity]], 32).input_ids[0]
                length = int(batch["text"].attention_mask[n].sum())
                assert batch["text"].input_ids[n, :length].tolist() == expected[:length].tolist()


class RowsInChunks:
    """Rows in memory, in chunks of 32; records what it is told in advance and what is read."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.chunk_sizes = np.full(len(rows) // 32, 32)
        self.events: list[tuple[str, list[int]]] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        self.events.append(("read", [index // 32]))
        return self.rows[index]

    def prefetch(self, chunks: Sequence[int]) -> None:
        self.events.append(("hint", list(chunks)))


@pytest.fixture
def chunked(rows) -> RowsInChunks:
    return RowsInChunks([rows[0]._replace(key=str(n)) for n in range(64 * 32)])


def mixture(reader: RowsInChunks, rank: int = 0, world_size: int = 1) -> Mixture:
    stream = Stream("chunked", reader, PassOrder(reader.chunk_sizes, 1), 64, 1)
    builder = BatchBuilder(Preprocess(size=8), None, TextSampling(), None, None, 0)
    return Mixture([stream], builder, 100, rank, world_size)


@pytest.mark.parametrize("steps", [range(40), range(3, 40, 3)], ids=["alone", "one of three workers"])
def test_chunks_are_asked_for_once_and_before_they_are_read(chunked, steps):
    batches = mixture(chunked)
    ahead: list[int] = []
    for step in steps:
        chunked.events.clear()
        batches[step]
        hints = [chunks for what, chunks in chunked.events if what == "hint"]
        # 512 rows a group, 64 a step: only the first of these eight steps enters a new group
        entered = step == steps[0] or step // 8 != (step - steps.step) // 8
        assert len(hints) == entered
        if hints:
            assert chunked.events[0][0] == "hint"
            assert len(hints[0]) == 2 * CHUNKS_PER_GROUP, "this group and the next"
            assert step == steps[0] or set(hints[0][:CHUNKS_PER_GROUP]) <= set(ahead), "known since the last"
            ahead = hints[0]
        assert {chunks[0] for what, chunks in chunked.events if what == "read"} <= set(
            ahead[:CHUNKS_PER_GROUP]
        )


def test_a_rank_reads_and_asks_for_few_of_the_chunks(chunked):
    # in each group of 16 chunks a rank of 8 has two, and those beside them into which its share may stray
    hinted, read = set(), set()
    batches = mixture(chunked, rank=3, world_size=8)
    for step in range(32):  # one pass
        batches[step]
    hinted = {chunk for what, chunks in chunked.events if what == "hint" for chunk in chunks}
    read = [chunks[0] for what, chunks in chunked.events if what == "read"]
    assert len(read) == 2048 / 8
    assert len(set(read)) <= 4 * 6
    assert len(hinted) <= 5 * 10
    assert sum(chunk in hinted for chunk in read) > 0.99 * len(read)


def test_steps_that_end_one_group_and_begin_the_next_stay_with_the_rank_s_part_of_both(rows):
    reader = RowsInChunks([rows[0]] * (64 * 32))
    stream = Stream("chunked", reader, PassOrder(reader.chunk_sizes, 1), 384, 1)
    read = [
        {row // 32 for step in range(5) for _, _, row in stream.share(step, rank, 4)} for rank in range(4)
    ]
    assert max(len(chunks) for chunks in read) < 0.5 * 64

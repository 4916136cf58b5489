import logging
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from mofi_lightning.evaluation.embedding.store import EmbeddingStore, content_hashes
from mofi_lightning.types import InputError


def contents(first: int, last: int) -> np.ndarray:
    return content_hashes(str(number).encode() for number in range(first, last))


def vectors(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "model.images"


@pytest.mark.parametrize("feature_width", [0, 5])
def test_what_is_appended_is_read_back_in_any_order_by_another_process(path, feature_width):
    embeddings = vectors(700, 3)
    features = vectors(700, feature_width, seed=1) if feature_width else None
    first = EmbeddingStore(path)
    for start in range(0, 700, 100):
        rows = slice(start, start + 100)
        part = features[rows] if features is not None else None
        first.append(contents(start, start + 100), embeddings[rows], part, {})
    for store in (first, EmbeddingStore(path)):
        order = np.random.default_rng(0).permutation(700)
        found = store.read(contents(0, 700)[order])
        assert torch.equal(found[0], embeddings[order])
        assert torch.equal(found[1], embeddings[order] if features is None else features[order])
        assert (found[0] is found[1]) == (features is None)
        assert len(store) == 700


def test_what_is_not_there_is_nan_and_not_known(path):
    store = EmbeddingStore(path)
    store.append(contents(0, 2), vectors(2, 3), None, {})
    assert store.knows(contents(1, 4)).tolist() == [True, False, False]
    assert store.read(contents(1, 3))[0].isnan().all(dim=1).tolist() == [False, True]
    assert not EmbeddingStore(path.with_name("new")).knows(contents(0, 3)).any()


def test_a_file_cut_off_anywhere_keeps_its_whole_records_and_takes_the_rest_again(path):
    EmbeddingStore(path).append(contents(0, 4), vectors(4, 2), None, {})
    whole = path.read_bytes()
    record = 16 + 2 * 4 + 4
    header = len(whole) - 4 * record
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        store = EmbeddingStore(path)
        assert len(store) == max(0, size - header) // record
        store.append(contents(0, 4), vectors(4, 2), None, {})
        assert path.read_bytes() == whole


@pytest.mark.parametrize("place", [0, 16, 20, 25])
def test_a_flipped_bit_voids_one_record_which_is_said_once_and_made_again(path, caplog, place):
    EmbeddingStore(path).append(contents(0, 4), vectors(4, 2), None, {})
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) - 2 * 28 + place] ^= 1
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        store = EmbeddingStore(path)
    assert "1 embeddings are damaged and will be made again" in caplog.text
    assert store.knows(contents(0, 4)).tolist() == [True, True, False, True]
    store.append(contents(0, 4), vectors(4, 2), None, {})
    caplog.clear()
    again = EmbeddingStore(path)
    assert not caplog.text
    assert len(again) == 4
    assert torch.equal(again.read(contents(0, 4))[0], vectors(4, 2))


def test_two_processes_that_fill_a_file_write_nothing_twice(path):
    one, other = EmbeddingStore(path), EmbeddingStore(path)
    one.append(contents(0, 3), vectors(3, 2), None, {})
    other.append(contents(2, 5), torch.cat([vectors(1, 2, seed=9), vectors(2, 2, seed=8)]), None, {})
    one.append(contents(4, 6), vectors(2, 2, seed=7), None, {})
    assert len(one) == len(EmbeddingStore(path)) == 6
    assert torch.equal(one.read(contents(2, 3))[0], vectors(3, 2)[2:])
    assert torch.equal(one.read(contents(4, 5))[0], vectors(2, 2, seed=8)[1:])


def test_many_that_fill_a_file_at_once_write_nothing_twice_and_tear_nothing(path):
    embeddings = vectors(200, 2)

    def fill(seed: int) -> None:
        store = EmbeddingStore(path)
        for start in np.random.default_rng(seed).permutation(20) * 10:
            store.append(contents(start, start + 10), embeddings[start : start + 10], None, {})

    with ThreadPoolExecutor(4) as pool:  # each opens the file anew: for the lock they are processes
        list(pool.map(fill, range(4)))
    assert len(EmbeddingStore(path)) == 200
    assert path.stat().st_size == 64 + 200 * (16 + 2 * 4 + 4)
    assert torch.equal(EmbeddingStore(path).read(contents(0, 200))[0], embeddings)


def test_reasons_are_kept_although_their_file_was_torn(path):
    store = EmbeddingStore(path)
    store.append(contents(0, 0), torch.empty(0, 0), None, {contents(0, 1)[0]: "no image: 3 bytes"})
    failures = path.with_name(f"{path.name}.failures.jsonl")
    with failures.open("ab") as file:
        file.write(b'{"content": "00')
    store = EmbeddingStore(path)
    store.append(contents(0, 0), torch.empty(0, 0), None, {contents(1, 2)[0]: "damaged"})
    again = EmbeddingStore(path)
    assert again.knows(contents(0, 3)).tolist() == [True, True, False]
    assert [again.failure(content) for content in contents(0, 2)] == ["no image: 3 bytes", "damaged"]


def test_hashes_with_zeros_at_either_end_are_found(path):
    odd = np.array([b"\0" * 15 + b"x", b"x" + b"\0" * 15, b"xy" + b"\0" * 14], dtype="S16")
    store = EmbeddingStore(path)
    store.append(odd, vectors(3, 2), None, {odd[1]: "why"})
    again = EmbeddingStore(path)
    assert again.find(odd).tolist() == [0, 1, 2]
    assert again.failure(odd[1]) == "why"


def test_other_files_and_other_widths_are_refused(path):
    store = EmbeddingStore(path)
    store.append(contents(0, 1), vectors(1, 2), None, {})
    with pytest.raises(
        InputError, match="embeddings of 2 numbers and features of 0, the model gives 3 and 0"
    ):
        store.append(contents(1, 2), vectors(1, 3), None, {})
    path.write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="is no file of embeddings, or damaged; delete it"):
        EmbeddingStore(path)
    path.write_bytes(struct.pack("<8sIII44x", b"MOFIVEC1", 2, 0, 1))
    with pytest.raises(InputError, match="damaged"):
        EmbeddingStore(path)

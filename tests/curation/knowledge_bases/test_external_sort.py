from pathlib import Path

import numpy as np
import pytest

from mofi_lightning.curation.knowledge_bases import external_sort
from mofi_lightning.curation.knowledge_bases.external_sort import ArrayFile, Buckets, hash_of, mapped


def test_an_array_file_is_what_numpy_would_have_saved(tmp_path: Path) -> None:
    parts = [np.arange(5, dtype=np.int16), np.arange(0), np.arange(5, 300_000, dtype=np.int16)]
    with ArrayFile(tmp_path / "written.npy", np.int16) as file:
        for part in parts:
            file.append(part)
    np.save(tmp_path / "saved.npy", np.concatenate(parts).astype(np.int16))

    assert (tmp_path / "written.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()
    with ArrayFile(tmp_path / "empty.npy", np.float32):
        pass
    assert mapped(tmp_path / "empty.npy").shape == (0,)


@pytest.mark.parametrize("waiting", [100, 1_000_000])
@pytest.mark.parametrize("distinct", [True, False])
def test_buckets_give_what_one_sort_would(
    waiting: int, distinct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_sort, "_WAITING", waiting)
    draw = np.random.default_rng(0)
    hashes = draw.choice(draw.integers(2**64, size=300, dtype=np.uint64), 2_000)
    records = hashes[:, None] if distinct else np.stack([hashes, np.arange(2_000, dtype=np.uint64)], axis=1)
    buckets = Buckets(tmp_path / "buckets", records.shape[1], distinct)
    for start in range(0, 2_000, 37):
        buckets.add(records[start : start + 37])

    found = np.concatenate(list(buckets.sorted()))

    expected = sorted(set(hashes.tolist())) if distinct else sorted(map(tuple, records.tolist()))
    assert [tuple(row) if not distinct else row[0] for row in found.tolist()] == expected
    assert list(tmp_path.iterdir()) == []


def test_hashes_are_those_of_any_process() -> None:
    # BLAKE2b with a digest of 8 bytes, as `b2sum -l 64` prints it
    assert hash_of("") == int.from_bytes(bytes.fromhex("e4a6a0577479b2b4"), "little")
    assert hash_of("a") != hash_of("b")

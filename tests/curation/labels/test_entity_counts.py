from pathlib import Path

import numpy as np
import pytest

from mofi_lightning.curation.labels import entity_counts as module
from mofi_lightning.curation.labels.entity_counts import EntityCounts
from mofi_lightning.curation.labels.selection import Labels
from mofi_lightning.types import InputError

ENTITIES = 150


def drawn(seed: int, parts: int) -> list[Labels]:
    """Labels of parts, with frequent entities and many equal scores; an image names an entity once."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, ENTITIES + 1)
    made = []
    for part in range(parts):
        rows = np.arange(0 if part == 1 else 60, dtype=np.int32).repeat(2)
        chosen = [random.choice(ENTITIES, 2, replace=False, p=weights / weights.sum()) for _ in rows[::2]]
        scores = random.integers(-2, 3, len(rows)).astype(np.float32) / 2
        scores[scores == 0] *= random.choice([-1, 1], (scores == 0).sum())  # -0.0 equals 0.0
        made.append(Labels(rows, np.array(chosen, dtype=np.int32).reshape(-1), scores))
    return made


def naive(parts: list[Labels], max_images: int) -> set[tuple[int, int, int]]:
    """(part, row, entity) of the labels that are kept, by sorted lists."""
    kept = set()
    for entity in range(ENTITIES):
        images = [
            (-score, part, row)
            for part, labels in enumerate(parts)
            for row, named, score in zip(
                *(column.tolist() for column in (labels.rows, labels.entities, labels.scores)), strict=True
            )
            if named == entity
        ]
        kept |= {(part, row, entity) for _, part, row in sorted(images)[:max_images]}
    return kept


@pytest.mark.parametrize("max_images", [1, 2, 7, 40, 10_000])
@pytest.mark.parametrize("waiting", [1, 500, 1 << 20])
def test_the_cap_equals_a_naive_one(
    max_images: int, waiting: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAITING", waiting)
    parts = drawn(max_images, 9)
    counts = EntityCounts(ENTITIES, tmp_path / "shuffle")
    for part, labels in enumerate(parts):
        counts.add(part, labels)

    cuts = counts.cuts(max_images)
    kept = [labels.where(cuts.keeps(part, labels)) for part, labels in enumerate(parts)]

    found = {
        (part, row, entity)
        for part, labels in enumerate(kept)
        for row, entity in zip(labels.rows.tolist(), labels.entities.tolist(), strict=True)
    }
    assert found == naive(parts, max_images)
    after = np.bincount(np.concatenate([labels.entities for labels in kept]), minlength=ENTITIES)
    np.testing.assert_array_equal(after, np.minimum(counts.counts, max_images))
    assert not list((tmp_path / "shuffle").iterdir())


def test_counts_need_no_folder_without_a_cap() -> None:
    parts = drawn(0, 4)
    counts = EntityCounts(ENTITIES)
    for part, labels in enumerate(parts):
        counts.add(part, labels)

    expected = np.bincount(np.concatenate([labels.entities for labels in parts]), minlength=ENTITIES)
    assert counts.counts.dtype == np.int64
    np.testing.assert_array_equal(counts.counts, expected)
    assert all(counts.cuts(None).keeps(part, labels).all() for part, labels in enumerate(parts))
    with pytest.raises(ValueError, match="a cap needs a folder"):
        counts.cuts(3)


def test_files_of_an_interrupted_run_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING", 1)
    (labels,) = drawn(0, 1)
    for _ in range(2):
        counts = EntityCounts(ENTITIES, tmp_path)
        counts.add(0, labels)

    assert counts.counts.sum() == len(labels.rows)
    cuts = counts.cuts(1)

    kept = labels.where(cuts.keeps(0, labels))
    assert len(kept.rows) == len(set(labels.entities.tolist()))


def test_lost_labels_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING", 1)
    counts = EntityCounts(ENTITIES, tmp_path)
    for part, labels in enumerate(drawn(0, 4)):
        counts.add(part, labels)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-16])

    with pytest.raises(InputError, match="lost labels"):
        counts.cuts(1)


def test_parts_come_once_and_in_order() -> None:
    (labels,) = drawn(0, 1)
    counts = EntityCounts(ENTITIES)
    counts.add(3, labels)

    with pytest.raises(ValueError, match="part 3 comes after part 3"):
        counts.add(3, labels)

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mofi_lightning.curation.images.perceptual_hash import perceptual_hash
from mofi_lightning.curation.images.scoring import ImageScorer, partners
from mofi_lightning.curation.images.similarity import Moments
from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.dual_encoder import load

ROWS = np.array([3, 10, 11, 40], dtype=np.int32)


def unit(seed: int, *shape: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


VECTORS = unit(1, 4, 8)


def noise(seed: int) -> bytes:
    """A PNG of random blocks: every seed has its own perceptual hash."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks.repeat(4, axis=0).repeat(4, axis=1)).save(buffer, "PNG")
    return buffer.getvalue()


def embed_one_by_one(scorer: Path, images: Sequence[bytes]) -> np.ndarray:
    model = load(scorer)
    with torch.inference_mode():
        return torch.cat([model.encode_image(model.preprocess(decode(i))[None]) for i in images]).numpy()


def test_every_image_is_compared_with_its_candidates_and_those_of_its_partner(scorer: Path) -> None:
    images = [noise(seed) for seed in range(12)]
    candidates = [[3, 40], [], [11], [40, 3, 10], *[[10 if n % 2 else 11] for n in range(8)]]

    found = ImageScorer(load(scorer), ROWS, VECTORS).score(iter(images), candidates)

    embeddings = embed_one_by_one(scorer, images)
    hashes = np.array([perceptual_hash(decode(image)) for image in images], dtype=np.uint64)
    pairing = partners(hashes, np.ones(12, dtype=bool))
    columns = {row: n for n, row in enumerate(ROWS.tolist())}
    assert found.errors == {}
    assert np.array_equal(found.hashes, hashes)
    assert found.embeddings == pytest.approx(embeddings.astype(np.float16), abs=1e-3)
    shared = 0
    for row, named in enumerate(candidates):
        assert found.cosines[row] == pytest.approx(
            [embeddings[row] @ VECTORS[columns[e]] for e in named], abs=1e-5
        )
        partner = pairing[row]
        wrong = [
            np.nan if e in candidates[partner] else embeddings[partner] @ VECTORS[columns[e]] for e in named
        ]
        shared += np.isnan(wrong).sum()
        assert found.decoys[row] == pytest.approx(wrong, abs=1e-5, nan_ok=True)
    assert 0 < shared < 8  # both kinds were there to be compared
    assert found.moments is not None
    expected = Moments.of(embeddings)
    assert found.moments.count == 12
    assert found.moments.outer == pytest.approx(expected.outer, abs=1e-5)


def test_removed_and_broken_images_take_no_part(scorer: Path) -> None:
    images = [noise(seed) for seed in range(6)]
    holed = [images[0], None, b"no image", *images[1:], images[0][:60]]
    candidates = [[3], [3], [10], [11], [40], [3, 10], [10], [11], [40]]
    kept = [0, 3, 4, 5, 6, 7]
    scored = ImageScorer(load(scorer), ROWS, VECTORS)

    found = scored.score(holed, candidates)

    alone = scored.score(images, [candidates[row] for row in kept])
    assert sorted(found.errors) == [2, 8]
    assert found.errors[2].startswith("no JPEG, PNG, GIF or WebP image")
    for row in (1, 2, 8):
        assert found.cosines[row] is None
        assert found.decoys[row] is None
        assert found.hashes[row] == 0
    assert found.embeddings is not None
    assert np.flatnonzero(np.isnan(found.embeddings).any(axis=1)).tolist() == [1, 2, 8]
    for row, expected in zip(kept, alone.cosines, strict=True):
        assert found.cosines[row] == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(found.hashes[kept], alone.hashes)
    assert found.moments is not None
    assert found.moments.count == 6


def test_a_part_without_a_usable_image_is_scored_as_nothing(scorer: Path) -> None:
    scored = ImageScorer(load(scorer), ROWS, VECTORS)

    broken = scored.score([b"", None], [[3], []])
    empty = scored.score([], [])

    assert broken.cosines == [None, None]
    assert list(broken.errors) == [0]
    assert broken.moments is not None
    assert broken.moments.count == 0
    assert empty.cosines == []
    assert empty.embeddings is not None
    assert empty.embeddings.shape == (0, 8)


def test_without_a_model_images_are_only_decoded_and_hashed() -> None:
    images = [noise(0), b"no image", None, noise(1)]

    found = ImageScorer(None, ROWS[:0], VECTORS[:0]).score(images, [[3], [3], [10], []])

    assert found.cosines == found.decoys == [None] * 4
    assert list(found.errors) == [1]
    assert found.hashes[0] == perceptual_hash(decode(images[0]))
    assert found.hashes[1] == found.hashes[2] == 0
    assert found.embeddings is None
    assert found.moments is None


def test_threads_and_batches_change_nothing(scorer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [noise(seed) for seed in range(40)]
    candidates = [[int(ROWS[n % 4])] for n in range(40)]
    model = load(scorer)
    whole = ImageScorer(model, ROWS, VECTORS).score(images, candidates)

    threaded = ImageScorer(model, ROWS, VECTORS, threads=3).score(images, candidates)
    monkeypatch.setattr("mofi_lightning.curation.images.scoring._BATCH", 7)
    monkeypatch.setattr("mofi_lightning.curation.images.scoring._BLOCK", 5)
    small = ImageScorer(model, ROWS, VECTORS).score(images, candidates)

    assert threaded.cosines == whole.cosines
    assert str(threaded.decoys) == str(whole.decoys)  # NaN equals nothing, itself included
    assert np.array_equal(threaded.hashes, whole.hashes)
    assert np.array_equal(threaded.embeddings, whole.embeddings)
    for row in range(40):
        assert small.cosines[row] == pytest.approx(whole.cosines[row], abs=1e-6)
        assert small.decoys[row] == pytest.approx(whole.decoys[row], abs=1e-6, nan_ok=True)


def test_each_image_is_read_once_and_ahead_of_need_by_two_batches_only(
    scorer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mofi_lightning.curation.images.scoring._BATCH", 4)
    read: list[int] = []
    embedded: list[int] = []
    model = load(scorer)
    encode_image = model.encode_image

    def counted(images: torch.Tensor) -> torch.Tensor:
        embedded.append(len(images))
        assert len(read) <= sum(embedded) + 4
        return encode_image(images)

    def stream() -> object:
        for n in range(18):
            read.append(n)
            yield noise(n)

    model.encode_image = counted  # type: ignore[method-assign]
    ImageScorer(model, ROWS, VECTORS).score(stream(), [[3]] * 18)  # type: ignore[arg-type]

    assert embedded == [4, 4, 4, 4, 2]
    assert read == list(range(18))


@pytest.mark.parametrize("repeated", [1, 2, 25, 50])
def test_partners_are_a_permutation_without_fixed_points(repeated: int) -> None:
    hashes = np.random.default_rng(1).integers(1, 2**63, 120, dtype=np.uint64)
    usable = np.ones(120, dtype=bool)
    usable[::6] = False
    hashes[np.flatnonzero(usable)[:repeated]] = 7  # of 100

    pairing = partners(hashes, usable)

    assert (pairing[~usable] == -1).all()
    assert sorted(pairing[usable]) == np.flatnonzero(usable).tolist()
    assert (hashes[pairing[usable]] != hashes[usable]).all()
    assert np.array_equal(pairing, partners(hashes, usable))
    # no rotation of the rows themselves: neighbours in a corpus often show the same thing
    assert len(np.unique((pairing - np.arange(120))[usable])) > 40


def test_images_that_are_mostly_the_same_stay_without_partner() -> None:
    hashes = np.array([5, 5, 5, 5, 6], dtype=np.uint64)

    pairing = partners(hashes, np.ones(5, dtype=bool))

    assert (pairing == -1).sum() == 3
    paired = np.flatnonzero(pairing >= 0)
    assert (hashes[pairing[paired]] != hashes[paired]).all()
    assert partners(hashes[:1], np.ones(1, dtype=bool)).tolist() == [-1]
    assert partners(hashes, np.zeros(5, dtype=bool)).tolist() == [-1] * 5

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mofi_lightning.curation.scoring import (
    agreement,
    check_images,
    check_templates,
    entity_texts,
    standardised_similarity,
    undecodable,
)
from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig, load
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError


def normal(seed: int, *shape: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=shape) + 0.3
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_similarity_is_the_cosine_standardised_over_all_images() -> None:
    images, texts = normal(1, 50, 8), normal(2, 7, 8)
    rows, entities = np.array([0, 0, 3, 49]), np.array([6, 1, 1, 0])
    cosines = images @ texts.T
    expected = (cosines - cosines.mean(axis=0)) / cosines.std(axis=0)

    found = standardised_similarity(images, texts, rows, entities)

    assert found.dtype == np.float32
    assert found == pytest.approx(expected[rows, entities], abs=1e-5)


def test_undecodable_images_count_nowhere_and_score_nan() -> None:
    images, texts = normal(1, 20, 8), normal(2, 3, 8)
    rows, entities = np.arange(20), np.arange(20) % 3
    holed = np.insert(images, 5, np.nan, axis=0)
    moved = np.where(rows < 5, rows, rows + 1)

    found = standardised_similarity(holed, texts, moved, entities)

    assert found == pytest.approx(standardised_similarity(images, texts, rows, entities), abs=1e-6)
    assert np.isnan(standardised_similarity(holed, texts, np.array([5]), np.array([0]))).all()


def test_a_text_close_to_every_image_has_no_advantage() -> None:
    images = normal(1, 100, 16)
    hub = images.mean(axis=0) / np.linalg.norm(images.mean(axis=0))
    texts = np.stack([hub, images[7]])

    cosines = images @ texts.T
    hub_score, own_score = standardised_similarity(images, texts, np.array([7, 7]), np.array([0, 1]))

    assert cosines[:, 0].mean() > cosines[:, 1].mean()
    assert own_score > hub_score


def test_candidates_are_compared_as_one_by_one(scorer: Path, drawings: Sequence[bytes]) -> None:
    entities = [Entity("Q1", "red dot", (), "a circle"), Entity("Q2", "blue"), Entity("Q3", "green")]
    candidates = [[0, 2], [], [2], [2, 0], *[[0]] * (len(drawings) - 4)]
    templates = ["{name}", "{name}, {description}"]

    links = [[0.5 + 0.1 * e for e in found] for found in candidates]
    found, failed = check_images(scorer, drawings, candidates, links, entities, templates)

    model = load(scorer)
    with torch.inference_mode():
        images = torch.cat([model.encode_image(model.preprocess(decode(d))[None]) for d in drawings])
        texts = torch.stack([model.encode_text(entity_texts(e, templates)).mean(dim=0) for e in entities])
    cosines = (images @ torch.nn.functional.normalize(texts, dim=1).T).numpy()
    by_text = (cosines - cosines.mean(axis=0)) / cosines.std(axis=0)
    assert failed == {}
    for row, row_candidates in enumerate(candidates):
        expected = []
        for e in row_candidates:
            others = sum(
                links[other][candidates[other].index(e)] * images[other]
                for other in range(len(drawings))
                if other != row and e in candidates[other]
            )
            to_others = (images @ torch.nn.functional.normalize(others, dim=0)).numpy()
            by_images = (to_others[row] - to_others.mean()) / to_others.std()
            expected.append((by_text[row, e] + by_images) / 2)
        assert found[row] == pytest.approx(expected, abs=5e-3)


def test_an_entity_of_one_image_has_no_agreement_and_undecodable_images_take_no_part() -> None:
    images = normal(3, 6, 4)
    holed = np.insert(images, 2, np.nan, axis=0)
    rows, entities = np.array([0, 1, 3, 4]), np.array([0, 0, 1, 0])
    weights = np.array([0.9, 0.2, 0.5, 0.4], dtype=np.float32)

    found = agreement(holed, np.append(rows, 2), np.append(entities, 0), np.append(weights, np.float32(1)))

    assert np.isnan(found[[2, 4]]).all()
    moved = np.where(rows > 2, rows - 1, rows)
    assert found[:4] == pytest.approx(agreement(images, moved, entities, weights), abs=1e-6, nan_ok=True)


def test_the_image_that_shows_something_else_agrees_least() -> None:
    images = normal(4, 200, 16)
    images[:5] = images[0] + 0.02 * normal(5, 5, 16)
    images[:5] /= np.linalg.norm(images[:5], axis=1, keepdims=True)
    rows = np.array([0, 1, 2, 3, 4, 150])
    found = agreement(images, rows, np.zeros(6, dtype=np.int64), np.ones(6, dtype=np.float32))
    assert found[:5].min() > 2 > found[5]


def test_a_broken_image_is_named_and_the_others_are_scored(scorer: Path, drawings: Sequence[bytes]) -> None:
    images = [drawings[0], b"no image", *drawings[1:]]

    found, failed = check_images(
        scorer, images, [[0]] * len(images), [[1.0]] * len(images), [Entity("Q1", "dot")], ["{name}"]
    )

    assert list(failed) == [1]
    assert np.isnan(found[1]).all()
    assert not np.isnan(found[0]).any()
    assert undecodable(images) == failed


def test_unusable_scorers_are_explained(tmp_path: Path, drawings: Sequence[bytes]) -> None:
    (tmp_path / "empty").mkdir()
    DualEncoder.from_config(DualEncoderConfig(embed_dim=8)).save(tmp_path / "images_only")
    arguments = (drawings, [[0]] * len(drawings), [[1.0]] * len(drawings), [Entity("Q1", "dot")], ["{name}"])

    with pytest.raises(InputError, match="has no text encoder"):
        check_images(tmp_path / "images_only", *arguments)
    with pytest.raises(InputError, match="empty"):
        check_images(tmp_path / "empty", *arguments)


def test_templates_take_name_and_description() -> None:
    templates = ["a photo of a {name}", "{name}, {description}"]

    assert entity_texts(Entity("Q1", "cat", (), "a pet"), templates) == ["a photo of a cat", "cat, a pet"]
    assert entity_texts(Entity("Q1", "cat"), templates) == ["a photo of a cat", "cat"]


@pytest.mark.parametrize("template", ["{title}", "{}", "{name"])
def test_faulty_templates_are_named(template: str) -> None:
    with pytest.raises(InputError, match="may use"):
        check_templates([template])
    with pytest.raises(InputError, match="templates is empty"):
        check_templates([])

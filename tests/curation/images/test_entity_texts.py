from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mofi_lightning.curation.images.entity_texts import check_templates, entity_texts, entity_vectors
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig, load
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError

ENTITIES = [
    Entity("Q1", "red dot", (), "a circle"),
    Entity("Q2", "blue", ("a", "b")),
    Entity("Q3", "red dot", (), "art"),
]
TEMPLATES = ["{name}", "a picture of {alias}", "{name}, {description}"]


def test_templates_take_name_alias_and_description() -> None:
    cat = Entity("Q1", "cat", ("puss", "kitty"), "a pet")

    assert entity_texts(cat, "a photo of a {name}") == ["a photo of a cat"]
    assert entity_texts(cat, "{name}, {description}") == ["cat, a pet"]
    assert entity_texts(cat, "{alias}, {description}") == ["puss, a pet", "kitty, a pet"]
    assert entity_texts(Entity("Q1", "cat"), "{name}, {description}") == ["cat"]
    assert entity_texts(Entity("Q1", "cat"), "a {alias}") == ["a cat"]
    assert entity_texts(cat, "a photo of {name} ({description})") == ["a photo of cat (a pet)"]


def test_brackets_around_an_empty_description_go_with_it() -> None:
    cat, function = Entity("Q1", "cat"), Entity("Q2", "main()")

    assert entity_texts(cat, "a photo of {name} ({description})") == ["a photo of cat"]
    assert entity_texts(cat, "a photo of {name} [ {description} ], a pet") == ["a photo of cat, a pet"]
    assert entity_texts(function, "the {name} ({description})") == ["the main()"]


def test_of_very_many_aliases_the_first_count() -> None:
    many = Entity("Q1", "cat", tuple(f"cat {n}" for n in range(100)))

    assert entity_texts(many, "{alias}") == [f"cat {n}" for n in range(32)]


FORMATS = ["{name:d}", "{name!x}", "{name!r}", "{name:{alias}}", "{name:>9}"]


@pytest.mark.parametrize("template", ["{title}", "{}", "{name", "{name.title}", "{name[0]}", *FORMATS])
def test_faulty_templates_are_named(template: str) -> None:
    with pytest.raises(InputError, match="may use"):
        check_templates([template])
    with pytest.raises(InputError, match="templates is empty"):
        check_templates([])


def test_a_vector_is_the_normalised_mean_of_the_embeddings_of_the_texts(scorer: Path) -> None:
    model = load(scorer)
    with torch.inference_mode():
        means = [[model.encode_text(entity_texts(e, t)).mean(dim=0) for t in TEMPLATES] for e in ENTITIES]
        mean = torch.stack([torch.stack(of_templates).mean(dim=0) for of_templates in means])
    expected = torch.nn.functional.normalize(mean, dim=1).numpy()

    found = entity_vectors(model, iter(ENTITIES), TEMPLATES)

    assert found.dtype == np.float32
    assert found == pytest.approx(expected, abs=1e-6)


def test_equal_texts_are_embedded_once(scorer: Path) -> None:
    model = load(scorer)
    seen: list[str] = []
    encode_text = model.encode_text

    def counted(texts: Sequence[str]) -> torch.Tensor:
        seen.extend(texts)
        return encode_text(texts)

    model.encode_text = counted  # type: ignore[method-assign, assignment]
    entity_vectors(model, ENTITIES, TEMPLATES)

    texts = [text for entity in ENTITIES for template in TEMPLATES for text in entity_texts(entity, template)]
    assert sorted(seen) == sorted(set(texts))
    assert len(seen) < len(texts)


def test_entities_beyond_a_block_keep_their_order(scorer: Path) -> None:
    model = load(scorer)
    many = [Entity(f"Q{n}", f"thing {n % 7}") for n in range(1100)]

    found = entity_vectors(model, many, ["{name}"])

    assert found.shape == (1100, 8)
    assert found == pytest.approx(entity_vectors(model, many[:7], ["{name}"])[np.arange(1100) % 7], abs=1e-6)


def test_models_without_text_and_empty_lists_are_refused(scorer: Path) -> None:
    images_only = DualEncoder.from_config(DualEncoderConfig(embed_dim=8))
    with pytest.raises(InputError, match="no text tower"):
        entity_vectors(images_only, ENTITIES, TEMPLATES)
    with pytest.raises(InputError, match="no text names an entity"):
        entity_vectors(load(scorer), [], TEMPLATES)

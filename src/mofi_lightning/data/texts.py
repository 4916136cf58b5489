"""Which entity and which text a row trains with."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from mofi_lightning.data.schema import Row
from mofi_lightning.types import InputError, Vocabulary


class Label(NamedTuple):
    """The class id a row trains with (-1 for none) and the text that goes with it."""

    entity: int
    text: str


def entity_text(name: str, description: str) -> str:
    """Name and description as one text; the name alone where there is no description.

    Example:
        >>> entity_text("jaguar", "large cat of the Americas")
        'jaguar, large cat of the Americas'
    """
    return f"{name}, {description}" if description else name


@dataclass(frozen=True)
class TextSampling:
    """Probabilities with which a row's text is drawn; they sum to one.

    A row without entity uses its alt-text, a row with an empty alt-text its entity. MOFI draws among these
    three texts (arXiv 2306.07952, section 3.3); the probabilities are unpublished.

    Attributes:
        alt_text: of the text that came with the image.
        name: of the name of the row's entity.
        name_and_description: of its name and description.
    """

    alt_text: float = 0.4
    name: float = 0.3
    name_and_description: float = 0.3

    def __post_init__(self) -> None:
        parts = (self.alt_text, self.name, self.name_and_description)
        if min(parts) < 0 or abs(sum(parts) - 1) > 1e-6:
            raise InputError(f"text probabilities must be at least 0 and sum to 1, not {parts}")

    def draw(self, row: Row, vocabulary: Vocabulary | None, generator: Random) -> Label:
        """Draw one of the row's entities, uniformly, and a text for it."""
        choice = generator.random()
        if not row.entities or vocabulary is None:
            return Label(-1, row.text)
        entity = row.entities[int(generator.random() * len(row.entities))]
        # without an alt-text, what would have been its share falls to the entity's texts in proportion
        alt_text = self.alt_text if row.text else 0.0
        choice *= alt_text + self.name + self.name_and_description
        if choice < alt_text:
            return Label(entity, row.text)
        name = vocabulary.names[entity]
        if choice < alt_text + self.name:
            return Label(entity, name)
        return Label(entity, entity_text(name, vocabulary.descriptions[entity]))

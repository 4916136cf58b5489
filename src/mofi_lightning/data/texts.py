"""Which entity and which text a row trains with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from mofi_lightning.data.schema import Row
from mofi_lightning.types import InputError, Vocabulary

# Unicode's category Cc, and lone surrogates
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Label(NamedTuple):
    """The class id a row trains with (-1 for none) and the text that goes with it."""

    entity: int
    text: str


def clean(text: str) -> str:
    r"""`text` on one line: control characters and lone surrogates are spaces, runs of white space one.

    Example:
        >>> clean("  red\x00 \n apple\u2003")
        'red apple'
    """
    if not text.isprintable():  # so are almost all
        text = _CONTROL.sub(" ", text)
    return " ".join(text.split())


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

    A row without entity uses its alt-text, a row with an empty alt-text its entity. Texts are cleaned first
    (`clean`), so an alt-text of white space and control characters is an empty one. MOFI draws among these
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
        text = clean(row.text)
        if not row.entities or vocabulary is None:
            return Label(-1, text)
        entity = row.entities[int(generator.random() * len(row.entities))]
        # without an alt-text, what would have been its share falls to the entity's texts in proportion
        alt_text = self.alt_text if text else 0.0
        choice *= alt_text + self.name + self.name_and_description
        if choice < alt_text:
            return Label(entity, text)
        name = clean(vocabulary.names[entity])
        if choice < alt_text + self.name:
            return Label(entity, name)
        return Label(entity, entity_text(name, clean(vocabulary.descriptions[entity])))

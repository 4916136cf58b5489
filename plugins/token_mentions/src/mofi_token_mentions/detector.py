"""The detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
from mofi_lightning.curation.knowledge_bases.names import LONGEST_TEXT, normalise
from mofi_lightning.curation.texts.mentions import MentionDetector
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from transformers import TokenClassificationPipeline


@dataclass(frozen=True)
class TokenClassifierDetector(MentionDetector):
    """The entities that a token classifier of Hugging Face (BERT for NER and its kind) marks in a text.

    Neighbouring tokens of one entity are joined (`aggregation_strategy="simple"`). A text is read as far as
    the model's positions reach. Works on one device, in batches.

    Args:
        model: a folder with a saved model and its fast tokenizer, or a model on the Hugging Face hub.
        types: labels of the entities that count, without `B-` and `I-`; all of them if empty.
        least: the least mean probability of an entity's tokens.
        batch_size: number of texts that the model reads at once.
        device: where the model runs.
    """

    model: str
    types: tuple[str, ...] = ()
    least: float = 0.5
    batch_size: int = 32
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise InputError(f"least of TokenClassifierDetector is {self.least}; give a probability, 0 to 1")
        if self.batch_size < 1:
            raise InputError(f"batch_size of TokenClassifierDetector is {self.batch_size}; give 1 or more")

    def find(self, texts: Sequence[str], knowledge_base: KnowledgeBase) -> list[list[str]]:
        """See `MentionDetector`.

        Raises:
            InputError: `model` cannot be loaded, lacks weights, classifies no tokens, or knows none of
                `types`.
        """
        classify = _load(self.model, self.device)
        names = set(classify.model.config.label2id or ()) - {"O"}
        labels = {str(name).removeprefix("B-").removeprefix("I-") for name in names}
        if self.types and not labels & set(self.types):
            raise InputError(
                f"token classifier {self.model!r} has no entity of types {', '.join(self.types)}; "
                f"it has {', '.join(sorted(labels))}"
            )
        # the pipeline refuses a text without tokens
        marked = {index: text[:LONGEST_TEXT] for index, text in enumerate(texts) if text.strip()}
        found: list[list[str]] = [[] for _ in texts]
        answers: list[list[dict[str, Any]]] = []
        if marked:
            answers = classify(list(marked.values()), batch_size=self.batch_size)
        for (index, text), entities in zip(marked.items(), answers, strict=True):
            found[index] = [
                normalise(text[entity["start"] : entity["end"]])
                for entity in entities
                if entity["score"] >= self.least and (not self.types or entity["entity_group"] in self.types)
            ]
        return found


@cache
def _load(model: str, device: str) -> TokenClassificationPipeline:
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    from mofi_lightning.encoders.peers import most_tokens

    try:
        # safetensors only: other files of weights may run code when they are read
        classifier, information = AutoModelForTokenClassification.from_pretrained(
            model, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(model, use_fast=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"token classifier {model!r} cannot be loaded: {reason}") from error
    if not (classifier.config.architectures or [""])[0].endswith("ForTokenClassification"):
        raise InputError(
            f"model {model!r} is a {', '.join(classifier.config.architectures or ['model'])}, no token "
            "classifier; choose one whose architecture ends in ForTokenClassification"
        )
    if missing := sorted(information["missing_keys"]):
        raise InputError(
            f"token classifier {model!r} lacks {len(missing)} of its weights, such as {missing[0]}, which "
            "would be random; save or download it again"
        )
    positions = getattr(classifier.config, "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.model_max_length = most_tokens(classifier, tokenizer, positions)
    return pipeline(
        "token-classification",
        model=classifier,
        tokenizer=tokenizer,
        device=device,
        aggregation_strategy="simple",
    )

"""The contracts between the rooms of the library.

Shapes: B rows of a batch, L tokens of a text, D width of the shared embedding space, F width of the image
features before the projection, T tokens of an image, C entities of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypedDict

if TYPE_CHECKING:
    from torch import Tensor


class InputError(ValueError):
    """What the user gave cannot be used; the message names the thing, the value and the way out.

    The command line prints it as one line and exits with 2; a library user catches it as a ValueError.
    """


class Tokens(NamedTuple):
    """Token ids `[B, L]` int64 and attention mask `[B, L]` int64 (1 for a token, 0 for padding)."""

    input_ids: Tensor
    attention_mask: Tensor


class Batch(TypedDict, total=False):
    """The rows of one step on one rank.

    Attributes:
        image: uint8 in 0..255 or floating point in 0..1, `[B, 3, H, W]`, never normalised.
        text: the rows' texts; present for all rows or for none.
        entity: int64 `[B]`, class ids of the vocabulary, -1 for a row without an entity.
        key: the rows' keys, unique within their source.
    """

    image: Tensor
    text: Tokens
    entity: Tensor
    key: list[str]


class Vocabulary(Protocol):
    """The entities of a data set; the row number is the class id."""

    @property
    def ids(self) -> Sequence[str]:
        """Identifiers in the knowledge base."""

    @property
    def names(self) -> Sequence[str]:
        """Preferred names."""

    @property
    def descriptions(self) -> Sequence[str]:
        """One line of text an entity; empty where the knowledge base has none."""

    @property
    def counts(self) -> Sequence[int]:
        """Number of images an entity."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Embeddings:
    """What the encoders made of a batch.

    Attributes:
        image: `[B, D]`, L2-normalised, at least fp32.
        text: `[B, D]`, L2-normalised, at least fp32; None without text encoder or texts.
        image_features: `[B, F]`, before the projection; as the tokens, bf16 where the encoders compute so.
        teacher: `[B, E]`, output of the frozen image encoder `model.teacher`, if there is one.
        image_tokens: `[B, T, F]`, when an objective asks for it.
        text_tokens: `[B, L, F']`, when an objective asks for it.
        text_tokens_mask: `[B, L]`, 1 where `text_tokens` is a token.
    """

    image: Tensor
    text: Tensor | None = None
    image_features: Tensor | None = None
    teacher: Tensor | None = None
    image_tokens: Tensor | None = None
    text_tokens: Tensor | None = None
    text_tokens_mask: Tensor | None = None


@dataclass(frozen=True)
class ObjectiveSpec:
    """What an objective is built from.

    Attributes:
        embed_dim: D, width of the shared embedding space.
        feature_dim: F, width of the image features before the projection.
        vocabulary: the entities of the data set; None where the data carries none.
        text_feature_dim: F', width of the text tokens; None without a text encoder.
        teacher_dim: E, width of the teacher's output; None without a teacher.
    """

    embed_dim: int
    feature_dim: int
    vocabulary: Vocabulary | None = None
    text_feature_dim: int | None = None
    teacher_dim: int | None = None


class ObjectiveOutput(NamedTuple):
    """Loss (0-D; its mean over ranks is the loss of the global batch) and detached scalars to log."""

    loss: Tensor
    logs: Mapping[str, Tensor]

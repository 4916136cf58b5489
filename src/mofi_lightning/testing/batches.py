"""Random embeddings and labels, as an objective gets them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.types import Batch, Embeddings, ObjectiveSpec, Tokens

IMAGE_TOKENS = 2
TEXT_TOKENS = 4

# the tensors of `Embeddings` that a field of `Objective.requires` stands for
_TENSORS_OF = {
    "text": ("text", "text_tokens", "text_tokens_mask"),
    "teacher": ("teacher",),
    "image_tokens": ("image_tokens",),
    "text_tokens": ("text_tokens", "text_tokens_mask"),
}

_SYLLABLES = ("ba", "do", "fi", "ku", "la", "mo", "ne", "pi", "ru", "ta")


def synthetic_vocabulary(num_entities: int) -> EntityVocabulary:
    """Entities `S000000`, `S000001`, ... with pronounceable names, the same for every call."""
    names = [" ".join(_SYLLABLES[int(digit)] for digit in f"{number:04d}") for number in range(num_entities)]
    return EntityVocabulary.from_columns(
        ids=[f"S{number:06d}" for number in range(num_entities)],
        names=names,
        descriptions=[f"pattern number {number}" for number in range(num_entities)],
        counts=[100] * num_entities,
    )


def synthetic_spec(num_entities: int, embed_dim: int) -> ObjectiveSpec:
    """A spec that leaves nothing out; its widths all differ, so that none passes for another."""
    return ObjectiveSpec(
        embed_dim=embed_dim,
        feature_dim=embed_dim + 4,
        vocabulary=synthetic_vocabulary(num_entities),
        text_feature_dim=embed_dim + 2,
        teacher_dim=embed_dim + 6,
    )


class Rows(NamedTuple):
    """What an objective is called with."""

    embeddings: Embeddings
    batch: Batch


def random_rows(spec: ObjectiveSpec, labelled: Sequence[bool], seed: int) -> Rows:
    """Rows with every field, in torch's default dtype.

    Entities repeat within the batch, and one text, once in each half of the rows. A text has 1 to
    `TEXT_TOKENS` tokens, in the second half at most half as many; behind its tokens stands noise, as behind a
    transformer's.

    Args:
        spec: the widths and the vocabulary.
        labelled: for each of the B rows, whether it has an entity.
        seed: of all that is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(labelled)

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator, dtype=torch.float64).to(
            torch.get_default_dtype()
        )

    longest = torch.tensor([TEXT_TOKENS] * (rows // 2) + [TEXT_TOKENS // 2] * (rows - rows // 2))
    lengths = 1 + (torch.rand(rows, generator=generator) * longest).long()
    lengths[0], lengths[1], lengths[-1] = TEXT_TOKENS, TEXT_TOKENS // 2, TEXT_TOKENS // 2
    mask = (torch.arange(TEXT_TOKENS) < lengths[:, None]).long()
    # every third entity: few enough to repeat, and from all over the vocabulary
    thirds = len(spec.vocabulary) // 3 if spec.vocabulary else 1
    entity = 3 * torch.randint(thirds, (rows,), generator=generator)
    entity[~torch.tensor(labelled)] = -1
    ids = torch.randint(3, 250, mask.shape, generator=generator) * mask
    ids[1] = ids[-1]
    embeddings = Embeddings(
        image=F.normalize(normal(spec.embed_dim), dim=1),
        text=F.normalize(normal(spec.embed_dim), dim=1),
        image_features=normal(spec.feature_dim),
        teacher=F.normalize(normal(spec.teacher_dim or 1), dim=1),
        image_tokens=normal(IMAGE_TOKENS, spec.feature_dim),
        text_tokens=normal(TEXT_TOKENS, spec.text_feature_dim or 1),
        text_tokens_mask=mask,
    )
    keys = [f"{seed}-{row}" for row in range(rows)]
    return Rows(embeddings, Batch(text=Tokens(ids, mask), entity=entity, key=keys))


def take(rows: Rows, index: Tensor) -> Rows:
    """The rows at `index`, their texts no longer than the longest of them."""
    mask = rows.embeddings.text_tokens_mask
    length = TEXT_TOKENS if mask is None else int(mask[index].sum(1).max())
    cut = {"text_tokens", "text_tokens_mask"}
    embeddings = map_tensors(rows, lambda name, x: x[index][:, :length] if name in cut else x[index])
    batch = dict(rows.batch)
    batch["key"] = [rows.batch["key"][i] for i in index.tolist()]
    if "entity" in rows.batch:
        batch["entity"] = rows.batch["entity"][index]
    if "text" in rows.batch:
        batch["text"] = Tokens(*(part[index][:, :length] for part in rows.batch["text"]))
    return Rows(embeddings.embeddings, cast("Batch", batch))


def without(rows: Rows, fields: Collection[str]) -> Rows:
    """The rows as a data set and a model without `fields` would give them."""
    missing = {name for field in fields for name in _TENSORS_OF.get(field, ())}
    none: dict[str, Any] = dict.fromkeys(missing)
    embeddings = dataclasses.replace(rows.embeddings, **none)
    batch = {name: value for name, value in rows.batch.items() if name not in fields}
    return Rows(embeddings, cast("Batch", batch))


def map_tensors(rows: Rows, change: Callable[[str, Tensor], Tensor]) -> Rows:
    """`change(name, tensor)` of every tensor of the embeddings."""
    return Rows(
        dataclasses.replace(
            rows.embeddings,
            **{name: change(name, x) for name, x in vars(rows.embeddings).items() if x is not None},
        ),
        rows.batch,
    )


def leaves(rows: Rows) -> tuple[Rows, dict[str, Tensor]]:
    """A copy whose trainable embeddings are leaves that collect gradients, and these leaves by name."""
    fixed = {"teacher", "text_tokens_mask"}
    made: dict[str, Tensor] = {}

    def leaf(name: str, x: Tensor) -> Tensor:
        if name in fixed:
            return x.clone()
        made[name] = x.detach().clone().requires_grad_()
        return made[name]

    batch = {name: _copy(value) for name, value in rows.batch.items()}
    return Rows(map_tensors(rows, leaf).embeddings, cast("Batch", batch)), made


def changes(rows: Rows, original: Rows) -> list[str]:
    """A finding for whatever is no longer as in `original`, of which `rows` was a copy."""
    before, now = vars(original.embeddings), vars(rows.embeddings)
    batch: dict[str, Any] = dict(rows.batch)
    names = [f"embeddings.{name}" for name, x in now.items() if not _same(x, before[name])]
    fields = dict.fromkeys([*original.batch, *batch])
    names += [f"{n!r} of the batch" for n in fields if not _same(batch.get(n), original.batch.get(n))]
    return [f"changes {name} in place, which others read after it; work on a copy" for name in names]


def _copy(value: Any) -> Any:
    if isinstance(value, Tokens):
        return Tokens(*(part.clone() for part in value))
    return value.clone() if isinstance(value, Tensor) else list(value)


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return torch.equal(value, other)
    if isinstance(value, Tokens) and isinstance(other, Tokens):
        return all(map(torch.equal, value, other))
    return type(value) is type(other) and bool(value == other)


def half_labelled(rows: int) -> list[bool]:
    """Every other row has a label: as many in each half of the rows."""
    return [row % 2 == 0 for row in range(rows)]


def first_half_labelled(rows: int) -> list[bool]:
    """Most rows of the first half have a label, none of the second."""
    return [row % 4 < 3 and row < rows // 2 for row in range(rows)]

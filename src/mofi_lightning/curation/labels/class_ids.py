"""Class ids: which entities are classes, and under which number, stable from one build to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mofi_lightning.types import InputError

# entities whose identifiers are looked up at a time
_BLOCK = 65_536


def assign_class_ids(
    counts: NDArray[np.int64],
    min_images: int,
    ids: Callable[[NDArray[np.int32]], Sequence[str]],
    previous_ids: Sequence[str] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Number the entities that have enough images.

    At the first build they are sorted by identifier. With the vocabulary of an earlier build, its identifiers
    keep their numbers, however few images they have now; new ones follow, sorted among themselves.

    Args:
        counts: images of each entity of the knowledge base, int64 `[E]`.
        min_images: the fewest images of a new class.
        ids: the identifiers of given rows of the knowledge base, all different (`KnowledgeBase.ids`).
        previous_ids: identifiers of the earlier vocabulary by class id.

    Returns:
        The row of the knowledge base of each class, int32 `[C]`, -1 for an earlier class whose entity the
        knowledge base no longer has; and the class of each entity, int32 `[E]`, -1 for none.

    Raises:
        InputError: an identifier comes twice in the earlier vocabulary.
    """
    class_of = np.full(len(counts), -1, dtype=np.int32)
    earlier = {identifier: number for number, identifier in enumerate(previous_ids or ())}
    if len(earlier) < len(previous_ids or ()):
        twice = next(i for number, i in enumerate(previous_ids or ()) if earlier[i] != number)
        raise InputError(f"entity {twice!r} comes twice in the earlier vocabulary; every class has its own")
    if earlier:
        for start in range(0, len(counts), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(counts)), dtype=np.int32)
            class_of[rows] = [earlier.get(identifier, -1) for identifier in ids(rows)]
    known = np.flatnonzero(class_of >= 0)
    new = np.flatnonzero((counts >= min_images) & (class_of < 0)).astype(np.int32)
    new = new[sorted(range(len(new)), key=list(ids(new)).__getitem__)]
    class_of[new] = np.arange(len(earlier), len(earlier) + len(new))

    kb_rows = np.full(len(earlier) + len(new), -1, dtype=np.int32)
    kb_rows[class_of[known]] = known
    kb_rows[len(earlier) :] = new
    return kb_rows, class_of

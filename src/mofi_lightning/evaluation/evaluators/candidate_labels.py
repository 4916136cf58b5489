"""DeViSE's measures of images against candidate labels, for any vectors of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mofi_lightning.evaluation.base import Scores
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.embedding.embedder import LabelledImages
from mofi_lightning.evaluation.measures.hierarchical_precision import hierarchical_precision
from mofi_lightning.evaluation.measures.label_hierarchy import LabelHierarchy
from mofi_lightning.evaluation.measures.zero_shot import zero_shot_rank
from mofi_lightning.types import InputError


@dataclass(frozen=True)
class Protocol:
    """Which images are measured against which labels.

    Attributes:
        prefix: of the measures' names.
        images: bool `[C]`, the classes whose images are measured.
        candidates: bool `[C]`, the classes that compete; those of the images among them.
    """

    prefix: str
    images: Tensor
    candidates: Tensor


def protocols(data: EvaluationSet, images: LabelledImages) -> tuple[list[Protocol], tuple[str, ...]]:
    """Images of unseen classes against the unseen (`unseen_`) and against all (`generalized_`), and notes.

    None where the data does not tell seen from unseen.
    """
    if not data.seen:
        return [], ()
    unseen = torch.tensor([entity not in data.seen for entity in data.classes])
    everything = torch.ones_like(unseen)
    if not unseen[images.labels].any():
        return [], ("no image is of an unseen class",)
    if unseen.sum() < 2:
        return [], ("one class only is unseen",)
    notes = ("none of the classes is a seen one",) if unseen.all() else ()
    return [Protocol("unseen_", unseen, unseen), Protocol("generalized_", unseen, everything)], notes


def candidate_scores(
    images: LabelledImages,
    vectors: Tensor,
    classes: Tensor,
    data: EvaluationSet,
    protocol: Protocol,
    hits: Sequence[int],
    precision: Sequence[int],
) -> tuple[dict[str, Scores], tuple[str, ...]]:
    """`hit@k`, and `hp@k` where the data has a hierarchy, under a protocol; and notes.

    A k that is not less than the number of candidates is left out. A class whose vector is zero is no
    candidate; a measured image of it is wrong.

    Args:
        images: with their labels `[M]`.
        vectors: of the images `[M, V]`.
        classes: vectors of the set's classes `[C, V]`; those of candidates are used.
        data: the set.
        protocol: which images against which classes.
        hits: numbers of results for flat hit@k.
        precision: numbers of results for hierarchical precision@k.
    """
    absent = protocol.candidates & ~classes.any(dim=1)
    candidates = (protocol.candidates & ~absent).nonzero().flatten()
    hopeless = protocol.images[images.labels] & absent[images.labels]
    notes = []
    if absent.any():
        notes.append(
            f"{protocol.prefix}hit@k: {int(absent.sum())} of {int(protocol.candidates.sum())} candidates "
            f"have no vector and do not compete; their {int(hopeless.sum())} images are wrong"
        )
    if len(candidates) < 2:
        return {}, (*notes, f"no {protocol.prefix}hit@k: fewer than two candidates have a vector")
    number = torch.full((len(data.classes),), -1)
    number[candidates] = torch.arange(len(candidates))
    measured = protocol.images[images.labels] & ~hopeless
    rows = (vectors[measured], number[images.labels[measured]], classes[candidates])

    def scores(values: Tensor) -> Scores:
        spread = torch.full((len(images.labels),), torch.nan, dtype=torch.float64)
        spread[hopeless] = 0
        spread[measured] = values.double().cpu()
        return images.scores(spread)

    rank = zero_shot_rank(*rows)
    found = {f"{protocol.prefix}hit@{k}": scores((rank <= k).double()) for k in hits if k < len(candidates)}
    wanted = (*hits, *(precision if data.hierarchy else ()))
    too_many = sorted({k for k in wanted if k >= len(candidates)})
    if too_many:
        named = f"{protocol.prefix}hit@k and hp@k" if data.hierarchy else f"{protocol.prefix}hit@k"
        shown = ", ".join(map(str, too_many))
        notes.append(f"{named} are left out at k = {shown}: there are {len(candidates)} candidates")
    if data.hierarchy:
        try:
            hierarchy = LabelHierarchy(data.hierarchy, [data.classes[row] for row in candidates.tolist()])
        except InputError as error:
            return found, (*notes, f"no {protocol.prefix}hp@k: {error}")
        k = [k for k in precision if k < len(candidates)]
        for n, values in hierarchical_precision(*rows, hierarchy, k).items():
            name = f"{protocol.prefix}hp@{n}"
            found[name] = scores(values)
            undefined = int(values.isnan().sum())
            if undefined:
                notes.append(
                    f"{name} leaves out {undefined} images whose class has fewer than {n} connected to it"
                )
    return found, tuple(notes)

from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mofi_lightning.functional import hinge_rank

MARGIN = 0.1


@pytest.fixture
def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Mapped images `[7, 5]`, label vectors `[23, 5]` and targets, one of them missing."""
    generator = torch.Generator().manual_seed(3)
    labels = F.normalize(torch.randn(23, 5, generator=generator, dtype=torch.float64), dim=1)
    target = torch.tensor([3, 22, 0, -1, 3, 9, 17])
    mapped = 0.3 * labels[target] + 0.5 * torch.randn(7, 5, generator=generator, dtype=torch.float64)
    mapped[1] = 3 * labels[22]  # leads by more than the margin
    return mapped.requires_grad_(), labels, target


def naive(
    mapped: Tensor, labels: Tensor, target: Tensor, candidates: list[int], order: list[int] | None
) -> Tensor:
    """The paper's sum, term by term; with `order` cut off at the first, round the circle from the target."""
    losses = []
    for image, own in zip(mapped, target.tolist(), strict=True):
        loss = image.sum() * 0
        if order is not None:
            candidates = sorted(candidates, key=lambda j, own=own: (order[j] - order[own]) % len(order))
        for j in candidates:
            term = MARGIN - labels[own] @ image + labels[j] @ image
            if own >= 0 and j != own and term > 0:
                loss = loss + term
                if order is not None:
                    break
        losses.append(loss)
    return torch.stack(losses)


ORDER = torch.randperm(23, generator=torch.Generator().manual_seed(1), dtype=torch.int32)


@pytest.mark.parametrize("chunk_size", (1, 4, 100))
@pytest.mark.parametrize("order", (None, ORDER), ids=("all", "first"))
@pytest.mark.parametrize("candidates", (None, [8, 3, 17, 22, 1], []))
def test_loss_and_gradient_are_those_of_the_papers_sum(rows, candidates, order, chunk_size):
    mapped, labels, target = rows
    competing = list(range(23)) if candidates is None else candidates
    losses, top1 = hinge_rank(
        mapped,
        labels,
        target,
        MARGIN,
        candidates=None if candidates is None else torch.tensor(candidates, dtype=torch.int64),
        order=order,
        chunk_size=chunk_size,
    )
    expected = naive(mapped, labels, target, competing, None if order is None else order.tolist())
    weights = torch.arange(1.0, 8.0, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(losses @ weights, mapped)
    (reference,) = torch.autograd.grad(expected @ weights, mapped)
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-10)
    scores = mapped.detach() @ labels.T
    others = [[j for j in competing if j != own] for own in target.tolist()]
    assert top1.tolist() == [
        own >= 0 and all(scores[i, j] <= scores[i, own] for j in others[i])
        for i, own in enumerate(target.tolist())
    ]


def test_the_cases_of_the_reference_compete_and_lead(rows):
    every, first = (hinge_rank(*rows, MARGIN, order=order)[0] for order in (None, ORDER))
    assert every[1] == every[3] == 0 and (every > first).sum() >= 3 and (first > 0).sum() >= 4


@pytest.mark.parametrize("target", range(5))
def test_going_round_the_circle_is_the_papers_random_order_for_every_row(target):
    scores = torch.tensor([0.1, 0.3, 0.25, -0.4, 0.9], dtype=torch.float64)
    others = [j for j in range(5) if j != target]
    terms = MARGIN - scores[target] + scores
    paper = [next((terms[j] for j in order if terms[j] > 0), 0.0) for order in permutations(others)]
    ours = [
        hinge_rank(
            scores[None], torch.eye(5).double(), torch.tensor([target]), MARGIN, order=torch.tensor(o).int()
        )
        for o in permutations(range(5))
    ]
    # each of the 4! orders of the others comes up once for every place of the target
    assert sorted(float(loss) for loss, _ in ours) == pytest.approx(sorted(5 * [float(p) for p in paper]))


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("first", (False, True))
def test_no_tensor_of_rows_times_labels_is_made_in_either_direction(first):
    labels = F.normalize(torch.randn(4096, 8), dim=1)
    mapped = torch.randn(64, 8).requires_grad_()
    order = torch.randperm(4096, dtype=torch.int32) if first else None
    with _Largest() as largest:
        losses, _ = hinge_rank(mapped, labels, torch.arange(64), MARGIN, order=order, chunk_size=256)
        losses.sum().backward()
    assert largest.elements <= max(64 * 256, labels.numel()) < 64 * 4096 / 4

from itertools import permutations

import pytest
import torch
from torch import Tensor

from mofi_lightning.functional import hinge_rank


def _truncated(scores: Tensor, target: int, margin: float, order: tuple[int, ...]) -> Tensor:
    """The paper's sum in the given order, cut off after the first violating label."""
    for j in order:
        if j != target:
            term = margin - scores[target] + scores[j]
            if term > 0:
                return term
    return scores.sum() * 0


@pytest.mark.parametrize("target", range(5))
def test_loss_and_gradient_are_the_mean_of_the_papers_over_all_orders(target):
    scores = torch.tensor([0.1, 0.3, 0.25, -0.4, 0.9], dtype=torch.float64, requires_grad=True)
    orders = list(permutations(range(5)))
    expected = torch.stack([_truncated(scores, target, 0.1, order) for order in orders]).mean()
    loss = hinge_rank(scores[None], torch.tensor([target]), 0.1)
    torch.testing.assert_close(loss, expected[None])
    (actual,) = torch.autograd.grad(loss.sum(), scores)
    (reference,) = torch.autograd.grad(expected, scores)
    torch.testing.assert_close(actual, reference)


def test_a_label_that_leads_by_the_margin_costs_nothing():
    assert hinge_rank(torch.tensor([[0.9, 0.1, 0.2]]), torch.tensor([0]), 0.1) == 0

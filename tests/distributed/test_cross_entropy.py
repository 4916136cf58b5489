import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mofi_lightning.distributed import rank, sharded_cross_entropy, sharded_top1

BOUNDS = {1: [0, 7], 2: [0, 7, 7], 3: [0, 3, 3, 7]}  # with ranks that hold no class at all


def _step(logits: Tensor, labels: Tensor, bounds: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    low, high = bounds[rank()], bounds[rank() + 1]
    own = logits[:, low:high].clone().requires_grad_()
    held = (labels >= low) & (labels < high)
    target = own.sum(1) * 0  # of a rank without classes, too, part of the graph
    target[held] = own[held, labels[held] - low]
    losses = sharded_cross_entropy(own.logsumexp(1), target)
    losses[labels >= 0].sum().backward()
    largest = own.amax(1) if high > low else torch.full_like(target, -torch.inf)
    correct = sharded_top1(torch.where(held, target, -torch.inf), largest)
    return losses.detach(), own.grad, correct


@pytest.mark.parametrize("world", (1, 2, 3))
def test_values_gradient_and_accuracy_equal_torch_on_all_classes(pool, world):
    generator = torch.Generator().manual_seed(0)
    logits = 100 * torch.randn(12, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(7, (12,), generator=generator)
    labels[:3] = logits[:3].argmax(1)
    labels[5:8] = -1
    labelled = labels >= 0
    whole = logits.clone().requires_grad_()
    expected = F.cross_entropy(whole, labels, ignore_index=-1, reduction="none")
    expected.sum().backward()
    results = pool(world, _step, logits, labels, BOUNDS[world])
    for losses, _, correct in results:
        torch.testing.assert_close(losses[labelled], expected[labelled].detach())
        assert torch.equal(correct[labelled], (logits.argmax(1) == labels)[labelled])
    torch.testing.assert_close(torch.cat([gradient for _, gradient, _ in results], 1), whole.grad)

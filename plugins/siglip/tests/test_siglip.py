import math

import open_clip
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mofi_lightning.distributed import rank, world_size
from mofi_lightning.testing import check_objective, shared_processes
from mofi_lightning.types import Batch, Embeddings, ObjectiveSpec
from mofi_siglip import SigLIP
from mofi_siglip.sigmoid import sigmoid_loss

SPEC = ObjectiveSpec(embed_dim=8, feature_dim=8)


def inputs(rows: int, width: int = 8, fit: float = 0.0, scale: float = 10.0, bias: float = -10.0):
    """Image, text, scale and bias in fp64; with `fit` the pairs that belong together resemble each other."""
    generator = torch.Generator().manual_seed(0)
    image, noise = (
        F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    text = F.normalize(fit * image + (1 - fit) * noise, dim=1)
    scalars = (torch.tensor([x], dtype=torch.float64) for x in (scale, bias))
    return tuple(t.requires_grad_() for t in (image, text, *scalars))


def assert_same(loss: Tensor, expected: Tensor, leaves: tuple[Tensor, ...], tight: bool) -> None:
    """Loss and gradients, these relative to their largest entry."""
    torch.testing.assert_close(loss, expected, rtol=1e-12 if tight else 1e-6, atol=0)
    for actual, reference in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        bound = (1e-10 if tight else 1e-4) * reference.abs().max().item()
        torch.testing.assert_close(actual, reference, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize("chunk_size", (60, 512))
@pytest.mark.parametrize(
    "state",
    [{}, {"fit": 0.9, "scale": 100.0, "bias": -15.0}, {"scale": 400.0, "bias": 100.0}],
    ids=["start", "trained", "far out"],
)
def test_loss_and_gradients_are_open_clips(dtype, chunk_size, state):
    leaves = tuple(t.detach().to(dtype).requires_grad_() for t in inputs(200, 64, **state))
    expected = open_clip.loss.SigLipLoss()(*leaves)
    assert_same(sigmoid_loss(*leaves, chunk_size=chunk_size), expected, leaves, dtype == torch.float64)


def test_the_loss_is_the_papers_sum_divided_by_the_rows():
    image, text, scale, bias = leaves = inputs(5)
    costs = [
        -F.logsigmoid((1 if i == j else -1) * (scale * image[i] @ text[j] + bias))
        for i in range(5)
        for j in range(5)
    ]
    assert_same(sigmoid_loss(*leaves, chunk_size=2), sum(costs).squeeze() / 5, leaves, tight=True)


def loss_and_gradients(chunk_size: int) -> list[Tensor]:
    """Of this rank's rows of twelve; averaged as data parallelism does."""
    image, text, *scalars = leaves = inputs(12)
    share = len(image) // world_size()
    own = slice(rank() * share, (rank() + 1) * share)
    loss = sigmoid_loss(image[own], text[own], *scalars, chunk_size=chunk_size)
    results = [loss.detach(), *torch.autograd.grad(3 * loss, leaves)]
    if world_size() > 1:
        for result in results:
            dist.all_reduce(result)
    return [result / world_size() for result in results]


@pytest.mark.parametrize("world", (2, 3))
def test_texts_that_travel_round_the_ring_give_the_loss_and_gradients_of_one_process(world):
    expected = loss_and_gradients(512)
    for actual in shared_processes()(world, loss_and_gradients, 2):
        for value, reference in zip(actual, expected, strict=True):
            bound = 1e-12 * reference.abs().max().item()
            torch.testing.assert_close(value, reference, rtol=0, atol=bound)


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that any operator makes, in forward and backward."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


def largest_tensor(rows: int, chunk_size: int) -> int:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(rows, 8, generator=generator).requires_grad_() for _ in range(2))
    with LargestTensor() as largest:
        sigmoid_loss(image, text, torch.ones(1), torch.zeros(1), chunk_size=chunk_size).backward()
    return largest.elements


def test_no_matrix_of_all_pairs_exists_in_forward_or_backward():
    assert largest_tensor(rows=256, chunk_size=16) == 2 * 16 * 256  # two buffers of a chunk


def test_no_rank_holds_more_pairs_or_rows_than_its_own():
    """A gather of the texts would have 3 * 32 rows of 8."""
    assert shared_processes()(3, largest_tensor, 32, 4) == [32 * 8] * 3


def test_scale_and_bias_start_as_in_the_paper_and_are_logged():
    objective = SigLIP(SPEC)
    assert objective.logit_scale.shape == objective.logit_bias.shape == (1,)
    assert objective.logit_scale.item() == pytest.approx(math.log(10)) and objective.logit_bias.item() == -10
    image, text, *_ = (x.float() for x in inputs(4))
    output = objective(Embeddings(image=image, text=text), Batch())
    assert output.loss.dim() == 0
    assert {name: value.item() for name, value in output.logs.items()} == {
        "logit_scale": pytest.approx(10),
        "logit_bias": -10,
    }


def test_without_gradients_the_loss_is_the_same():
    leaves = inputs(6)
    with torch.no_grad():
        loss = sigmoid_loss(*leaves, chunk_size=4)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, sigmoid_loss(*leaves).detach(), rtol=1e-14, atol=0)


def test_it_keeps_to_the_contract_of_objectives():
    report = check_objective(SigLIP)
    assert report.requires == {"text"}

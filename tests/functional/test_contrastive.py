import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mofi_lightning.functional import info_nce, pairwise_logsumexp, positive_mean
from mofi_lightning.types import InputError

GROUPS = ([0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 3, 1, 0, 6], [0] * 7)


def _pairs(rows: int, scale: float = 20.0, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = (
        F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    tensors = (image, text, torch.tensor([scale], dtype=torch.float64))
    return tuple(t.requires_grad_() for t in tensors)


def _naive(image: Tensor, text: Tensor, scale: Tensor, group: list[int], repeats: str, smoothing: float):
    """Both directions, row by row, each with an explicit distribution over the pairs that it counts."""
    rows = len(image)
    total = torch.zeros((), dtype=image.dtype)
    for a, b in ((image, text), (text, image)):
        for i in range(rows):
            same = [j for j in range(rows) if group[j] == group[i]]
            targets = same if repeats == "positive" else [i]
            counted = [j for j in range(rows) if j == i or repeats != "mask" or j not in same]
            target = torch.full((rows,), smoothing / rows, dtype=image.dtype)
            target[targets] += (1 - smoothing) / len(targets)
            total = total - (target[counted] * (scale * b[counted] @ a[i]).log_softmax(0)).sum()
    return total / (2 * rows)


def _assert_same(loss: Tensor, expected: Tensor, inputs: tuple[Tensor, ...], tight: bool = True) -> None:
    """Loss and gradients, these relative to their largest entry."""
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-12 if tight else 1e-6, atol=1e-14)
    for actual, reference in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        bound = 1e-14 + (1e-10 if tight else 1e-4) * reference.abs().max().item()
        torch.testing.assert_close(actual, reference, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize("chunk_size", (60, 512))
@pytest.mark.parametrize("scale", (1 / 0.07, 100.0))
def test_without_groups_it_is_open_clips_loss(dtype, chunk_size, scale):
    inputs = tuple(t.detach().to(dtype).requires_grad_() for t in _pairs(200, scale, width=64))
    loss = info_nce(*inputs, chunk_size=chunk_size)
    _assert_same(loss, open_clip.ClipLoss()(*inputs), inputs, tight=dtype == torch.float64)


@pytest.mark.parametrize("chunk_size", (3, 512))
@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize(
    ("repeats", "smoothing"),
    [("positive", 0.0), ("positive", 0.1), ("mask", 0.0), ("negative", 0.0), ("negative", 0.1)],
)
def test_repeats_are_targets_masked_or_negatives(repeats, smoothing, group, chunk_size):
    inputs = _pairs(7)
    loss = info_nce(
        *inputs,
        group=torch.tensor(group),
        repeats=repeats,
        label_smoothing=smoothing,
        chunk_size=chunk_size,
    )
    _assert_same(loss, _naive(*inputs, group, repeats, smoothing), inputs)


def test_label_smoothing_is_torchs():
    inputs = image, text, scale = _pairs(6)
    logits, labels = scale * image @ text.T, torch.arange(6)
    expected = sum(F.cross_entropy(z, labels, label_smoothing=0.1) for z in (logits, logits.T)) / 2
    _assert_same(info_nce(*inputs, label_smoothing=0.1), expected, inputs)


def test_undefined_targets_are_refused():
    inputs = _pairs(4)
    with pytest.raises(InputError, match=r"label_smoothing is 1\.0"):
        info_nce(*inputs, label_smoothing=1.0)
    with pytest.raises(InputError, match="not defined with repeats 'mask'"):
        info_nce(*inputs, repeats="mask", label_smoothing=0.1)
    with pytest.raises(InputError, match="repeats is 'ignore'; give one of 'positive', 'mask', 'negative'"):
        info_nce(*inputs, repeats="ignore")


def test_large_scales_do_not_overflow_in_single_precision():
    inputs = tuple(t.detach().float().requires_grad_() for t in _pairs(10, scale=1000.0))
    loss = info_nce(*inputs, chunk_size=4)
    torch.testing.assert_close(loss, open_clip.ClipLoss()(*inputs))
    loss.backward()
    assert all(t.grad.isfinite().all() for t in inputs)


@pytest.mark.parametrize("group", (None, [0, 1, 0, 1, 0]))
@pytest.mark.parametrize("chunk_size", (2, 5, 64))
def test_pairwise_logsumexp_of_a_block_of_rows(chunk_size, group):
    left, right, scale = _pairs(5)
    counted = torch.tensor(
        [[group is None or i == j or (i + j) % 2 == 1 for j in range(5)] for i in range(5)]
    )
    logits = (scale * left @ right.T)[1:4].masked_fill(~counted[1:4], -torch.inf)
    group = None if group is None else torch.tensor(group)

    def blocks(left: Tensor, right: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return pairwise_logsumexp(left, right, scale, group, first=1, chunk_size=chunk_size)

    rows, columns = blocks(left[1:4], right, scale)
    torch.testing.assert_close(rows, logits.logsumexp(1))
    torch.testing.assert_close(columns, logits.logsumexp(0))
    torch.autograd.gradcheck(blocks, (left[1:4], right, scale))


def test_a_column_without_any_counted_pair_is_minus_infinity_and_has_no_gradient():
    left, right, scale = _pairs(4)
    rows, columns = pairwise_logsumexp(left[:2], right, scale, torch.tensor([0, 0, 0, 3]))
    assert columns.isneginf().tolist() == [False, False, True, False]
    for gradient in torch.autograd.grad(rows.sum() + columns.exp().sum(), (left, right, scale)):
        assert gradient.isfinite().all()


class _LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that any operator makes, in forward and backward."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.mark.parametrize("repeats", ("positive", "mask", "negative"))
def test_no_matrix_of_all_pairs_exists_in_forward_or_backward(repeats):
    inputs = _pairs(256)
    group = torch.arange(256) // 2
    with _LargestTensor() as largest:
        info_nce(*inputs, group=group, repeats=repeats, chunk_size=16).backward()
    assert largest.elements == 2 * 16 * 256  # two buffers of a chunk


def test_positive_mean_averages_rows_of_one_group():
    rows = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    assert positive_mean(rows, torch.tensor([0, 1, 0, 3])).flatten().tolist() == [2.5, 2.0, 2.5, 8.0]

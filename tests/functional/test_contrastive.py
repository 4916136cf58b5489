import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mofi_lightning.functional import info_nce, pairwise_logsumexp, positive_mean


def _pairs(rows: int, scale: float = 20.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = (
        F.normalize(torch.randn(rows, 8, generator=generator, dtype=torch.float64), dim=1) for _ in range(2)
    )
    tensors = (image, text, torch.tensor([scale], dtype=torch.float64))
    return tuple(t.requires_grad_() for t in tensors)


def _naive(image: Tensor, text: Tensor, scale: Tensor, entity: Tensor, smoothing: float) -> Tensor:
    """Both directions with an explicit matrix of targets, row by row."""
    rows = len(image)
    total = torch.zeros((), dtype=image.dtype)
    for a, b in ((image, text), (text, image)):
        for i in range(rows):
            positives = [j for j in range(rows) if j == i or (entity[i] >= 0 and entity[j] == entity[i])]
            target = torch.full((rows,), smoothing / rows, dtype=image.dtype)
            target[positives] += (1 - smoothing) / len(positives)
            total = total - (target * (scale * b @ a[i]).log_softmax(0)).sum()
    return total / (2 * rows)


@pytest.mark.parametrize("chunk_size", (3, 10, 1024))
def test_without_entities_it_is_open_clips_loss(chunk_size):
    image, text, scale = _pairs(10)
    expected = open_clip.ClipLoss()(image, text, scale)
    loss = info_nce(image, text, scale, chunk_size=chunk_size)
    torch.testing.assert_close(loss, expected)
    for actual, reference in zip(
        torch.autograd.grad(loss, (image, text, scale)),
        torch.autograd.grad(expected, (image, text, scale)),
        strict=True,
    ):
        torch.testing.assert_close(actual, reference)


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize("entity", ([-1] * 6, [4, -1, 4, 7, -1, 4], [2] * 6), ids=str)
def test_pairs_of_one_entity_are_uniform_targets_and_unlabelled_pairs_stand_alone(entity, smoothing):
    image, text, scale = _pairs(6)
    entity = torch.tensor(entity)
    expected = _naive(image, text, scale, entity, smoothing)
    loss = info_nce(image, text, scale, entity=entity, label_smoothing=smoothing, chunk_size=4)
    torch.testing.assert_close(loss, expected)
    for actual, reference in zip(
        torch.autograd.grad(loss, (image, text, scale)),
        torch.autograd.grad(expected, (image, text, scale)),
        strict=True,
    ):
        torch.testing.assert_close(actual, reference)


def test_label_smoothing_is_torchs():
    image, text, scale = _pairs(6)
    logits, labels = scale * image @ text.T, torch.arange(6)
    expected = sum(F.cross_entropy(z, labels, label_smoothing=0.1) for z in (logits, logits.T)) / 2
    torch.testing.assert_close(info_nce(image, text, scale, label_smoothing=0.1), expected)


def test_large_scales_do_not_overflow_in_single_precision():
    image, text, scale = (t.detach().float().requires_grad_() for t in _pairs(10, scale=1000.0))
    loss = info_nce(image, text, scale, chunk_size=4)
    torch.testing.assert_close(loss, open_clip.ClipLoss()(image, text, scale))
    loss.backward()
    assert all(t.grad.isfinite().all() for t in (image, text, scale))


@pytest.mark.parametrize("chunk_size", (2, 5, 64))
def test_pairwise_logsumexp_has_the_gradient_of_both_results(chunk_size):
    left, right, scale = _pairs(5)
    torch.autograd.gradcheck(lambda *t: pairwise_logsumexp(*t, chunk_size), (left, right[:4], scale))


def test_no_matrix_of_all_pairs_is_kept():
    image, text, scale = (t.detach().requires_grad_() for t in _pairs(64))
    largest = 0

    def record(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        info_nce(image, text, scale, chunk_size=16)
    assert largest <= image.numel()


def test_positive_mean_averages_rows_of_one_entity():
    rows = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    assert positive_mean(rows, torch.tensor([3, -1, 3, -1])).flatten().tolist() == [2.5, 2.0, 2.5, 8.0]

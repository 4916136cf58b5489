import math

import pytest
import torch
from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss, SubCenterArcFaceLoss
from torch import Tensor
from torch.nn import functional as F

from mofi_lightning.functional import chunks as chunking
from mofi_lightning.functional import margin_cosine, margin_statistics
from mofi_lightning.testing.largest_tensor import TensorWatch

CLASSES, DIM, SCALE = 23, 12, 64.0
PEERS = {  # the peer, with its margin in degrees for arcface, and ours
    "cosface": (CosFaceLoss, {"margin": 0.35}, (0.35, "cosface", 1)),
    "arcface": (ArcFaceLoss, {"margin": 28.6}, (math.radians(28.6), "arcface", 1)),
    "sub-centre arcface": (
        SubCenterArcFaceLoss,
        {"margin": 28.6, "sub_centers": 3},
        (math.radians(28.6), "arcface", 3),
    ),
}


@pytest.fixture(params=[10**6, 300], ids=["one chunk", "many chunks"])
def chunks(request, monkeypatch):
    monkeypatch.setattr(chunking, "_CPU", request.param)


def _data(rows: int, centers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, class vectors and labels; the first features are close to their class, the last opposite."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(CLASSES, centers, DIM, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    features = torch.randn(rows, DIM, generator=generator, dtype=torch.float64)
    features[:5] = vectors[labels[:5], -1] + 0.3 * features[:5]
    features[-5:] = 0.1 * features[-5:] - vectors[labels[-5:]].sum(1)
    return F.normalize(features, dim=1), vectors, labels


def _loss(features: Tensor, vectors: Tensor, labels: Tensor, m: float, form: str) -> Tensor:
    found = margin_statistics(features, vectors, labels, m, SCALE, form)
    return (found.logsumexp - found.target_logit).mean()


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(
    ("dtype", "loss_bound", "gradient_bound"),
    ((torch.float64, 1e-12, 1e-10), (torch.float32, 1e-6, 1e-4)),
    ids=["fp64", "fp32"],
)
def test_loss_and_gradients_equal_pytorch_metric_learnings(chunks, peer, dtype, loss_bound, gradient_bound):
    kind, options, (m, form, centers) = PEERS[peer]
    features, vectors, labels = _data(40, centers)
    # the peers normalise features, too
    features, vectors = (3 * features).to(dtype).requires_grad_(), vectors.to(dtype).requires_grad_()
    theirs = kind(num_classes=CLASSES, embedding_size=DIM, scale=SCALE, **options)
    theirs.W = torch.nn.Parameter(vectors.detach().flatten(0, 1).T.clone())
    expected = theirs(features, labels)
    gradients = [*torch.autograd.grad(expected, (features, theirs.W))]
    gradients[1] = gradients[1].T.view_as(vectors)
    loss = _loss(F.normalize(features, dim=1), vectors, labels, m, form)
    assert abs(loss - expected) <= loss_bound * expected
    for actual, wanted in zip(torch.autograd.grad(loss, (features, vectors)), gradients, strict=True):
        assert (actual - wanted).abs().max() <= gradient_bound * wanted.abs().max()


@pytest.mark.parametrize("form", ("cosface", "arcface"))
def test_statistics_are_those_of_the_logits_and_of_their_columns_only(chunks, form):
    features, vectors, labels = _data(30, 2)
    target = torch.where(labels < 9, labels, -1)
    cosine = (features @ F.normalize(vectors[:9], dim=-1).flatten(0, 1).T).view(30, 9, 2).amax(2)
    held = (target >= 0).nonzero().flatten()
    logits = SCALE * cosine
    logits[held, target[held]] = SCALE * margin_cosine(cosine[held, target[held]], 0.4, form)
    found = margin_statistics(features, vectors[:9], target, 0.4, SCALE, form)
    torch.testing.assert_close(found.logsumexp, logits.logsumexp(1))
    torch.testing.assert_close(found.largest_cosine, cosine.amax(1))
    torch.testing.assert_close(found.target_logit[held], logits[held, target[held]])
    torch.testing.assert_close(found.target_cosine[held], cosine[held, target[held]])
    assert found.target_logit[target < 0].eq(0).all()
    assert found.target_cosine[target < 0].eq(-torch.inf).all()


def test_cross_entropy_is_cosfaces_equation_4():
    features, vectors, labels = _data(20, 1)
    cosine = features @ F.normalize(vectors[:, 0], dim=1).T
    s, m = SCALE, 0.35
    expected = []
    for row, y in zip(cosine, labels.tolist(), strict=True):
        own = (s * (row[y] - m)).exp()
        others = sum((s * row[j]).exp() for j in range(CLASSES) if j != y)
        expected.append(-(own / (own + others)).log())
    torch.testing.assert_close(_loss(features, vectors, labels, m, "cosface"), torch.stack(expected).mean())


def test_arcface_adds_to_the_angle_and_falls_on_beyond_pi():
    angle = torch.linspace(0.01, math.pi - 0.01, 200, dtype=torch.float64)
    added = margin_cosine(angle.cos(), 0.5, "arcface")
    within = angle <= math.pi - 0.5
    torch.testing.assert_close(added[within], (angle + 0.5).cos()[within])
    assert added.diff().lt(0).all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_arcfaces_gradient_is_finite_where_feature_and_class_coincide_or_oppose(dtype):
    vectors = torch.eye(3, dtype=dtype)[:, None].requires_grad_()
    features = torch.tensor([[1.0, 0, 0], [0, -1.0, 0], [0, 0, 1.0]], dtype=dtype).requires_grad_()
    loss = _loss(features, vectors, torch.arange(3), 0.5, "arcface")
    gradients = torch.autograd.grad(loss, (features, vectors))
    assert torch.isfinite(loss) and all(g.isfinite().all() for g in gradients)


def test_gradients_of_both_statistics_are_those_of_finite_differences(chunks):
    features, vectors, _ = _data(4, 2)
    vectors, target = vectors[:6], torch.tensor([0, 5, -1, 3])

    def statistics(features: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        return margin_statistics(features, vectors, target, 0.3, 4.0, "arcface")[:2]

    assert torch.autograd.gradcheck(statistics, (features.requires_grad_(), vectors.requires_grad_()))


def test_of_equal_classes_none_is_higher():
    features = F.normalize(torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    vectors = features[[0, 0, 1]][:, None]
    found = margin_statistics(features[:2], vectors, torch.tensor([1, 0]), 0.5, 30.0)
    assert (found.target_cosine >= found.largest_cosine).tolist() == [True, False]


def test_without_classes_or_rows_there_is_nothing_and_it_is_part_of_the_graph():
    features, vectors, _ = _data(3, 2)
    none = margin_statistics(features.requires_grad_(), vectors[:0], torch.full((3,), -1), 0.1, 32.0)
    assert none.logsumexp.eq(-torch.inf).all() and none.largest_cosine.eq(-torch.inf).all()
    none.target_logit.sum().backward()
    assert features.grad.eq(0).all()
    vectors.requires_grad_()
    empty = margin_statistics(features[:0], vectors, torch.empty(0, dtype=torch.int64), 0.1, 32.0)
    (empty.logsumexp - empty.target_logit).sum().backward()
    assert vectors.grad.eq(0).all()


def test_the_logits_never_exist_as_a_whole():
    features = F.normalize(torch.randn(64, 8), dim=1).requires_grad_()
    vectors = torch.randn(50_000, 1, 8, requires_grad=True)
    with TensorWatch(rows=64) as watch:
        _loss(features, vectors, torch.arange(64), 0.1, "cosface").backward()
    assert watch.largest.nbytes <= max(4 * chunking._CPU, vectors.nbytes)

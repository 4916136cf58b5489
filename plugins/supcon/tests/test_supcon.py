from pathlib import Path

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor
from torch.nn import functional as F

from mofi_lightning import cli, load
from mofi_lightning.testing import check_objective, shared_processes
from mofi_lightning.types import Batch, Embeddings, InputError, ObjectiveSpec
from mofi_supcon import SupCon
from mofi_supcon.loss import supcon

SPEC = ObjectiveSpec(embed_dim=6, feature_dim=6)
# all labelled rows but that of entity 0 are anchors; the second half's one has its positives in the first
ENTITY = [3, 1, 3, 0, 1, 3, -1, -1, 1, -1, -1, -1]


def unit_rows(count: int, dim: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return F.normalize(torch.randn(count, dim, generator=generator, dtype=dtype), dim=1).requires_grad_()


def naive(rows: Tensor, entity: list[int], temperature: float) -> Tensor:
    """Equation 2 as it is written."""
    losses = []
    labelled = [i for i, label in enumerate(entity) if label >= 0]
    for i in labelled:
        others = [a for a in labelled if a != i]
        positives = [p for p in others if entity[p] == entity[i]]
        if not positives:
            continue
        denominator = sum(torch.exp(rows[i] @ rows[a] / temperature) for a in others)
        terms = [torch.log(torch.exp(rows[i] @ rows[p] / temperature) / denominator) for p in positives]
        losses.append(-sum(terms) / len(positives))
    return torch.stack(losses).mean()


def loss_and_gradient(rows: Tensor, entity: list[int], **options: float) -> tuple[Tensor, Tensor]:
    loss = SupCon(SPEC, **options)(Embeddings(image=rows), Batch(entity=torch.tensor(entity))).loss
    return loss.detach(), torch.autograd.grad(loss, rows)[0]


def assert_equal(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float) -> None:
    torch.testing.assert_close(actual[0], expected[0], rtol=tolerance, atol=0)
    largest = expected[1].abs().max().item()
    torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("temperature", (0.1, 1.0))
def test_loss_and_gradient_are_those_of_equation_2(temperature):
    rows = unit_rows(len(ENTITY))
    expected = naive(rows, ENTITY, temperature)
    expected = expected.detach(), torch.autograd.grad(expected, rows)[0]
    assert_equal(loss_and_gradient(rows, ENTITY, temperature=temperature), expected, 1e-10)


def test_loss_and_gradient_are_those_of_pytorch_metric_learning():
    entity = torch.randint(20, (64,), generator=torch.Generator().manual_seed(0))
    assert (entity.bincount() == 1).any()  # some rows are no anchors
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs.requires_grad_()
    ours = SupCon(SPEC)(Embeddings(image=F.normalize(inputs, dim=1)), Batch(entity=entity)).loss
    theirs = SupConLoss(temperature=0.1)(inputs, entity)  # which normalises them itself
    results = [(loss.detach(), torch.autograd.grad(loss, inputs)[0]) for loss in (ours, theirs)]
    assert_equal(*results, tolerance=1e-10)


@pytest.mark.parametrize("chunk_size", (1, 5, 7))
def test_chunks_change_nothing(chunk_size):
    rows, entity = unit_rows(len(ENTITY)), torch.tensor(ENTITY)
    results = []
    for size in (chunk_size, len(rows)):
        losses, anchors = supcon(rows, rows, entity, 0, 0.1, size)
        results.append((losses.detach(), torch.autograd.grad(losses[anchors].sum(), rows)[0]))
    assert_equal(*results, tolerance=1e-12)


def test_unlabelled_rows_take_no_part():
    rows, labelled = unit_rows(len(ENTITY)), [i for i, label in enumerate(ENTITY) if label >= 0]
    loss, gradient = loss_and_gradient(rows, ENTITY)
    without = loss_and_gradient(rows[labelled].detach().requires_grad_(), [ENTITY[i] for i in labelled])
    assert_equal((loss, gradient[labelled]), without, 1e-12)
    gradient[labelled] = 0
    assert gradient.eq(0).all()


@pytest.mark.parametrize("entity", ([-1, -1, -1], [0, 1, 2], [0, -1, -1]), ids=str)
def test_without_anchors_loss_and_gradient_are_zero(entity):
    loss, gradient = loss_and_gradient(unit_rows(3), entity)
    assert loss == 0 and gradient.eq(0).all()


def test_the_share_of_anchors_is_logged():
    output = SupCon(SPEC)(Embeddings(image=unit_rows(len(ENTITY))), Batch(entity=torch.tensor(ENTITY)))
    assert output.logs["anchors"].item() == 6 / 12


def on_rank(rows: Tensor, entity: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and share of anchors, and the gradient of all rows, as data parallelism averages it."""
    import torch.distributed as dist

    rank, share = dist.get_rank(), len(entity) // dist.get_world_size()
    own = slice(rank * share, (rank + 1) * share)
    rows = rows.clone().requires_grad_()
    output = SupCon(SPEC)(Embeddings(image=rows[own]), Batch(entity=torch.tensor(entity)[own]))
    output.loss.backward()
    dist.all_reduce(rows.grad)
    return output.loss.detach(), output.logs["anchors"], rows.grad / dist.get_world_size()


@pytest.mark.parametrize(
    "entity", (ENTITY, [2, 0, 2, 1, 1, 2] + [-1] * 6), ids=("uneven", "one rank has none")
)
def test_two_processes_give_the_loss_and_gradient_of_one(entity):
    rows = unit_rows(len(entity)).detach()
    expected = loss_and_gradient(rows.clone().requires_grad_(), entity)
    share = SupCon(SPEC)(Embeddings(image=rows), Batch(entity=torch.tensor(entity))).logs["anchors"]
    losses, shares, gradients = zip(*shared_processes()(2, on_rank, rows, entity), strict=True)
    for gradient in gradients:
        assert_equal((torch.stack(losses).mean(), gradient), expected, 1e-12)
    torch.testing.assert_close(torch.stack(shares).mean(), share)


def test_the_kit_finds_nothing_and_no_tensor_of_all_pairs_exists():
    report = check_objective(SupCon)
    assert report.largest.rows == 2048 and report.largest.shape == (1024, 2048)  # a chunk


@pytest.mark.parametrize("temperature", (0.0, -1.0, float("nan")))
def test_a_temperature_that_divides_by_nothing_is_refused(temperature):
    with pytest.raises(InputError, match="temperature"):
        SupCon(SPEC, temperature=temperature)


def test_the_configuration_trains(tmp_path):
    config = Path(__file__).parents[1] / "config.yaml"
    words = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    cli.main(["fit", "-c", str(config), "--trainer.default_root_dir", str(tmp_path), *words])
    assert load(tmp_path).text is None

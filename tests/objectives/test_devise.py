from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.objectives.parity import DIM, assert_same, spec, train
from torch import Tensor
from torch.nn import functional as F

from mofi_lightning.distributed import counted_generator
from mofi_lightning.objectives import CLIP, DeViSE, MultiTask
from mofi_lightning.testing import check_objective, synthetic_vocabulary
from mofi_lightning.types import Batch, Embeddings, InputError, ObjectiveSpec

ENTITY = [3, 6, -1, 3, -1, 3, -1, 0, -1, -1, -1, -1]  # the last third of the rows has no label
VARIANTS = [
    {"competitors": "first"},
    {"competitors": "all"},
    {"competitors": "batch"},
    {"loss": "cosine"},
    {"loss": "mse", "competitors": "batch"},
]


@pytest.fixture
def label_vectors(tmp_path: Path) -> str:
    """Vectors of E9 to E0, not of unit length."""
    vectors = 3 * torch.randn(10, 5, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "vectors.parquet"
    ids = [f"E{i}" for i in reversed(range(10))]
    table = pa.table({"id": ids, "vector": vectors.tolist()})
    pq.write_table(table.replace_schema_metadata({"mofi.model": "glove", "mofi.descriptions": "true"}), path)
    return str(path)


def naive(
    weight: Tensor, image: Tensor, entity: list[int], file: dict[str, list[float]], draw: int, **options: str
) -> tuple[Tensor, float]:
    """Loss and accuracy from the paper's formulas, one row and one label at a time."""
    t = [F.normalize(torch.tensor(file[f"E{j}"], dtype=torch.float64), dim=0) for j in range(10)]
    competitors = options.get("competitors", "first")
    place = torch.randperm(10, generator=counted_generator(1, draw)).tolist()
    competing = sorted({e for e in entity if e >= 0}) if competitors == "batch" else range(10)
    losses, hits = [], []
    for row, own in enumerate(entity):
        if own < 0:
            continue
        v = weight @ image[row]
        round_the_circle = sorted(competing, key=lambda j, own=own: (place[j] - place[own]) % 10)
        hits.append(all(v @ t[j] <= v @ t[own] for j in competing))
        if options.get("loss") == "cosine":
            losses.append(1 - v @ t[own] / v.norm())
        elif options.get("loss") == "mse":
            losses.append(((v - t[own]) ** 2).sum())
        else:
            terms = [0.1 - v @ t[own] + v @ t[j] for j in round_the_circle if j != own]
            violating = [term for term in terms if term > 0]
            losses.append(sum(violating[:1] if competitors == "first" else violating, v.sum() * 0))
    return torch.stack(losses).mean(), sum(hits) / len(hits)


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: "-".join(options.values()))
def test_loss_gradient_and_accuracy_are_those_of_the_formulas(label_vectors, options):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        objective = DeViSE(spec(10), label_vectors, **options)
    finally:
        torch.set_default_dtype(torch.float32)
    file = dict(zip(*pq.read_table(label_vectors).to_pydict().values(), strict=True))
    image = torch.randn(12, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    image = F.normalize(image, dim=1).requires_grad_()
    weight = objective.space.map.weight
    for draw in (1, 2):
        output = objective(Embeddings(image=image), Batch(entity=torch.tensor(ENTITY)))
        expected, accuracy = naive(weight, image, ENTITY, file, draw, **options)
        torch.testing.assert_close(output.loss, expected, rtol=0, atol=1e-10)
        assert output.logs["accuracy"].item() == pytest.approx(accuracy)
        gradients = torch.autograd.grad(output.loss, (image, weight))
        for got, want in zip(gradients, torch.autograd.grad(expected, (image, weight)), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: "-".join(options.values()))
def test_training_on_two_ranks_equals_training_on_one_process(pool, label_vectors, options):
    make = partial(DeViSE, label_vectors=label_vectors, **options)
    assert_same(pool(2, train, make, 10, ENTITY), train(make, 10, ENTITY))


@pytest.mark.parametrize("competitors", ("first", "batch"))
def test_it_passes_the_kit(tmp_path, competitors):
    columns = {"id": synthetic_vocabulary(12).ids[:], "vector": torch.randn(12, 5).tolist()}
    pq.write_table(pa.table(columns), tmp_path / "vectors.parquet")
    label_vectors = str(tmp_path / "vectors.parquet")
    check_objective(partial(DeViSE, label_vectors=label_vectors, competitors=competitors))


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: "-".join(options.values()))
def test_the_order_of_the_rows_does_not_matter(label_vectors, options):
    image = F.normalize(torch.randn(12, DIM), dim=1)
    entity = torch.tensor(ENTITY)
    shuffled = torch.randperm(12)
    objective = DeViSE(spec(10), label_vectors, **options).eval()
    loss = objective(Embeddings(image=image), Batch(entity=entity)).loss
    same = objective(Embeddings(image=image[shuffled]), Batch(entity=entity[shuffled])).loss
    torch.testing.assert_close(same, loss)


@pytest.mark.parametrize("competitors", ("first", "batch"))
def test_without_labelled_rows_the_loss_is_zero(pool, label_vectors, competitors):
    make = partial(DeViSE, label_vectors=label_vectors, competitors=competitors)
    for trace in pool(2, train, make, 10, [-1] * 4):
        assert trace.losses.eq(0).all()


def test_orders_are_counted_in_training_only_and_kept(label_vectors):
    objective = DeViSE(spec(10), label_vectors)
    inputs = (
        Embeddings(image=F.normalize(torch.randn(4, DIM), dim=1)),
        Batch(entity=torch.tensor([1, 2, 3, 4])),
    )
    objective(*inputs)
    losses = [objective.eval()(*inputs).loss for _ in range(2)]
    assert losses[0] == losses[1] and objective.state_dict()["draws"].tolist() == [1]
    resumed = DeViSE(spec(10), label_vectors)
    resumed.load_state_dict(objective.state_dict())
    assert [resumed(*inputs).loss for _ in range(3)] == [objective.train()(*inputs).loss for _ in range(3)]


def test_only_the_map_is_trained_and_the_vectors_are_not_kept(label_vectors):
    objective = DeViSE(spec(10), label_vectors)
    assert [name for name, _ in objective.named_parameters()] == ["space.map.weight"]
    assert list(objective.state_dict()) == ["draws", "space.map.weight"]


def test_the_label_space_tells_what_made_the_vectors_also_inside_of_several_objectives(label_vectors):
    devise = partial(DeViSE, label_vectors=label_vectors)
    objective = MultiTask(spec(10), {"clip": CLIP, "devise": devise})
    space = objective.label_space()
    assert space is objective.objectives["devise"].space
    assert (space.config.dim, space.config.model, space.config.descriptions) == (5, "glove", True)
    assert CLIP(spec(10)).label_space() is None
    assert MultiTask(spec(10), {"clip": CLIP}).label_space() is None


def test_entities_without_a_vector_are_refused_with_their_number_and_the_first(label_vectors):
    with pytest.raises(InputError, match=r"lack 2 of 12 entities, the first 'E10'.*mofi vectors"):
        DeViSE(spec(12), label_vectors)


def test_data_without_entities_and_a_negative_margin_are_refused(label_vectors):
    with pytest.raises(InputError, match="DeViSE needs entities"):
        DeViSE(ObjectiveSpec(4, 4), label_vectors)
    with pytest.raises(InputError, match=r"margin of objective DeViSE is -0\.1"):
        DeViSE(spec(10), label_vectors, margin=-0.1)

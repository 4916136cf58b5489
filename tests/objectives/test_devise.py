from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.objectives.parity import assert_same, spec, train
from torch.nn import functional as F

from mofi_lightning.objectives import DeViSE
from mofi_lightning.types import Batch, Embeddings, InputError, ObjectiveSpec

ENTITY = [3, 6, -1, 3, -1, 3, -1, 0, -1, -1, -1, -1]  # the last third of the rows has no label


@pytest.fixture
def label_vectors(tmp_path: Path) -> str:
    """Vectors of E9 to E0, not of unit length."""
    vectors = 3 * torch.randn(10, 5, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "vectors.parquet"
    ids = [f"E{i}" for i in reversed(range(10))]
    pq.write_table(pa.table({"id": ids, "vector": vectors.tolist()}), path)
    return str(path)


def test_loss_is_the_mean_violation_of_each_labelled_row(label_vectors):
    objective = DeViSE(spec(10), label_vectors, margin=0.1)
    image = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    file = dict(zip(*pq.read_table(label_vectors).to_pydict().values(), strict=True))
    expected, hits = [], []
    for row, label in ((0, 3), (2, 8)):
        mapped = objective.map.weight @ image[row]
        scores = [mapped @ F.normalize(torch.tensor(file[f"E{j}"]), dim=0) for j in range(10)]
        terms = [max(0.0, (0.1 - scores[label] + scores[j]).item()) for j in range(10) if j != label]
        violating = [term for term in terms if term > 0]
        expected.append(sum(violating) / len(violating))
        hits.append(max(scores) == scores[label])
    output = objective(Embeddings(image=image), Batch(entity=torch.tensor([3, -1, 8])))
    torch.testing.assert_close(output.loss, torch.tensor(sum(expected) / 2))
    assert output.logs["accuracy"] == sum(hits) / 2


@pytest.mark.parametrize("world", (2, 3))
def test_training_on_ranks_equals_training_on_one_process(pool, world, label_vectors):
    make = partial(DeViSE, label_vectors=label_vectors)
    assert_same(pool(world, train, make, 10, ENTITY), train(make, 10, ENTITY))


def test_without_labelled_rows_the_loss_is_zero(pool, label_vectors):
    make = partial(DeViSE, label_vectors=label_vectors)
    for trace in pool(2, train, make, 10, [-1] * 4):
        assert trace.losses.eq(0).all()


def test_only_the_map_is_trained_and_kept(label_vectors):
    objective = DeViSE(spec(10), label_vectors)
    assert [name for name, _ in objective.named_parameters()] == ["map.weight"]
    assert list(objective.state_dict()) == ["map.weight"]


def test_entities_without_a_vector_are_refused_with_their_number_and_the_first(label_vectors):
    with pytest.raises(InputError, match=r"lack 2 of 12 entities, the first 'E10'.*mofi vectors"):
        DeViSE(spec(12), label_vectors)


def test_data_without_entities_is_refused(label_vectors):
    with pytest.raises(InputError, match="DeViSE needs entities"):
        DeViSE(ObjectiveSpec(4, 4), label_vectors)

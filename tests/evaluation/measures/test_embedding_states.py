"""The metrics beside the functions: over batches, in collections, over ranks."""

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from mofi_lightning.distributed import rank, world_size
from mofi_lightning.evaluation.measures.image_text import ImageTextRecallAtK, image_text_recall
from mofi_lightning.evaluation.measures.knn import KNNAccuracy, weighted_knn
from mofi_lightning.evaluation.measures.linear_probe import LinearProbeAccuracy
from mofi_lightning.evaluation.measures.retrieval import (
    MAPAtR,
    RecallAtK,
    RetrievalMAP,
    average_precision_at_r,
    measure_retrieval,
    retrieval_average_precision,
    retrieval_hits,
)
from mofi_lightning.evaluation.measures.ridge_probe import RidgeProbeAccuracy

K, TEMPERATURES = (1, 5), (0.03, 0.07)


def _data(rows: int = 61, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows with copies, the first class alone."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, 9, (rows,), generator=generator)
    labels[0] = 0
    vectors = torch.randn(rows, 12, generator=generator) + torch.nn.functional.one_hot(labels, 12)
    vectors[rows // 2 : rows // 2 + 9] = vectors[:9]
    return vectors, labels


def _metrics() -> MetricCollection:
    return MetricCollection(
        {
            "map": RetrievalMAP(),
            "map_with_self": RetrievalMAP(exclude_self=False),
            "map@R": MAPAtR(),
            "recall@3": RecallAtK(k=3),
            "knn": KNNAccuracy(K, TEMPERATURES),
        }
    )


def _want(vectors: Tensor, labels: Tensor) -> dict[str, float]:
    at_r = measure_retrieval({"": average_precision_at_r}, vectors, labels, exclude_self=True)[""]
    found = {
        "map": retrieval_average_precision(vectors, labels, exclude_self=True).nanmean(),
        "map_with_self": retrieval_average_precision(vectors, labels).nanmean(),
        "map@R": at_r.nanmean(),
        "recall@3": retrieval_hits(vectors, labels, k=(3,), exclude_self=True)[3].nanmean(),
        "knn": max(weighted_knn(vectors, labels, k=K, temperatures=TEMPERATURES).accuracy.values()),
    }
    return {name: float(value) for name, value in found.items()}


def _close(found: dict[str, Tensor], want: dict[str, float]) -> bool:
    return {name: float(value) for name, value in found.items()} == pytest.approx(want, abs=1e-9)


def test_metrics_in_a_collection_equal_the_functions_on_all_batches_and_leave_unlabelled_rows_out():
    vectors, labels = _data()
    labels[::7] = -1
    metrics = _metrics()
    for _ in range(2):
        for rows in torch.arange(61).split(10):
            metrics.update(vectors[rows], labels[rows])
        known = labels >= 0
        assert _close(metrics.compute(), _want(vectors[known], labels[known]))
        metrics.reset()
    # one copy of the rows for all of them
    assert len(metrics.compute_groups) == 1


def test_a_metric_can_be_copied_and_pickled_between_batches():
    vectors, labels = _data()
    metrics = _metrics()
    metrics.update(vectors[:40], labels[:40])
    for other in (copy.deepcopy(metrics), pickle.loads(pickle.dumps(metrics))):
        other.update(vectors[40:], labels[40:])
        assert _close(other.compute(), _want(vectors, labels))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_without_rows_the_value_is_nan():
    vectors, labels = _data()
    for metric in (RetrievalMAP(), KNNAccuracy(), MAPAtR(), RecallAtK()):
        assert metric.compute().isnan()
        metric.update(vectors, torch.full_like(labels, -1))
        assert metric.compute().isnan()
    recall = ImageTextRecallAtK()
    recall.update(vectors[:0], vectors[:0], labels[:0])
    assert recall.compute().isnan()


def _of_a_rank(vectors: Tensor, texts: Tensor, labels: Tensor, idle: int) -> dict[str, float]:
    metrics, recall = _metrics(), ImageTextRecallAtK(k=2)
    if rank() != idle:
        working = [number for number in range(world_size()) if number != idle]
        mine = slice(working.index(rank()), None, len(working))
        metrics.update(vectors[mine], labels[mine])
        recall.update(vectors[mine], texts[mine], labels[mine])
    found = {name: float(value) for name, value in metrics.compute().items()}
    return found | {"image_text": float(recall.compute())}


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("world, idle", [(2, -1), (2, 0), (2, 1)])
def test_ranks_with_other_shares_or_none_give_the_number_of_one_process(pool, world, idle):
    vectors, labels = _data()
    texts = _data(seed=1)[0]
    recall = image_text_recall(vectors, labels, texts, labels, k=(2,))
    both = (recall.image_to_text[2].nanmean() + recall.text_to_image[2].nanmean()) / 2
    want = _want(vectors, labels) | {"image_text": float(both)}
    for found in pool(world, _of_a_rank, vectors, texts, labels, idle):
        assert found == pytest.approx(want, abs=1e-9)


def test_metrics_of_other_settings_share_states_and_differ_in_value():
    # after a first batch without labels too; they keep the rows themselves, which are the same for all
    vectors, labels = _data()
    fitting = torch.arange(61) % 2 == 0
    batches = [(vectors[:3], -torch.ones(3).long(), fitting[:3]), (vectors, labels, fitting)]
    probes = MetricCollection({"ridge": RidgeProbeAccuracy(), "linear": LinearProbeAccuracy(penalty=100.0)})
    recalls = MetricCollection({str(k): ImageTextRecallAtK(k=k) for k in (1, 3)})
    for features, classes, learnt in batches:
        probes.update(features, classes, learnt)
        recalls(features, features.flip(0), classes)
    for metric in (RidgeProbeAccuracy(), LinearProbeAccuracy(penalty=100.0)):
        metric.update(*batches[1])
        name = "ridge" if isinstance(metric, RidgeProbeAccuracy) else "linear"
        assert float(probes.compute()[name]) == pytest.approx(float(metric.compute()), abs=1e-12)
    found = image_text_recall(vectors, labels, vectors.flip(0), labels, k=(1, 3))
    for k in (1, 3):
        want = (found.image_to_text[k].nanmean() + found.text_to_image[k].nanmean()) / 2
        assert float(recalls.compute()[str(k)]) == pytest.approx(float(want), abs=1e-12)

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from mofi_lightning.distributed import rank, world_size
from mofi_lightning.evaluation import retrieval
from mofi_lightning.evaluation.retrieval import (
    RetrievalMAP,
    nearest_neighbours,
    retrieval_average_precision,
    retrieval_hits,
    unit,
)
from mofi_lightning.types import InputError


def _data(rows: int = 61, classes: int = 9, width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    return torch.randn(rows, width, generator=generator) * 3 + torch.nn.functional.one_hot(labels, width + 1)[
        :, :width
    ], labels


def _naive(all_scores: Tensor, labels: Tensor, index_labels: Tensor, exclude_self: bool) -> Tensor:
    """GPR1200's definition in fp64 loops; tied rows share the last rank of their group."""
    values = []
    scores, own, others = all_scores.tolist(), labels.tolist(), index_labels.tolist()
    for query in range(len(own)):
        rows = [row for row in range(len(others)) if not (exclude_self and row == query)]
        positives = [row for row in rows if others[row] == own[query]]
        total = 0.0
        for positive in positives:
            better = [row for row in rows if scores[query][row] >= scores[query][positive]]
            total += sum(others[row] == own[query] for row in better) / len(better)
        values.append(total / len(positives) if positives else float("nan"))
    return torch.tensor(values, dtype=torch.float64)


def _scores(embeddings: Tensor, index: Tensor | None = None) -> Tensor:
    return unit(embeddings) @ unit(embeddings if index is None else index).T


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("block", [1, 150, 2**23])
def test_average_precision_equals_naive_loops_for_any_block_of_queries(monkeypatch, exclude_self, block):
    monkeypatch.setattr(retrieval, "BLOCK", block)
    embeddings, labels = _data()
    got = retrieval_average_precision(embeddings, labels, exclude_self=exclude_self)
    want = _naive(_scores(embeddings), labels, labels, exclude_self)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0, equal_nan=True)


def test_average_precision_equals_scikit_learn_with_ties_and_negative_scores():
    generator = torch.Generator().manual_seed(3)
    # signs on 4 axes: norm 2, so that scores are exact multiples of 1/4 and most of them tie
    embeddings = torch.randint(2, (80, 4), generator=generator).float() * 2 - 1
    labels = torch.randint(6, (80,), generator=generator)
    got = retrieval_average_precision(embeddings, labels)
    scores = _scores(embeddings).numpy()
    want = [
        average_precision_score((labels == label).numpy(), s) for label, s in zip(labels, scores, strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), atol=1e-12, rtol=0)


def test_average_precision_does_not_depend_on_the_order_of_tied_rows():
    embeddings = torch.tensor([[1.0, 0.0]] * 6)
    for labels in ([0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0]):
        got = retrieval_average_precision(embeddings, torch.tensor(labels), exclude_self=True)
        torch.testing.assert_close(got, torch.full((6,), 2 / 5, dtype=torch.float64))


def test_separate_index_equals_naive_loops_and_a_query_without_positives_is_nan():
    queries, labels = _data(20, 5)
    index, index_labels = _data(33, 4, seed=1)
    got = retrieval_average_precision(queries, labels, index, index_labels)
    want = _naive(_scores(queries, index), labels, index_labels, False)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0, equal_nan=True)
    assert got.isnan().tolist() == (labels == 4).tolist()


def test_random_ranking_of_gpr1200_scores_about_a_tenth_with_the_self_match():
    # 0.102 for all 12,000 images; fewer here, so chance adds a little more to the 1/10 of the self-match
    generator = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(3000, 256, generator=generator), torch.arange(3000) // 10
    with_self = retrieval_average_precision(embeddings, labels).mean()
    without = retrieval_average_precision(embeddings, labels, exclude_self=True).mean()
    assert 0.1 < with_self < 0.115
    assert without < 0.012


def test_an_image_without_a_second_one_has_no_value_without_self_and_one_with():
    embeddings, labels = torch.eye(3), torch.tensor([0, 0, 1])
    assert retrieval_average_precision(embeddings, labels, exclude_self=True).isnan().tolist() == [
        False,
        False,
        True,
    ]
    assert retrieval_average_precision(embeddings, labels).tolist()[2] == 1.0


@pytest.mark.parametrize("k", [1, 3, 60])
def test_hits_equal_a_naive_search(k):
    embeddings, labels = _data()
    got = retrieval_hits(embeddings, labels, k=(k,), exclude_self=True)[k]
    scores = _scores(embeddings).fill_diagonal_(-2)
    order = scores.argsort(dim=1, descending=True)[:, :k]
    hit = ((labels[order] == labels[:, None]) & (order != torch.arange(61)[:, None])).any(dim=1)
    torch.testing.assert_close(got, hit.double())


def test_a_collapsed_encoder_scores_no_hit():
    labels = torch.arange(10) // 2
    assert retrieval_hits(torch.ones(10, 4), labels, k=(1, 5), exclude_self=True)[5].sum() == 0


def test_values_do_not_depend_on_the_length_of_the_embeddings():
    embeddings, labels = _data()
    stretched = embeddings * 2.0 ** torch.randint(-9, 9, (61, 1), generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(
        retrieval_average_precision(embeddings, labels),
        retrieval_average_precision(stretched, labels),
        rtol=0,
        atol=0,
    )


def test_embeddings_that_are_not_finite_are_named():
    embeddings, labels = _data()
    embeddings[[4, 7], 0] = torch.nan
    with pytest.raises(InputError, match=r"2 of 61 embeddings are not finite \(rows 4, 7\)"):
        retrieval_average_precision(embeddings, labels)


def test_wrong_arguments_are_named():
    embeddings, labels = _data()
    with pytest.raises(InputError, match="61 embeddings but 60 labels"):
        retrieval_average_precision(embeddings, labels[:60])
    with pytest.raises(InputError, match="go together"):
        retrieval_average_precision(embeddings, labels, embeddings)
    with pytest.raises(InputError, match="exclude_self"):
        retrieval_average_precision(embeddings, labels, embeddings, labels, exclude_self=True)


def test_nearest_neighbours_leave_the_query_out_and_come_in_order():
    embeddings, _ = _data()
    scores = _scores(embeddings).fill_diagonal_(-2)
    want = scores.argsort(dim=1, descending=True)[[3, 9], :10]
    assert nearest_neighbours(embeddings, [3, 9], 10).tolist() == want.tolist()
    assert nearest_neighbours(embeddings[:3], [0], 10).shape == (1, 2)


def test_metric_equals_the_function_on_all_batches_and_leaves_unlabelled_rows_out():
    embeddings, labels = _data()
    labels[::7] = -1
    metric = RetrievalMAP()
    for rows in torch.arange(61).split(10):
        metric.update(embeddings[rows], labels[rows])
    known = labels >= 0
    want = retrieval_average_precision(embeddings[known], labels[known], exclude_self=True).nanmean()
    torch.testing.assert_close(metric.compute(), want, rtol=0, atol=0)


def _metric_of_a_rank(embeddings: Tensor, labels: Tensor) -> float:
    metric = RetrievalMAP()
    metric.update(embeddings[rank() :: world_size()], labels[rank() :: world_size()])
    return float(metric.compute())


def test_two_ranks_give_one_process_number_though_their_shares_differ(pool):
    embeddings, labels = _data(61)
    want = retrieval_average_precision(embeddings, labels, exclude_self=True).nanmean()
    assert pool(2, _metric_of_a_rank, embeddings, labels) == pytest.approx([float(want)] * 2, abs=1e-12)

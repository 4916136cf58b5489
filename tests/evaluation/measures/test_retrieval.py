import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torchmetrics.retrieval import RetrievalMAP as PeerMAP

from mofi_lightning.evaluation.measures import scores as scoring
from mofi_lightning.evaluation.measures.retrieval import (
    average_precision,
    average_precision_at_r,
    first_hit,
    measure_retrieval,
    retrieval_average_precision,
    retrieval_hits,
)
from mofi_lightning.evaluation.measures.scores import unit
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
    monkeypatch.setattr(scoring, "BLOCK", block)
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


def _exact(embeddings: Tensor, labels: Tensor, tie: float = 1e-13) -> tuple[Tensor, Tensor]:
    """Average precision and mAP@R of each query without itself, by the definitions on fp64 scores."""
    vectors = unit(embeddings).double()
    scores = vectors @ vectors.T
    scores.fill_diagonal_(-2)
    precision, at_r = [], []
    for query, own in enumerate(scores):
        relevant = (labels == labels[query]) & (torch.arange(len(labels)) != query)
        rank = (own >= own[relevant, None] - tie).sum(dim=1)
        found = (own[relevant] >= own[relevant, None] - tie).sum(dim=1)
        values = found.double() / rank
        precision.append(values.mean())
        at_r.append(values[rank <= len(rank)].sum() / len(rank))
    return torch.stack(precision), torch.stack(at_r)


def _near_ties(rows: int = 401, width: int = 96) -> tuple[Tensor, Tensor]:
    """Embeddings that fp32 products put in a wrong order: rows that differ in the last bits, and copies."""
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(rows // 8 + 1, width, generator=generator)
    vectors = base.repeat(9, 1)[:rows]
    vectors = vectors + 1e-7 * torch.randn(vectors.shape, generator=generator)
    vectors[torch.randperm(rows, generator=generator)[:60]] = vectors[:60].clone()
    return vectors, torch.randint(7, (rows,), generator=generator)


@pytest.mark.parametrize("block", [1, 5_000, 2**23])
def test_near_ties_and_copies_stand_in_the_order_of_fp64_scores_for_any_block(monkeypatch, block):
    monkeypatch.setattr(scoring, "BLOCK", block)
    vectors, labels = _near_ties()
    found = measure_retrieval(
        {"map": average_precision, "map@R": average_precision_at_r}, vectors, labels, exclude_self=True
    )
    precision, at_r = _exact(vectors, labels)
    torch.testing.assert_close(found["map"], precision, rtol=0, atol=1e-12)
    torch.testing.assert_close(found["map@R"], at_r, rtol=0, atol=1e-12)
    # the data would show a comparison of fp32 scores
    fp32 = _naive(unit(vectors) @ unit(vectors).T, labels, labels, True)
    assert (fp32 - precision).abs().max() > 1e-3


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("width", [33, 512])
def test_values_depend_on_neither_the_order_of_rows_nor_the_block_nor_the_threads(
    monkeypatch, threads, width
):
    vectors, labels = _near_ties(251, width)
    want = retrieval_average_precision(vectors, labels, exclude_self=True)
    order = torch.randperm(251, generator=torch.Generator().manual_seed(width))
    monkeypatch.setattr(scoring, "BLOCK", 251 * 13)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = retrieval_average_precision(vectors[order], labels[order], exclude_self=True)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got, want[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3])
def test_a_collapsed_encoder_has_the_values_of_fp64_scores(spread):
    vectors, labels = _data(150, 15, 16)
    vectors = torch.ones(1, 16) + spread * vectors
    got = retrieval_average_precision(vectors, labels, exclude_self=True)
    torch.testing.assert_close(got, _exact(vectors, labels, 2e-14)[0], rtol=0, atol=1e-12, equal_nan=True)


def test_average_precision_at_r_equals_musgraves_definition_by_hand():
    # by falling score: positive, negative, positive, negative, positive; R = 3
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 0, 1, 0, 1, 0])
    got = measure_retrieval(
        {"R": average_precision_at_r, "first": first_hit}, vectors[:1], labels[:1], vectors[1:], labels[1:]
    )
    assert float(got["R"]) == pytest.approx((1 + 2 / 3) / 3)
    assert float(got["first"]) == 1


def test_equals_torchmetrics_where_scores_are_positive_and_the_truth_where_they_are_not():
    # torchmetrics' RetrievalMAP takes scores for probabilities: it drops positives that score 0 or less
    embeddings, labels = _data()
    for vectors, right in ((embeddings.abs(), True), (embeddings, False)):
        scores = _scores(vectors)
        peer = PeerMAP()
        query = torch.arange(61)[:, None].expand(61, 61)
        peer.update(scores.flatten(), (labels == labels[:, None]).flatten(), indexes=query.flatten())
        got = float(retrieval_average_precision(vectors, labels).mean())
        assert got == pytest.approx(float(_naive(scores, labels, labels, False).mean()))
        assert (abs(got - float(peer.compute())) < 1e-6) == right


def test_classes_of_nearly_all_rows_equal_naive_loops(monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 700)
    embeddings, _ = _data()
    labels = (torch.arange(61) > 2).long()
    got = retrieval_average_precision(embeddings, labels, exclude_self=True)
    torch.testing.assert_close(got, _exact(embeddings, labels)[0], rtol=0, atol=1e-12)

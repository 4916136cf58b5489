import pytest
import torch

from mofi_lightning.evaluation.measures.conse import conse_embedding
from mofi_lightning.types import InputError


@pytest.mark.parametrize("top", [1, 3, 10])
def test_equals_the_papers_sum(top):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(6, 4, generator=generator)
    probabilities = torch.randn(8, 6, generator=generator).softmax(dim=1)
    got = conse_embedding(probabilities, vectors, top)
    for row, of_labels in zip(got, probabilities.tolist(), strict=True):
        best = sorted(range(6), key=lambda label: -of_labels[label])[:top]
        total = sum(of_labels[label] for label in best)
        want = sum(of_labels[label] / total * vectors[label] for label in best)
        torch.testing.assert_close(row, want)


def test_a_certain_classifier_gives_the_labels_own_vector():
    vectors = torch.tensor([[3.0, 4], [0, 1]])
    assert conse_embedding(torch.tensor([[1.0, 0]]), vectors).tolist() == [[3, 4]]


def test_half_and_half_gives_the_middle():
    probabilities = torch.tensor([[0.4, 0.4, 0.2]], dtype=torch.float64)
    vectors = torch.tensor([[2.0, 0], [0, 2], [9, 9]])
    assert conse_embedding(probabilities, vectors, top=2).tolist() == [[1, 1]]


@pytest.mark.parametrize("wrong", [[0.5, torch.nan], [0.0, 0.0], [1.0, -0.1], [torch.inf, 0.0]])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(InputError, match="no probabilities"):
        conse_embedding(torch.tensor([wrong]), torch.eye(2))


def test_vectors_of_other_labels_or_broken_ones_are_refused():
    with pytest.raises(InputError, match="of 2 labels, but 3 vectors"):
        conse_embedding(torch.ones(1, 2), torch.eye(3))
    with pytest.raises(InputError, match="label vectors are not finite"):
        conse_embedding(torch.ones(1, 2), torch.full((2, 2), torch.nan))
    with pytest.raises(InputError, match="top 0 labels"):
        conse_embedding(torch.ones(1, 2), torch.eye(2), top=0)

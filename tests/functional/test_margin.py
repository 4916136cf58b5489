import torch
from torch.nn import functional as F

from mofi_lightning.functional import cosface_logits


def test_cross_entropy_of_the_logits_is_the_papers_equation_4():
    generator = torch.Generator().manual_seed(0)
    cosine = 2 * torch.rand(20, 5, generator=generator, dtype=torch.float64) - 1
    labels = torch.randint(5, (20,), generator=generator)
    s, m = 64.0, 0.35
    expected = []
    for row, y in zip(cosine, labels.tolist(), strict=True):
        own = (s * (row[y] - m)).exp()
        others = sum((s * row[j]).exp() for j in range(5) if j != y)
        expected.append(-(own / (own + others)).log())
    losses = F.cross_entropy(cosface_logits(cosine, labels, m, s), labels, reduction="none")
    torch.testing.assert_close(losses, torch.stack(expected))


def test_only_the_targets_logit_is_lowered():
    cosine = torch.tensor([[0.5, 0.25], [0.5, 0.25]])
    logits = cosface_logits(cosine, torch.tensor([1, -1]), margin=0.25, scale=4)
    assert logits.tolist() == [[2.0, 0.0], [2.0, 1.0]]


def test_a_rank_without_classes_has_no_logits():
    assert cosface_logits(torch.empty(3, 0), torch.full((3,), -1), 0.1, 32).shape == (3, 0)

import math

import pytest
import torch
from torch.nn import functional as F

import mofi_template
from mofi_lightning import Batch, Embeddings, InputError, ObjectiveSpec, plugins
from mofi_lightning.testing import check_objective


def naive(image: list[list[float]], text: list[list[float]], t: float, weight: float) -> float:
    """The loss of Wang and Isola, pair by pair."""

    def squared_distance(x: list[float], y: list[float]) -> float:
        return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))

    def uniformity(rows: list[list[float]]) -> float:
        pairs = [(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return math.log(sum(math.exp(-t * squared_distance(x, y)) for x, y in pairs) / len(pairs))

    alignment = sum(map(squared_distance, image, text)) / len(image)
    return alignment + weight * (uniformity(image) + uniformity(text)) / 2


def test_the_contract_is_kept():
    print(check_objective(mofi_template.Template))


@pytest.mark.parametrize("t, weight", ((2.0, 1.0), (0.5, 3.0)))
def test_loss_is_the_papers(t, weight):
    generator = torch.Generator().manual_seed(0)
    image, text = F.normalize(torch.randn(2, 6, 4, generator=generator, dtype=torch.float64), dim=-1)
    objective = mofi_template.Template(ObjectiveSpec(embed_dim=4, feature_dim=4), t, weight)
    loss = objective(Embeddings(image=image, text=text), Batch()).loss
    assert loss.item() == pytest.approx(naive(image.tolist(), text.tolist(), t, weight), rel=1e-12)


def test_it_is_found_by_its_name():
    assert plugins.template is mofi_template.Template


def test_a_temperature_that_attracts_is_refused():
    with pytest.raises(InputError, match="temperature of Template is 0"):
        mofi_template.Template(ObjectiveSpec(embed_dim=4, feature_dim=4), temperature=0)

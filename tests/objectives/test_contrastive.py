import math
from functools import partial

import open_clip
import pytest
import torch
from tests.objectives.parity import assert_same, spec, train
from torch.nn import functional as F

from mofi_lightning.objectives import CLIP
from mofi_lightning.types import Batch, Embeddings

ENTITY = [3, 1, -1, 3, -1, 3, -1, 0, 1, -1, -1, -1]  # positives lie on different ranks; the last has none


def _embeddings(rows: int) -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(rows, 4, generator=generator), dim=1) for _ in range(2))
    return Embeddings(image=image, text=text)


@pytest.mark.parametrize(
    ("options", "batch"),
    [({}, Batch()), ({"multi_positive": False}, Batch(entity=torch.zeros(8, dtype=torch.int64)))],
    ids=["no entities", "entities ignored"],
)
def test_with_one_positive_a_row_the_loss_is_open_clips(options, batch):
    embeddings = _embeddings(8)
    expected = open_clip.ClipLoss()(embeddings.image, embeddings.text, 1 / 0.07)
    torch.testing.assert_close(CLIP(spec(4), **options)(embeddings, batch).loss, expected)


def test_pairs_of_the_same_entity_do_not_repel_each_other():
    image = F.normalize(torch.eye(4)[[0, 0, 1]], dim=1)
    embeddings = Embeddings(image=image, text=image)
    same = CLIP(spec(4), logit_scale_init=math.log(100))(embeddings, Batch(entity=torch.tensor([2, 2, -1])))
    # two columns fit the first two rows equally well: ln 2 is the entropy of their targets
    torch.testing.assert_close(same.loss, torch.tensor(2 / 3 * math.log(2)))


@pytest.mark.parametrize("world", (2, 3))
@pytest.mark.parametrize("options", ({}, {"label_smoothing": 0.1}, {"multi_positive": False}), ids=str)
def test_training_on_ranks_equals_training_on_one_process(pool, world, options):
    make = partial(CLIP, **options)
    assert_same(pool(world, train, make, 5, ENTITY), train(make, 5, ENTITY))


@pytest.mark.parametrize("world", (1, 2))
def test_the_scale_stays_below_its_cap_sharded_or_not(pool, world):
    make = partial(CLIP, max_logit_scale=0.5)
    for trace in pool(world, train, make, 5, ENTITY, 1):
        assert trace.objective["logit_scale"].tolist() == [0.5]


def test_the_scale_starts_at_clips_and_has_one_dimension():
    objective = CLIP(spec(4))
    assert objective.logit_scale.shape == (1,)
    output = objective(_embeddings(4), Batch())
    assert output.loss.dim() == 0
    torch.testing.assert_close(output.logs["logit_scale"], torch.tensor(1 / 0.07))

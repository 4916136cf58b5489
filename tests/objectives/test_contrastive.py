import math
from functools import partial

import open_clip
import pytest
import torch
import torch.distributed as dist
from tests.objectives.parity import assert_same, spec, train
from torch import Tensor
from torch.nn import functional as F

from mofi_lightning.distributed import rank, world_size
from mofi_lightning.objectives import CLIP
from mofi_lightning.testing import check_objective
from mofi_lightning.types import Batch, Embeddings, InputError, Tokens

ENTITY = [3, 1, -1, 3, -1, 3, -1, 0, 1, -1, -1, -1]  # repeats lie on different ranks; the last has none
# rows 2 and 9 repeat each other by text alone; 4 and 7, of an entity that 4 does not know; 1 and 10 likewise
TEXTS = [[5], [6, 7], [8], [9], [4, 4, 4], [5, 5], [7, 6], [4, 4, 4], [6], [8], [6, 7], [9, 9, 9, 9]]


def _embeddings(rows: int, dtype: torch.dtype = torch.float32) -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    image, text = (
        F.normalize(torch.randn(rows, 4, generator=generator, dtype=torch.float64), dim=1).to(dtype)
        for _ in range(2)
    )
    return Embeddings(image=image, text=text)


def _tokens(texts: list[list[int]]) -> Tokens:
    """Padded to the longest of these texts."""
    length = max(map(len, texts))
    ids = torch.tensor([text + [0] * (length - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    return Tokens(ids, mask)


REPEATED = Batch(entity=torch.zeros(8, dtype=torch.int64), text=_tokens([[1]] * 8))
DISTINCT = Batch(entity=torch.arange(8), text=_tokens([[i] for i in range(8)]))


@pytest.mark.parametrize(
    ("options", "batch"),
    [({}, Batch()), ({}, DISTINCT), ({"repeats": "mask"}, DISTINCT), ({"repeats": "negative"}, REPEATED)],
    ids=["no labels", "no repeats", "no repeats to mask", "repeats are negatives"],
)
def test_where_nothing_repeats_or_repeats_are_negatives_the_loss_is_open_clips(options, batch):
    embeddings = _embeddings(8)
    expected = open_clip.ClipLoss()(embeddings.image, embeddings.text, 1 / 0.07)
    torch.testing.assert_close(CLIP(spec(4), **options)(embeddings, batch).loss, expected)


@pytest.mark.parametrize(
    "batch",
    [Batch(entity=torch.tensor([2, 2, -1])), Batch(text=_tokens([[4, 5], [4, 5], [4]]))],
    ids=["same entity", "same text"],
)
@pytest.mark.parametrize(
    ("repeats", "expected"),
    # two columns fit the first two rows equally well: ln 2 is the entropy of uniform targets, and what
    # confusing them costs
    [("positive", 2 / 3 * math.log(2)), ("mask", 0.0), ("negative", 2 / 3 * math.log(2))],
)
def test_masked_repeats_do_not_compete(batch, repeats, expected):
    image = F.normalize(torch.eye(4)[[0, 0, 1]], dim=1)
    clip = CLIP(spec(4), logit_scale_init=math.log(100), repeats=repeats)
    loss = clip(Embeddings(image=image, text=image), batch).loss
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_positive_repeats_attract_and_negative_ones_repel():
    """Gradient descent on the text of the second pair, which is off its image and the first pair's."""
    batch = Batch(entity=torch.tensor([0, 0, -1]))
    embeddings = Embeddings(image=torch.eye(4)[:3], text=torch.eye(4)[:3].requires_grad_())
    moves = {}
    for repeats in ("positive", "mask", "negative"):
        loss = CLIP(spec(4), repeats=repeats)(embeddings, batch).loss
        (gradient,) = torch.autograd.grad(loss, embeddings.text)
        moves[repeats] = -gradient[1, 0].item()
    assert moves["positive"] > 0 and moves["mask"] == 0 and moves["negative"] < 0


def test_undefined_targets_are_refused_before_training():
    with pytest.raises(InputError, match="not defined with repeats 'mask'"):
        CLIP(spec(4), repeats="mask", label_smoothing=0.1)
    for smoothing in (-0.1, 1.0):
        with pytest.raises(InputError, match=f"label_smoothing is {smoothing}"):
            CLIP(spec(4), label_smoothing=smoothing)


OPTIONS = (
    {},
    {"label_smoothing": 0.1},
    {"repeats": "mask"},
    {"repeats": "negative"},
    {"repeats": "negative", "label_smoothing": 0.1},
)


@pytest.mark.parametrize("world", (2, 3))
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_training_on_ranks_equals_training_on_one_process(pool, world, options):
    make = partial(CLIP, **options)
    assert_same(pool(world, train, make, 5, ENTITY), train(make, 5, ENTITY))


def _positives(repeats: str) -> float:
    share = len(TEXTS) // world_size()
    own = slice(rank() * share, (rank() + 1) * share)
    rows = _embeddings(share)
    batch = Batch(entity=torch.tensor(ENTITY)[own], text=_tokens(TEXTS[own]))
    return CLIP(spec(4), repeats=repeats)(rows, batch).logs["positives"].item()


@pytest.mark.parametrize("world", (1, 2))
def test_the_mean_number_of_positives_of_a_row_is_logged(pool, world):
    # the groups: 0, 3, 5 by entity; 1, 8 by entity with 10 by text; 2, 9 and 4, 7 by text; 6; 11
    groups = [3, 3, 2, 3, 2, 3, 1, 2, 3, 2, 3, 1]
    assert pool(world, _positives, "positive") == pytest.approx([sum(groups) / 12] * world)
    assert pool(world, _positives, "mask") == pool(world, _positives, "negative") == [1] * world


def test_masking_works_where_all_rows_of_a_rank_repeat_rows_of_another(pool):
    make, entity = partial(CLIP, repeats="mask"), [2, 2, 2, 2, 0, 2, -1, 2]
    assert_same(pool(2, train, make, 5, entity), train(make, 5, entity))


def _loss_and_gradients(options: dict[str, object]) -> list[Tensor]:
    """Of this rank's rows, whose texts are padded to its own longest; averaged as data parallelism does."""
    share = len(TEXTS) // world_size()
    own = slice(rank() * share, (rank() + 1) * share)
    whole = _embeddings(len(TEXTS), torch.float64)
    leaves = [whole.image.requires_grad_(), whole.text.requires_grad_()]
    clip = CLIP(spec(4), **options).double()
    batch = Batch(entity=torch.tensor(ENTITY)[own], text=_tokens(TEXTS[own]))
    loss = clip(Embeddings(image=leaves[0][own], text=leaves[1][own]), batch).loss
    results = [loss.detach(), *torch.autograd.grad(loss, [*leaves, clip.logit_scale])]
    if world_size() > 1:
        for result in results:
            dist.all_reduce(result)
    return [result / world_size() for result in results]


@pytest.mark.parametrize("world", (2, 3))
@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_texts_that_repeat_across_ranks_count_as_on_one_process(pool, world, options):
    expected = _loss_and_gradients(options)
    for actual in pool(world, _loss_and_gradients, options):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


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
    assert objective.max_logit_scale == math.log(100)


def test_it_keeps_to_the_contract_of_objectives():
    check_objective(CLIP)
    check_objective(partial(CLIP, repeats="mask"))

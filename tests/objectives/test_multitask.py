from functools import partial

import pytest
import torch
from jsonargparse import ArgumentParser
from tests.objectives.parity import assert_same, spec, train
from torch.nn import functional as F

from mofi_lightning.objectives import CLIP, MOFI, EntitySoftmax, MultiTask, ObjectiveFactory
from mofi_lightning.types import Batch, Embeddings, InputError

ENTITY = [3, 6, -1, 3, -1, 3, -1, 0, -1, -1, -1, -1]


def _inputs() -> tuple[Embeddings, Batch]:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(3, 4, generator=generator), dim=1) for _ in range(2))
    return Embeddings(image=image, text=text), Batch(entity=torch.tensor([4, -1, 4]))


def test_the_loss_is_the_weighted_sum_and_the_logs_name_their_objective():
    objective = MultiTask(spec(5), {"a": EntitySoftmax, "b": CLIP}, {"a": 0.25, "b": 2.0})
    entity, contrastive = EntitySoftmax(spec(5))(*_inputs()), CLIP(spec(5))(*_inputs())
    loss, logs = objective(*_inputs())
    torch.testing.assert_close(loss, 0.25 * entity.loss + 2 * contrastive.loss)
    assert logs == {
        "a/loss": entity.loss,
        "a/accuracy": entity.logs["accuracy"],
        "b/loss": contrastive.loss,
        "b/logit_scale": contrastive.logs["logit_scale"],
    }
    assert not any(value.requires_grad for value in logs.values())


def test_it_requires_what_any_part_requires():
    assert MultiTask(spec(5), {"a": CLIP}).requires == {"text"}
    assert MOFI(spec(5)).requires == {"text", "entity"}


def test_mofi_weighs_the_entity_loss_against_the_contrastive_one():
    loss, logs = MOFI(spec(5), entity_weight=0.25)(*_inputs())
    torch.testing.assert_close(loss, 0.25 * logs["entity/loss"] + 0.75 * logs["contrastive/loss"])


@pytest.mark.parametrize("world", (2, 3))
@pytest.mark.parametrize("num_sampled", (None, 5))
def test_mofi_on_ranks_equals_mofi_on_one_process(pool, world, num_sampled):
    make = partial(MOFI, entity=partial(EntitySoftmax, num_sampled=num_sampled))
    assert_same(pool(world, train, make, 7, ENTITY), train(make, 7, ENTITY))


def test_weights_of_other_names_are_refused():
    with pytest.raises(InputError, match="weights name a, c but the objectives are a, b"):
        MultiTask(spec(5), {"a": CLIP, "b": CLIP}, {"a": 1.0, "c": 1.0})


def test_a_share_outside_0_and_1_is_refused():
    with pytest.raises(InputError, match=r"entity_weight is 1\.5"):
        MOFI(spec(5), entity_weight=1.5)


@pytest.mark.parametrize(
    ("arguments", "margin"),
    [
        (["--objective=MOFI"], 0.15),
        (["--objective=mofi_lightning.objectives.MOFI", "--objective.entity.margin=0.2"], 0.2),
        (
            [
                "--objective=MultiTask",
                '--objective.objectives={"entity": "EntitySoftmax", "text": "CLIP"}',
                "--objective.objectives.entity.margin=0.3",
            ],
            0.3,
        ),
    ],
    ids=["defaults", "override", "parts"],
)
def test_nested_factories_are_built_from_the_command_line(arguments, margin):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=ObjectiveFactory)
    make = parser.instantiate(parser.parse_args(arguments)).objective
    assert make(spec(5)).objectives["entity"].margin == margin

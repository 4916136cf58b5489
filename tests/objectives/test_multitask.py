from functools import partial

import pytest
import torch
from jsonargparse import ArgumentParser
from tests.objectives.parity import assert_same, spec, train
from torch.nn import functional as F

from mofi_lightning.objectives import CLIP, MOFI, EntitySoftmax, MultiTask, ObjectiveFactory, WeightSchedule
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
        **{f"a/{name}": value for name, value in entity.logs.items()},
        "b/loss": contrastive.loss,
        **{f"b/{name}": value for name, value in contrastive.logs.items()},
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


def test_a_scheduled_weight_goes_linearly_over_the_counted_optimizer_steps():
    schedule = WeightSchedule(start=0.2, end=1.0, steps=4, begin=1)
    objective = MultiTask(spec(5), {"a": CLIP, "b": CLIP}, {"a": schedule, "b": 0.5})
    weights = []
    for _ in range(7):
        loss, logs = objective(*_inputs())
        weights.append(logs["a/weight"].item())
        torch.testing.assert_close(loss, weights[-1] * logs["a/loss"] + 0.5 * logs["b/loss"])
        objective.after_optimizer_step(1.0)
    assert weights == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    resumed = MultiTask(spec(5), {"a": CLIP, "b": CLIP}, {"a": schedule, "b": 0.5})
    resumed.load_state_dict(objective.state_dict())
    assert resumed(*_inputs()).logs["a/weight"].item() == 1.0


def test_a_scheduled_share_of_mofi_leaves_the_rest_to_the_contrastive_part():
    objective = MOFI(spec(5), entity_weight=WeightSchedule(start=1.0, end=0.5, steps=2))
    objective.after_optimizer_step(1.0)
    loss, logs = objective(*_inputs())
    torch.testing.assert_close(loss, 0.75 * logs["entity/loss"] + 0.25 * logs["contrastive/loss"])


def test_a_schedule_without_steps_is_refused():
    with pytest.raises(InputError, match="weight schedule has steps 0"):
        WeightSchedule(0.0, 1.0, steps=0)


def test_weights_of_other_names_are_refused():
    with pytest.raises(InputError, match="weights name a, c but the objectives are a, b"):
        MultiTask(spec(5), {"a": CLIP, "b": CLIP}, {"a": 1.0, "c": 1.0})


@pytest.mark.parametrize("name", ["entity.a", "keys", "my loss"])
def test_names_that_no_module_can_have_are_refused(name):
    with pytest.raises(InputError, match="is taken or no identifier"):
        MultiTask(spec(5), {name: CLIP})


def test_no_objectives_and_weights_without_value_are_refused():
    with pytest.raises(InputError, match="give at least one"):
        MultiTask(spec(5), {})
    with pytest.raises(InputError, match="weight of objective 'a' is nan"):
        MultiTask(spec(5), {"a": CLIP}, {"a": float("nan")})


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
        (["--objective=MOFI", '--objective.entity_weight={"start": 1, "end": 0.5, "steps": 9}'], 0.15),
    ],
    ids=["defaults", "override", "parts", "schedule"],
)
def test_nested_factories_are_built_from_the_command_line(arguments, margin):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=ObjectiveFactory)
    make = parser.instantiate(parser.parse_args(arguments)).objective
    assert make(spec(5)).objectives["entity"].margin == margin

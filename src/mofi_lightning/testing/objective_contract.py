"""The contract of objectives, as checks on one process."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from mofi_lightning.objectives.base import Objective, ObjectiveFactory
from mofi_lightning.testing import batches, two_processes
from mofi_lightning.testing.batches import Rows
from mofi_lightning.testing.checks import (
    TOLERANCE,
    close,
    drawn_from,
    isolated,
    last_line,
    random_state,
    seed_everything,
    zero_dimensional,
)
from mofi_lightning.types import ObjectiveOutput, ObjectiveSpec

# without these, an objective that requires 'entity', and so do all its parts, learns from entities alone
_OTHER_TARGETS = frozenset({"text", "text_tokens", "teacher"})
FIELDS = frozenset({"text", "entity", "teacher", "image_tokens", "text_tokens"})
_FP32 = 1e-4  # of the loss


class Contract:
    """Checks of one objective; each returns what is wrong, or raises.

    Args:
        factory: makes the objective.
        num_entities: of the vocabulary.
        rows: of a batch.
        embed_dim: D.
    """

    def __init__(self, factory: ObjectiveFactory, num_entities: int, rows: int, embed_dim: int) -> None:
        self.factory = factory
        self.sizes = (num_entities, rows, embed_dim)
        self.spec = batches.synthetic_spec(num_entities, embed_dim)
        self.rows = batches.random_rows(self.spec, batches.half_labelled(rows), seed=0)
        self.requires: frozenset[str] = frozenset()
        self.name = getattr(factory, "__name__", "the objective")

    def build(self, seed: int = 0, spec: ObjectiveSpec | None = None) -> Objective:
        """A new objective, the same for the same seed."""
        seed_everything(seed)
        return self.factory(spec or self.spec)

    def run(self, rows: Rows, objective: Objective | None = None) -> Tensor:
        """Loss of `rows`, after a backward."""
        output: ObjectiveOutput = (objective or self.build())(*batches.leaves(rows)[0])
        output.loss.backward()
        return output.loss.detach()

    def kind(self) -> list[str]:
        """It is an Objective, `requires` known fields, and holds no 0-D parameter."""
        objective = self.build()
        if not isinstance(objective, Objective):
            return [f"the factory makes a {type(objective).__name__}, no Objective; derive from Objective"]
        self.name, requires = type(objective).__name__, objective.requires
        if not isinstance(requires, frozenset):
            return [f"`requires` is a {type(requires).__name__}; make it a frozenset of {listed(FIELDS)}"]
        self.requires = requires
        unknown = requires - FIELDS
        found = [f"`requires` names {f!r}, which is none of {listed(FIELDS)}" for f in sorted(unknown)]
        space = objective.label_space()
        if space is not None and all(space is not module for module in objective.modules()):
            found.append("label_space() is no module of the objective, so nothing would train it")
        return found + zero_dimensional(objective)

    def loss(self) -> list[str]:
        """The loss is a finite 0-D tensor with finite gradients, the logs detached scalars."""
        rows, made = batches.leaves(self.rows)
        objective = self.build()
        try:
            output = objective(*rows)
        except KeyError as error:
            if error.args == ("image",):
                return ["uses batch['image']: an objective sees embeddings and labels, never pixels"]
            raise
        if not isinstance(output, ObjectiveOutput):
            return [f"forward returns a {type(output).__name__}; return ObjectiveOutput(loss, logs)"]
        if not isinstance(output.loss, Tensor) or output.loss.ndim:
            shape = tuple(getattr(output.loss, "shape", ()))
            return [f"the loss is a {type(output.loss).__name__} {shape}; make it a 0-D tensor"]
        found = batches.changes(rows, self.rows) + [
            f"logs[{name!r}] must be a detached tensor of one element"
            for name, value in output.logs.items()
            if not isinstance(value, Tensor) or value.numel() != 1 or value.requires_grad
        ]
        if not torch.isfinite(output.loss):
            return [*found, f"the loss is {output.loss.item()}"]
        output.loss.backward()
        gradients = _named(
            {n: x.grad for n, x in made.items()}, {n: x.grad for n, x in objective.named_parameters()}
        )
        return found + [
            f"the gradient of {n} is not finite" for n, x in gradients.items() if not x.isfinite().all()
        ]

    def fp64(self) -> list[str]:
        """It works in double precision."""
        with isolated(torch.float64):
            rows = batches.map_tensors(self.rows, lambda _, x: x.double() if x.is_floating_point() else x)
            try:
                self.run(rows, self.build().double())
            except Exception as error:
                return [f"raises {last_line(error)}; make new tensors with the dtype of their inputs"]
        return []

    def gradients(self) -> list[str]:
        """In two steps, a gradient reaches what `requires` names and every trainable parameter."""
        steps = two_processes.train(self.build(), [self.rows, self.batch(1)])
        reached = {name for step in steps for name, x in step.inputs.items() if x.any()}
        found = [
            f"none reaches embeddings.{field}; use it without detaching it, or do not require it"
            for field in sorted(self.requires & {"text", "image_tokens", "text_tokens"} - reached)
        ]
        if not reached & {"image", "image_features", "image_tokens"}:
            found.append("none reaches the image embeddings; use them undetached")
        alive = {name for step in steps for name, x in step.parameters.items() if x.any()}
        return found + [
            f"none reaches parameter {name!r}; use it in the loss, or make it a buffer"
            for name, parameter in self.build().named_parameters()
            if parameter.requires_grad and name not in alive
        ]

    def order(self) -> list[str]:
        """Rows may change places."""
        index = torch.randperm(len(self.rows.embeddings.image), generator=torch.Generator().manual_seed(0))
        before, after = self.run(self.rows), self.run(batches.take(self.rows, index))
        if close(after, before, _FP32):
            return []
        return [
            f"the loss changes from {before:.6g} to {after:.6g} when the rows change places; use nothing of "
            "a row's position but that its own fields belong together"
        ]

    def random_numbers(self) -> list[str]:
        """Nothing is drawn from the global generators in a step."""
        losses, drawn = [], []
        for seed in (1, 2):
            objective = self.build()
            seed_everything(seed)
            before = random_state()
            losses.append(self.run(self.rows, objective))
            objective.after_optimizer_step(two_processes.LR_FACTOR)
            drawn = drawn_from(before)
        if drawn or not close(losses[0], losses[1], _FP32):
            where = f"the global generator of {' and '.join(drawn)}" if drawn else "an unseeded generator"
            return [
                f"draws from {where}, so ranks and resumed runs differ; draw from "
                "distributed.counted_generator(seed, counter), the counter an int64 buffer of shape (1,)"
            ]
        return []

    def no_labelled_rows(self) -> list[str]:
        """A batch without labels has a finite loss and gradient; both are 0 where entities are all."""
        embeddings, batch = self.rows
        rows = Rows(embeddings, {**batch, "entity": torch.full_like(batch["entity"], -1)})
        objective = self.build()
        (step,) = two_processes.train(objective, [rows])
        gradients = _named(step.inputs, step.parameters)
        if not torch.isfinite(step.loss):
            return [f"the loss is {step.loss.item()} where no row has an entity; use distributed.global_mean"]
        infinite = [name for name, x in gradients.items() if not x.isfinite().all()]
        if infinite:
            return [
                f"the gradient of {', '.join(infinite)} is not finite where no row has an entity; "
                "divide by no count of 0, even in a branch torch.where drops; use distributed.global_mean"
            ]
        parts = [part for part in objective.modules() if isinstance(part, Objective)]
        if any("entity" not in part.requires or part.requires & _OTHER_TARGETS for part in parts):
            return []
        found = [name for name, x in gradients.items() if x.abs().max() > TOLERANCE]
        if step.loss.abs() <= TOLERANCE and not found:
            return []
        return [
            f"the loss is {step.loss:.6g} where no row has an entity, the gradient not 0 of "
            f"{', '.join(found) or 'nothing'}: -1 counts as an entity; leave such rows out, with "
            "distributed.global_mean(losses, batch['entity'] >= 0)"
        ]

    def padding(self) -> list[str]:
        """What stands behind a text's tokens does not count."""
        mask = self.rows.embeddings.text_tokens_mask
        if "text_tokens" not in self.requires or mask is None:
            return []
        noisy = batches.map_tensors(
            self.rows, lambda name, x: x + 5 * (1 - mask)[..., None] if name == "text_tokens" else x
        )
        if close(self.run(noisy), self.run(self.rows), _FP32):
            return []
        return ["the loss depends on text_tokens where text_tokens_mask is 0; mask them"]

    def bf16(self) -> list[str]:
        """Embeddings of bf16's precision give about the same loss."""
        exact = self.run(self.rows)
        kept = {"image", "text", "teacher"}

        def rounded(name: str, x: Tensor) -> Tensor:
            if not x.is_floating_point():
                return x
            return x.bfloat16().float() if name in kept else x.bfloat16()

        try:
            loss = self.run(batches.map_tensors(self.rows, rounded))
        except Exception as error:
            return [f"raises {last_line(error)}; cast features and tokens to the dtype of embeddings.image"]
        if (loss - exact).abs() <= 0.02 * exact.abs().clamp(min=0.1):
            return []
        return [f"the loss is {loss:.4g} on embeddings rounded to bf16 and {exact:.4g} on exact ones"]

    def validation(self) -> list[str]:
        """In eval mode the loss is finite and nothing changes."""
        objective = self.build().eval()
        before = two_processes.whole_state(objective)
        rows, _ = batches.leaves(self.rows)
        with torch.no_grad():
            output: ObjectiveOutput = objective(*rows)
        found = [] if torch.isfinite(output.loss) else [f"the loss is {output.loss.item()} in eval mode"]
        return (
            found
            + batches.changes(rows, self.rows)
            + [
                f"{name!r} of the state dict changes in eval mode; change it only if self.training"
                for name, x in two_processes.whole_state(objective).items()
                if not torch.equal(x, before[name])
            ]
        )

    def state_dict(self) -> list[str]:
        """A new objective that loads the state of a trained one goes on as that does."""
        trained, resumed = self.build(), self.build(seed=1)
        two_processes.train(trained, [self.rows, self.batch(1), self.batch(2)])
        resumed.load_state_dict(trained.state_dict())
        for number, what in ((3, "the loss"), (4, "the loss one step later")):
            want, got = (self._next_loss(objective, number) for objective in (trained, resumed))
            if not close(got, want, _FP32):
                return [
                    f"{what} is {got:.6g} for an objective that loaded the state of a trained one, whose is "
                    f"{want:.6g}; keep all that training changes in parameters and buffers"
                ]
        return []

    def _next_loss(self, objective: Objective, number: int) -> Tensor:
        seed_everything(number)  # random numbers that should not be drawn are found elsewhere
        return two_processes.train(objective, [self.batch(number)])[0].loss

    def batch(self, seed: int) -> Rows:
        """Other rows for every `seed`, every other one labelled."""
        return batches.random_rows(self.spec, batches.half_labelled(self.sizes[1]), seed)


def _named(inputs: Mapping[str, Tensor | None], parameters: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Gradients by what a finding calls their owner; none where there is none."""
    named = {f"embeddings.{name}": x for name, x in inputs.items()}
    named |= {f"parameter {name!r}": x for name, x in parameters.items()}
    return {name: x for name, x in named.items() if x is not None and x.numel()}


def listed(fields: Collection[str]) -> str:
    """Names of fields, in quotes."""
    return ", ".join(map(repr, sorted(fields)))

"""The LightningModule that pretrains a DualEncoder with an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from mofi_lightning.distributed import gather_labels
from mofi_lightning.distributed.parallelize import checkpoint_activations, compile_blocks, shard
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.teacher import Teacher, TeacherConfig
from mofi_lightning.objectives import CLIP
from mofi_lightning.objectives.base import Objective
from mofi_lightning.training.checkpoints.export import export_model
from mofi_lightning.training.description import (
    describe,
    entities,
    headline,
    refuse_another,
    refuse_other_entities,
)
from mofi_lightning.training.monitoring.step_metrics import StepMetrics
from mofi_lightning.training.optimization.averaging import ValidateAverage, WeightAverage
from mofi_lightning.training.optimization.config import Optimization
from mofi_lightning.training.optimization.gradients import Gradients
from mofi_lightning.training.optimization.layer_decay import block_depths
from mofi_lightning.training.optimization.skipping import BatchStatistics, SkippedSteps
from mofi_lightning.training.requirements import check_requirements
from mofi_lightning.training.slicing import encode_in_slices, refuse_batch_statistics
from mofi_lightning.training.strategy import (
    ShardedStrategy,
    refuse_unsynchronised_statistics,
    refuse_what_trains_wrong,
)
from mofi_lightning.training.warm_start import freeze, initialise, keep_frozen_in_eval
from mofi_lightning.types import Batch, Embeddings, InputError, ObjectiveOutput, ObjectiveSpec

_TEXT_FIELDS = frozenset({"text", "text_tokens"})


class PretrainingModule(LightningModule):
    """Encodes each batch once and hands the embeddings to the objective.

    Under `ShardedStrategy` the towers and the objective are sharded. The entity table, where there is one, is
    no optimizer's parameter; it is updated after the optimizer's step. At the end of `fit` the model is
    written to `<default_root_dir>/model`.

    Args:
        encoder: what the DualEncoder is built from.
        objective: makes the objective from the spec (sizes and vocabulary come from encoder and data).
        optimization: the optimizer and its schedule.
        init_from: start from the weights of a model folder, a run or a checkpoint; what fits is taken, what
            is missing or unexpected is reported; of a checkpoint also the rows of its entity table, by entity
            id. To go on with a run, use --ckpt_path instead.
        freeze: shell patterns of parameters that keep their values, such as 'model.image.*' or
            'model.image.encoder.*' (all but the projection).
        teacher: a frozen image encoder for objectives that learn from one; not part of the model.
        encode_slices: parts in which a batch is encoded; memory is that of one part, the gradient that of
            the whole batch, the encoders' forward runs twice.
        activation_checkpointing: keep only what goes into the encoders' blocks and run these again in the
            backward: less memory, a third more compute.
        compile_blocks: compile the encoders' blocks (torch.compile); for GPUs.
        ema_decay: average the weights over steps with this decay, such as 0.9999; validation, the exported
            model and `load` then use the average. Null for none.
        max_skipped_steps: steps in a row whose loss or gradient is not finite, and which are skipped, before
            the run ends.
    """

    model: DualEncoder
    objective: Objective
    teacher: Teacher | None
    average: WeightAverage | None

    def __init__(
        self,
        encoder: DualEncoderConfig = DualEncoderConfig(),
        objective: Callable[[ObjectiveSpec], Objective] = CLIP,
        optimization: Optimization = Optimization(),
        init_from: str | None = None,
        freeze: str | Sequence[str] = (),
        teacher: TeacherConfig | None = None,
        encode_slices: int = 1,
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
        ema_decay: float | None = None,
        max_skipped_steps: int = 10,
    ) -> None:
        super().__init__()
        if encode_slices < 1:
            raise InputError(f"encode_slices is {encode_slices}; give a positive number")
        self.encoder_config = encoder
        self.make_objective = objective
        self.optimization = optimization
        self.init_from = init_from
        self.frozen = [freeze] if isinstance(freeze, str) else list(freeze)
        self.teacher_config = teacher
        self.encode_slices = encode_slices
        self.activation_checkpointing = activation_checkpointing
        self.compile_blocks = compile_blocks
        self.ema_decay = ema_decay
        self.metrics = StepMetrics()
        self.measured: dict[str, float] = {}  # of the run, by callbacks, to be logged with the steps' metrics
        self.skipped = SkippedSteps(max_skipped_steps)
        self.stop_requested = False  # of this rank, by a signal
        self._entities: dict[str, Any] | None = None  # that the objective was built for

    def setup(self, stage: str) -> None:
        """Check what would otherwise train something wrong without a word."""
        refuse_what_trains_wrong(self.trainer, stage)

    def configure_model(self) -> None:
        """Build model and objective, equal on every rank, once; later data must have the same entities."""
        if hasattr(self, "model"):
            self._use(getattr(self.trainer, "datamodule", None))
            return
        self._seed = self.trainer.strategy.broadcast(torch.initial_seed())
        data = self._data()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self.build(data.vocabulary)
        self._entities = entities(data.vocabulary)
        self._use(data)
        if self.init_from is not None and self.trainer.ckpt_path is None:
            self._say(initialise(self.model, self.objective, self.init_from, data.vocabulary))
        self.freeze_parameters()
        if self.frozen:
            parameters = [p for part in (self.model, self.objective) for p in part.parameters()]
            kept = sum(p.numel() for p in parameters if not p.requires_grad)
            self._say(f"frozen: {kept:,} of {sum(p.numel() for p in parameters):,} parameters")
        refuse_batch_statistics(self.model, self.encode_slices)
        self.transform_blocks()
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardedStrategy):
            refuse_unsynchronised_statistics(self)
            bf16 = self.trainer.precision == "bf16-mixed"
            shard(self.towers(), self.objective, strategy.device_mesh, strategy.world_mesh, bf16)
        trained = {name: p for name, p in self.exported_parameters().items() if p.requires_grad}
        self.average = None if self.ema_decay is None else WeightAverage(trained, self.ema_decay)
        if self.average is not None:
            self.average.keep_state_in_order(self)

    def _use(self, data: Any) -> None:
        """Tell `data` what the model expects, and refuse it if it does not fit model and objective."""
        if data is None:
            return
        if self._entities is not None:
            refuse_other_entities(self._entities, data.vocabulary)
        text = self.model.text
        data.use(
            self.model.preprocess, self.model.tokenizer, 0 if text is None else text.encoder.context_length
        )
        check_requirements(self.objective, self.model, self.teacher is not None, data.fields)

    def build(self, vocabulary: Any, tokenizer: Any = None) -> None:
        """Make model, teacher and objective with fresh weights, whole; `tokenizer` replaces the model's."""
        self.model = DualEncoder.from_config(self.encoder_config, tokenizer)
        self.teacher = None if self.teacher_config is None else Teacher(self.teacher_config)
        text = self.model.text
        self.objective = self.make_objective(
            ObjectiveSpec(
                self.model.embed_dim,
                self.model.feature_dim,
                vocabulary,
                text_feature_dim=None if text is None else text.encoder.feature_dim,
                teacher_dim=None if self.teacher is None else self.teacher.dim,
            )
        )

    def freeze_parameters(self) -> None:
        """Freeze what `freeze` names, and a text tower that the objective does not use."""
        freeze(self, self.frozen)
        if self.model.text is not None and not self.objective.requires & _TEXT_FIELDS:
            self.model.text.requires_grad_(False)  # nothing trains it, and it is not run

    def transform_blocks(self) -> None:
        """Activation checkpointing and compiling, in this order, which come before sharding."""
        for tower in self.towers():
            if self.activation_checkpointing:
                checkpoint_activations(tower)
            if self.compile_blocks:
                compile_blocks(tower)

    def towers(self) -> list[nn.Module]:
        """The encoders, each with its projection."""
        return [t for t in (self.model.image, self.model.text, self.teacher) if t is not None]

    def exported_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that `mofi_lightning.load` reads, by their names in the training state."""
        space = self.objective.label_space()
        own = {id(p) for part in (self.model, space) if part is not None for p in part.parameters()}
        return {name: p for name, p in self.named_parameters() if id(p) in own}

    def forward(self, batch: Batch) -> ObjectiveOutput:
        """Encode `batch` once and evaluate the objective in full precision."""
        encoded = batch
        if not self.objective.requires & _TEXT_FIELDS:
            encoded = {name: value for name, value in batch.items() if name != "text"}  # type: ignore[assignment]
        if self.encode_slices == 1:
            embeddings = self._encode(encoded)
        else:
            embeddings = encode_in_slices(self._encode, encoded, self.encode_slices)
        with torch.autocast(self.device.type, enabled=False):
            output: ObjectiveOutput = self.objective(embeddings, batch)
        return output

    def _encode(self, batch: Batch) -> Embeddings:
        requires = self.objective.requires
        embeddings: Embeddings = self.model(
            batch, image_tokens="image_tokens" in requires, text_tokens="text_tokens" in requires
        )
        return (
            embeddings if self.teacher is None else replace(embeddings, teacher=self.teacher(batch["image"]))
        )

    def train(self, mode: bool = True) -> PretrainingModule:
        """Training mode for all but what is frozen."""
        super().train(mode)
        keep_frozen_in_eval(self)
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of the rank's rows."""
        # dropout is a function of (seed, step, rank), so a resumed run repeats it without saved generators
        self._seed_dropout(hash((self._seed, self.global_step, self.global_rank)) % 2**63)
        output = self(batch)
        self._loss = output.loss.detach()
        self.metrics.add({"loss": self._loss, **output.logs})
        return output.loss

    def _seed_dropout(self, seed: int) -> None:
        """As `torch.manual_seed`, which takes a millisecond for the devices that are not there."""
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the means since the last time, at the steps that reach the logger."""
        if self.skipped.too_many:  # a checkpoint has been written, if the run writes any
            self.skipped.end_the_run()
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if interval and self.global_step % interval == 0:
            norms = {**self.gradients.norms, "total": self.gradients.total}
            values = self.metrics.means() | {f"grad_norm/{name}": norm for name, norm in norms.items()}
            factor = self.optimization.lr_factor(self.global_step - 1, self.trainer.max_steps)
            values["lr"] = self.optimization.lr * factor
            values["skipped_steps"] = float(self.skipped.count)
            self.log_now({f"train/{name}": value for name, value in (values | self.measured).items()})

    def log_now(self, values: dict[str, float]) -> None:
        """Hand `values` to loggers and callbacks; each `self.log` would cost as much as all of them here."""
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=self.global_step - 1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss of held-out rows; where they have no labels, only of the parts that need none."""
        output = self(batch)
        values = {"loss": output.loss, **output.logs}
        if "entity" in self.objective.requires and not self._any_labelled(batch):
            parts = getattr(self.objective, "objectives", {})
            free = {name for name, part in parts.items() if "entity" not in part.requires}
            values = {name: value for name, value in values.items() if name.partition("/")[0] in free}
        self.log_dict(
            {f"val/{k}": v for k, v in values.items()}, sync_dist=True, batch_size=len(batch["image"])
        )

    @staticmethod
    def _any_labelled(batch: Batch) -> bool:
        """Whether any rank's rows have a label: all ranks must take the same way."""
        return "entity" in batch and bool((gather_labels(batch["entity"]) >= 0).any())

    def configure_optimizers(self) -> Any:
        """The optimizer with a schedule that is a function of `trainer.max_steps`."""
        names = ("model.", "objective.")
        parameters = {n: p for n, p in self.named_parameters() if n.startswith(names)}
        optimizer = self.optimization.build(parameters, self._depths())
        max_steps = self.trainer.max_steps
        schedule = self.optimization.scheduled(optimizer, max_steps)
        replicas = getattr(self.trainer.strategy, "replicas", 1)
        parts = {
            "image": self.model.image.parameters(),
            "text": () if self.model.text is None else self.model.text.parameters(),
            "objective": self.objective.parameters(),
        }
        self.gradients = Gradients(parts, replicas)
        self.batch_statistics = BatchStatistics(self.model)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _depths(self) -> dict[str, int]:
        """How many blocks of its encoder come after each parameter's, by name."""
        return {
            f"model.{side}.{name}": depth
            for side in ("image", "text")
            if (tower := getattr(self.model, side)) is not None
            for name, depth in block_depths(tower).items()
        }

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measure the gradients, then clip them, or drop those of a step that is not finite."""
        self.gradients.measure(self._loss, self.stop_requested)
        if not self.gradients.finite:
            self.gradients.drop()
        elif gradient_clip_val and gradient_clip_algorithm == "value":
            self.gradients.clip_values(gradient_clip_val)
        elif gradient_clip_val:
            self.gradients.clip(gradient_clip_val)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """The optimizer's step, then what no optimizer holds (the entity table, the average)."""
        step = self.global_step
        self.batch_statistics.keep()
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.skipped.record(step + 1, self.gradients.finite)
        if self.gradients.finite:
            self.objective.after_optimizer_step(self.optimization.lr_factor(step, self.trainer.max_steps))
            if self.average is not None:
                self.average.update(step + 1)
        else:
            self.batch_statistics.restore()
            self.metrics.discard()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the parameters are their averages, if there are any."""
        if self.average is not None:
            self.average.use()
        try:
            yield
        finally:
            if self.average is not None:
                self.average.restore()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what `mofi_lightning.load` needs, as plain values."""
        checkpoint |= describe(self, self._data().vocabulary)
        checkpoint["skipped_steps"] = self.skipped.state_dict()
        checkpoint["run"] = {  # for `mofi checkpoint inspect`
            "objective": type(self.objective).__name__.removeprefix("FSDP"),
            "precision": str(self.trainer.precision),
            "processes": self.trainer.world_size,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with another vocabulary, or other frozen parameters, than the checkpoint's."""
        refuse_another(checkpoint, self, self._data().vocabulary, self.trainer.state.fn == "fit")
        self.skipped.load_state_dict(checkpoint["skipped_steps"])

    def on_fit_start(self) -> None:
        """Say what is trained, before the progress bar takes the line."""
        self._say(headline(self))

    def on_train_start(self) -> None:
        """Keep the vocabulary beside the checkpoints: without it a table's rows mean nothing."""
        vocabulary = self._data().vocabulary
        if vocabulary is not None and self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            vocabulary.save(folder / "vocabulary.arrow")

    def configure_callbacks(self) -> list[Callback]:
        """Validate the average, if there is one."""
        return [] if self.ema_decay is None else [ValidateAverage()]

    def on_fit_end(self) -> None:
        """Write the model folder, unless training was interrupted."""
        if self.global_step >= self.trainer.max_steps:
            folder = Path(self.trainer.default_root_dir) / "model"
            with self.averaged():
                export_model(self.model, self.objective.label_space(), folder, self.trainer.is_global_zero)

    def _data(self) -> Any:
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise InputError("PretrainingModule takes its vocabulary from a datamodule; pass datamodule=...")
        return data

    def _say(self, message: str) -> None:
        if self.trainer.is_global_zero:
            print(message)

"""The LightningModule that pretrains a DualEncoder with an objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import LightningModule
from torch import Tensor

from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.distributed import gather_labels
from mofi_lightning.distributed.parallelize import parallelize
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.teacher import Teacher, TeacherConfig
from mofi_lightning.objectives import CLIP
from mofi_lightning.objectives.base import Objective
from mofi_lightning.training.checkpointing import export_model
from mofi_lightning.training.optimization import Optimization
from mofi_lightning.training.strategy import ShardedStrategy, require_sharded
from mofi_lightning.training.warm_start import freeze, initialise, keep_frozen_in_eval
from mofi_lightning.types import Batch, InputError, ObjectiveOutput, ObjectiveSpec

_TEXT_FIELDS = frozenset({"text", "text_tokens"})


class PretrainingModule(LightningModule):
    """Encodes each batch once and hands the embeddings to the objective.

    Under `ShardedStrategy` the towers and the objective are sharded. The entity table, where there is one, is
    no optimizer's parameter; it is updated after the optimizer's step. At the end of `fit` the model is
    written to `<default_root_dir>/model`.

    Args:
        encoder: what the DualEncoder is built from.
        objective: makes the objective from the spec (sizes and vocabulary come from encoder and data).
        optimization: AdamW and its schedule.
        init_from: start from the weights of a model folder, a run or a checkpoint; what fits is taken, what
            is missing or unexpected is reported. To go on with a run, use --ckpt_path instead.
        freeze: shell patterns of parameters that keep their values, such as 'model.image.*' or
            'model.image.encoder.*' (all but the projection).
        teacher: a frozen image encoder for objectives that learn from one; not part of the model.
    """

    model: DualEncoder
    objective: Objective
    teacher: Teacher | None

    def __init__(
        self,
        encoder: DualEncoderConfig = DualEncoderConfig(),
        objective: Callable[[ObjectiveSpec], Objective] = CLIP,
        optimization: Optimization = Optimization(),
        init_from: str | None = None,
        freeze: str | Sequence[str] = (),
        teacher: TeacherConfig | None = None,
    ) -> None:
        super().__init__()
        self.encoder_config = encoder
        self.make_objective = objective
        self.optimization = optimization
        self.init_from = init_from
        self.frozen = [freeze] if isinstance(freeze, str) else list(freeze)
        self.teacher_config = teacher

    def setup(self, stage: str) -> None:
        """Check what would otherwise train something wrong without a word."""
        require_sharded(self.trainer.strategy)
        if self.trainer.precision not in ("32-true", "64-true", "bf16-mixed"):
            raise InputError(
                f"trainer.precision {self.trainer.precision!r} is not supported (it would cast the entity "
                "table); use 'bf16-mixed' or '32-true'"
            )
        if self.trainer.accumulate_grad_batches != 1:
            raise InputError(
                f"trainer.accumulate_grad_batches={self.trainer.accumulate_grad_batches} would change the "
                "contrastive loss; raise the sources' rows per batch instead"
            )
        if stage == "fit" and self.trainer.max_steps < 1:
            raise InputError(
                "training is counted in steps: set trainer.max_steps, with trainer.max_epochs: -1"
            )

    def configure_model(self) -> None:
        """Build model and objective, equal on every rank; called more than once, acts once."""
        if hasattr(self, "model"):
            return
        seed = self.trainer.strategy.broadcast(torch.initial_seed())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = DualEncoder.from_config(self.encoder_config)
            data = self._data()
            data.use(self.model.preprocess, self.model.tokenizer, self._context_length())
            self.teacher = None if self.teacher_config is None else Teacher(self.teacher_config)
            self.objective = self.make_objective(
                ObjectiveSpec(
                    self.model.embed_dim,
                    self.model.feature_dim,
                    data.vocabulary,
                    text_feature_dim=None if self.model.text is None else self.model.text.encoder.feature_dim,
                    teacher_dim=None if self.teacher is None else self.teacher.dim,
                )
            )
        self._seed = seed
        self._check_requirements()
        if self.init_from is not None and self.trainer.ckpt_path is None:
            report = initialise(self.model, self.objective.label_space(), self.init_from)
            if self.trainer.is_global_zero:
                print(report)
        freeze(self, self.frozen)
        if self.frozen and self.trainer.is_global_zero:
            parameters = [p for part in (self.model, self.objective) for p in part.parameters()]
            kept = sum(p.numel() for p in parameters if not p.requires_grad)
            print(f"frozen: {kept:,} of {sum(p.numel() for p in parameters):,} parameters")
        if self.model.text is not None and not self.objective.requires & _TEXT_FIELDS:
            self.model.text.requires_grad_(False)  # nothing trains it, and it is not run
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardedStrategy):
            candidates = (self.model.image, self.model.text, self.teacher)
            towers = [tower for tower in candidates if tower is not None]
            _refuse_unsynchronised_statistics(self)
            bf16 = self.trainer.precision == "bf16-mixed"
            parallelize(towers, self.objective, strategy.device_mesh, strategy.world_mesh, bf16)

    def _data(self) -> Any:
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise InputError("PretrainingModule takes its vocabulary from a datamodule; pass datamodule=...")
        return data

    def _context_length(self) -> int:
        return self.model.text.encoder.context_length if self.model.text is not None else 0

    def _check_requirements(self) -> None:
        sources: Mapping[str, frozenset[str]] = self._data().fields
        carried = frozenset().union(*sources.values()) | {"image_tokens"}
        if self.model.text is None:
            carried -= {"text"}
        elif "text" in carried:
            carried |= {"text_tokens"}
        if self.teacher is not None:
            carried |= {"teacher"}
            if "teacher" not in self.objective.requires:
                name = type(self.objective).__name__
                raise InputError(
                    f"model.teacher is set but objective {name!r} learns from none; leave it out"
                )
        for field in sorted(self.objective.requires - carried):
            listing = "; ".join(f"{name}: {', '.join(sorted(fields))}" for name, fields in sources.items())
            way_out = f"which no source carries ({listing})"
            if field.startswith("text") and self.model.text is None:
                way_out = "but the model has no text tower; set model.encoder.text"
            if field == "teacher":
                way_out = "but there is none; set model.teacher.image"
            raise InputError(f"objective {type(self.objective).__name__!r} needs {field!r}, {way_out}")

    def forward(self, batch: Batch) -> ObjectiveOutput:
        """Encode `batch` once and evaluate the objective in full precision."""
        requires = self.objective.requires
        encoded = batch
        if not requires & _TEXT_FIELDS:
            encoded = {name: value for name, value in batch.items() if name != "text"}  # type: ignore[assignment]
        embeddings = self.model(
            encoded, image_tokens="image_tokens" in requires, text_tokens="text_tokens" in requires
        )
        if self.teacher is not None:
            embeddings = replace(embeddings, teacher=self.teacher(batch["image"]))
        with torch.autocast(self.device.type, enabled=False):
            output: ObjectiveOutput = self.objective(embeddings, batch)
        return output

    def train(self, mode: bool = True) -> PretrainingModule:
        """Training mode for all but what is frozen."""
        super().train(mode)
        keep_frozen_in_eval(self)
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of the rank's rows."""
        # dropout is a function of (seed, step, rank), so a resumed run repeats it without saved generators
        torch.manual_seed(hash((self._seed, self.global_step, self.global_rank)) % 2**63)
        output = self(batch)
        self._log_means("train", {"loss": output.loss.detach(), **output.logs}, len(batch["image"]))
        return output.loss

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

    def _log_means(self, stage: str, values: Mapping[str, Tensor], rows: int) -> None:
        """Log means over ranks: one collective, and only at the steps that reach the logger."""
        at_log_step = (self.global_step + 1) % max(1, self.trainer.log_every_n_steps) == 0  # type: ignore[attr-defined]
        if self.trainer.world_size > 1 and at_log_step:
            stacked = torch.stack([v.float().reshape(()) for v in values.values()])
            torch.distributed.all_reduce(stacked)
            values = dict(zip(values, stacked / self.trainer.world_size, strict=True))
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "loss", batch_size=rows)

    def configure_optimizers(self) -> Any:
        """AdamW with a schedule that is a function of `trainer.max_steps`."""
        optimizer = self.optimization.optimizer((self.model, self.objective))
        max_steps = self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.optimization.lr_factor(step, max_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """The optimizer's step, then what no optimizer holds (the entity table)."""
        lr_factor = optimizer.param_groups[0]["lr"] / self.optimization.lr
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.objective.after_optimizer_step(lr_factor)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what `mofi_lightning.load` needs, as plain values."""
        vocabulary = self._data().vocabulary
        tokenizer, space = self.model.tokenizer, self.objective.label_space()
        described = checkpoint["dual_encoder"] = {
            "config": asdict(self.model.config),
            "tokenizer": None if tokenizer is None else tokenizer.to_json(),
        }
        if space is not None:
            module = next(name for name, part in self.named_modules() if part is space)
            described["label_space"] = {"config": asdict(space.config), "module": module}
        checkpoint["freeze"] = list(self.frozen)
        checkpoint["vocabulary"] = {
            "entities": len(vocabulary or ()),
            "fingerprint": _fingerprint(vocabulary),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with another vocabulary, or other frozen parameters, than the checkpoint's."""
        if self.trainer.state.fn == "fit" and checkpoint.get("freeze", []) != self.frozen:
            raise InputError(
                f"the checkpoint was trained with model.freeze {checkpoint.get('freeze', [])} and this run "
                f"has {self.frozen}; resume with the same, or start anew with model.init_from"
            )
        space = self.objective.label_space()
        saved_space = (checkpoint["dual_encoder"].get("label_space") or {}).get("config")
        if space is not None and saved_space is not None and saved_space != asdict(space.config):
            raise InputError(
                f"the checkpoint was trained on label vectors of {saved_space} and this run's are of "
                f"{asdict(space.config)}; resume with the label_vectors of the checkpoint"
            )
        vocabulary = self._data().vocabulary
        saved = checkpoint["vocabulary"]
        if saved["fingerprint"] != _fingerprint(vocabulary):
            raise InputError(
                f"the checkpoint was trained with {saved['entities']} entities (vocabulary "
                f"{saved['fingerprint'] or 'none'}), the data set has {len(vocabulary or ())} "
                f"({_fingerprint(vocabulary) or 'none'}); resume with the data set of the checkpoint"
            )

    def on_train_start(self) -> None:
        """Keep the vocabulary beside the checkpoints: without it a table's rows mean nothing."""
        vocabulary = self._data().vocabulary
        if vocabulary is not None and self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            vocabulary.save(folder / "vocabulary.arrow")

    def on_fit_end(self) -> None:
        """Write the model folder, unless training was interrupted."""
        if self.global_step >= self.trainer.max_steps:
            folder = Path(self.trainer.default_root_dir) / "model"
            export_model(self.model, self.objective.label_space(), folder, self.trainer.is_global_zero)


def _refuse_unsynchronised_statistics(module: torch.nn.Module) -> None:
    """Running statistics are buffers, which sharding does not synchronise: ranks would differ in them."""
    for name, child in module.named_modules():
        if isinstance(child, torch.nn.modules.batchnorm._BatchNorm) and child.training:
            raise InputError(
                f"{name} is a BatchNorm, whose statistics several processes would not share; freeze the "
                "encoder (model.freeze), choose one without BatchNorm, or train on one process"
            )


def _fingerprint(vocabulary: EntityVocabulary | None) -> str:
    return "" if vocabulary is None else vocabulary.fingerprint

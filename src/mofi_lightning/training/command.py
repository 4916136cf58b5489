"""`mofi fit` and `mofi validate`: LightningCLI, with the traps of its defaults closed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import jsonargparse
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.cli import LightningCLI

# those that nothing here uses are imported so that short class names (MOFI, ...) resolve in YAML
from mofi_lightning.data.datamodule import I2EDataModule  # noqa: F401
from mofi_lightning.encoders import checkpoint
from mofi_lightning.objectives import CLIP, MOFI, DeViSE, EntitySoftmax, MultiTask  # noqa: F401
from mofi_lightning.training.checkpoints.folders import (
    is_exported,
    latest_checkpoint,
    refuse_branching,
    refuse_earlier_run,
    step_of,
)
from mofi_lightning.training.checkpoints.mismatch import explain_mismatch
from mofi_lightning.training.defaults import (
    cap_workers,
    default_callbacks,
    default_loggers,
    probe,
    profiler,
    quiet,
    say,
    share_cores,
)
from mofi_lightning.training.endings import tidy
from mofi_lightning.training.module import PretrainingModule
from mofi_lightning.training.monitoring.evaluation import Evaluation  # noqa: F401
from mofi_lightning.training.options import name_torch_optimizers, refuse_unknown_sections, usage
from mofi_lightning.training.single_process import SingleProcessStrategy
from mofi_lightning.training.strategy import ShardedStrategy, require_sharded
from mofi_lightning.types import InputError

# omegaconf+ resolves interpolations after the command line's overrides; plain omegaconf ignores these
jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)


class PretrainingCLI(LightningCLI):
    """LightningCLI for `PretrainingModule`, counted in steps, sharded when there is more than one process."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only training and validation: measuring and embedding are verbs of their own."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
        }

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.usage = usage(subcommand)
        (ckpt_path,) = (action for action in parser._actions if action.dest == "ckpt_path")
        ckpt_path.help = "A checkpoint of `mofi fit`, or 'last' for the newest in trainer.default_root_dir."
        return parser

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse, and refuse the unknown empty sections of YAML files, which the parser passes over."""
        args = None if args is None else name_torch_optimizers(args)
        super().parse_arguments(parser, args)
        verb = self.config.get("subcommand")
        refuse_unknown_sections(args, self.config[verb] if verb else self.config)

    def _parse_ckpt_path(self) -> None:
        """Keep the YAML: LightningCLI would let a checkpoint's hyperparameters overrule it."""

    def before_instantiate_classes(self) -> None:
        """Settle where the run starts, before anything is built; a finished run ends here."""
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        root = _root(config.trainer)
        given = config.get("ckpt_path")
        if self.subcommand == "fit":
            if _was_requeued() and (given is None or latest_checkpoint(root) is not None):
                given = "last"  # what it was first started from is behind it
            path = _start_of_training(given, root, config.trainer.max_steps)
        else:
            path = _to_validate(given, root)
        if path is not None:
            _check_checkpoint(path, training=self.subcommand == "fit")
            if self.subcommand == "fit" and given != "last":
                refuse_branching(root, checkpoint.read_meta(path)["global_step"], best=True)
            say(f"{'resuming from' if self.subcommand == 'fit' else 'validating'} {path}")
        config.ckpt_path = path and str(path)
        if config.get("weights_only") is None:
            config.weights_only = True

    def fit(self, ckpt_path: str | None = None, **options: Any) -> None:
        """Train, and say where the model is, or what became of a run that has none."""
        with tidy(self.trainer), explain_mismatch(Path(ckpt_path) if ckpt_path else None, self.model):
            self.trainer.fit(ckpt_path=ckpt_path, **options)
        if self.trainer.global_step >= self.trainer.max_steps:
            say(f"model -> {Path(self.trainer.default_root_dir) / 'model'}")
        elif self.trainer.max_steps > 0:
            say(_where_it_stopped(self.trainer))

    def validate(self, ckpt_path: str | None = None, **options: Any) -> None:
        """Validate once."""
        if getattr(self.datamodule, "validation", True) is None:
            raise InputError(
                "mofi validate needs held-out rows; set data.validation "
                "(for instance --data.init_args.validation data/validation)"
            )
        with tidy(self.trainer), explain_mismatch(Path(ckpt_path) if ckpt_path else None, self.model):
            self.trainer.validate(ckpt_path=ckpt_path, **options)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with our strategy, checkpoints and loggers unless others were asked for."""
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        root = _root(config)
        config["default_root_dir"] = str(root)
        config["callbacks"] = default_callbacks(
            config.get("callbacks"), config.get("enable_checkpointing"), config.get("enable_progress_bar")
        )
        interval = config.get("log_every_n_steps")
        if 0 < config["max_steps"] < (50 if interval is None else interval):  # 50 is Lightning's own
            config["log_every_n_steps"] = config["max_steps"]
        if config.get("logger") in (None, True):
            config["logger"] = default_loggers(root)
        if isinstance(config.get("profiler"), str):
            config["profiler"] = profiler(config["profiler"], root)
        if str(config.get("strategy")).rpartition(".")[2] == ShardedStrategy.__name__:
            config["strategy"] = ShardedStrategy()  # the parser leaves a bare name as it is
        require_sharded(config.get("strategy"))
        bare = probe(config)
        processes = bare.num_devices * bare.num_nodes
        cap_workers(self.datamodule, bare.num_devices)
        if isinstance(bare.accelerator, CPUAccelerator):
            share_cores(bare.num_devices, getattr(self.datamodule, "num_workers", 0))
        if processes > 1 and config.get("strategy") in (None, "auto"):
            config["strategy"] = ShardedStrategy()
        if processes == 1:
            config["strategy"] = SingleProcessStrategy(str(bare.strategy.root_device))
        return self._instantiate_trainer(config, [])


def _root(trainer_config: Any) -> Path:
    root = str(trainer_config.get("default_root_dir") or "runs/fit")
    if "://" in root:
        raise InputError(f"trainer.default_root_dir {root} must be a folder on this machine")
    return Path(root)


def _was_requeued() -> bool:
    """Whether SLURM has started this job before, which thus goes on with the same command."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def _start_of_training(path: str | None, root: Path, max_steps: int) -> Path | None:
    """The checkpoint that training goes on from; None to start at step 0. Ends a run that is finished."""
    if path not in (None, "last"):
        return checkpoint.checkpoint_at(Path(path))
    newest = latest_checkpoint(root) if path else None
    if newest is None:
        refuse_earlier_run(root)
        if path:
            say("no checkpoint yet: training starts at step 0")
        return None
    if not 0 < max_steps <= step_of(newest):
        return newest
    finished = f"already at step {step_of(newest)} of max_steps {max_steps}: "
    if not is_exported(root, newest):
        say(f"{finished}only the model is written")
        return newest
    say(f"{finished}nothing to train; raise trainer.max_steps to go on")
    sys.exit(0)


def _to_validate(path: str | None, root: Path) -> Path:
    if path is None:
        raise InputError(
            "mofi validate needs a checkpoint; give --ckpt_path FILE, or --ckpt_path last for the newest of "
            f"trainer.default_root_dir ({root})"
        )
    found = latest_checkpoint(root) if path == "last" else checkpoint.checkpoint_at(Path(path))
    if found is None:
        raise InputError(
            f"there is no checkpoint in {root / 'checkpoints'}; give --ckpt_path FILE or another "
            "trainer.default_root_dir"
        )
    return found


def _where_it_stopped(trainer: Trainer) -> str:
    """Of a run that a callback or its time has ended."""
    newest = latest_checkpoint(Path(trainer.default_root_dir))
    stopped = f"stopped at step {trainer.global_step} of {trainer.max_steps}"
    if newest is None or step_of(newest) != trainer.global_step:
        return f"{stopped}; this step is not saved, and no model is written"
    return f"{stopped}; saved {newest}; no model is written; go on with --ckpt_path last"


def _check_checkpoint(path: Path, training: bool) -> None:
    """Refuse what is no checkpoint, and say which one is meant where `path` is the folder of a run."""
    inside = latest_checkpoint(path)
    if inside is not None:
        raise InputError(f"{path} is the folder of a run, not a checkpoint; its newest is {inside}")
    if (path / checkpoint.CONFIG_FILE).is_file():
        raise InputError(
            f"{path} is a model, not a checkpoint, which also holds the objective and the optimizer; "
            f"checkpoints are in {path.parent / 'checkpoints'}"
        )
    checkpoint.check_resumable(path, training)


def build(words: list[str], run: bool = True) -> PretrainingCLI:
    """Parse `words` and build trainer, module and data; with `run`, the first word is a verb, and it runs."""
    return PretrainingCLI(
        PretrainingModule,
        LightningDataModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=1,
        trainer_defaults={
            "max_epochs": -1,
            "check_val_every_n_epoch": None,
            "use_distributed_sampler": False,
            "enable_model_summary": False,
            "strategy": {"class_path": "mofi_lightning.training.ShardedStrategy"},
        },
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False, "allow_abbrev": False},
        args=words,
        run=run,
    )


def run(words: list[str]) -> None:
    """Train or validate.

    Args:
        words: of the command line, the verb first.

    Raises:
        ArgumentError: the options are wrong.
    """
    quiet()
    build([words[0], "--help"] if words[1:] == ["--help", "all"] else words)

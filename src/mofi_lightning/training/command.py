"""`mofi fit` and `mofi validate`: LightningCLI, with the traps of its defaults closed."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

# the first two so that short class names (I2EDataModule, MOFI, ...) resolve in YAML
from mofi_lightning.data.datamodule import I2EDataModule  # noqa: F401
from mofi_lightning.encoders import checkpoint
from mofi_lightning.objectives import CLIP, MOFI, DeViSE, EntitySoftmax, MultiTask  # noqa: F401
from mofi_lightning.training.callbacks import RunSummary
from mofi_lightning.training.checkpointing import (
    AtomicCheckpointIO,
    StepCheckpoint,
    latest_checkpoint,
)
from mofi_lightning.training.module import PretrainingModule
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

    def _parse_ckpt_path(self) -> None:
        """Keep the YAML: LightningCLI would let a checkpoint's hyperparameters overrule it."""

    def before_instantiate_classes(self) -> None:
        """Resolve `ckpt_path: last` to the run's newest checkpoint, and refuse what is no checkpoint."""
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        if config.get("ckpt_path") == "last":
            newest = latest_checkpoint(_root(config.trainer))
            config.ckpt_path = str(newest) if newest else None
            print(f"resuming from {newest}" if newest else "no checkpoint yet: training starts at step 0")
        if config.get("ckpt_path"):
            checkpoint.check(Path(config.ckpt_path))
        if config.get("weights_only") is None:
            config.weights_only = True

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with our strategy, checkpoints and loggers unless others were asked for."""
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        root = _root(config)
        config["default_root_dir"] = str(root)
        config["callbacks"] = _default_callbacks(
            config.get("callbacks"), config.get("enable_checkpointing"), config.get("enable_progress_bar")
        )
        if config.get("logger") in (None, True):
            config["logger"] = _default_loggers(root)
        if str(config.get("strategy")).rpartition(".")[2] == ShardedStrategy.__name__:
            config["strategy"] = ShardedStrategy()  # the parser leaves a bare name as it is
        require_sharded(config.get("strategy"))
        probe = _probe(config)
        processes = probe.num_devices * probe.num_nodes
        if isinstance(probe.accelerator, CPUAccelerator):
            _share_cores(probe.num_devices, getattr(self.datamodule, "num_workers", 0))
        if processes > 1 and config.get("strategy") in (None, "auto"):
            config["strategy"] = ShardedStrategy()
        if processes == 1:
            config["strategy"] = "auto"
            plugins = config.get("plugins") or []
            config["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        if self.subcommand is not None:
            _check_processes(self.config[self.subcommand].get("ckpt_path"), processes)
        return self._instantiate_trainer(config, [])


def _root(trainer_config: Any) -> Path:
    return Path(trainer_config.get("default_root_dir") or "runs/fit")


def _quiet() -> None:
    """Keep Lightning's tips and the advice that does not apply to streams of known length off the screen."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LightningCLI's args parameter.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks used to create")
    warnings.filterwarnings("ignore", ".*FSDP2-wrapped module .* returned a view tensor.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")


def _default_callbacks(given: Any, checkpointing: bool | None, progress_bar: bool | None) -> list[Callback]:
    callbacks = list(given) if isinstance(given, list) else [given] if given else []
    if checkpointing is not False and not any(isinstance(c, ModelCheckpoint) for c in callbacks):
        callbacks.append(StepCheckpoint())
    if not any(isinstance(c, RunSummary) for c in callbacks):
        callbacks.append(RunSummary())
    if progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    return callbacks


def _default_loggers(root: Path) -> list[Logger]:
    loggers: list[Logger] = [CSVLogger(root, name="logs")]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(root, name="logs", version=loggers[0].version))
    return loggers


def _probe(config: dict[str, Any]) -> Trainer:
    """A bare trainer that tells what devices there are: 'auto', a count, a list, torchrun's or SLURM's."""
    names = ("accelerator", "devices", "num_nodes")
    return Trainer(
        **{name: config[name] for name in names if config.get(name) is not None},
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _check_processes(path: str | None, processes: int) -> None:
    if path and Path(path).is_dir() != (processes > 1):
        wrote = "several processes" if Path(path).is_dir() else "one process"
        raise InputError(
            f"checkpoint {path} was written by {wrote}, this run has {processes}; resume it as it was begun"
        )


def _share_cores(processes: int, workers: int) -> None:
    """Leave a core to each loader: threads that wait for one another on a busy core cost tenfold."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes - workers))


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
        parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
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
    _quiet()
    build(words)

"""From the options of `mofi plan` to a plan: the run that `mofi fit` would start, on a cluster."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.training.command import build
from mofi_lightning.training.module import PretrainingModule
from mofi_lightning.training.planning.estimate import Cluster, Plan, estimate
from mofi_lightning.training.strategy import ShardedStrategy
from mofi_lightning.types import InputError

# a plan runs here, in one process: what the cluster will be is told by the options of the plan
_HERE = (
    "--trainer.accelerator",
    "cpu",
    "--trainer.devices",
    "1",
    "--trainer.num_nodes",
    "1",
    "--trainer.logger",
    "false",
)


@dataclass(frozen=True)
class _Entities:
    """A vocabulary of which only the number of entities is known."""

    number: int

    def __len__(self) -> int:
        return self.number

    @property
    def ids(self) -> Sequence[str]:
        return [f"E{number}" for number in range(self.number)]

    names = descriptions = ids

    @property
    def counts(self) -> Sequence[int]:
        return [1] * self.number


class _SizedTokenizer(Tokenizer):
    """A tokenizer of which only the number of token ids is known."""

    def __init__(self, size: int) -> None:
        super().__init__(Tokenizer.load("bytes")._backend)
        self._size = size

    @property
    def vocab_size(self) -> int:
        return self._size


def plan(options: argparse.Namespace, words: list[str]) -> Plan:
    """What the run that `mofi fit WORDS` starts would take.

    Args:
        options: of the plan, as `planning.options.parse` returns them.
        words: options of the run.

    Raises:
        InputError: the plan cannot be made of what was given.
    """
    cluster = Cluster(options.gpus, options.gpus_per_node, options.gpu_memory, options.tflops, options.mfu)
    with contextlib.redirect_stdout(io.StringIO()):  # what this machine changes is no matter of the cluster
        cli = build([*words, *_HERE], run=False)
    module: PretrainingModule = cli.model
    trainer = cli.config_init.trainer
    if str(trainer.precision) not in ("None", "32", "32-true", "bf16-mixed", "bf16"):
        raise InputError(
            f"trainer.precision is {trainer.precision}; a plan is made for bf16-mixed or 32-true"
        )
    strategy = trainer.strategy
    replicas = _replicas(strategy.replicate if isinstance(strategy, ShardedStrategy) else 1, cluster)
    _forget_weights(module)
    vocabulary = _entities(options.entities, cli.datamodule)
    return estimate(
        module,
        vocabulary,
        _tokenizer(module, options.text_vocabulary),
        cluster,
        replicas,
        options.batch or _rows(cli.datamodule),
        str(trainer.precision).startswith("bf16"),
        trainer.gradient_clip_val,
        trainer.max_steps,
    )


def _replicas(replicate: int | str, cluster: Cluster) -> int:
    named = {"world": cluster.gpus, "nodes": max(1, cluster.gpus // cluster.gpus_per_node)}
    replicas = named[replicate] if isinstance(replicate, str) else replicate
    if cluster.gpus % replicas:
        raise InputError(f"strategy.replicate is {replicate}, which does not divide --gpus {cluster.gpus}")
    return replicas


def _forget_weights(module: PretrainingModule) -> None:
    """Build architectures only: weights would be downloaded or read, and change no size."""
    config = module.encoder_config
    if "pretrained" in config.image_options:
        options = config.image_options | {"pretrained": False}
        module.encoder_config = dataclasses.replace(config, image_options=options)


def _entities(number: int | None, data: Any) -> _Entities | None:
    if number is None:
        try:
            number = len(data.vocabulary or ())
        except (InputError, OSError):
            number = 0  # the data is not here
    elif number < 1:
        raise InputError(f"--entities is {number}; give a positive number")
    return _Entities(number) if number else None


def _tokenizer(module: PretrainingModule, size: int | None) -> Tokenizer | None:
    config = module.encoder_config
    if config.text is None:
        return None
    if size is not None:
        return _SizedTokenizer(size)
    if config.tokenizer not in ("clip", "bytes") and not Path(config.tokenizer).exists():
        raise InputError(
            f"tokenizer {config.tokenizer!r} does not exist; give --text-vocabulary, its number of ids"
        )
    return Tokenizer.load(config.tokenizer)


def _rows(data: Any) -> int:
    sources = getattr(data, "sources", None)
    rows = sum(source.rows for source in sources.values()) if sources else getattr(data, "rows", 0)
    if not rows:
        raise InputError(f"{type(data).__name__} does not tell the rows of its batch; give --batch N")
    return int(rows)

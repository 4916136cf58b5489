"""`mofi plan`: memory, communication and time of a training run, before it is started."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.training.command import build
from mofi_lightning.training.defaults import quiet
from mofi_lightning.training.module import PretrainingModule
from mofi_lightning.training.planning.estimate import Cluster, Plan, estimate
from mofi_lightning.training.planning.table import show
from mofi_lightning.training.strategy import ShardedStrategy
from mofi_lightning.types import InputError

_HELP = """Every option of `mofi fit` counts here, too. Neither GPUs nor data nor a tokenizer's file are needed."""
_H100_TFLOPS = 989.0  # bf16, dense, by its datasheet

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


def run(words: list[str]) -> None:
    """Plan.

    Args:
        words: of the command line, the verb first.

    Raises:
        InputError: the plan cannot be made of what was given.
    """
    options, rest = _parser().parse_known_args(words[1:])
    quiet()
    show(plan(options, rest))


def plan(options: argparse.Namespace, words: list[str]) -> Plan:
    """What the run that `mofi fit WORDS` starts would take on the cluster of `options`."""
    cluster = Cluster(options.gpus, options.gpus_per_node, options.gpu_memory, options.tflops, options.mfu)
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
    return estimate(
        module,
        _entities(options.entities, cli.datamodule),
        _tokenizer(module, options.text_vocabulary),
        cluster,
        replicas,
        options.batch or _rows(cli.datamodule),
        str(trainer.precision).startswith("bf16"),
        trainer.gradient_clip_val,
        trainer.max_steps,
    )


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a plan, and those of the run that is planned."""
    return _parser().parse_known_args(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mofi plan", description=_HELP, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--gpus", type=int, required=True, help="number of GPUs, one process on each")
    parser.add_argument("--gpu-memory", type=float, default=80.0, help="of one GPU, in GB of 1e9 bytes")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="for strategies that replicate by node")
    parser.add_argument("--batch", type=int, help="rows of the global batch; those of the data by default")
    parser.add_argument("--entities", type=int, help="number of entities; those of the data by default")
    parser.add_argument(
        "--text-vocabulary", type=int, help="token ids, where the tokenizer's file is not here; OPT has 50272"
    )
    parser.add_argument(
        "--mfu", type=float, default=0.4, help="share of the GPUs' peak that training reaches"
    )
    parser.add_argument(
        "--tflops", type=float, default=_H100_TFLOPS, help="peak of one GPU in bf16 (H100: 989)"
    )
    return parser


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
            number = 0  # an objective that needs entities will say so
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
            f"tokenizer {config.tokenizer!r} does not exist; give --text-vocabulary N, its number of token ids"
        )
    return Tokenizer.load(config.tokenizer)


def _rows(data: Any) -> int:
    sources = getattr(data, "sources", None)
    rows = sum(source.rows for source in sources.values()) if sources else getattr(data, "rows", 0)
    if not rows:
        raise InputError(f"{type(data).__name__} does not tell the rows of its batch; give --batch N")
    return int(rows)

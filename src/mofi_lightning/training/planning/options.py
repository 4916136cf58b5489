"""`mofi plan`: memory, communication and time of a training run, before it is started."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

_HELP = """Compute what a training run will need: memory by what it is for, communication, time, and the
largest batch that fits. Takes every option of `mofi fit`, --config first of all. No GPU, no data and no
tokenizer file are needed."""
_H100_TFLOPS = 989.0  # bf16, dense, by its datasheet


def run(words: Sequence[str]) -> None:
    """Plan, and print the plan.

    Args:
        words: of the command line, the verb first.

    Raises:
        ArgumentError: the options are wrong.
        InputError: the plan cannot be made of what was given.
    """
    options, rest = parse(words[1:])

    # help needs none of these
    from mofi_lightning.training.defaults import quiet
    from mofi_lightning.training.planning.command import plan
    from mofi_lightning.training.planning.table import show

    quiet()
    show(plan(options, rest))


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a plan, and those of the run that is planned."""
    parser = argparse.ArgumentParser(
        prog="mofi plan",
        usage="mofi plan --config FILE --gpus N [--config FILE ...] [--OPTION VALUE ...]",
        description=_HELP,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--gpus", type=int, default=1, help="number of GPUs, one process on each")
    parser.add_argument("--gpu-memory", type=float, default=80.0, help="of one GPU, in GB of 1e9 bytes")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="for strategies that replicate by node")
    parser.add_argument("--batch", type=int, help="rows of the global batch; those of the data by default")
    parser.add_argument("--entities", type=int, help="number of entities; those of the data by default")
    parser.add_argument(
        "--text-vocabulary", type=int, help="token ids, where the tokenizer's file is not here; OPT has 50272"
    )
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that training reaches")
    parser.add_argument(
        "--tflops", type=float, default=_H100_TFLOPS, help="peak of one GPU in bf16; H100: 989"
    )
    return parser.parse_known_args(words)

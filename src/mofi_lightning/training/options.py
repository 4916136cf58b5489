"""Around the parser of `mofi fit` and `mofi validate`: a short help, and what the parser passes over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from mofi_lightning.types import InputError

_OPTIMIZER = "--model.optimization.optimizer"
_HELP = """
Every setting of the YAML files is an option, too; what comes later counts.

set most often:
  --trainer.max_steps N              length of the run
  --trainer.default_root_dir DIR     receives model/, checkpoints/, logs/ and summary.json
  --trainer.val_check_interval N     steps between two validations
  --trainer.accelerator cpu          or gpu; found by itself
  --trainer.devices N                processes
  --trainer.precision bf16-mixed     half precision in the encoders
  --ckpt_path last                   the newest checkpoint in default_root_dir, or FILE; fit goes on from it
  --model.encoder.image NAME         image tower; `mofi backbones` lists them
  --model.encoder.preprocess.size N  pixels a side
  --model.objective NAME             CLIP, EntitySoftmax, DeViSE, MOFI, MultiTask or package.Class
  --model.optimization.lr X          peak learning rate
  --model.init_from PATH             start from the weights of a trained model
  --model.encode_slices N            encode a large batch in N parts: the memory of one, the same gradient
  --model.activation_checkpointing true  less memory, a third more compute
  --model.ema_decay 0.9999           average the weights; validation and the model use the average
  --data.init_args.num_workers N     processes that load data
  --seed_everything N
  --trainer.profiler simple          or advanced, pytorch: where the time goes, into default_root_dir
  --config configs/strategy/sharded.yaml  several processes: how parameters are split over them

look further:
  --print_config                     the whole configuration that results
  --model.objective.help NAME        options of an objective; --data.help I2EDataModule: of the data
  --trainer.callbacks.help NAME      options of StepCheckpoint (every_n_steps), Evaluation, ...
  --help all                         every option

SIGTERM or Ctrl-C: the running step is finished and saved; --ckpt_path last goes on. Then:
  mofi checkpoint inspect DIR        what is in a checkpoint
  mofi checkpoint consolidate DIR FILE  one file of weights
"""


def usage(verb: str) -> str:
    """The first line of the help of `verb`."""
    return f"mofi {verb} --config FILE [--config FILE ...] [--OPTION VALUE ...]"


def short_help(verb: str) -> str:
    """What to set most often, and where to read of the rest."""
    return f"usage: {usage(verb)}\n{_HELP}"


def name_torch_optimizers(words: Sequence[str]) -> list[str]:
    """`words`, where a bare name of an optimizer means torch's, whichever others of the name are imported."""
    import torch  # not for the short help

    named = list(words)
    for number, word in enumerate(named):
        option, equals, name = word.partition("=")
        if option not in (_OPTIMIZER, f"{_OPTIMIZER}.class_path"):
            continue
        name = name if equals else "".join(named[number + 1 : number + 2])
        if isinstance(getattr(torch.optim, name, None), type):
            where, before = (number, f"{option}=") if equals else (number + 1, "")
            named[where] = f"{before}torch.optim.{name}"
    return named


def refuse_unknown_sections(words: Sequence[str], config: Namespace) -> None:
    """Refuse keys of YAML files that are misspelt and empty, which the parser takes for nothing.

    Args:
        words: of the command line, with `--config FILE`.
        config: what the parser made of them, defaults included.

    Raises:
        InputError: a file has an empty mapping under a key that does not exist.
    """
    for file in _config_files(words):
        for keys in _empty_sections(yaml.safe_load(file.read_text())):
            if not _is_known(config, keys):
                raise InputError(f"{file}: option '{'.'.join(keys)}' is not accepted")


def _config_files(words: Sequence[str]) -> Iterator[Path]:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in ("--config", "-c"):
            file = Path(value if equals else following)
            if len(str(file)) < 4096 and file.is_file():  # else given inline, or refused elsewhere
                yield file


def _empty_sections(node: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys that lead to an empty mapping in a parsed YAML file."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _empty_sections(value, (*keys, str(key)))
        if keys and not node and keys[-1] != "init_args":
            yield keys


def _is_known(config: Any, keys: tuple[str, ...]) -> bool:
    for key in keys:
        if not isinstance(config, dict | Namespace):
            return True
        if key not in config:
            return False
        config = config[key]
    return True

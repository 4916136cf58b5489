"""The checkpoints of a run: where they lie, which is the newest, which are superseded."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from mofi_lightning.encoders.checkpoint import CONFIG_FILE, is_complete
from mofi_lightning.encoders.checkpoint_format import REPLACED, recover
from mofi_lightning.types import InputError

SCORE = "score.json"  # in `checkpoints/best`, what is known of it
_STEP = re.compile(r"step=(\d+)\.ckpt$")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Of the checkpoint of `step` in `folder`."""
    return folder / f"step={step:08d}.ckpt"


def latest_checkpoint(root: Path) -> Path | None:
    """The complete checkpoint with the most steps under `root/checkpoints`; None if there is none."""
    found = _complete_ones(root)
    return max(found)[1] if found else None


def _complete_ones(root: Path) -> list[tuple[int, Path]]:
    folder = root / "checkpoints"
    for replaced in folder.glob(f"step=*.ckpt{REPLACED}"):
        recover(replaced.with_name(replaced.name.removesuffix(REPLACED)))
    return [
        (int(match[1]), path)
        for path in folder.glob("*.ckpt")
        if (match := _STEP.search(path.name)) and is_complete(path)
    ]


def step_of(checkpoint: Path) -> int:
    """The number of steps in the name of a checkpoint that `latest_checkpoint` found."""
    match = _STEP.search(checkpoint.name)
    assert match is not None
    return int(match[1])


def is_exported(root: Path, checkpoint: Path) -> bool:
    """Whether `root/model` is complete and was written after `checkpoint`."""
    config = root / "model" / CONFIG_FILE
    return config.is_file() and config.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns


def refuse_earlier_run(root: Path) -> None:
    """Raise InputError if a run from step 0 would be mixed up with another run's checkpoints or model."""
    earlier = latest_checkpoint(root)
    if earlier is not None:
        raise InputError(
            f"{earlier} is of an earlier run; go on with it (--ckpt_path last), remove it, or choose another "
            "trainer.default_root_dir"
        )
    model = root / "model"
    if (model / CONFIG_FILE).is_file():
        raise InputError(
            f"{model} is of an earlier run, whose checkpoints are gone; remove it, or choose another "
            "trainer.default_root_dir"
        )


def refuse_branching(root: Path, step: int, best: bool = False) -> None:
    """Raise InputError if a run that goes on from `step` would be mixed up with what went on from it before.

    Args:
        root: of the run.
        step: of the checkpoint that is gone back to.
        best: whether the best checkpoint so far counts, too; a run that was killed has not saved its step.
    """
    newer = [path for number, path in sorted(_complete_ones(root)) if number > step]
    note = root / "checkpoints" / "best" / SCORE
    if best and note.is_file():
        try:
            is_later = json.loads(note.read_text())["step"] > step
        except (ValueError, KeyError, TypeError):
            is_later = False
        newer += [note.parent] if is_later else []
    if newer:
        raise InputError(
            f"{', '.join(map(str, newer))} {'is' if len(newer) == 1 else 'are'} of a later step than {step}, "
            "which this run would go on from, and would be taken for its own; remove them, or choose another "
            "trainer.default_root_dir"
        )


def remove_superseded(newest: Path, keep: int) -> None:
    """Remove what `newest` supersedes beside it, but for the `keep` newest, and what killed writes left."""
    older = sorted(path for path in newest.parent.glob("step=*.ckpt") if path.name <= newest.name)
    partial = [path for path in newest.parent.glob("step=*.ckpt.*") if path.suffix == ".partial"]
    for path in [*older[:-keep], *partial]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

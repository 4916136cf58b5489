"""`mofi checkpoint`: what is in a checkpoint of `mofi fit`, and one file made of its folder."""

from __future__ import annotations

from pathlib import Path


def inspect(path: Path) -> None:
    """Show what is in a checkpoint: step, model, objective, and parameters and bytes part by part.

    Nothing but its index is read. The table is one block of plain text where the output is no terminal.

    Args:
        path: the folder of a run (its newest checkpoint), a checkpoint `step=N.ckpt`, or a file made by
            `mofi checkpoint consolidate`.

    Raises:
        InputError: nothing is there, it is none of these, it is damaged, or it cannot be read safely.
    """
    from mofi_lightning.training.checkpoints.inspection import describe, print_description

    print_description(describe(path))


def consolidate(path: Path, output: Path) -> None:
    """Turn the folder of a checkpoint into one torch file of weights, entity table and description.

    `mofi_lightning.load` and `model.init_from` read the file; training cannot be resumed from it, because
    the optimizer's state is left out. Memory stays near a piece of one tensor. One process does it, whatever
    number of them wrote the checkpoint.

    Args:
        path: the folder of a run (its newest checkpoint) or a checkpoint `step=N.ckpt`.
        output: the file to write; must not exist.

    Raises:
        InputError: `output` exists, or `path` is no complete checkpoint folder or cannot be read safely.
    """
    from mofi_lightning.training.checkpoints.consolidation import write_one_file

    write_one_file(path, output)

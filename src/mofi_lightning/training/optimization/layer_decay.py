"""How deep in its encoder a parameter is, for learning rates that fall towards the input."""

from __future__ import annotations

from torch import nn

from mofi_lightning.distributed.blocks import encoder_blocks


def block_depths(tower: nn.Module) -> dict[str, int]:
    """How many blocks each parameter is from the tower's end, by name (BEiT, arXiv 2106.08254).

    What comes after the last block (its norm, the projection) is at 0, the last of L blocks at 1, the first
    at L, what comes before it (patch and position embeddings) at L + 1. What stands between two blocks, such
    as a Swin's merging of patches, goes with the one before it. All are at 0 where there are no blocks.

    Args:
        tower: an encoder, with its projection or without.
    """
    blocks = encoder_blocks(tower)
    block_of = {id(p): number for number, block in enumerate(blocks) for p in block.parameters()}
    depths, depth = {}, len(blocks) + 1
    for name, parameter in tower.named_parameters():
        number = block_of.get(id(parameter))
        if number is not None:
            depth = len(blocks) - number
        elif depth == 1:  # after the last block
            depth = 0
        depths[name] = depth
    return depths

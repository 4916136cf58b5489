"""The repeated blocks of an encoder: what is sharded, checkpointed, compiled and given a rate one by one."""

from __future__ import annotations

from torch import nn


def encoder_blocks(encoder: nn.Module) -> list[nn.Module]:
    """The innermost repeated blocks of `encoder`, in their order; none where it repeats nothing.

    Found by structure alone: the elements of a `Sequential` or `ModuleList` that are all of one class and made of
    further modules. These are the transformer blocks of timm's and Hugging Face's ViTs and text models, and the
    blocks within the stages of their ConvNeXts, Swins and ResNets.

    Args:
        encoder: any module; itself it is never a block.
    """
    return [block for child in encoder.children() for block in _blocks(child, within=False)]


def _blocks(module: nn.Module, within: bool) -> list[nn.Module]:
    """The blocks below `module`; a list within a repeated stage may have a single element."""
    is_stack = isinstance(module, nn.Sequential | nn.ModuleList) and _is_repeated(module, 1 if within else 2)
    found: list[nn.Module] = []
    for child in module.children():
        inner = _blocks(child, within or is_stack)
        found += inner or ([child] if is_stack else [])
    return found


def _is_repeated(stack: nn.Module, least: int) -> bool:
    elements = list(stack.children())
    composed = all(any(True for _ in e.children()) and any(True for _ in e.parameters()) for e in elements)
    return len(elements) >= least and len({type(e) for e in elements}) == 1 and composed

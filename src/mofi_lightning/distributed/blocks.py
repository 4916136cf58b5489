"""The repeated blocks of an encoder: what is sharded, checkpointed, compiled and given a rate one by one."""

from __future__ import annotations

from torch import nn


def encoder_blocks(encoder: nn.Module) -> list[nn.Module]:
    """The repeated blocks of `encoder`, in their order; none where it repeats nothing.

    Found by structure alone. A stack is a `Sequential` or `ModuleList` of at least two elements of one class
    that are themselves made of modules. Where two of its elements have parameters of the same names and
    shapes, its elements are the blocks: those of timm's and Hugging Face's transformers. Where no two are
    alike, they are stages, and the blocks are the elements of the stacks within each: ConvNeXt, Swin,
    EfficientNet. A stage without a stack is a block itself, and nothing within a block is one.

    Args:
        encoder: any module; itself it is never a block.
    """
    return [block for child in encoder.children() for block in _blocks(child, in_stage=False)]


def _blocks(module: nn.Module, in_stage: bool) -> list[nn.Module]:
    elements = list(module.children())
    if not _is_stack(module, in_stage):
        return [block for element in elements for block in _blocks(element, in_stage)]
    if in_stage or len({_shapes(element) for element in elements}) < len(elements):
        return elements
    return [block for stage in elements for block in _blocks(stage, in_stage=True) or [stage]]


def _is_stack(module: nn.Module, in_stage: bool) -> bool:
    """Whether `module` is a stack; within a stage a single element will do, and classes may be mixed."""
    elements = list(module.children())
    if not isinstance(module, nn.Sequential | nn.ModuleList) or not all(map(_is_composed, elements)):
        return False
    return len(elements) >= (1 if in_stage else 2) and (in_stage or len({type(e) for e in elements}) == 1)


def _is_composed(module: nn.Module) -> bool:
    return next(module.children(), None) is not None and next(module.parameters(), None) is not None


def _shapes(module: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(p.shape)) for name, p in module.named_parameters())

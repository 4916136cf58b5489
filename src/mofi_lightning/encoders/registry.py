"""Backbones by name: `timm/resnet50`, `hf/<id or folder>`, `mofi/tiny`, or any installed library's prefix."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

from mofi_lightning import entry_points
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from mofi_lightning.encoders.base import BackboneLibrary, ImageEncoder

_KIND = "backbone library"


def build_image_encoder(name: str, **options: Any) -> ImageEncoder:
    """Build the image encoder `name`, `PREFIX/NAME`, with the options its library takes.

    Raises:
        InputError: no library has the prefix, the library has no such name, or the options do not fit.
    """
    prefix, slash, rest = name.partition("/")
    if not slash or not rest:
        raise InputError(f"image encoder {name!r} has no library; write it as timm/resnet50 or mofi/tiny")
    library = cast("type[BackboneLibrary]", entry_points.load_kind(prefix, _KIND))()
    try:
        inspect.signature(library.build).bind(rest, **options)
    except TypeError as error:
        raise InputError(f"options of image encoder {name!r}: {error}") from error
    return library.build(rest, **options)


def backbone_names(pattern: str = "*") -> list[str]:
    """All names, with prefix, that match the shell `pattern` with or without their prefix."""
    libraries = cast("dict[str, type[BackboneLibrary]]", entry_points.load_all(_KIND))
    return [name for _, library in sorted(libraries.items()) for name in library().match(pattern)]

"""Prompt templates of zero-shot classification, one a line, each list with its source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mofi_lightning.types import InputError

_FOLDER = Path(__file__).parent
_SLOT = "{}"


def template_names() -> list[str]:
    """The lists that come with this package.

    >>> template_names()
    ['entity_5', 'openai_imagenet_80', 'openai_simple_7']
    """
    return sorted(file.stem for file in _FOLDER.glob("*.txt"))


def template_list(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Prompts that are given by the name of their list, by the path of a file, or themselves.

    Raises:
        InputError: see `read_templates` and `check_templates`.
    """
    return read_templates(templates) if isinstance(templates, str) else check_templates(templates)


def read_templates(name: str | Path) -> tuple[str, ...]:
    """The templates of a list.

    Args:
        name: of a list that comes with this package, or the path of a file of one's own: UTF-8, a template a
            line, `{}` where the name goes; empty lines and those that begin with `#` are none.

    Raises:
        InputError: no such list or file, no template in it, or one without `{}`.
    """
    file = _FOLDER / f"{name}.txt" if str(name) in template_names() else Path(name)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"no templates {str(name)!r} ({error.__class__.__name__}); give one of "
            f"{', '.join(template_names())}, or a UTF-8 file with one template a line"
        ) from error
    stripped = [line.strip() for line in lines]
    try:
        return check_templates([line for line in stripped if line and not line.startswith("#")])
    except InputError as error:
        raise InputError(f"{error} ({file})") from error


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates, of which there is one at least, and each can take a name.

    Raises:
        InputError: there is none, or one has no `{}`.
    """
    if not templates:
        raise InputError("zero-shot needs a template and there is none; '{}' alone is the bare name")
    wrong = next((template for template in templates if _SLOT not in template), None)
    if wrong is not None:
        raise InputError(f"template {wrong!r} has no '{_SLOT}' where the name would go")
    return tuple(templates)


def fill(template: str, name: str) -> str:
    """`name` in every place that `template` has for it.

    >>> fill("a photo of a {}.", "cat {}")
    'a photo of a cat {}.'
    """
    return template.replace(_SLOT, name)

"""Small files beside images: names of classes, and which were seen in training."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mofi_lightning.evaluation.datasets.listing import listed
from mofi_lightning.types import InputError

_IMAGENET_NAMES = Path(__file__).parent / "class_names" / "imagenet1k.tsv"


def read_lines(path: Path, title: str) -> list[str]:
    """Lines of a UTF-8 text file without white space at their ends; empty lines at the end are none.

    Raises:
        InputError: it is missing or not UTF-8.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise InputError(f"no {title} at {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); convert it") from error
    while lines and not lines[-1]:
        lines.pop()
    return lines


def read_class_names(path: Path) -> dict[str, str]:
    """Names by class, from a table of class<TAB>name.

    Raises:
        InputError: it is missing, a line has no tab or an empty side, or a class is there twice.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(read_lines(path, "table of class names"), 1):
        if not line:
            continue
        entity, _, name = (part.strip() for part in line.partition("\t"))
        if not (entity and name):
            raise InputError(f"line {number} of {path} is {line!r}, not class<TAB>name; correct it")
        if entity in names:
            raise InputError(f"line {number} of {path} names {entity!r} a second time; remove one")
        names[entity] = name
    if not names:
        raise InputError(f"{path} holds no names; write class<TAB>name, a line a class")
    return names


def read_imagenet_names() -> dict[str, str]:
    """OpenAI's names of the 1,000 classes of ILSVRC 2012, by WordNet id (`n01440764`)."""
    return read_class_names(_IMAGENET_NAMES)


def read_seen(path: Path, classes: Collection[str]) -> frozenset[str]:
    """The classes in a text file, one a line.

    Args:
        path: the file.
        classes: all of the data set.

    Raises:
        InputError: it is missing or empty, or names a class that the data set does not have.
    """
    seen = frozenset(line for line in read_lines(path, "list of seen classes") if line)
    unknown = sorted(seen - set(classes))
    if unknown or not seen:
        what = f"names {len(unknown)} that the data has not: {listed(unknown)}" if unknown else "is empty"
        raise InputError(f"the list of seen classes {path} {what}; write the folder of a class a line")
    return seen

"""Pairs in tars of the WebDataset form, as img2dataset writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os.path import commonpath
from pathlib import Path
from typing import Any

from mofi_lightning.sources.base import Pair, Source, well_formed
from mofi_lightning.sources.tars import find_tars, read_tar
from mofi_lightning.types import InputError

_IMAGES = ("jpg", "jpeg", "png", "webp", "gif")
# names of a sample and of one of its files: what follows the first dot is the suffix; hidden files are none
_FILE = re.compile(r"(?:\./)?((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)


class WebDatasetSource(Source):
    """Pairs of tars in which the files of a sample follow each other: `0001.jpg`, `0001.json`, `0001.txt`.

    Tars are read in the order of their names, and may be compressed with gzip. In a folder whose tars are in
    subfolders, each subfolder is a split; otherwise the split is `train`. A sample without an image or a text
    has an empty one.

    Args:
        path: a tar, a folder of tars, or a pattern in quotes: 'data/{00000..00099}.tar', 'data/*.tar'.
        image: suffix of the images; default: jpg, jpeg, png, webp or gif, whichever a sample has.
        text: suffix of the texts, or json:NAME for a field of the samples' json; default: txt, and
            json:caption for a sample without it.
        key: json:NAME for a field whose values are unique over all tars (of img2dataset json:key); default:
            the names of tar and sample, `00000/000000012`.

    Raises:
        InputError: nothing at `path`, a tar of the pattern is missing, or a file is no tar.
    """

    def __init__(
        self, path: str, image: str | None = None, text: str | None = None, key: str | None = None
    ) -> None:
        self._images = _IMAGES if image is None else (_suffix(image),)
        self._text_suffix, self._text_field = ("txt", None) if text is None else _suffix_or_field(text)
        suffix, self._key_field = ("", None) if key is None else _suffix_or_field(key)
        if suffix:
            raise InputError(f"key {key!r} is no field of a json; give json:NAME, such as json:key")
        # what each tar must have, by option
        self._needed = {"image": set(self._images)}
        if text is not None and self._text_suffix:
            self._needed["text"] = {self._text_suffix}
        self._caption = text is None
        json_is_read = self._caption or self._text_field or self._key_field
        self._wanted = {*self._images, self._text_suffix, *(["json"] if json_is_read else [])}
        self._tars = find_tars(path)
        tars = [tar for tars in self._tars.values() for tar in tars]
        for tar in tars:
            next(read_tar(tar, lambda name: False), None)
        root = commonpath([tar.parent for tar in tars])
        self._names = {tar: _name(tar.relative_to(root)) for tar in tars}

    @property
    def splits(self) -> Sequence[str]:
        """`train`, or the names of the subfolders, sorted."""
        return tuple(self._tars)

    def count(self, split: str) -> int | None:
        """Number of samples, if img2dataset has left it beside every tar."""
        try:
            files = [tar.with_name(f"{tar.stem}_stats.json") for tar in self._tars[split]]
            return sum(int(json.loads(file.read_bytes())["successes"]) for file in files)
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def pairs(self, split: str) -> Iterator[Pair]:
        """The samples of the tars, in their order."""
        for tar in self._tars[split]:
            missing, suffixes = dict(self._needed), set[str]()
            for sample in _samples(tar, self._wanted):
                suffixes = sample.suffixes
                for option in [option for option, names in missing.items() if names & suffixes]:
                    del missing[option]
                yield Pair(self._key(sample), self._image(sample), self._text(sample))
            for option in missing if suffixes else ():
                raise InputError(
                    f"{tar} has no {option}s: its files end in {', '.join(sorted(suffixes))}; name the right "
                    f"suffix with --{option}"
                )

    def _key(self, sample: _Sample) -> str:
        if self._key_field is None:
            return well_formed(f"{self._names[sample.tar]}/{sample.name}")
        key = sample.field(self._key_field, "key")
        if not isinstance(key, str | int):
            raise InputError(
                f"json:{self._key_field} of {sample} is a {type(key).__name__}, no key; name another with "
                "--key"
            )
        return well_formed(str(key))

    def _image(self, sample: _Sample) -> bytes:
        found = [suffix for suffix in self._images if suffix in sample.files]
        if len(found) > 1:
            raise InputError(f"{sample} has a {' and a '.join(found)}; choose one with --image")
        return sample.files[found[0]] if found else b""

    def _text(self, sample: _Sample) -> str:
        if self._text_suffix in sample.files:
            try:
                return sample.files[self._text_suffix].decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"the {self._text_suffix} of {sample} is not UTF-8 ({error}); convert it"
                ) from error
        text = None
        if self._text_field is not None:
            text = sample.field(self._text_field, "text")
        elif self._caption and "json" in sample.files:
            text = sample.json.get("caption")
        if not isinstance(text, str | None):
            raise InputError(
                f"the text of {sample} is a {type(text).__name__}, no string; name another field with --text"
            )
        return well_formed(text or "")


@dataclass
class _Sample:
    """The files of one sample.

    Attributes:
        tar: that holds it.
        name: in the tar.
        files: those that are wanted, by suffix.
        suffixes: of all its files.
    """

    tar: Path
    name: str
    files: dict[str, bytes] = field(default_factory=dict)
    suffixes: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return f"sample {self.name!r} in {self.tar}"

    @cached_property
    def json(self) -> dict[str, Any]:
        """What the sample's json holds.

        Raises:
            InputError: there is none, or it is damaged.
        """
        try:
            content = json.loads(self.files["json"])
        except KeyError:
            raise InputError(f"{self} has no json; it has {', '.join(sorted(self.suffixes))}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"the json of {self} cannot be read ({error}); write it anew") from error
        if not isinstance(content, dict):
            raise InputError(f"the json of {self} is no object; write it anew")
        return content

    def field(self, name: str, option: str) -> Any:
        """A field of the json, which must have it."""
        if name not in self.json:
            raise InputError(
                f"the json of {self} has no field {name!r} (it has {', '.join(self.json)}); "
                f"name the right one with --{option}"
            )
        return self.json[name]


def _samples(tar: Path, wanted: set[str]) -> Iterator[_Sample]:
    """The samples of a tar, in its order.

    Raises:
        InputError: the tar is damaged, or the files of a sample do not follow each other or repeat.
    """
    names: set[str] = set()
    sample: _Sample | None = None
    for file, content in read_tar(tar, lambda file: _split(file)[1] in wanted):
        name, suffix = _split(file)
        if not suffix:
            continue
        if sample is None or name != sample.name:
            if sample is not None:
                yield sample
            if name in names:
                raise InputError(
                    f"the files of sample {name!r} in {tar} do not follow each other; write the tar with "
                    "--sort=name"
                )
            names.add(name)
            sample = _Sample(tar, name)
        if suffix in sample.suffixes:
            raise InputError(f"{tar} holds {file!r} twice; write it anew")
        sample.suffixes.add(suffix)
        if content is not None:
            sample.files[suffix] = content
    if sample is not None:
        yield sample


def _split(file: str) -> tuple[str, str]:
    """Names of the sample and of its file; two empty ones for what belongs to no sample."""
    match = _FILE.fullmatch(file)
    return (match[1], match[2].lower()) if match else ("", "")


def _name(tar: Path) -> str:
    return re.sub(r"\.tar(\.gz)?$|\.tgz$", "", tar.as_posix())


def _suffix(name: str) -> str:
    return name.lower().removeprefix(".")


def _suffix_or_field(name: str) -> tuple[str, str | None]:
    is_field, field_name = name.startswith("json:"), name.removeprefix("json:")
    return ("", field_name) if is_field else (_suffix(name), None)

"""WebDataset tars in the layout of CLIP_benchmark: classes with templates, or captions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mofi_lightning.evaluation.base import EvaluationData
from mofi_lightning.evaluation.datasets.class_tables import read_lines
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.datasets.listing import listed
from mofi_lightning.evaluation.datasets.oddities import class_oddities
from mofi_lightning.evaluation.datasets.tar_index import TarredFile, TarredFiles, index_tar
from mofi_lightning.sources.base import well_formed
from mofi_lightning.types import InputError

_IMAGES = ("webp", "png", "jpg", "jpeg")
_LABEL, _CAPTIONS = "cls", "txt"
_MOST_TEXT_BYTES = 2**20
_FIT = "train"
_MOST_DIGITS = 9
# names of a sample and of one of its files; hidden files are none
_FILE = re.compile(r"(?:\./)?((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)


class WebDataset(EvaluationData):
    """A folder in the layout of CLIP_benchmark's WebDatasets, read in place.

    `test/0.tar`, `test/1.tar`, ... with as many tars as `test/nshards.txt` says, and the same in `train` to
    learn from, if it is there. A sample is KEY.jpg (png, webp) with KEY.cls, the number of its class, a line
    of `classnames.txt`; `zeroshot_classification_templates.txt` has prompts with `{c}` where the name goes.
    Or it is KEY.jpg with KEY.txt, a caption a line: then each image is an entity of its own.

    Tars are indexed by their headers; nothing is unpacked. They must not be compressed.

    Args:
        path: the folder.
        split: folder in it that is evaluated.

    Example:
        ```yaml
        tasks:
          caltech101:
            data:
              class_path: WebDataset
              init_args: {path: data/vtab/caltech101}
        ```
    """

    def __init__(self, path: Path, split: str = "test") -> None:
        self.path = Path(path)
        self.split = split

    def open(self) -> EvaluationSet:
        """See `EvaluationData`."""
        path = self.path
        if not (path / self.split).is_dir():
            raise InputError(f"no WebDataset at {path / self.split}; {_how(path)}")
        kind = _first_line(path / "dataset_type.txt")
        if kind not in ("", "classification", "retrieval"):
            raise InputError(
                f"{path} is a data set of {kind!r}; only classification and retrieval can be measured"
            )
        samples = _read_split(path / self.split)
        if kind == "retrieval" or not any(_LABEL in sample.files for sample in samples):
            return _captioned(path, samples)
        learnt = _read_split(path / _FIT) if (path / _FIT).is_dir() and self.split != _FIT else None
        return _classified(path, samples, learnt)


@dataclass(frozen=True)
class _Sample:
    """The files of one sample, by suffix, and its key among all tars."""

    key: str
    files: dict[str, TarredFile]

    @property
    def image(self) -> TarredFile:
        found = [suffix for suffix in _IMAGES if suffix in self.files]
        if len(found) != 1:
            has = " and ".join(found) or "none"
            raise InputError(f"{self} needs one image ({', '.join(_IMAGES)}), but has {has}")
        return self.files[found[0]]

    def text(self, suffix: str) -> str:
        if suffix not in self.files:
            raise InputError(f"{self} has no {suffix}; it has {', '.join(self.files)}")
        file = self.files[suffix]
        if file.size > _MOST_TEXT_BYTES:
            raise InputError(f"the {suffix} of {self} has {file.size:,} bytes, more than any text")
        try:
            return file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"the {suffix} of {self} is not UTF-8 ({error}); convert it") from error

    def __str__(self) -> str:
        return f"sample {self.key!r} in {next(iter(self.files.values())).tar}"


def _classified(path: Path, samples: Sequence[_Sample], learnt: Sequence[_Sample] | None) -> EvaluationSet:
    called = read_lines(path / "classnames.txt", "names") if (path / "classnames.txt").is_file() else []
    if "" in called:
        raise InputError(
            f"line {called.index('') + 1} of {path / 'classnames.txt'} is empty; a class needs a name"
        )
    entities = [_entity(sample, len(called)) for sample in samples]
    names = {f"{number:04d}": name for number, name in enumerate(called)}
    notes = () if called else (f"{path} has no classnames.txt: nothing can be classified by name",)
    return EvaluationSet(
        name=path.resolve().name,
        keys=[sample.key for sample in samples],
        images=TarredFiles([sample.image for sample in samples]),
        entities=entities,
        names=names,
        fit=None if learnt is None else _fit(path, learnt, len(called)),
        templates=_templates(path / "zeroshot_classification_templates.txt"),
        notes=(*notes, *class_oddities(entities, names)),
    )


def _fit(path: Path, samples: Sequence[_Sample], classes: int) -> EvaluationSet:
    return EvaluationSet(
        name=f"{path.resolve().name}/{_FIT}",
        keys=[sample.key for sample in samples],
        images=TarredFiles([sample.image for sample in samples]),
        entities=[_entity(sample, classes) for sample in samples],
    )


def _captioned(path: Path, samples: Sequence[_Sample]) -> EvaluationSet:
    captions = [
        (line.strip(), sample.key)
        for sample in samples
        for line in sample.text(_CAPTIONS).splitlines()
        if line.strip()
    ]
    silent = sorted({sample.key for sample in samples} - {key for _, key in captions})
    return EvaluationSet(
        name=path.resolve().name,
        keys=[sample.key for sample in samples],
        images=TarredFiles([sample.image for sample in samples]),
        entities=[sample.key for sample in samples],
        captions=captions,
        notes=(f"{len(silent)} of {len(samples)} images have no caption: {listed(silent)}",)
        if silent
        else (),
    )


def _entity(sample: _Sample, classes: int) -> str:
    text = sample.text(_LABEL).strip()
    if not _is_number(text) or (classes and int(text) >= classes):
        allowed = (
            f"0 to {classes - 1}, as classnames.txt has {classes} lines" if classes else "a class's number"
        )
        raise InputError(f"the {_LABEL} of {sample} is {text[:20]!r}, not {allowed}")
    return f"{int(text):04d}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS


def _templates(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        return ()
    lines = [line for line in read_lines(file, "templates") if line]
    wrong = [line for line in lines if "{c}" not in line]
    if wrong:
        raise InputError(f"{file} has templates without the {{c}} where the name goes: {listed(wrong)}")
    return tuple(line.replace("{c}", "{}") for line in lines)


def _read_split(folder: Path) -> list[_Sample]:
    samples: list[_Sample] = []
    for tar in _tars(folder):
        files: dict[str, dict[str, TarredFile]] = {}
        for file in index_tar(tar):
            matched = _FILE.fullmatch(file.name)
            if matched is None:
                continue
            name, suffix = matched[1], matched[2].lower()
            if suffix in files.setdefault(name, {}):
                raise InputError(f"sample {name!r} in {tar} has two files {suffix}; write the tar anew")
            files[name][suffix] = file
        samples += [
            _Sample(well_formed(f"{folder.name}/{tar.stem}/{name}"), found) for name, found in files.items()
        ]
    if not samples:
        raise InputError(f"the tars of {folder} hold no samples; {_how(folder.parent)}")
    return samples


def _tars(folder: Path) -> Iterator[Path]:
    """The tars that nshards.txt counts; without it all, by number and name."""
    count = _first_line(folder / "nshards.txt")
    if not count:
        tars = [file for file in folder.iterdir() if file.suffix == ".tar" and file.name[0] != "."]
        if not tars:
            raise InputError(f"{folder} holds no tars; {_how(folder.parent)}")
        yield from sorted(tars, key=lambda file: (len(file.stem), file.stem))
        return
    if not _is_number(count) or int(count) == 0:
        raise InputError(f"{folder / 'nshards.txt'} says {count[:20]!r}, not the number of tars")
    for number in range(int(count)):
        tar = folder / f"{number}.tar"
        if not tar.is_file():
            raise InputError(
                f"{tar} is missing, one of the {int(count):,} that nshards.txt counts; {_how(folder.parent)}"
            )
        yield tar


def _how(path: Path) -> str:
    """How to get the set that the folder `path` is called as."""
    place = path.resolve()
    # CLIP_benchmark calls the repository of its data set vtab/dtd wds_vtab-dtd
    name = f"vtab-{place.name}" if place.parent.name == "vtab" else place.name.removeprefix("wds_")
    return (
        f"if it is CLIP_benchmark's, `hf download --repo-type dataset clip-benchmark/wds_{name} --local-dir "
        f"{path}` gets it (https://huggingface.co/clip-benchmark lists them)"
    )


def _first_line(file: Path) -> str:
    return next(iter(read_lines(file, "text")), "").lower() if file.is_file() else ""

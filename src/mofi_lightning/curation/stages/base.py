"""Stages: a folder with a file for each part of the corpus, reused as long as it is made from the same."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mofi_lightning.types import InputError

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

_ABOUT = "stage.json"


@dataclass(frozen=True)
class Stage:
    """A folder of files `000000.parquet`, one for each part.

    A file appears whole or not at all, so that it is its own sign that the part is done: a run that was
    killed goes on with the parts that are missing, and a part that is done twice is the same.

    Attributes:
        folder: of the files.
        fingerprint: of all that they are made from.
    """

    folder: Path
    fingerprint: str

    def prepare(self) -> None:
        """Make the folder; what was made from other things is removed."""
        about = self.folder / _ABOUT
        try:
            current = json.loads(about.read_text())["fingerprint"] == self.fingerprint
        except (OSError, ValueError, KeyError):
            current = False
        if current:
            for left in self.folder.glob(".*.partial*"):  # by a process that was killed
                left.unlink(missing_ok=True)
        else:
            about.unlink(missing_ok=True)  # first, so that a kill leaves nothing that looks whole
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            with atomic(about) as file:
                file.write_text(json.dumps({"fingerprint": self.fingerprint}) + "\n")

    def file(self, number: int, suffix: str = ".parquet") -> Path:
        """The file of part `number`."""
        return self.folder / f"{number:06d}{suffix}"

    def has(self, number: int) -> bool:
        """Whether part `number` is done."""
        return self.file(number).exists()

    def write(self, number: int, columns: dict[str, Any], schema: pa.Schema) -> None:
        """Write the columns of part `number`: arrays of Arrow, of numpy, or lists."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays = [_array(columns[field.name], field.type) for field in schema]
        with atomic(self.file(number)) as file:
            pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file, compression="zstd")

    def read(self, number: int, *columns: str) -> pa.Table:
        """Columns of part `number`.

        Raises:
            InputError: the file is damaged, or not there.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(self.file(number), columns=list(columns), partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self.file(number)} cannot be read ({' '.join(str(error).split())}); remove it, run again"
            ) from error


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` at the end: the file appears whole or not at all."""
    # NumPy adds the ending where it is missing
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb+") as written:  # a crash of the machine must not leave half a file either
            os.fsync(written.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def flat(lists: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column of lists one after the other, and the row of each: `[N]`, int64 `[N]`."""
    array = lists.combine_chunks()
    lengths = np.diff(array.offsets.to_numpy())
    return array.flatten().to_numpy(zero_copy_only=False), np.repeat(np.arange(len(lengths)), lengths)


def fingerprint(*parts: object) -> str:
    """A hash of `parts`, in which a path stands for the sizes and times of modification of its files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(_state(part)).encode() + b"\0")
    return digest.hexdigest()


def _state(part: object) -> object:
    if isinstance(part, Path):
        files = sorted(file for file in part.rglob("*") if file.is_file()) if part.is_dir() else [part]
        found = [(file, file.stat()) for file in files]
        return [(str(file.relative_to(part)), about.st_size, about.st_mtime_ns) for file, about in found]
    if isinstance(part, str):  # a model's folder is often given as text
        return (part, _state(Path(part))) if os.sep in part and Path(part).exists() else part
    if isinstance(part, int | float | bool | bytes | None):
        return part
    if isinstance(part, Mapping):
        return sorted((repr(key), _state(value)) for key, value in part.items())
    if isinstance(part, Sequence):
        return [_state(item) for item in part]
    if isinstance(part, Set):
        return sorted(repr(_state(item)) for item in part)
    # a plugin's class need not be a dataclass: what it was given, not where it lies in memory
    settings = {f.name: getattr(part, f.name) for f in fields(part)} if is_dataclass(part) else vars(part)
    return type(part).__module__, type(part).__qualname__, _state(settings)


_kept: dict[str, Any] = {}


def once_a_process(key: str, make: Callable[[], T]) -> T:
    """What `make` gives, kept by this process for its next part; what other keys gave is let go.

    Args:
        key: names what is made; starts with its kind, as in `linker/3f02`.
        make: called where nothing of this key is kept.
    """
    if key not in _kept:
        for other in [other for other in _kept if other.partition("/")[0] == key.partition("/")[0]]:
            del _kept[other]
        _kept[key] = make()
    made: T = _kept[key]
    return made

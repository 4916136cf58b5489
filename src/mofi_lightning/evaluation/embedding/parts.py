"""A folder of embeddings in parts, each of which is there whole or not at all.

`part-00000.parquet` (or `.npy`) and so on hold the vectors; `_parts/part-00000.json` says how many images the
part is of, and which could not be decoded, and why; `_settings.json` how all were made. Names that begin with
`_` are no data to what reads a folder of parquet.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mofi_lightning.evaluation.embedding.images import EmbeddingModel, embed_batches, output_widths
from mofi_lightning.types import InputError

_SETTINGS = "_settings.json"
_ABOUT = "_parts"


@dataclass(frozen=True)
class Part:
    """The embeddings of some images that follow each other.

    Attributes:
        keys: of all images of the part.
        content: hash of all keys and images (`Listing`).
        rows: of those that have an embedding, int64 `[M]`.
        embeddings: float32 `[M, D]`.
        features: float32 `[M, F]`, or None.
        failed: row -> why, for the others.
    """

    keys: Sequence[str]
    content: str
    rows: Tensor
    embeddings: Tensor
    features: Tensor | None
    failed: Mapping[int, str]


@dataclass(frozen=True)
class PartSummary:
    """What is known of a part that is there.

    Attributes:
        images: how many it is of.
        failures: key -> why, of those that could not be decoded.
        content: hash of all keys and images.
    """

    images: int
    failures: dict[str, str]
    content: str


class PartFolder:
    """The folder, which several processes may fill.

    Args:
        path: made if missing.
        form: of the parts.
        settings: what all parts are made with; recorded by the first process.
        origin: what was given for the model, whose hash is a setting; recorded too, but only to name it.

    Raises:
        InputError: the folder was made with other settings, or has none and holds something else.
    """

    def __init__(
        self, path: Path, form: Literal["parquet", "npy"], settings: Mapping[str, Any], origin: str
    ) -> None:
        self.path = path
        self.form = form
        if path.is_file():
            raise InputError(f"{path} is a file; give a folder, which gets a file a part of the images")
        (path / _ABOUT).mkdir(parents=True, exist_ok=True)
        made_with = self._record({**settings, "origin": origin})
        different = [name for name, value in settings.items() if made_with.get(name) != value]
        if different:
            shown = ", ".join(
                f"{name} {made_with.get(name)!r}, not {settings[name]!r}"
                if name != "model"
                else _other_model(str(made_with.get("origin")), origin)
                for name in different
            )
            raise InputError(f"{path} was made with {shown}; give another folder, or the same settings")

    def file(self, number: int, what: str = "") -> Path:
        """Where a part is, or what belongs to it."""
        return self.path / f"part-{number:05}{what}.{self.form}"

    def summary(self, number: int) -> PartSummary | None:
        """What is known of a part; None if it is not there."""
        if not self.file(number).is_file():
            return None
        about = self.about(number)
        try:
            return PartSummary(**json.loads(about.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{about} is missing or damaged; delete {self.file(number)}, and both are made anew"
            ) from error

    def beyond(self, count: int) -> list[Path]:
        """Files of parts that are numbered `count` or more."""
        files = self.path.glob("part-*")
        numbers = {file: file.name.removeprefix("part-").partition(".")[0] for file in files}
        return sorted(file for file, number in numbers.items() if number.isdecimal() and int(number) >= count)

    def write(self, number: int, part: Part) -> PartSummary:
        """Write a part, its vectors last."""
        failures = {part.keys[row]: why for row, why in part.failed.items()}
        summary = PartSummary(len(part.keys), failures, part.content)
        with _whole(self.about(number)) as partial:
            partial.write_text(json.dumps(vars(summary), indent=1) + "\n")
        keys = [part.keys[row] for row in part.rows.tolist()]
        if self.form == "npy":
            self._write_arrays(number, keys, part)
        else:
            self._write_table(number, keys, part)
        return summary

    def _write_arrays(self, number: int, keys: list[str], part: Part) -> None:
        arrays = {".keys": np.array(keys, dtype=np.str_)}
        if part.features is not None:
            arrays[".features"] = part.features.numpy()
        for what, array in (arrays | {"": part.embeddings.numpy()}).items():
            with _whole(self.file(number, what)) as partial, partial.open("wb") as file:
                np.save(file, array, allow_pickle=False)

    def _write_table(self, number: int, keys: list[str], part: Part) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {"key": pa.array(keys, pa.string()), "vector": _column(part.embeddings)}
        if part.features is not None:
            columns["features"] = _column(part.features)
        with _whole(self.file(number)) as partial:
            # numbers that nearly never repeat
            pq.write_table(pa.table(columns), partial, use_dictionary=False)

    def about(self, number: int) -> Path:
        """The file that says which images of a part could not be decoded, and why."""
        return self.path / _ABOUT / f"part-{number:05}.json"

    def _record(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings of the folder: these, if it has none yet."""
        file = self.path / _SETTINGS
        if not file.exists():
            if any(self.path.glob("part-*")):
                raise InputError(f"{self.path} has parts, but no {_SETTINGS}; give another folder")
            partial = self.path / f".{_SETTINGS}.{os.getpid()}"
            partial.write_text(json.dumps(settings, indent=1) + "\n")
            try:
                os.link(partial, file)  # unlike a renaming it fails where another process was first
            except FileExistsError:
                pass
            finally:
                partial.unlink()
        try:
            return dict(json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{file} is damaged ({error}); give another folder") from error


def _other_model(made_with: str, origin: str) -> str:
    if made_with == origin:
        return f"model {origin!r} as it was before its files or weights changed"
    return f"model {made_with!r}, not {origin!r}"


class Listing:
    """What the images of a part are, noted as they are read.

    Attributes:
        keys: of those read so far.
    """

    def __init__(self) -> None:
        self.keys: list[str] = []
        self._digest = hashlib.blake2b(digest_size=16)

    def noted(self, images: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        """Pass on `images` with their keys."""
        for key, image in images:
            self.keys.append(key)
            self._digest.update(json.dumps(key).encode())
            self._digest.update(hashlib.blake2b(image, digest_size=16).digest())
            yield key, image

    @property
    def content(self) -> str:
        """Hash of all keys and images so far, in their order."""
        return self._digest.hexdigest()


def embed_part(
    model: EmbeddingModel,
    images: Iterator[tuple[str, bytes]],
    listing: Listing,
    batch_size: int,
    workers: int,
    with_features: bool,
) -> Part:
    """Embed the images of a part, given with their keys and noted in `listing`.

    Raises:
        InputError: an embedding is not finite.
    """
    keys = listing.keys

    def batches() -> Iterator[list[bytes]]:
        while batch := list(islice(images, batch_size)):
            yield [image for _, image in batch]

    rows: list[Tensor] = []
    failed: dict[int, str] = {}
    embeddings: list[Tensor] = []
    features: list[Tensor] = []
    start = 0
    for batch in embed_batches(model, batches(), workers, names=keys):
        failed |= {start + row: why for row, why in batch.failed.items()}
        rows.append(start + batch.rows)
        start += len(batch.rows) + len(batch.failed)
        if len(batch.rows):
            embeddings.append(batch.embeddings)
            features.append(batch.features)
    if not embeddings:
        embeddings, features = ([torch.empty(0, width)] for width in output_widths(model))
    part = Part(
        keys,
        listing.content,
        torch.cat(rows),
        torch.cat(embeddings),
        torch.cat(features) if with_features else None,
        failed,
    )
    broken = part.rows[~part.embeddings.isfinite().all(dim=1)].tolist()
    if broken:
        raise InputError(
            f"{len(broken)} embeddings are not finite, the first of {keys[broken[0]]!r}; the model is "
            "broken, or this image breaks it"
        )
    return part


def _column(vectors: Tensor) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.numpy().ravel()), vectors.shape[1])


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)

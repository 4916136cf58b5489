"""The lines of text files, plain or compressed: streamed, bounded, and as far as a damaged file goes."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mofi_lightning.curation.knowledge_bases.base import Faults
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from typing_extensions import Buffer

# more than twice the largest item that Wikidata admits
LONGEST_LINE = 1 << 23
_BUFFER = 1 << 20


def lines(path: Path, faults: Faults, longest: int = LONGEST_LINE) -> Iterator[tuple[int, bytes]]:
    """The lines of `path` with their numbers, from 1; no more than one is in memory.

    A longer line is left out and counted. Where a compressed file is cut off or damaged, its lines end: the
    whole lines before are given, the rest is counted as one fault. A byte order mark at the start is dropped.

    Args:
        path: the file; .gz and .bz2 (also of several streams) are decompressed.
        faults: counts what is left out.
        longest: bytes of the longest line.

    Raises:
        InputError: no such file, an empty one, or one that is not compressed as its name says.
    """
    if not path.is_file():
        raise InputError(f"no file {path}; give the path of a file on this machine")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty; write or download it anew")
    number, read = 0, 0
    with _open(path) as file:
        while True:
            number += 1
            try:
                line = file.readline(longest + 1)
                read += len(line)
                if len(line) > longest:
                    faults.add(f"line longer than {longest:,} bytes", f"line {number:,}")
                    while line and not line.endswith(b"\n"):
                        line = file.readline(_BUFFER)
                    continue
            except (EOFError, OSError, zlib.error) as error:
                if not read:
                    kind = path.suffix.removeprefix(".")
                    raise InputError(
                        f"{path} is no {kind} file, or damaged at its start ({error}); "
                        "write or download it anew, or give it the name that tells what it is"
                    ) from error
                faults.add("the file is cut off or damaged from here on", f"line {number:,}", str(error))
                return
            if not line:
                return
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _open(path: Path) -> io.BufferedReader:
    if path.suffix == ".gz":
        return io.BufferedReader(_Decompressed(gzip.GzipFile(path)), _BUFFER)
    if path.suffix == ".bz2":
        return io.BufferedReader(_Decompressed(_Bz2(path)), _BUFFER)
    return io.BufferedReader(io.FileIO(path), _BUFFER)


class _Compressed(Protocol):
    def read1(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


class _Bz2:
    """A .bz2 file, to where a stream is damaged; `bz2.BZ2File` takes a damaged later one for the end."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._stream = bz2.BZ2Decompressor()

    def read1(self, size: int, /) -> bytes:
        """At most `size` of the next bytes; none at the end of the last stream."""
        while True:
            compressed = b""
            if self._stream.eof:
                compressed = self._stream.unused_data or self._file.read(io.DEFAULT_BUFFER_SIZE)
                if not compressed:
                    return b""
                self._stream = bz2.BZ2Decompressor()
            elif self._stream.needs_input:
                compressed = self._file.read(io.DEFAULT_BUFFER_SIZE)
                if not compressed:
                    raise EOFError("the file ends within a stream")
            if piece := self._stream.decompress(compressed, size):
                return piece

    def close(self) -> None:
        self._file.close()


class _Decompressed(io.RawIOBase):
    """What a compressed file holds, up to where it is damaged: its own `readline` would lose a part."""

    def __init__(self, file: _Compressed) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        piece = self._file.read1(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._file.close()
        super().close()

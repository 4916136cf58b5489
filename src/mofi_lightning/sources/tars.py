"""Tars: which there are, and reading them so that damage is an error and never an early end."""

from __future__ import annotations

import gzip
import re
import tarfile
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path
from typing import IO, cast

from mofi_lightning.types import InputError

# what is larger is no image or text, but a damaged header
_MOST_BYTES = 2**28
# of what precedes a file and is read into memory at once: its long name, its extended header
_MOST_HEADER_BYTES = 2**20
_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")
_BUFFER_BYTES = 2**15
_TARS = (".tar", ".tar.gz", ".tgz")
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


def find_tars(path: str) -> dict[str, list[Path]]:
    """The tars of each split.

    Args:
        path: a tar, a folder of tars, a folder of such folders, each of which is a split, or a pattern with
            braces and wildcards.

    Raises:
        InputError: there are none, or one of the pattern is missing.
    """
    place = Path(path)
    if not place.is_dir():
        tars = [place] if place.is_file() else [*dict.fromkeys(_expand(path))]
        if not tars:
            raise InputError(f"no tar is called {path}; give a tar, a folder or a pattern")
        return {"train": tars}
    tars = _in_folder(place)
    folders = sorted(folder for folder in place.iterdir() if folder.is_dir() and folder.name[0] != ".")
    splits = {folder.name: found for folder in folders if (found := _in_folder(folder))}
    if tars and splits:
        raise InputError(
            f"{path} holds tars, and so does its folder {next(iter(splits))}; name one with --path"
        )
    if not tars and not splits:
        raise InputError(f"{path} and its folders hold no {', '.join(f'*{suffix}' for suffix in _TARS)}")
    return splits or {"train": tars}


def _in_folder(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name.endswith(_TARS) and file.name[0] != ".")


def _expand(pattern: str) -> Iterator[Path]:
    for name in _braces(pattern):
        found = [name] if Path(name).is_file() else sorted(glob(name))
        if not found:
            raise InputError(f"no tar at {name}; correct --path {pattern}")
        yield from map(Path, found)


def _braces(pattern: str) -> Iterator[str]:
    """All that a pattern such as 'x-{000..123}-{a,b}' stands for."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    first, last, words = braces.groups()
    if words is None:
        numbers = range(int(first), int(last) + 1)
    for word in words.split(",") if words is not None else (f"{n:0{len(first)}}" for n in numbers):
        yield from _braces(pattern[: braces.start()] + word + pattern[braces.end() :])


def read_tar(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    """The files in a tar, in its order; folders are left out. A tar may be compressed with gzip.

    Args:
        path: the tar.
        wanted: tells by its name whether a file is read.

    Yields:
        The name of a file, and its bytes if it is wanted.

    Raises:
        InputError: the file is no tar, damaged or cut short, or what is wanted is a link, a device, or larger
            than 256 MiB.
    """
    last = ""
    try:
        with path.open("rb") as file:
            is_gzip = file.peek(2)[:2] == b"\x1f\x8b"
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if is_gzip else file
            with tarfile.open(fileobj=stream, mode="r|", bufsize=_BUFFER_BYTES, tarinfo=WholeMember) as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would grow with the tar
                    if not member.isdir():
                        yield member.name, _read(tar, member, path) if wanted(member.name) else None
                        last = member.name
                # `cat` joins tars into what looks like the first of them
                while block := tar.fileobj.read(_BUFFER_BYTES):
                    if block.strip(b"\0"):
                        raise InputError(f"{path} goes on behind its end; join tars with `tar --concatenate`")
    except InputError:
        raise
    except Exception as error:  # damaged bytes make the parsers fail in any way
        reason = " ".join(str(error).split())
        where = f"cannot be read after {last!r}" if last else "is no tar, or damaged"
        raise InputError(f"{path} {where} ({reason}); write or download it anew") from error


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    if not member.isreg():
        raise InputError(
            f"{member.name!r} in {path} is a link or a device, not a file; write the tar with --dereference "
            "--hard-dereference"
        )
    if member.size > _MOST_BYTES:
        raise InputError(
            f"{member.name!r} in {path} has {member.size:,} bytes, more than any image; write the tar anew"
        )
    content = tar.extractfile(member)
    assert content is not None  # it is a file
    return content.read()


class WholeMember(tarfile.TarInfo):
    """A member of a tar whose header is whole; tarfile itself takes a damaged one for the end of the tar."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> WholeMember:
        """Refuse a header that says what cannot be."""
        member = super().frombuf(buf, encoding, errors)
        is_header = member.type in _HEADERS
        if member.size < 0 or (is_header and member.size > _MOST_HEADER_BYTES):
            raise tarfile.ReadError(f"a header says that {member.size} bytes follow")
        return member

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> WholeMember:
        """Refuse a damaged header."""
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise
            raise tarfile.ReadError(str(error)) from error

"""Random access to the files in tars: where each begins, and reading it when asked for."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mofi_lightning.evaluation.datasets.evaluation_set import LazyImages
from mofi_lightning.sources.tars import WholeMember
from mofi_lightning.types import InputError

# what is larger is no image, but a damaged header
_MOST_BYTES = 2**28
_BLOCK = 2**16


class TarredFile(NamedTuple):
    """A file in a tar: `size` bytes from `offset` on."""

    tar: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            InputError: the tar has become shorter since it was indexed.
        """
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise InputError(f"{self.tar} ends within {self.name!r}; write or download it anew")
        return content


class TarredFiles(LazyImages[TarredFile]):
    """Files in tars; nothing is unpacked."""

    def read(self, place: TarredFile) -> bytes:
        """See `LazyImages`."""
        return place.read()


def index_tar(tar: Path) -> Iterator[TarredFile]:
    """The files in a tar, in its order, from its headers only; folders are left out.

    Raises:
        InputError: it is compressed, no tar, damaged or cut short, or holds a link, a device, or a file
            larger than 256 MiB.
    """
    last = ""
    try:
        with tar.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise InputError(f"{tar} is compressed, and so cannot be read at random; unpack it: gunzip")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:", tarinfo=WholeMember) as members:
                while (member := members.next()) is not None:
                    members.members = []  # type: ignore[attr-defined]  # it would grow with the tar
                    if not member.isdir():
                        yield _placed(tar, member)
                        last = member.name
                end = members.offset
            _check_end(tar, end)
    except InputError:
        raise
    except Exception as error:  # damaged bytes make the parser fail in any way
        reason = " ".join(str(error).split())
        where = f"cannot be read after {last!r}" if last else "is no tar, or damaged"
        raise InputError(f"{tar} {where} ({reason}); write or download it anew") from error


def _placed(tar: Path, member: tarfile.TarInfo) -> TarredFile:
    if not member.isreg() or member.issparse():
        raise InputError(
            f"{member.name!r} in {tar} is a link, a device or sparse; write the tar of plain files"
        )
    if member.size > _MOST_BYTES:
        raise InputError(f"{member.name!r} in {tar} has {member.size:,} bytes, more than any image")
    return TarredFile(tar, member.name, member.offset_data, member.size)


def _check_end(tar: Path, end: int) -> None:
    """A whole tar ends with zeros; one cut between two files would look like a smaller data set."""
    with tar.open("rb") as file:
        file.seek(end)
        size = 0
        while block := file.read(_BLOCK):
            if block.strip(b"\0"):
                raise InputError(f"{tar} goes on behind its end; join tars with `tar --concatenate`")
            size += len(block)
    if size < tarfile.BLOCKSIZE:
        raise InputError(f"{tar} has no end mark, so it was cut short; write or download it anew")

"""Tiny data sets on disk, in the layout that a class of evaluation data expects, from the committed emoji."""

import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tests.evaluation.datasets.pictures import put

WNIDS = ("n01440764", "n01443537", "n01484850")


class Miniatures:
    """Three entities of two images to evaluate and two to learn from.

    Args:
        slice: pairs folder with at least so many.
    """

    def __init__(self, slice: Path) -> None:
        truth = {row["key"]: row for row in pq.read_table(slice / "truth.parquet").to_pylist()}
        images = defaultdict(list)
        for row in pq.read_table(slice / "test.parquet").to_pylist():
            images[truth[row["key"]]["name"]].append(row["image"])
        whole = [(name, found[:4]) for name, found in sorted(images.items()) if len(found) >= 4]
        assert len(whole) >= len(WNIDS)
        self.slice = slice
        self.classes = whole[: len(WNIDS)]

    def write(self, class_path: str, path: str, **options: Any) -> None:
        """Make the data set that `class_path` with these arguments opens."""
        write: Callable[..., None] = getattr(self, class_path)
        write(Path(path), **options)

    def _images(self, part: str) -> Iterator[tuple[int, int, bytes]]:
        for number, (_, images) in enumerate(self.classes):
            for image, content in enumerate(images[:2] if part == "test" else images[2:]):
                yield number, image, content

    def PairsFile(self, path: Path) -> None:
        rows = pq.read_table(self.slice / "test.parquet").slice(0, 8).to_pylist()
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
        put(path.parent / "truth.parquet", (self.slice / "truth.parquet").read_bytes())

    def GPR1200(self, path: Path) -> None:
        for number, image, content in self._images("test"):
            put(path / "images" / f"{400 * number}_{image}.jpg", content)

    def ImageNet(self, path: Path, fit: str | None = "train") -> None:
        for part, folder in (("test", "val"), ("fit", fit)):
            for number, image, content in self._images(part) if folder else ():
                put(path / folder / WNIDS[number] / f"{part}_{image}.JPEG", content)

    def ImageNetRetrieval(self, path: Path) -> None:
        self.ImageNet(path, fit=None)

    def WebDataset(self, path: Path) -> None:
        for part, folder in (("test", "test"), ("fit", "train")):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as tar:
                for row, (number, _, content) in enumerate(self._images(part)):
                    for suffix, data in (("png", content), ("cls", str(number).encode())):
                        member = tarfile.TarInfo(f"s{row:07d}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
            put(path / folder / "0.tar", buffer.getvalue())
            put(path / folder / "nshards.txt", "1\n")
        put(path / "classnames.txt", "\n".join(name for name, _ in self.classes) + "\n")
        put(path / "zeroshot_classification_templates.txt", "a picture of a {c}.\n{c}\n")

    def CaptionsFile(self, path: Path, images: Path | None = None) -> None:
        listing = []
        for number, image, content in self._images("test"):
            name, sentences = f"{number}_{image}.jpg", (self.classes[number][0], f"a drawing, number {image}")
            put((path.parent if images is None else Path(images)) / "val2014" / name, content)
            raw = [{"raw": sentence} for sentence in sentences]
            listing.append({"filepath": "val2014", "filename": name, "split": "test", "sentences": raw})
        put(path, json.dumps({"images": listing}))

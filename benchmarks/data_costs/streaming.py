"""The training stream beside decoding and augmenting alone, and beside itself with Pillow."""

from __future__ import annotations

import io
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from random import Random
from types import SimpleNamespace

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from data_costs.rounds import in_turn
from mofi_lightning.data.batching import BatchBuilder, Example
from mofi_lightning.data.datamodule import DataSource, I2EDataModule
from mofi_lightning.data.mixing import MixingLoader
from mofi_lightning.data.schema import Row
from mofi_lightning.data.transforms import Augmentation
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.encoders.tokenizer import Tokenizer
from objective_costs.timing import median_ratio

WORKERS = 2
BATCH = 256
SIZE = 224
SCALE = (0.08, 1.0)  # torchvision's default
CONTEXT_LENGTH = 77
SECONDS = 3.0  # of each measurement
WARM_UP = 64  # images of the bare loop
AUGMENT = v2.Compose([v2.RandomResizedCrop(SIZE, scale=SCALE, antialias=True), v2.RandomHorizontalFlip()])
# batches that are taken before the clock runs: the workers start with two each and come into step
FIRST_BATCHES = 3 * WORKERS


class PillowBuilder(BatchBuilder):
    """Decodes with Pillow and augments its images with torchvision."""

    def example(self, row: Row, generator: Random) -> Example:
        """Make an example of `row`."""
        label = self.texts.draw(row, self.vocabulary, generator)
        image = v2.functional.pil_to_tensor(AUGMENT(Image.open(io.BytesIO(row.image)).convert("RGB")))
        return Example(row.key, image, label.entity, label.text)


class PillowDataModule(I2EDataModule):
    """The stream with Pillow in the place of its own decoder and augmentation."""

    def _builder(self, augmentation: Augmentation | None) -> BatchBuilder:
        return PillowBuilder(**vars(super()._builder(augmentation)))


def stream_figures(rows: list[Row], folder: Path, rounds: int) -> dict[str, float]:
    """Images a second of the stream, and its ratios to the bare loop and to the stream with Pillow.

    Args:
        rows: of the data set.
        folder: receives the data set `dataset`.
        rounds: of the comparison.
    """
    write_dataset(rows, folder / "dataset")
    encoded = [torch.frombuffer(bytearray(row.image), dtype=torch.uint8) for row in rows]
    _check(stream(folder / "dataset", I2EDataModule), encoded)
    rates = in_turn(
        {
            "stream": lambda: _stream_rate(stream(folder / "dataset", I2EDataModule)),
            "bare": lambda: _bare_rate(encoded),
            "pil": lambda: _stream_rate(stream(folder / "dataset", PillowDataModule)),
        },
        rounds,
        "images/s",
    )
    return {
        "stream_over_bare": median_ratio(rates["stream"], rates["bare"]),
        "stream_over_pil": median_ratio(rates["stream"], rates["pil"]),
        "stream_images_per_s": statistics.median(rates["stream"]),
    }


def stream(dataset: Path, kind: type[I2EDataModule]) -> MixingLoader:
    """The training loader that `kind` makes: images of 224 pixels and tokenised captions."""
    data = kind(
        {"pictures": DataSource(str(dataset), BATCH)},
        augmentation=Augmentation(scale=SCALE),
        num_workers=WORKERS,
    )
    data.trainer = SimpleNamespace(max_steps=1_000_000, global_rank=0, world_size=1)  # type: ignore[assignment]
    data.use(Preprocess(size=SIZE, interpolation="bilinear"), Tokenizer.load("clip"), CONTEXT_LENGTH)
    return data.train_dataloader()


def _check(loader: MixingLoader, encoded: list[Tensor]) -> None:
    """Both sides make the same kind of thing."""
    batches = iter(loader)
    image = next(batches)["image"]
    batches.close()  # type: ignore[attr-defined]
    bare = _bare(encoded[0])
    assert image.shape == (BATCH, *bare.shape) and image.dtype == bare.dtype == torch.uint8


def _stream_rate(loader: MixingLoader) -> float:
    """Images a second, from the arrival of a batch of one worker to that of a later one of the same."""
    batches = iter(loader)
    for _ in range(FIRST_BATCHES):
        next(batches)
    start = now = time.perf_counter()
    images = 0
    while now - start < SECONDS:
        for _ in range(WORKERS):
            images += len(next(batches)["image"])
        now = time.perf_counter()
    batches.close()  # type: ignore[attr-defined]
    return images / (now - start)


def _bare_rate(encoded: list[Tensor]) -> float:
    """Images a second that processes decode and augment in a loop, from memory, the results dropped."""
    context = multiprocessing.get_context("fork")
    together = context.Barrier(WORKERS)
    pipes = [context.Pipe(duplex=False) for _ in range(WORKERS)]
    processes = [
        context.Process(target=_bare_loop, args=(encoded[number::WORKERS], together, sender))
        for number, (_, sender) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    rate = sum(receiver.recv() for receiver, _ in pipes)
    for process in processes:
        process.join()
    return rate


def _bare_loop(encoded: list[Tensor], together: Barrier, sender: Connection) -> None:
    for data in encoded[:WARM_UP]:
        _bare(data)
    together.wait()
    start = now = time.perf_counter()
    images = 0
    while now - start < SECONDS:
        _bare(encoded[images % len(encoded)])
        images += 1
        now = time.perf_counter()
    sender.send(images / (now - start))


def _bare(data: Tensor) -> Tensor:
    return AUGMENT(decode_image(data, mode=ImageReadMode.RGB))

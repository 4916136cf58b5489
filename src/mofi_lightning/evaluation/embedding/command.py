"""`mofi embed`: images to vectors, in parts that several processes may share."""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from mofi_lightning.types import InputError


def embed(
    model: str,
    images: str,
    output: Path,
    split: str = "",
    shard: str = "0/1",
    format: Literal["parquet", "npy"] = "parquet",
    features: bool = False,
    part_images: int = 16_384,
    batch_size: int = 256,
    workers: int = 2,
) -> None:
    """Embed images to a folder of parquet or NumPy files.

    Writes OUTPUT/part-00000.parquet and so on, with the columns key (string) and vector (list of float32,
    L2-normalised), in the order of the images; a part is of part_images of them. As npy, a part is
    part-00000.npy with its part-00000.keys.npy. A part appears whole or not at all; the same command goes on
    where it was interrupted, and refuses parts of images that have changed since. Images that cannot be
    decoded are left out: OUTPUT/_parts says which, and why.

    Several processes, on one machine or on many, share the work with --shard 0/4, 1/4, ...: each makes every
    fourth part and only reads past the others. The parts are the same, bit for bit on the same kind of
    machine, whatever the number of processes.

    Args:
        model: what `mofi evaluate` takes: a model folder, a checkpoint, a run's folder, a Hugging Face folder
            or hub id, a backbone such as timm/resnet50.a1_in1k, or `pixels` for the raw image at 16 x 16.
        images: parquet with the columns key and image, or a folder of such; tars, as a pattern
            'tars/{00000..00099}.tar' or a folder; a folder that litdata has written; or a folder with image
            files below it, whose keys are their paths.
        output: folder of the parts.
        split: of the images, where they have several.
        shard: number of this process, from 0, and how many there are.
        format: of the parts.
        features: also write the features before the projection, as column `features` or
            part-00000.features.npy.
        part_images: images a part.
        batch_size: images a forward pass.
        workers: threads that decode images.
    """
    from mofi_lightning.data.keys import SeenKeys
    from mofi_lightning.evaluation.datasets.listing import listed
    from mofi_lightning.evaluation.embedding.image_streams import open_images
    from mofi_lightning.evaluation.embedding.parts import Listing, PartFolder, embed_part
    from mofi_lightning.evaluation.embedding.progress import progress
    from mofi_lightning.evaluation.models.words import parse_model
    from mofi_lightning.evaluation.versions import EMBEDDING, installed

    number_of, shards = _shard(shard)
    for name, value in (("part_images", part_images), ("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise InputError(f"--{name} is {value}; give 1 or more")
    named = parse_model(model)
    stream = open_images(images, split)
    settings = {
        "model": named.content_hash(),
        "libraries": ", ".join(f"{name} {version}" for name, version in installed(EMBEDDING).items()),
        "format": format,
        "features": features,
        "part_images": part_images,
        "batch_size": batch_size,
    }
    folder = PartFolder(output, format, settings, named.origin)
    encoder = None
    seen = SeenKeys()
    failures: Counter[str] = Counter()
    incomplete: list[Path] = []
    count = parts = 0
    items = stream.read()
    with progress(named.name, stream.count) as advance:
        while (first := next(items, None)) is not None:
            listing = Listing()
            part = listing.noted(chain([first], islice(items, part_images - 1)))
            number, parts = parts, parts + 1
            summary = folder.summary(number)
            if summary is None and number % shards == number_of:
                encoder = encoder or named.load()
                made = embed_part(encoder, part, listing, batch_size, workers, features)
            else:
                made = None
                for _ in part:
                    pass
            if (twice := seen.add(listing.keys)) is not None:
                raise InputError(f"key {twice!r} comes twice in {images}; keys must be unique")
            if made is not None:
                summary = folder.write(number, made)
            elif summary is not None and summary.content != listing.content:
                raise InputError(
                    f"{folder.file(number)} is of other images than {images} now holds at this place; delete "
                    "it, and it is made anew, or give another folder"
                )
            advance(len(listing.keys))
            if number % shards == number_of and summary is not None:
                count += summary.images
                failures.update(why.partition(":")[0] for why in summary.failures.values())
                incomplete += [folder.about(number)] if summary.failures else []
    if not parts:
        raise InputError(f"{images} holds no images")
    if left := folder.beyond(parts):
        raise InputError(
            f"{output} has {listed(file.name for file in left)} of more images than {images} now holds "
            f"({parts} parts); delete what is beyond, or give another folder"
        )
    if count and failures.total() == count:
        raise InputError(f"none of {count} images could be embedded; {output}/_parts says why")
    print(f"{count - failures.total():,} of {count:,} images embedded to {output}")
    for kind, left_out in failures.most_common():
        print(f"{left_out:,} left out: {kind}")
    if incomplete:
        say = "says" if len(incomplete) == 1 else "say"
        print(f"{listed(incomplete)} {say} which, and why")


def _shard(word: str) -> tuple[int, int]:
    number, slash, count = word.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise InputError(f"--shard {word!r} is not of the form 0/4: this process, from 0, of how many")
    return int(number), int(count)

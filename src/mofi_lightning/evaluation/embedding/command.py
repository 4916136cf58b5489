"""`mofi embed`: images to vectors in a parquet file."""

from __future__ import annotations

import os
from pathlib import Path


def embed(model: Path, images: Path, output: Path, batch_size: int = 256, workers: int = 2) -> None:
    """Embed images to parquet.

    Writes the columns key (string) and vector (list of float32, L2-normalised) in the order of the images.
    Images that cannot be decoded are left out and counted.

    Args:
        model: model folder, checkpoint or a training run's folder; `pixels` for the raw image at 16 x 16.
        images: parquet with the columns key and image (of a pairs folder), or a folder with images below it.
        output: the parquet to write.
        batch_size: images a forward pass.
        workers: threads that decode images.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mofi_lightning.evaluation.datasets.files import iterate_images
    from mofi_lightning.evaluation.embedding.images import embed_images
    from mofi_lightning.evaluation.models.words import PIXELS, parse_model

    encoder = parse_model(PIXELS if str(model) == PIXELS else f"model={model}").load()
    keys: list[str] = []

    def remember_key(item: tuple[str, bytes]) -> bytes:
        keys.append(item[0])
        return item[1]

    embedded = embed_images(
        encoder, map(remember_key, iterate_images(images)), batch_size, workers, "embedding"
    )
    rows = embedded.usable
    vectors = embedded.embeddings[rows].numpy()
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    pq.write_table(pa.table({"key": [keys[row] for row in rows.tolist()], "vector": column}), partial)
    os.replace(partial, output)
    print(f"{len(rows)} of {len(keys)} images embedded to {output}, {vectors.shape[1]} numbers each")
    for kind, count in embedded.failures().items():
        print(f"{count} left out: {kind}")

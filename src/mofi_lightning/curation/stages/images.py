"""The stages that look at images: embedding the entities, scoring images against them, agreement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import current_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import numpy as np

from mofi_lightning.curation.labels.filters import Facts, PairFilter, apply
from mofi_lightning.curation.stages.base import Stage, atomic, flat, once_a_process
from mofi_lightning.curation.stages.parts import Part

if TYPE_CHECKING:
    import pyarrow as pa

    from mofi_lightning.curation.images.scoring import ImageScorer
    from mofi_lightning.evaluation.embedding.images import EmbeddingModel


class Block(NamedTuple):
    """Some of the candidate entities.

    Attributes:
        number: of the block.
        start: place of its first entity among them.
        stop: the place behind its last.
    """

    number: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of entities."""
        return self.stop - self.start


@dataclass(frozen=True)
class EmbedEntities:
    """Embeds the texts of one block of the candidate entities.

    Attributes:
        stage: gets one file `000000.npy` a block, float32 `[n, D]`.
        knowledge_base: folder.
        rows: file of the candidates' rows in the knowledge base, int32 `[U]`.
        scorer: name of the model.
        templates: texts of an entity.
    """

    stage: Stage
    knowledge_base: Path
    rows: Path
    scorer: str
    templates: tuple[str, ...]
    uses_gpu: ClassVar[bool] = True

    def __call__(self, block: Block) -> int:
        """Write the embeddings of `block`; its number of entities."""
        from mofi_lightning.curation.images.entity_texts import entity_vectors
        from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase

        model, base = once_a_process(
            f"embedder/{self.stage.fingerprint}",
            lambda: (load_model(self.scorer), KnowledgeBase(self.knowledge_base)),
        )
        rows = np.load(self.rows, mmap_mode="r")[block.start : block.stop]
        vectors = entity_vectors(model, (base[int(row)] for row in rows), self.templates)
        with atomic(self.stage.file(block.number, ".npy")) as partial, partial.open("wb") as file:
            np.save(file, vectors)
        return block.rows


def load_model(scorer: str) -> EmbeddingModel:
    """The model called `scorer`, on the GPU if there is one."""
    import torch

    from mofi_lightning.encoders.peers import load_encoder

    device = "cpu"
    if torch.cuda.is_available():  # the processes of a machine take turns
        number = sum(current_process()._identity)
        device = f"cuda:{number % torch.cuda.device_count()}"
    return cast("EmbeddingModel", load_encoder(scorer).to(device))


def scored_schema(embed_dim: int | None) -> pa.Schema:
    """What the images are and how well they fit their candidates; see `scoring.Scored`.

    Args:
        embed_dim: of the images' embeddings; None where they are not kept.
    """
    import pyarrow as pa

    fields = [
        ("hash", pa.uint64()),
        ("error", pa.string()),
        ("removed", pa.string()),
        ("cosines", pa.list_(pa.float32())),
        ("decoys", pa.list_(pa.float32())),
    ]
    if embed_dim is not None:
        fields.append(("embedding", pa.list_(pa.float16(), embed_dim)))
    return pa.schema(fields)


@dataclass(frozen=True)
class ScoreImages:
    """Scores the images of one part against the entities that their texts may name.

    Attributes:
        stage: gets one file a part, of `scored_schema`, and with a scorer `000000.npz`: moments.
        linked: the candidates.
        filters: of pairs; what they remove is not even decoded.
        scorer: name of the model; None only decodes.
        entities: folder of `rows.npy` and `vectors.npy`, the candidates and their embeddings.
        keep_embeddings: whether the images' embeddings are kept, for their agreement.
        perceptual: whether near-duplicates are looked for afterwards.
    """

    stage: Stage
    linked: Stage
    filters: tuple[PairFilter, ...]
    scorer: str | None
    entities: Path
    keep_embeddings: bool
    perceptual: bool
    uses_gpu: ClassVar[bool] = True

    def __call__(self, part: Part) -> int:
        """Score the images of `part`; its number of rows."""
        scorer = once_a_process(f"scorer/{self.stage.fingerprint}", self._scorer)
        candidates = self.linked.read(part.number, "entities")["entities"].to_pylist()
        removed: list[str | None] = []
        scored = scorer.score(self._images(part, removed), candidates)
        columns: dict[str, Any] = {"removed": removed, "hash": scored.hashes}
        columns |= {"cosines": scored.cosines, "decoys": scored.decoys}
        columns["error"] = [scored.errors.get(row) for row in range(part.rows)]
        embed_dim = None
        if self.keep_embeddings and scored.embeddings is not None:
            import pyarrow as pa

            embed_dim = scored.embeddings.shape[1]
            values = pa.array(scored.embeddings.reshape(-1))
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(values, embed_dim)
        if scored.moments is not None:
            with atomic(self.stage.file(part.number, ".npz")) as file:
                scored.moments.save(file)
        self.stage.write(part.number, columns, scored_schema(embed_dim))
        return part.rows

    def _scorer(self) -> ImageScorer:
        from mofi_lightning.curation.images.scoring import ImageScorer
        from mofi_lightning.data.processes import available_cores
        from mofi_lightning.evaluation.embedding.images import device_of

        if self.scorer is None:
            return ImageScorer(None, np.zeros(0, np.int32), np.zeros((0, 0), np.float32), self.perceptual)
        rows, vectors = (np.load(self.entities / f"{n}.npy", mmap_mode="r") for n in ("rows", "vectors"))
        model = load_model(self.scorer)
        threads = 0 if device_of(model).type == "cpu" else available_cores()
        return ImageScorer(model, rows, vectors, self.perceptual, threads)

    def _images(self, part: Part, removed: list[str | None]) -> Iterator[bytes | None]:
        """The images that no filter removes, None for the others; the filters' names go to `removed`."""
        for images, texts in part.read("image", "text"):
            names = apply(self.filters, Facts.of(images, texts)) if self.filters else [None] * len(images)
            removed += names
            yield from (
                (image or b"") if name is None else None for image, name in zip(images, names, strict=True)
            )


def candidates_of(linked: Stage, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The candidates of a part: row, entity (row of the knowledge base), P(entity | text); `[N]` each."""
    table = linked.read(number, "entities", "links")
    entities, rows = flat(table["entities"])
    links, _ = flat(table["links"])
    return rows, entities, links


def usable_images(scored: Stage, number: int) -> np.ndarray:
    """Which images of a part can be read and were removed by no filter, bool `[part rows]`."""
    import pyarrow.compute as pc

    table = scored.read(number, "error", "removed")
    mask: np.ndarray = pc.and_(pc.is_null(table["error"]), pc.is_null(table["removed"])).to_numpy()
    return mask

"""Our models in the image tasks of the package mteb (MIEB, Xiao et al., 2025)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from mofi_lightning.encoders.decoding import from_pillow
from mofi_lightning.evaluation.embedding.images import EmbeddingModel, device_of, embed_texts, encode
from mofi_lightning.evaluation.models.words import parse_model
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.model_meta import ModelMeta
    from mteb.types import Array, BatchedInput, PromptType
    from torch.utils.data import DataLoader

_UNDECODABLE = (OSError, SyntaxError, Image.DecompressionBombError)


class MTEBEncoder:
    """A model as mteb wants it (its `EncoderProtocol`): `mteb.evaluate(MTEBEncoder.load(...), tasks)`.

    Images go through the model's own preprocessing. A row with an image and a text is the sum of their two
    unit vectors, as mteb adds the two outputs of CLIP. Prompts and instructions of tasks are not used: models
    trained on captions know none. Batches have the size that mteb makes them
    (`mteb.evaluate(..., encode_kwargs={"batch_size": 256})`).

    Args:
        model: what embeds, on whatever device it is.
        name: under which mteb files results; one without an organisation becomes `mofi-lightning/NAME`.
        revision: of the weights. mteb reads a result of the same name and revision, and does not measure
            again: give other weights another revision.
        workers: threads that resize the images of a batch.

    Raises:
        InputError: mteb is not installed.
    """

    def __init__(self, model: EmbeddingModel, name: str, revision: str, workers: int = 2) -> None:
        try:
            import mteb  # noqa: F401
        except ImportError as error:
            raise InputError(
                "MTEBEncoder needs mteb; pip install 'mofi-lightning[mteb]' brings it"
            ) from error
        self.model = model
        self.name = name if "/" in name else f"mofi-lightning/{name}"
        self.revision = revision
        self.workers = workers

    @classmethod
    def load(cls, model: str, workers: int = 2) -> MTEBEncoder:
        """A model as `mofi evaluate --model` takes it; the content of its files is the revision.

        Raises:
            InputError: there is no such model, or mteb is not installed.
        """
        named = parse_model(model)
        return cls(named.load(), named.name, named.content_hash(), workers)

    @cached_property
    def mteb_model_meta(self) -> ModelMeta:
        """What mteb records of the model, and asks before it runs a task: its modalities."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        model = self.model
        sizes = [p.numel() for p in model.parameters()] if isinstance(model, nn.Module) else []
        about = {
            "name": self.name,
            "revision": self.revision,
            "modalities": ["image", "text"] if self._has_text else ["image"],
            "similarity_fn_name": ScoringFunction.COSINE,
            "embed_dim": getattr(model, "embed_dim", None),
            "n_parameters": sum(sizes) or None,
            "framework": ["PyTorch"],
        }
        return ModelMeta.create_empty(about)

    @torch.inference_mode()
    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> Array:
        """Embed the rows of a task.

        Args:
            inputs: batches with `image` (list of Pillow images), `text` (list of strings), or both.
            task_metadata: of the task; its name stands in errors.
            hf_split: of the data; stands in errors.
            hf_subset: not used.
            prompt_type: not used.
            kwargs: mteb's `encode_kwargs`; not used.

        Returns:
            float32 `[N, D]` on the CPU: L2-normalised, but for rows of an image and a text.

        Raises:
            InputError: a missing or undecodable image, texts for a model without a text tower, an embedding
                that is not finite, no rows.
        """
        where = f"mteb task {task_metadata.name}, split {hf_split}"
        parts: list[Tensor] = []
        row = 0
        with ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for batch in _batches(inputs, where):
                embeddings = self._encode_batch(batch, f"{where}, row", row, pool)
                wrong = (~embeddings.isfinite().all(dim=1)).nonzero().flatten().tolist()
                if wrong:
                    raise InputError(
                        f"{where}, row {row + wrong[0]}: the embedding of {self.name} is not finite; "
                        "the model is broken, or this row breaks it"
                    )
                parts.append(embeddings)
                row += len(embeddings)
        if not parts:
            raise InputError(f"{where}: there is nothing to embed")
        return torch.cat(parts)

    def similarity(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Cosines `[N, M]` of `[N, D]` and `[M, D]`."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Cosines `[N]` of the rows of `[N, D]` and `[N, D]`."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    @property
    def _has_text(self) -> bool:
        return getattr(self.model, "text", None) is not None

    def _encode_batch(
        self, batch: Mapping[str, Any], where: str, first: int, pool: ThreadPoolExecutor
    ) -> Tensor:
        parts = []
        if "image" in batch:
            parts.append(self._encode_images(batch["image"], where, first, pool))
        if "text" in batch:
            if not self._has_text:
                raise InputError(f"{where} {first}: a text, but {self.name} has no text tower")
            parts.append(embed_texts(self.model, batch["text"], len(batch["text"])))
        if not parts:
            raise InputError(f"{where} {first}: neither an image nor a text, but {', '.join(batch)}")
        return sum(parts[1:], start=parts[0])

    def _encode_images(
        self, images: Sequence[Image.Image | None], where: str, first: int, pool: ThreadPoolExecutor
    ) -> Tensor:
        pixels = []
        for row, image in enumerate(images, first):
            if not isinstance(image, Image.Image):
                found = "no image" if image is None else f"not a Pillow image but {type(image).__name__}"
                raise InputError(f"{where} {row}: {found}; leave the row out of the data")
            try:  # here and not in threads: Pillow reads a file when it is needed, and not twice at a time
                pixels.append(from_pillow(image))
            except _UNDECODABLE as error:
                raise InputError(f"{where} {row}: damaged image: {error}") from error
        prepared = list(pool.map(self.model.preprocess, pixels))
        return encode(self.model, torch.stack(prepared).to(device_of(self.model)))[0]


def _batches(inputs: DataLoader[BatchedInput], where: str) -> Iterator[Mapping[str, Any]]:
    """The batches; what Pillow raises where mteb decodes them names the data."""
    number = 0
    try:
        for batch in inputs:
            yield batch
            number += 1
    except _UNDECODABLE as error:
        raise InputError(f"{where}, batch {number}: an image cannot be decoded: {error}") from error

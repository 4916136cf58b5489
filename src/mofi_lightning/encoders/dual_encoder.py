"""The model: an image encoder, an optional text encoder, and what is needed to use them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from mofi_lightning.encoders import checkpoint
from mofi_lightning.encoders.label_space import LabelSpace, LabelSpaceConfig
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.encoders.registry import build_image_encoder
from mofi_lightning.encoders.text import CLIPTextEncoder, TextConfig
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.encoders.towers import ImageTower, TextTower, TowerOutput
from mofi_lightning.types import Batch, Embeddings, InputError, Tokens


@dataclass(frozen=True)
class DualEncoderConfig:
    """What a `DualEncoder` is built from; plain values, saved with it.

    Attributes:
        image: the image encoder, `PREFIX/NAME`; `mofi backbones` lists them.
        image_options: what its library takes besides the name.
        embed_dim: D, width of the shared embedding space.
        image_projection: a bias-free linear map from the image features to the space; false where the
            features themselves are the embedding, as LiT has it, and D is their width.
        text: shape of the text encoder; None for a model of images only.
        tokenizer: tokenizer.json, a folder that holds one, 'clip', or 'bytes'; used with `text`.
        preprocess: geometry and statistics of the images; None for the image encoder's own.
    """

    image: str = "mofi/tiny"
    image_options: dict[str, Any] = field(default_factory=dict)
    embed_dim: int = 128
    image_projection: bool = True
    text: TextConfig | None = None
    tokenizer: str = "bytes"
    preprocess: Preprocess | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DualEncoderConfig:
        """Build from plain values, as in a config.json, checked.

        Raises:
            InputError: an unknown key or a value of another type.
        """
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls)
        try:
            parsed = parser.instantiate_classes(parser.parse_object(dict(values)))
        except Exception as error:
            raise InputError(f"model configuration: {' '.join(str(error).split())}") from error
        return cls(**parsed)


class DualEncoder(nn.Module):
    """Images and texts to one embedding space.

    Attributes:
        config: what it was built from, complete: `preprocess` is never None.
        image: the image tower.
        text: the text tower, or None.
        tokenizer: the text tower's, or None.
        preprocess: how images are brought to `encode_image`.
        label_space: maps image embeddings to vectors of labels, or None; an objective trained it.
        embed_dim: D.
        feature_dim: F, width of the image features before the projection.
    """

    text: TextTower | None
    label_space: LabelSpace | None

    def __init__(
        self,
        config: DualEncoderConfig,
        image: ImageTower,
        preprocess: Preprocess,
        text: TextTower | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.image = image
        self.text = text
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.label_space = None
        self.embed_dim = config.embed_dim
        self.feature_dim = image.encoder.feature_dim

    @classmethod
    def from_config(cls, config: DualEncoderConfig, tokenizer: Tokenizer | None = None) -> DualEncoder:
        """Build the model with fresh weights, drawn from torch's global generator.

        Args:
            config: what to build.
            tokenizer: used instead of `config.tokenizer`.

        Raises:
            InputError: a part of `config` cannot be built.
        """
        encoder = build_image_encoder(config.image, **config.image_options)
        options = encoder.rebuild_options
        preprocess = config.preprocess or encoder.preprocess
        complete = dataclasses.replace(
            config,
            preprocess=preprocess,
            image_options=config.image_options if options is None else options,
        )
        if not config.image_projection and encoder.feature_dim != config.embed_dim:
            raise InputError(
                f"embed_dim is {config.embed_dim}, but without image_projection it is the width of the "
                f"features of {config.image}; set embed_dim: {encoder.feature_dim}"
            )
        image = ImageTower(encoder, config.embed_dim if config.image_projection else None, preprocess)
        if config.text is None:
            return cls(complete, image, preprocess)
        if tokenizer is None:
            tokenizer = Tokenizer.load(config.tokenizer)
        text = TextTower(CLIPTextEncoder(config.text, tokenizer), config.embed_dim)
        return cls(complete, image, preprocess, text, tokenizer)

    def encode_image(self, image: Tensor) -> Tensor:
        """Embed images.

        Args:
            image: `[B, 3, H, W]`, as `preprocess` makes them, on the model's device.

        Returns:
            `[B, D]`, L2-normalised, at least fp32.
        """
        return self.encode_image_and_features(image)[0]

    def encode_image_and_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Embed images and keep the image encoder's features, as linear probes want them.

        Args:
            image: see `encode_image`.

        Returns:
            The embedding `[B, D]`, L2-normalised, and the features before the projection `[B, F]`, both at
            least fp32.
        """
        output = self.image(image)
        features = output.features
        return _normalised(output.embedding), features.to(torch.promote_types(features.dtype, torch.float32))

    def encode_text(self, texts: Tokens | Sequence[str]) -> Tensor:
        """Embed texts, given as tokens on the model's device or as strings.

        Returns:
            `[B, D]`, L2-normalised, at least fp32.

        Raises:
            InputError: the model has no text encoder.
        """
        return _normalised(self._text(texts).embedding)

    def forward(self, batch: Batch, image_tokens: bool = False, text_tokens: bool = False) -> Embeddings:
        """Encode a batch, each image and text once; texts only if batch and model have them."""
        image = self.image(batch["image"], image_tokens)
        text = self._text(batch["text"], text_tokens) if "text" in batch and self.text is not None else None
        return Embeddings(
            image=_normalised(image.embedding),
            text=None if text is None else _normalised(text.embedding),
            image_features=image.features,
            image_tokens=image.tokens,
            text_tokens=None if text is None else text.tokens,
            text_tokens_mask=None if text is None else text.tokens_mask,
        )

    def save(
        self,
        folder: str | Path,
        weights: Mapping[str, Tensor] | None = None,
        label_space: LabelSpaceConfig | None = None,
    ) -> None:
        """Write config.json, model.safetensors and, with a text encoder, tokenizer.json.

        Args:
            folder: made if it does not exist.
            weights: written instead of the model's own state, for instance gathered from the ranks' shards.
            label_space: of a label space that `weights` brings and the model itself does not hold.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        config = path / checkpoint.CONFIG_FILE
        config.unlink(missing_ok=True)  # written last: a folder without it is not complete
        state = self.state_dict() if weights is None else weights
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()},
            path / checkpoint.WEIGHTS_FILE,
        )
        if self.tokenizer is not None:
            self.tokenizer.save(path)
        partial = config.with_suffix(".partial")
        values = dataclasses.asdict(self.config)
        if self.label_space is not None:
            label_space = self.label_space.config
        if label_space is not None:
            values[checkpoint.LABEL_SPACE] = dataclasses.asdict(label_space)
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        partial.replace(config)

    def _text(self, texts: Tokens | Sequence[str], tokens: bool = False) -> TowerOutput:
        if self.text is None or self.tokenizer is None:
            raise InputError("this model has no text encoder; build it with `text`")
        if not isinstance(texts, Tokens):
            device = next(self.text.parameters()).device
            ids, mask = self.tokenizer(texts, self.text.encoder.context_length)
            texts = Tokens(ids.to(device), mask.to(device))
        return self.text(*texts, tokens)


def load(path: str | Path) -> DualEncoder:
    """Load a model from a folder that `save` wrote or from a checkpoint, one file or sharded.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        InputError: `path` is none of these, or its weights do not fit its configuration.
    """
    stored = checkpoint.read(Path(path))
    try:
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
            model = DualEncoder.from_config(
                DualEncoderConfig.from_dict(stored.config),
                None if stored.tokenizer is None else Tokenizer.from_json(stored.tokenizer),
            )
            if stored.label_space is not None:
                config = LabelSpaceConfig.from_dict(stored.label_space)
                model.label_space = LabelSpace(model.embed_dim, config)
    except InputError as error:
        raise InputError(f"model {str(path)!r}: {error}") from error
    try:
        missing, unexpected = model.load_state_dict(stored.weights, strict=False)
    except RuntimeError as error:
        raise InputError(f"model {str(path)!r}: {' '.join(str(error).split())}") from error
    if missing or unexpected:
        raise InputError(
            f"model {str(path)!r}: its weights do not fit its configuration: "
            f"{len(missing)} missing ({', '.join(missing[:3])}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])})"
        )
    return model.eval()


def _normalised(embedding: Tensor) -> Tensor:
    at_least_fp32 = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    return functional.normalize(at_least_fp32, dim=-1)

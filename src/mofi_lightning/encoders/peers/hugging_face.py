"""Image-text models of Hugging Face's transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from mofi_lightning.encoders.peers.base import PeerEncoder, normalised, one_line, without_ends
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.types import InputError

_PROBES = ((40, 60), (60, 40))  # height, width


class HuggingFaceEncoder(PeerEncoder):
    """A model of transformers with image and text features in one space.

    Args:
        model: with `get_image_features` and `get_text_features`.
        transform: its preprocessing, uint8 `[3, H, W]` to normalised pixels.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: nn.Module, transform: Callable[[Tensor], Tensor], tokenizer: Any) -> None:
        super().__init__(model)
        self._transform = transform
        self._tokenizer = tokenizer
        config = cast(Any, model.config)
        # SigLIP was trained on padded texts without a mask, whatever else its tokenizer gives, and reads the
        # last position; with others, padding changes nothing
        siglip = config.model_type.startswith("siglip")
        self._padding: bool | str = "max_length" if siglip else True
        self._taken = {"input_ids"} if siglip else set(tokenizer.model_input_names)
        self._most_tokens = most_tokens(model, tokenizer, config.text_config.max_position_embeddings)

    @classmethod
    def load(cls, name: str) -> HuggingFaceEncoder:
        """Load the folder or hub id `name`; of a folder, nothing is looked up elsewhere.

        Raises:
            InputError: it cannot be loaded, lacks weights, does not embed images and texts in one space, or
                takes images of several sizes.
        """
        model = _loaded_model(name)
        processor = _loaded("AutoImageProcessor", name)
        by_shorter_side = "shortest_edge" in (getattr(processor, "size", None) or {})

        def transform(image: Tensor) -> Tensor:
            taken = without_ends(image) if by_shorter_side else image
            return _pixels(processor, taken)["pixel_values"][0]

        try:
            probes = [_pixels(processor, torch.zeros(3, *shape, dtype=torch.uint8)) for shape in _PROBES]
        except Exception as error:  # processors raise kinds of their own
            raise InputError(
                f"the image processor of model {name} takes no images: {one_line(error)}; correct its "
                "preprocessor_config.json"
            ) from error
        if (taken := set(probes[0])) != {"pixel_values"}:
            raise InputError(
                f"model {name} takes {', '.join(sorted(taken))}, not just pixels of one size; "
                "give a model of a fixed resolution"
            )
        wide, high = (tuple(probe["pixel_values"].shape[-2:]) for probe in probes)
        if wide != high:
            raise InputError(
                f"model {name} brings wide images to {wide} and high ones to {high}, not to one size; "
                "set do_resize and do_center_crop in its preprocessor_config.json"
            )
        return cls(model, transform, _loaded("AutoTokenizer", name)).eval()

    @classmethod
    def load_mofi(cls, name: str) -> HuggingFaceEncoder:
        """Load weights that MOFI's authors released, with their transform: on floats, not antialiased.

        No image processor of transformers has this order, so a `preprocessor_config.json` is not read.

        Raises:
            InputError: it cannot be loaded, lacks weights, or does not embed images and texts in one space.
        """
        model = _loaded_model(name)
        size = cast(Any, model.config).vision_config.image_size
        preprocess = Preprocess(size=size, interpolation="bilinear", antialias=False, resize_on="float")

        def transform(image: Tensor) -> Tensor:
            return functional.normalize(preprocess(image), [*preprocess.mean], [*preprocess.std])

        return cls(model, transform, _loaded("AutoTokenizer", name)).eval()

    def preprocess(self, image: Tensor) -> Tensor:
        """See `PeerEncoder`; by the model's image processor."""
        return self._transform(image)

    def encode_image_and_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `PeerEncoder`; the features are what goes into `visual_projection`, as CLIP has it."""
        model = cast(Any, self.model)
        projection = getattr(model, "visual_projection", None)
        if projection is None:
            embedding = _pooled(model.get_image_features(pixel_values=image))
            return embedding, embedding
        projected: list[Tensor] = []
        hook = projection.register_forward_pre_hook(lambda module, inputs: projected.append(inputs[0]))
        try:
            embedding = _pooled(model.get_image_features(pixel_values=image))
        finally:
            hook.remove()
        return embedding, projected[0].float()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """See `PeerEncoder`."""
        tokens = self._tokenizer(
            list(texts),
            padding=self._padding,
            truncation=True,
            max_length=self._most_tokens,
            return_tensors="pt",
        )
        taken = {name: ids.to(self.device) for name, ids in tokens.items() if name in self._taken}
        return _pooled(cast(Any, self.model).get_text_features(**taken))


def _loaded_model(name: str) -> nn.Module:
    options: dict[str, Any] = {"dtype": torch.float32, "weights_only": True, "output_loading_info": True}
    model, information = _loaded("AutoModel", name, **options)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise InputError(
            f"model {name} is of type {model.config.model_type!r}, which does not embed images and "
            f"texts in one space; give a CLIP or SigLIP"
        )
    if missing := sorted(information["missing_keys"]):
        raise InputError(
            f"model {name} lacks {len(missing)} of its weights, such as {missing[0]}, which would be "
            "random; save or download it again"
        )
    return cast(nn.Module, model)


def _loaded(kind: str, name: str, **options: Any) -> Any:
    """What transformers' class `kind` loads; of a folder, nothing is looked up elsewhere."""
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(
            name, local_files_only=Path(name).is_dir(), trust_remote_code=False, **options
        )
    except Exception as error:  # transformers, hub and safetensors each raise kinds of their own
        raise InputError(
            f"model {name} cannot be loaded by transformers: {one_line(error)}; give a folder "
            "with a model, its preprocessing and its tokenizer, or a hub id OWNER/NAME"
        ) from error


def _pixels(processor: Any, image: Tensor) -> Any:
    return processor(images=image, return_tensors="pt", input_data_format="channels_first")


def most_tokens(model: nn.Module, tokenizer: Any, positions: int) -> int:
    """How many tokens a model of transformers reads of a text.

    Args:
        model: its positions count from 0, or, as in RoBERTa, XLM-R and AltCLIP, from after its padding id.
        tokenizer: of the model; may know no limit.
        positions: `max_position_embeddings` of the configuration.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= cast(int, module.padding_idx) + 1
            break
    return min(positions, int(tokenizer.model_max_length))


def _pooled(features: Any) -> Tensor:
    # transformers returns the tower's whole output, with the projected features as what was pooled
    return normalised(getattr(features, "pooler_output", features))

"""Features before the projection, and the transform of MOFI's releases, against the libraries themselves."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import skimage
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.peers import HuggingFaceEncoder, OpenClipEncoder, load_encoder, load_model
from mofi_lightning.encoders.preprocess import CLIP_MEAN, CLIP_STD
from mofi_lightning.types import InputError

TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TOWER, "patch_size": 8}
TEXT = {**TOWER, "vocab_size": 20, "max_position_embeddings": 12, "eos_token_id": 2, "pad_token_id": 0}


def save_clip(folder: Path, image_size: int) -> None:
    torch.manual_seed(1)
    config: Any = transformers.CLIPConfig(
        text_config=TEXT, vision_config={**VISION, "image_size": image_size}, projection_dim=8
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    raw = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "<eos>": 2, "cat": 3}, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>", model_max_length=12
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder without preprocessing, at MOFI's resolution."""
    folder = tmp_path_factory.mktemp("released")
    save_clip(folder, 224)
    return folder


@pytest.mark.parametrize("shot", ["astronaut", "coffee", "chelsea", "rocket"])
def test_a_mofi_release_gets_its_authors_transform(released: Path, shot: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.ascontiguousarray(getattr(skimage.data, shot)()[:300]))
    image.save(tmp_path / "image.png")

    found = load_model(f"hf_mofi:{released}").preprocess(decode((tmp_path / "image.png").read_bytes()))

    wanted = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(224, InterpolationMode.BILINEAR, antialias=False),
            transforms.CenterCrop(224),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )(image)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    antialiased = transforms.functional.resize(transforms.functional.to_tensor(image), 224, antialias=True)
    cropped = transforms.functional.center_crop(antialiased, [224, 224])
    assert (transforms.functional.normalize(cropped, CLIP_MEAN, CLIP_STD) - wanted).abs().max() > 0.01


def test_a_mofi_release_needs_no_preprocessing_of_its_own_and_ignores_it(
    released: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="image processor"):
        load_model(str(released))
    folder = shutil.copytree(released, tmp_path / "with")
    transformers.CLIPImageProcessor(size={"shortest_edge": 256}).save_pretrained(folder)
    image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    with_it, without = (load_model(f"hf_mofi:{place}").preprocess(image) for place in (folder, released))
    assert torch.equal(with_it, without)


def test_features_of_a_clip_are_what_its_projection_projects(released: Path) -> None:
    encoder: Any = load_encoder(f"hf_mofi:{released}")
    pixels = torch.rand(3, 3, 224, 224)
    with torch.inference_mode():
        embedding, features = encoder.encode_image_and_features(pixels)
        peer = transformers.AutoModel.from_pretrained(released).eval()
        pooled = peer.vision_model(pixel_values=pixels).pooler_output
        projected = peer.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(features, pooled)
    torch.testing.assert_close(embedding, torch.nn.functional.normalize(projected))
    assert torch.equal(encoder.encode_image(pixels), embedding)
    assert not peer.visual_projection._forward_pre_hooks


def test_features_of_a_siglip_are_its_embeddings() -> None:
    torch.manual_seed(1)
    config: Any = transformers.SiglipConfig(
        text_config={**TEXT, "projection_size": 16}, vision_config={**VISION, "image_size": 32}
    )
    raw = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "<eos>": 2}, "<unk>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>")
    encoder = HuggingFaceEncoder(transformers.SiglipModel(config).eval(), lambda image: image, tokenizer)
    with torch.inference_mode():
        embedding, features = encoder.encode_image_and_features(torch.rand(2, 3, 32, 32))
    assert features is embedding


def test_features_of_an_open_clip_vit_are_what_its_matrix_projects() -> None:
    torch.manual_seed(1)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text).eval()
    pixels = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        embedding, features = OpenClipEncoder(model, None, None).encode_image_and_features(pixels)
        wanted = model.encode_image(pixels, normalize=True)
        projected = torch.nn.functional.normalize(features @ model.visual.proj)
    assert features.shape == (2, 64)
    torch.testing.assert_close(projected, wanted)
    assert torch.equal(embedding, wanted)
    assert "proj" in dict(model.visual.named_parameters())

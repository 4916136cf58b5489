import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mofi_lightning.encoders.preprocess import Preprocess

RNG = np.random.default_rng(0)


def photo(height: int, width: int) -> Image.Image:
    coarse = RNG.integers(0, 256, (height // 10 + 2, width // 10 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(300, 401), (500, 333), (100, 80), (224, 224)])
def test_float_resize_is_apples_order_exactly(size):
    image = photo(*size)
    apple = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(224, transforms.InterpolationMode.BILINEAR, antialias=False),
            transforms.CenterCrop(224),
        ]
    )
    preprocess = Preprocess(224, interpolation="bilinear", antialias=False, resize_on="float")
    assert torch.equal(preprocess(as_tensor(image)), apple(image))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(300, 401), (100, 80)])
def test_uint8_resize_is_close_to_pillows(size, interpolation):
    image = photo(*size)
    pillow = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(224),
            transforms.PILToTensor(),
        ]
    )
    pixels = Preprocess(224, crop=0.875, interpolation=interpolation)(as_tensor(image))
    assert pixels.dtype == torch.uint8
    difference = (pixels.int() - pillow(image).int()).abs()
    assert difference.max() <= 2


def test_squash_resizes_both_sides_as_pillow_does():
    image = photo(90, 200)
    expected = as_tensor(image.resize((64, 64), Image.Resampling.BICUBIC))
    pixels = Preprocess(64, resize="squash")(as_tensor(image))
    assert (pixels.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 1, 50_000), (3, 50_000, 2)])
@pytest.mark.parametrize("resize_on", ["uint8", "float"])
def test_any_shape_becomes_a_square_without_a_huge_resize(shape, resize_on):
    preprocess = Preprocess(224, resize_on=resize_on)
    assert preprocess(torch.zeros(shape, dtype=torch.uint8)).shape == (3, 224, 224)

import io

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dct

from mofi_lightning.curation.images.perceptual_hash import perceptual_hash

Pixels = NDArray[np.uint8]


def photographs() -> dict[str, Image.Image]:
    """Photographs in colour and grey, 172 x 448 to 512 x 512 pixels."""
    names = ["astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel"]
    names += ["immunohistochemistry", "moon", "page", "rocket", "text"]
    return {name: Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in names}


def channels_first(image: Image.Image) -> Pixels:
    return np.asarray(image).transpose(2, 0, 1)


def naive(pixels: Pixels) -> int:
    """The definition in floating point, with scipy's DCT-II of the whole image."""
    height, width = pixels.shape[1:]
    pixels = pixels[:, :: max(1, height // 192), :: max(1, width // 192)]
    height, width = pixels.shape[1:]
    luma = (2.0 * pixels[0] + 5.0 * pixels[1] + pixels[2]) / 8
    # scipy's DCT-II is twice the sum of the products with the cosines
    waves = np.zeros((8, 8))
    found = dct(dct(luma, axis=0), axis=1)[:8, :8] / (4 * height * width)
    waves[: found.shape[0], : found.shape[1]] = found
    waves[np.abs(waves) < 1 / 32] = 0
    coefficients = [waves[k, m] for k in range(8) for m in range(8) if (k, m) != (0, 0)]
    median = sorted(coefficients)[31]
    return sum(1 << (62 - place) for place, wave in enumerate(coefficients) if wave > median)


def distance(one: int, other: int) -> int:
    return (one ^ other).bit_count()


@pytest.fixture(scope="module")
def photos() -> dict[str, Image.Image]:
    return photographs()


def test_the_hash_follows_its_definition(photos: dict[str, Image.Image]) -> None:
    random = np.random.default_rng(0)
    images = [channels_first(photo) for photo in photos.values()]
    for height, width in [(224, 224), (5, 90), (1, 1), (1, 40), (600, 33), (1023, 257)]:
        coarse = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        images.append(channels_first(coarse.resize((width, height), Image.Resampling.BICUBIC)))
    for pixels in images:
        hashed = perceptual_hash(pixels)

        # cosines in fixed point may turn over a bit at the median
        assert distance(hashed, naive(pixels)) <= 1
        assert 0 <= hashed < 1 << 63


def test_the_hash_of_a_tensor_is_that_of_an_array(photos: dict[str, Image.Image]) -> None:
    pixels = channels_first(photos["coffee"])

    assert perceptual_hash(torch.from_numpy(pixels.copy())) == perceptual_hash(pixels)


def variants(photo: Image.Image) -> dict[str, Image.Image]:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=40)
    return {
        "JPEG": Image.open(buffer).convert("RGB"),
        "half": photo.resize((photo.width // 2, photo.height // 2)),
        "224 pixels": photo.resize((224, 224)),
        "brighter": photo.point(lambda value: min(255, round(1.2 * value + 10))),
        "grey": photo.convert("L").convert("RGB"),
    }


def test_variants_of_a_photograph_lie_near_it(photos: dict[str, Image.Image]) -> None:
    found: dict[str, list[int]] = {}
    for photo in photos.values():
        for name, variant in variants(photo).items():
            change = distance(
                perceptual_hash(channels_first(photo)), perceptual_hash(channels_first(variant))
            )
            found.setdefault(name, []).append(change)

    for name, changes in found.items():
        assert np.median(changes) <= 2, (name, changes)
        assert max(changes) <= 8, (name, changes)


def test_different_photographs_lie_far_apart(photos: dict[str, Image.Image]) -> None:
    hashes = [perceptual_hash(channels_first(photo)) for photo in photos.values()]

    between = [distance(one, other) for k, one in enumerate(hashes) for other in hashes[:k]]

    assert min(between) > 12
    assert np.median(between) > 25


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 224), (224, 224), (500, 1025)])
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (13, 200, 77)])
def test_uniform_images_of_any_size_and_colour_are_alike(
    shape: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    pixels = np.broadcast_to(np.array(colour, dtype=np.uint8)[:, None, None], (3, *shape))

    assert perceptual_hash(pixels) == 0


def test_mirrored_drawings_have_no_bits_of_rounding() -> None:
    # the odd frequencies of a symmetric image are exactly absent
    drawing = np.zeros((3, 100, 100), dtype=np.uint8)
    drawing[:, 20:60, 30:70] = 255

    assert perceptual_hash(drawing) == perceptual_hash(drawing[:, :, ::-1])
    assert perceptual_hash(drawing) == naive(drawing)

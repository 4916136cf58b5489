"""The benchmark's data: pictures with captions, the same in every run."""

from __future__ import annotations

import io
from pathlib import Path
from random import Random

import skimage.data
from PIL import Image, ImageEnhance, ImageOps

from mofi_lightning.data.schema import Row

WIDTH, HEIGHT, QUALITY = 500, 375, 90
JPEGS = 1024
COPIES = 2  # rows with the same JPEG, so that there are several chunks
SEED = 1

# those that scikit-image's package holds in colour, so that nothing is fetched
_PICTURES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
)
_WORDS = (
    "a the of in on with and near under old new small big red green blue white black city street river house "
    "tree dog cat bird horse boat train car bridge tower market garden flower mountain beach snow morning "
    "evening light people child woman man hat table cup photograph view detail museum festival vintage"
)


def make_rows() -> list[Row]:
    """Rows with keys, JPEGs of 30 to 75 kB and captions of 4 to 28 words."""
    random = Random(SEED)
    jpegs = make_jpegs(JPEGS, random)
    return [Row(f"{n:06d}", jpegs[n % JPEGS], make_caption(random)) for n in range(JPEGS * COPIES)]


def make_jpegs(count: int, random: Random, width: int = WIDTH, height: int = HEIGHT) -> list[bytes]:
    """JPEGs of parts of photographs, all different."""
    folder = Path(skimage.data.__file__).parent
    pictures = [Image.open(folder / name).convert("RGB") for name in _PICTURES]
    return [_jpeg(pictures[number % len(pictures)], random, width, height) for number in range(count)]


def make_caption(random: Random) -> str:
    """4 to 28 words of one token each in CLIP's vocabulary: 6 to 30 tokens, uniform, with begin and end."""
    return " ".join(random.choices(_WORDS.split(), k=random.randint(4, 28)))


def _jpeg(picture: Image.Image, random: Random, pixels_wide: int, pixels_high: int) -> bytes:
    """A crop of 60 to 100 % of the picture's sides, possibly mirrored, with other colours."""
    aspect = pixels_wide / pixels_high
    width = min(picture.width, picture.height * aspect) * random.uniform(0.6, 1)
    height = width / aspect
    left, top = random.uniform(0, picture.width - width), random.uniform(0, picture.height - height)
    image = picture.resize(
        (pixels_wide, pixels_high), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
    )
    if random.random() < 0.5:
        image = ImageOps.mirror(image)
    image = ImageEnhance.Color(image).enhance(random.uniform(0.7, 1.3))
    image = ImageEnhance.Brightness(image).enhance(random.uniform(0.8, 1.2))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()

import io

import numpy as np
import pytest
from PIL import Image

from mofi_lightning.data.headers import image_size
from mofi_lightning.encoders.decoding import UndecodableImage, decode

PIXELS = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)


def encoded(format_: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, format_, **options)
    return stream.getvalue()


def with_orientation(format_: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return encoded(format_, exif=exif)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_decoded_image_in_every_orientation(format_, orientation):
    data = with_orientation(format_, orientation)
    assert image_size(data) == tuple(decode(data).shape[1:])
    assert image_size(data) == ((30, 20) if orientation > 4 else (20, 30))


def test_the_orientation_of_a_png_is_found_behind_its_pixels():
    plain, turned = encoded("PNG"), with_orientation("PNG", 6)
    start = turned.index(b"eXIf") - 4
    chunk = turned[start : start + 12 + int.from_bytes(turned[start : start + 4])]
    data = plain[:-12] + chunk + plain[-12:]
    assert image_size(data) == tuple(decode(data).shape[1:]) == (30, 20)


def test_gif_sizes_are_read_and_what_decode_refuses_has_none():
    assert image_size(encoded("GIF")) == (20, 30)
    for data in (b"", b"none", encoded("BMP"), encoded("TIFF")):
        assert image_size(data) is None


def test_only_the_header_is_needed():
    pixels = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    for format_ in ("JPEG", "PNG", "GIF"):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format_)
        cut = stream.getvalue()[: len(stream.getvalue()) // 2]
        with pytest.raises(UndecodableImage):
            decode(cut)
        assert image_size(cut) == (200, 300), format_


def test_an_image_with_very_many_pixels_is_measured_in_silence(recwarn):
    stream = io.BytesIO()
    Image.new("1", (12_000, 9_000)).save(stream, "PNG")
    assert image_size(stream.getvalue()) == (9_000, 12_000)
    assert not recwarn.list

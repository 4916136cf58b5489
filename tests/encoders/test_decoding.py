import contextlib
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tests.images import encoded, with_pillow

from mofi_lightning.encoders import decoding
from mofi_lightning.encoders.decoding import UndecodableImage, decode, fault_kinds
from mofi_lightning.types import InputError

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(
    (70, 50), Image.Resampling.BICUBIC
)
ALPHA = Image.fromarray(RNG.integers(0, 256, (50, 70), dtype=np.uint8))
TRANSLUCENT = PHOTO.copy()
TRANSLUCENT.putalpha(ALPHA)
PALETTE = PHOTO.quantize(16)
DEEP = RNG.integers(0, 65536, (50, 70), dtype=np.uint16)
ON_ITS_SIDE = Image.Exif()
ON_ITS_SIDE[0x0112] = 6


FILES = {
    "jpeg": encoded(PHOTO, "JPEG"),
    "progressive jpeg": encoded(PHOTO, "JPEG", progressive=True),
    "grey jpeg": encoded(PHOTO.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "jpeg on its side": encoded(PHOTO, "JPEG", exif=ON_ITS_SIDE.tobytes()),
    "png": encoded(PHOTO, "PNG"),
    "1-bit png": encoded(PHOTO.convert("1"), "PNG"),
    "png with alpha": encoded(TRANSLUCENT, "PNG"),
    "grey png with alpha": encoded(TRANSLUCENT.convert("LA"), "PNG"),
    "palette png": encoded(PALETTE, "PNG"),
    "palette png with alpha": encoded(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))),
    "png with a transparent colour": encoded(PHOTO, "PNG", transparency=PHOTO.getpixel((0, 0))),
    "png on its side": encoded(PHOTO, "PNG", exif=ON_ITS_SIDE.tobytes()),
    "webp": encoded(PHOTO, "WEBP", lossless=True),
    "webp with alpha": encoded(TRANSLUCENT, "WEBP", lossless=True),
    "webp on its side": encoded(PHOTO, "WEBP", lossless=True, exif=ON_ITS_SIDE.tobytes()),
    "animated webp": encoded(
        PHOTO, "WEBP", lossless=True, save_all=True, append_images=[ImageOps.invert(PHOTO)]
    ),
    "gif": encoded(PALETTE, "GIF"),
    "gif with transparency": encoded(PALETTE, "GIF", transparency=3),
    "animated gif": encoded(
        PALETTE, "GIF", save_all=True, append_images=[ImageOps.invert(PHOTO).quantize(16)]
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_pillow_on_white(name):
    pixels, expected = decode(FILES[name]), with_pillow(FILES[name])
    assert pixels.dtype == torch.uint8
    assert pixels.shape == expected.shape
    assert (pixels.int() - expected.int()).abs().max() <= 1  # rounding of the compositing


def test_16_bit_channels_keep_their_high_byte():
    pixels = decode(encoded(Image.fromarray(DEEP), "PNG"))
    assert torch.equal(pixels, torch.from_numpy((DEEP >> 8).astype(np.uint8)).expand(3, -1, -1))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>404 not found</html>",
        b"\xff\xd8\xff",
        FILES["jpeg"][:-300],
        FILES["png"][:200],
        FILES["webp"][:-50],
        FILES["gif"][:100],
        FILES["animated webp"][:120],
        encoded(PHOTO, "TIFF"),
    ],
)
def test_what_is_no_whole_image_is_refused_in_one_line(data):
    with pytest.raises(UndecodableImage) as refusal:
        decode(data)
    assert "\n" not in str(refusal.value)
    assert "0x" not in str(refusal.value)
    assert isinstance(refusal.value, InputError)


def decodes_or_is_refused(data: bytes) -> bool:
    with contextlib.suppress(UndecodableImage):
        assert decode(data).shape[0] == 3
    return True


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_decode_or_are_refused(name):
    data = FILES[name]
    for end in range(0, len(data), len(data) // 30):
        assert decodes_or_is_refused(data[:end])
    for _ in range(30):
        damaged = bytearray(data)
        damaged[RNG.integers(len(data))] ^= 1 << RNG.integers(8)
        assert decodes_or_is_refused(bytes(damaged))


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(side):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    with pytest.raises(UndecodableImage, match="pixels"):
        decode(bomb)


def test_max_pixels_counts_height_times_width():
    assert decode(FILES["jpeg"], max_pixels=3500).shape == (3, 50, 70)
    with pytest.raises(UndecodableImage, match="50 x 70"):
        decode(FILES["jpeg"], max_pixels=3499)


def test_faults_are_counted_by_kind():
    messages = []
    for data in (b"none", b"", FILES["jpeg"][:-300], FILES["jpeg"][:-200], FILES["jpeg"][:-400]):
        with pytest.raises(UndecodableImage) as refusal:
            decode(data)
        messages.append(str(refusal.value))
    assert fault_kinds(messages) == {"damaged JPEG image": 3, "no JPEG, PNG, GIF or WebP image": 2}


def test_a_translucent_image_of_many_rows_is_composited_as_a_whole():
    tall = TRANSLUCENT.resize((20, 1300))
    data = encoded(tall, "PNG")
    assert (decode(data).int() - with_pillow(data).int()).abs().max() <= 1


def separate_scans(jpeg: bytes) -> bytes:
    """A baseline JPEG of one component a scan: that of a grey image, its scan taken for all three."""
    start, first = jpeg.index(b"\xff\xc0"), jpeg.index(b"\xff\xda")
    frame = jpeg[start : start + 9] + b"\x03" + b"".join(bytes([n, 0x11, 0]) for n in (1, 2, 3))
    frame = frame[:2] + (len(frame) - 2).to_bytes(2) + frame[4:]
    scans = [jpeg[first:-2].replace(b"\x01\x01\x00", bytes([1, n, 0]), 1) for n in (1, 2, 3)]
    return jpeg[:start] + frame + jpeg[start + 13 : first] + b"".join(scans) + jpeg[-2:]


@pytest.mark.parametrize(
    "ordinary",
    [
        encoded(PHOTO.resize((400, 300)), "JPEG", progressive=True),
        separate_scans(encoded(PHOTO.resize((400, 300)).convert("L"), "JPEG")),
    ],
    ids=["progressive", "baseline"],
)
def test_a_jpeg_of_ever_more_scans_is_refused_at_once(ordinary):
    assert decode(ordinary).shape == (3, 300, 400)
    last = ordinary.rindex(b"\xff\xda")
    endless = ordinary[:-2] + ordinary[last:-2] * 2000 + ordinary[-2:]
    start = time.perf_counter()
    with pytest.raises(UndecodableImage, match="image with too many scans"):
        decode(endless)
    assert time.perf_counter() - start < 1


def test_what_follows_the_only_scan_of_a_jpeg_takes_no_time():
    ordinary = encoded(PHOTO.resize((400, 300)), "JPEG")
    last = ordinary.rindex(b"\xff\xda")
    endless = ordinary[:-2] + ordinary[last:-2] * 2000 + ordinary[-2:]
    start = time.perf_counter()
    with contextlib.suppress(UndecodableImage):
        assert torch.equal(decode(endless), decode(ordinary))
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 12 bytes"
        ),
        RuntimeError("Insufficient memory (case 4)"),
        OSError("out of memory error when reading image file"),
    ],
)
def test_a_lack_of_memory_is_no_fault_of_the_image(monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(decoding, "decode_image", fail)
    with pytest.raises(MemoryError):
        decode(FILES["jpeg"])
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        decode(FILES["png"])

"""Every kind of bad row: what can be used trains right, the others are replaced and counted, or named."""

import zlib
from collections.abc import Callable
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from PIL import Image, ImageOps
from tests.images import encoded, with_pillow

from mofi_lightning.data.mixing import BadRowPolicy
from mofi_lightning.data.schema import Row
from mofi_lightning.data.texts import TextSampling
from mofi_lightning.data.transforms import Augmentation
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.types import InputError

RNG = np.random.default_rng(0)
# as large as the model's input, so that preprocessing changes nothing; smooth, so that JPEG changes little
PHOTO = Image.fromarray(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(
    (24, 24), Image.Resampling.BICUBIC
)
DEEP = RNG.integers(0, 65536, (24, 24), dtype=np.uint16)
ON_ITS_SIDE = Image.Exif()
ON_ITS_SIDE[0x0112] = 6


def bomb() -> bytes:
    """A whole PNG of 30,000 x 30,000 black pixels, one bit each."""
    packer = zlib.compressobj(9)
    hundred_lines = bytes(100 * (1 + 30_000 // 8))
    body = b"".join([packer.compress(hundred_lines) for _ in range(300)]) + packer.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


UNUSABLE = {
    "truncated JPEG": (encoded(PHOTO, "JPEG")[:-60], "damaged JPEG image"),
    "truncated PNG": (encoded(PHOTO, "PNG")[:-200], "damaged PNG image"),
    "zero bytes": (b"", "no JPEG, PNG, GIF or WebP image"),
    "web page": (b"<html>404 not found</html>" * 100, "no JPEG, PNG, GIF or WebP image"),
    "decompression bomb": (bomb(), "image with too many pixels"),
    "flipped byte on disk": (encoded(PHOTO, "PNG"), "damaged row"),
}
INVERTED = ImageOps.invert(PHOTO)
USABLE = {
    "CMYK JPEG": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "16-bit PNG": encoded(Image.fromarray(DEEP), "PNG"),
    "palette PNG with alpha": encoded(PHOTO.quantize(16), "PNG", transparency=bytes(range(0, 256, 16))),
    "animated GIF": encoded(PHOTO.quantize(16), "GIF", save_all=True, append_images=[INVERTED.quantize(16)]),
    "animated WebP": encoded(PHOTO, "WEBP", lossless=True, save_all=True, append_images=[INVERTED]),
    "JPEG on its side": encoded(PHOTO, "JPEG", exif=ON_ITS_SIDE.tobytes()),
}
# with what they train as: one line, cut to the encoder's length
TEXTS = {
    "control characters": (
        "a \x1b[31mred\x00 app\x07le\r\n\ton a\x7f table\x85",
        "a [31mred app le on a table",
    ),
    "a megabyte": ("a red apple on a table, " * 44_000, "a red apple on a table, " * 10),
    "no text": ("", ""),
}
BAD = "the bad one"


MakeRows = Callable[[bytes, str], Path]


@pytest.fixture
def dataset_with(tmp_path) -> MakeRows:
    """A data set of nine good rows and one with the given image and text, damaged on disk if wanted."""

    def make(image: bytes, text: str, damage: bool = False) -> Path:
        good = encoded(PHOTO, "PNG")
        rows = [Row(f"good {n}", good, "a photo") for n in range(9)]
        write_dataset([*rows[:4], Row(BAD, image, text), *rows[4:]], tmp_path / "photos")
        if damage:
            (chunk,) = (tmp_path / "photos" / "shards").glob("*.bin")
            stored = bytearray(chunk.read_bytes())
            stored[stored.index(BAD.encode()) + len(BAD) + 60] ^= 1
            chunk.write_bytes(stored)
        return tmp_path / "photos"

    return make


@pytest.fixture
def loaders(make_data):
    """A data module over one pass of a data set, not augmented, and its two loaders."""

    def make(path: Path, action: str, **options):
        data = make_data(
            {"photos": (path, 10)},
            max_steps=1,
            validation=str(path),
            texts=TextSampling(1, 0, 0),
            augmentation=Augmentation(scale=(1, 1), ratio=(1, 1), flip=0),
            bad_row_policy=BadRowPolicy(action),
            **options,
        )
        return data, {"photos": data.train_dataloader(), "validation": data.val_dataloader()}

    return make


@pytest.mark.parametrize("action", ["skip", "raise"])
@pytest.mark.parametrize("what", [*UNUSABLE, *USABLE, *TEXTS])
def test_a_bad_row_trains_right_or_is_replaced_and_counted_or_named(
    dataset_with, loaders, tokenizer, what, action, caplog
):
    image, kind = UNUSABLE.get(what, (USABLE.get(what, encoded(PHOTO, "PNG")), None))
    text, cleaned = TEXTS.get(what, ("a photo", "a photo"))
    path = dataset_with(image, text, damage=kind == "damaged row")
    data, made = loaders(path, action)
    for source, loader in made.items():
        if kind is not None and action == "raise":
            with pytest.raises(InputError) as refusal:
                list(loader)
            assert f"source '{source}' has a bad row, row 4 " in str(refusal.value)
            for part in (repr(BAD), "checksum" if kind == "damaged row" else kind, "bad_row_policy.action"):
                assert part in str(refusal.value)
            assert "\n" not in str(refusal.value)
            continue
        (batch,) = loader
        expected = {f"good {n}" for n in range(9)} | ({BAD} if kind is None else set())
        assert len(batch["key"]) == 10 and set(batch["key"]) == expected
        for n, key in enumerate(batch["key"]):
            right = with_pillow(image if key == BAD else encoded(PHOTO, "PNG"))
            assert (batch["image"][n].int() - right.int()).abs().max() <= 1
            (ids,), (mask,) = tokenizer([cleaned if key == BAD else "a photo"], 32)
            assert (
                batch["text"].input_ids[n][batch["text"].attention_mask[n].bool()].tolist()
                == ids[mask.bool()].tolist()
            )
    counts = {} if kind is None or action == "raise" else {f"{source}: {kind}": 1 for source in made}
    assert data.bad_rows == counts
    assert len(caplog.records) == len(counts)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_first_bad_row_ends_a_run_that_may_not_skip(dataset_with, loaders, num_workers):
    _, made = loaders(dataset_with(b"x", ""), "raise", num_workers=num_workers)
    with pytest.raises(InputError, match=r"row 4 \(key 'the bad one'\): no JPEG"):
        next(iter(made["photos"]))


@pytest.fixture
def a_tenth_bad(tmp_path) -> Path:
    """30 rows: one damaged JPEG and two without an image."""
    good, cut = encoded(PHOTO, "PNG"), encoded(PHOTO, "JPEG")[:-60]
    images = [cut, b"", b"none", *[good] * 27]
    write_dataset((Row(str(n), image, "") for n, image in enumerate(images)), tmp_path / "tenth")
    return tmp_path / "tenth"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_bad_rows_end_a_run_with_what_to_do(a_tenth_bad, plain, make_data, num_workers):
    # 3 of 30 rows a step: the 51st bad row, more than 5 % of 1,000, comes in the 17th step
    data = make_data({"photos": (a_tenth_bad, 30), "more": (plain, 10)}, 40, num_workers=num_workers)
    batches = []
    with pytest.raises(
        InputError, match=r"source 'photos' has too many bad rows: 51 of the 510 read"
    ) as refusal:
        batches.extend(iter(data.train_dataloader()))
    message = str(refusal.value)
    assert "no JPEG, PNG, GIF or WebP image: 34, damaged JPEG image: 17" in message and "\n" not in message
    assert "`mofi data verify`" in message and "data.bad_row_policy.max_share (now 0.05)" in message


@pytest.mark.parametrize(("max_share", "steps"), [(0.1, 40), (0.099, 33), (0, 0), (1, 40)])
def test_the_share_is_that_of_the_rows_read(a_tenth_bad, make_data, max_share, steps):
    # 0.099 allows 99 of 1,000 rows and 100 of 1,010: 102 of 1,020 are too many
    data = make_data({"photos": (a_tenth_bad, 30)}, 40, bad_row_policy=BadRowPolicy(max_share=max_share))
    count = 0
    try:
        for _ in data.train_dataloader():
            count += 1
    except InputError as error:
        assert "too many bad rows" in str(error)
    assert count == steps


def test_each_rank_counts_what_it_read(a_tenth_bad, make_data):
    found = []
    for rank in range(3):
        data = make_data({"photos": (a_tenth_bad, 30)}, 4, rank, 3)
        assert sum(len(batch["key"]) for batch in data.train_dataloader()) == 40
        found.append(sum(data.bad_rows.values()))
    assert sum(found) == 4 * 3


def test_replacements_are_the_same_on_any_number_of_ranks(a_tenth_bad, make_data):
    def keys(ranks: int) -> list[list[str]]:
        loaders = [
            make_data({"photos": (a_tenth_bad, 12)}, 10, r, ranks).train_dataloader() for r in range(ranks)
        ]
        return [[key for batch in step for key in batch["key"]] for step in zip(*loaders, strict=True)]

    assert keys(1) == keys(2) == keys(3) == keys(6)


def test_a_chunk_that_is_lost_altogether_is_replaced(tmp_path, make_data, monkeypatch):
    monkeypatch.setattr("mofi_lightning.data.writing.CHUNK_BYTES", 30_000)
    good = encoded(PHOTO, "PNG")
    write_dataset((Row(str(n), good, "") for n in range(600)), tmp_path / "photos")
    first = min((tmp_path / "photos" / "shards").glob("*.bin"))
    first.write_bytes(bytes(first.stat().st_size))
    data = make_data({"photos": (tmp_path / "photos", 60)}, 10, bad_row_policy=BadRowPolicy(max_share=0.5))
    keys = [key for batch in data.train_dataloader() for key in batch["key"]]
    lost = set(map(str, range(600))) - set(keys)
    assert data.bad_rows == {"photos: damaged row": len(lost)}
    assert 0 < len(lost) < 600 / 2 and len(keys) == 600


@pytest.mark.parametrize("options", [{"action": "ignore"}, {"max_share": -0.1}, {"max_share": 5}])
def test_a_policy_that_makes_no_sense_is_refused(options):
    (name,) = options
    with pytest.raises(InputError, match=rf"data\.bad_row_policy\.{name}"):
        BadRowPolicy(**options)


def test_an_entity_beyond_the_vocabulary_is_a_bad_row(rows, vocabulary, make_data, tmp_path):
    write_dataset(rows[:40], tmp_path / "data", vocabulary)
    columns = (vocabulary.ids, vocabulary.names, vocabulary.descriptions, vocabulary.counts)
    few = EntityVocabulary.from_columns(*(list(column)[:5] for column in columns))
    few.save(tmp_path / "data" / "vocabulary.arrow")
    policy = BadRowPolicy(max_share=1.0)
    data = make_data({"i2e": (tmp_path / "data", 8)}, 5, bad_row_policy=policy)
    for batch in data.train_dataloader():
        assert int(batch["entity"].max()) < 5
    assert data.bad_rows.keys() == {"i2e: unknown entity"}


def test_the_only_other_row_takes_the_place_of_a_bad_one(rows, make_data, tmp_path):
    pair = [row._replace(entities=(), scores=()) for row in rows[:2]]
    write_dataset([pair[0]._replace(image=b"x"), pair[1]], tmp_path / "data")
    for seed in range(8):
        data = make_data({"pairs": (tmp_path / "data", 2)}, 4, seed=seed)
        assert {key for batch in data.train_dataloader() for key in batch["key"]} == {pair[1].key}

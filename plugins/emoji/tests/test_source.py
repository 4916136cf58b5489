"""The emoji source: disjoint splits, known noise, plain pictures, and the same bytes every time."""

import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mofi_emoji import EmojiSource
from mofi_lightning import cli, entry_points
from mofi_lightning.sources.base import Source
from mofi_lightning.sources.write import write_pairs
from mofi_lightning.types import InputError

TAG = re.compile(r"\btag\d+\b")
NEAR_DUPLICATES = {"people & body", "symbols"}


@pytest.fixture(scope="module")
def source(cache: Path) -> EmojiSource:
    return EmojiSource(cache=cache, unseen=8, size=32)


@pytest.fixture(scope="module")
def written(source: EmojiSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(source, folder)
    return folder


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def shown(source: EmojiSource, split: str) -> dict[str, str]:
    """Key -> id of what the image shows."""
    return {pair.key: pair.entity.id for pair in source.pairs(split) if pair.entity}


def test_it_is_a_source_by_the_name_emoji():
    assert entry_points.load("emoji") is EmojiSource
    assert issubclass(EmojiSource, Source)
    assert entry_points.load_kind("emoji", "source")


def test_its_options_are_in_the_help_of_the_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["pairs", "emoji", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--styles", "--unseen", "--entities", "--size", "--seed", "--cache", "--output"):
        assert option in text
    assert "number of entities that appear in `test` only" in text


@pytest.mark.parametrize("seed", range(5))
def test_seen_and_unseen_entities_are_disjoint_and_every_drawing_is_in_one_split(cache, seed):
    source = EmojiSource(cache=cache, unseen=8, size=8, seed=seed)
    train, validation, test = (shown(source, split) for split in source.splits)
    known = {entity.id for entity in source.entities()}
    assert len(set(test.values())) == 8
    assert not set(test.values()) & (set(train.values()) | set(validation.values()) | known)
    assert set(validation.values()) <= set(train.values()) == known
    # 39 entities have four drawings or more, each in six styles; the rare one is left out
    assert len(known) == 31
    assert len(train | validation | test) == len(train) + len(validation) + len(test) == 39 * 6
    assert "U+1F413" not in known | set(test.values())
    assert all(list(validation.values()).count(id) == 2 for id in validation.values())
    assert len(set(validation.values())) == round(0.15 * 31)
    assert [source.count(split) for split in source.splits] == [len(train), len(validation), len(test)]


@pytest.mark.parametrize("seed", range(5))
def test_near_duplicates_are_never_unseen(cache, seed):
    source = EmojiSource(cache=cache, unseen=29, size=8, seed=seed)
    assert {entity.description.split(";")[0] for entity in source.entities()} == NEAR_DUPLICATES
    assert (
        not {p.entity.description.split(";")[0] for p in source.pairs("test") if p.entity} & NEAR_DUPLICATES
    )


def test_texts_of_seen_entities_never_speak_of_unseen_ones(source):
    # every emoji of the packages has one tag that no other has
    unseen = {entity for pair in source.pairs("test") if pair.entity for entity in pair.entity.aliases}
    seen = {tag for entity in source.entities() for tag in entity.aliases}
    used = {
        tag for split in ("train", "validation") for p in source.pairs(split) for tag in TAG.findall(p.text)
    }
    assert used and used <= seen and not used & unseen


def test_a_text_of_test_names_what_is_drawn(source):
    assert all(pair.entity and pair.entity.name in pair.text for pair in source.pairs("test"))


def test_images_are_rgb_png_on_white_of_the_given_size(source):
    for pair in source.pairs("test"):
        image = Image.open(BytesIO(pair.image))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))
        pixels = np.asarray(image)
        assert all(tuple(pixels[y, x]) == (255, 255, 255) for y in (0, 31) for x in (0, 31))
        assert tuple(pixels[16, 16]) != (255, 255, 255)


def test_an_image_shows_the_drawing_of_its_key(source):
    """The disc's colour tells the emoji, its radius the style (see conftest)."""
    styles = ("noto", "noto-v1", "twemoji", "fluent-emoji-flat", "fxemoji", "emojione")
    for pair in source.pairs("validation"):
        hexcode, style = pair.key.split("/")
        code = int(hexcode, 16)
        pixels = np.asarray(Image.open(BytesIO(pair.image))).astype(int)
        assert tuple(pixels[16, 16]) == (code % 0x7F, code % 0x3D, 0x80)
        assert pair.entity and pair.entity.id == f"U+{hexcode}"
        radius = (8 + 4 * styles.index(style)) / 2  # 64 units of the canvas on 32 pixels
        area = ((255 - pixels[..., 0]) / (255 - code % 0x7F)).sum()
        assert area == pytest.approx(np.pi * radius**2, rel=0.05)


def test_the_same_seed_gives_the_same_bytes_in_another_process_and_another_seed_others(
    written, cache, tmp_path
):
    options = ["--cache", str(cache), "--unseen", "8", "--size", "32"]
    for seed in ("1", "2"):
        command = ["pairs", "emoji", *options, "--seed", seed, "--output", str(tmp_path / seed)]
        subprocess.run(
            [sys.executable, "-m", "mofi_lightning", *command],
            check=True,
            capture_output=True,
            env={"PATH": "", "PYTHONHASHSEED": seed},
        )
    names = sorted(path.name for path in written.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "1").iterdir())
    for name in names:
        assert (written / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
        assert (written / name).read_bytes() != (tmp_path / "2" / name).read_bytes()


def test_a_text_does_not_depend_on_the_size_of_the_images_or_their_order(source, cache):
    small = EmojiSource(cache=cache, unseen=8, size=8)
    for split in source.splits:
        assert [(p.key, p.text) for p in small.pairs(split)] == [(p.key, p.text) for p in source.pairs(split)]


def test_the_knowledge_base_has_the_seen_entities_with_their_tags_as_aliases(written, source):
    seen = set(shown(source, "train").values())
    entries = {row["id"]: row for row in rows(written, "knowledge_base")}
    assert entries.keys() == seen
    boy = {"id": "U+1F466", "name": "boy", "aliases": ["tag20"], "description": "people & body; tag20"}
    assert entries["U+1F466"] == boy


def test_the_truth_tells_of_every_image_what_it_shows(written, source):
    truth = rows(written, "truth")
    expected = {split: shown(source, split) for split in source.splits}
    assert {
        split: {t["key"]: t["entity"] for t in truth if t["split"] == split} for split in expected
    } == expected
    assert {"entity": "U+1F466", "name": "boy", "description": "people & body; tag20"}.items() <= next(
        row.items() for row in truth if row["key"] == "1F466/noto"
    )


def test_entities_limits_the_set_and_styles_the_drawings(cache):
    styles = ("noto", "fxemoji", "emojione")
    source = EmojiSource(cache=cache, styles=styles, entities=12, unseen=3, size=8)
    drawings = {key: entity for split in source.splits for key, entity in shown(source, split).items()}
    assert len(set(drawings.values())) == 12
    assert {key.split("/")[1] for key in drawings} == set(styles)
    assert len(list(source.entities())) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"styles": ["noto", "notto", "twemoji"]}, "unknown drawing style 'notto'; there are noto, "),
        ({"styles": ["noto", "twemoji"]}, "must be 3 or more different ones"),
        ({"styles": ["noto", "noto", "twemoji"]}, "must be 3 or more different ones"),
        ({"size": 0}, "size 0 is out of range; take 8 to 1024 pixels"),
        ({"entities": 1_000}, "entities 1000 is out of range; these styles have 1 to 39"),
        ({"unseen": 30}, "unseen 30 is out of range; 1 to 29 entities can be unseen"),
        ({"unseen": 0}, "unseen 0 is out of range"),
    ],
)
def test_an_option_out_of_range_is_named_with_its_range(cache, options, message):
    with pytest.raises(InputError, match=message):
        list(EmojiSource(cache=cache, **options).entities())

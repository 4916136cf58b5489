"""Which drawing shows which emoji, in packages with code points and in packages with names only."""

import json
import shutil
from pathlib import Path

import pytest

from mofi_emoji.catalogue import Emoji, read_catalogue
from mofi_emoji.packages import STYLE_VERSIONS
from mofi_lightning.types import InputError

STYLES = tuple(STYLE_VERSIONS)


@pytest.fixture
def modules(cache: Path, tmp_path: Path) -> Path:
    """Packages that the test may change."""
    return Path(shutil.copytree(cache / "node_modules", tmp_path / "node_modules"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def by_id(modules: Path, styles: tuple[str, ...] = STYLES) -> dict[str, Emoji]:
    return {emoji.id: emoji for emoji in read_catalogue(modules, styles)}


def test_every_entity_has_its_drawing_in_every_style(cache):
    catalogue = by_id(cache / "node_modules")
    assert len(catalogue) == 40
    for emoji in catalogue.values():
        styles = STYLES if emoji.id != "U+1F413" else ("noto", "noto-v1", "twemoji")
        assert tuple(emoji.drawings) == styles
        for style, svg in emoji.drawings.items():
            radius = 8 + 4 * STYLES.index(style)
            assert f'r="{radius}"' in svg and 'viewBox="0 0 64 64"' in svg


def test_flags_skin_tones_and_regional_indicators_are_no_entities(cache):
    catalogue = by_id(cache / "node_modules")
    assert {emoji.group for emoji in catalogue.values()} == {
        "animals & nature",
        "people & body",
        "symbols",
        "objects",
    }
    assert not {"U+1F3FB", "U+1F6A9", "U+1F1E6"} & catalogue.keys()


def test_tags_do_not_repeat_the_name(cache):
    rat = by_id(cache / "node_modules")["U+1F400"]
    assert (rat.name, rat.tags) == ("rat", ("tag0",))


def test_variation_selectors_make_no_difference(modules):
    records = json.loads((modules / "emojibase-data/en/data.json").read_text())
    records.append({"hexcode": "2620-FE0F", "label": "skull and crossbones", "group": 0, "order": 99})
    (modules / "emojibase-data/en/data.json").write_text(json.dumps(records))
    package = modules / "@iconify-json/noto"
    edit(package / "icons.json", icons={"skull": {"body": "<g/>"}})
    (package / "chars.json").write_text('{"2620": "skull"}')
    assert "noto" in by_id(modules, ("noto",))["U+2620-FE0F"].drawings


def test_a_set_without_code_points_is_matched_by_aliases_and_shortcodes_but_not_by_mirrored_ones(modules):
    package = modules / "@iconify-json/fxemoji"
    body = {"body": "<g/>"}
    edit(
        package / "icons.json",
        icons={"rodent": body, "bull": body, "left": body},
        aliases={"mouse": {"parent": "rodent"}, "tiger": {"parent": "left", "hFlip": True}},
    )
    edit(modules / "emojibase-data/en/shortcodes/github.json", **{"1F402": ["bull", "ox_face"]})
    drawn = {emoji.name for emoji in read_catalogue(modules, ("fxemoji",)) if emoji.drawings}
    assert drawn == {"mouse", "ox"}


def test_a_name_that_two_emoji_share_matches_neither(modules):
    package = modules / "@iconify-json/fxemoji"
    edit(package / "icons.json", icons={"animal": {"body": "<g/>"}})
    for code in ("1F400", "1F401"):
        edit(modules / "emojibase-data/en/shortcodes/github.json", **{code: "animal"})
    assert not any(emoji.drawings for emoji in read_catalogue(modules, ("fxemoji",)))


@pytest.mark.parametrize(
    ("icon", "box"),
    [
        ({}, "0 0 64 64"),
        ({"width": 32}, "-16 0 64 64"),
        ({"width": 32, "height": 96, "left": 4, "top": 2}, "-28 2 96 96"),
    ],
)
def test_a_drawing_that_is_not_square_is_centred_on_a_square_canvas(modules, icon, box):
    package = modules / "@iconify-json/noto"
    edit(package / "icons.json", icons={"rat": {"body": "<g/>", **icon}})
    (package / "chars.json").write_text('{"1f400": "rat"}')
    assert f'viewBox="{box}"' in by_id(modules, ("noto",))["U+1F400"].drawings["noto"]


@pytest.mark.parametrize("content", [None, '{"icons": '])
def test_a_missing_or_damaged_file_is_named_with_the_way_out(modules, content):
    path = modules / "@iconify-json/noto/icons.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"icons\.json is missing or damaged; remove the cache"):
        read_catalogue(modules, ("noto",))


def test_an_icon_whose_name_means_another_emoji_is_found_by_the_right_one(modules):
    icons = {"cat": {"body": '<circle r="1"/>'}, "catside": {"body": '<circle r="2"/>'}}
    (modules / "@iconify-json/fxemoji/icons.json").write_text(json.dumps({"icons": icons}))
    drawings = {emoji.name: emoji.drawings for emoji in read_catalogue(modules, ["noto", "fxemoji"])}
    assert icons["catside"]["body"] in drawings["cat"]["fxemoji"]
    assert sum("fxemoji" in drawn for drawn in drawings.values()) == 1

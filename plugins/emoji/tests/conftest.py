"""A cache of small packages in the layout of the real ones, with drawings of our own: no network, no npm."""

import json
import unicodedata
from pathlib import Path

import pytest

from mofi_emoji.catalogue import MISNAMED
from mofi_emoji.packages import STYLE_VERSIONS, style_package

# the styles whose packages know no code points: their drawings are found by name
NAMED_STYLES = ("noto-v1", "fxemoji", "emojione")
GROUPS = ("animals & nature", "people & body", "symbols", "components", "flags", "objects")
# 30 emoji of two groups of entities, 10 near-duplicates, 4 that are no entities
GROUP_OF = dict(
    [(0x1F400 + n, GROUPS[0]) for n in range(20)]
    + [(0x1F466 + n, GROUPS[1]) for n in range(5)]
    + [(0x1F503 + n, GROUPS[2]) for n in range(5)]
    + [(0x1F3FB + n, GROUPS[3]) for n in range(2)]
    + [(0x1F6A9 + n, GROUPS[4]) for n in range(2)]
    + [(0x1F4C0 + n, GROUPS[5]) for n in range(10)]
)
RARE = 0x1F400 + 19  # drawn by three styles only


def name_of(code: int) -> str:
    return unicodedata.name(chr(code)).lower()


def svg_body(code: int, style: str) -> str:
    """A disc on a transparent ground; colour and size tell emoji and style apart."""
    radius = 8 + 4 * list(STYLE_VERSIONS).index(style)
    return f'<circle cx="32" cy="32" r="{radius}" fill="#{code % 0x7F:02x}{code % 0x3D:02x}80"/>'


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_packages(modules: Path) -> None:
    """The packages at the versions that the plugin asks for."""
    for style, version in STYLE_VERSIONS.items():
        package = modules / style_package(style)
        drawn = [c for c in GROUP_OF if c != RARE or style in ("noto", "noto-v1", "twemoji")]
        misnamed = {name: slug for slug, name in MISNAMED.get(style, {}).items()}
        slugs = {c: misnamed.get(name_of(c), name_of(c).replace(" ", "-")) for c in drawn}
        icons = {slug: {"body": svg_body(code, style)} for code, slug in slugs.items()}
        chars = {} if style in NAMED_STYLES else {f"{code:x}": slug for code, slug in slugs.items()}
        write_json(package / "icons.json", {"icons": icons, "width": 64, "height": 64})
        write_json(package / "chars.json", chars)
        write_json(package / "package.json", {"version": version})
    names = modules / "emojibase-data"
    records = [
        {
            "hexcode": f"{code:X}",
            "label": name_of(code),
            "tags": sorted({*name_of(code).split(), f"tag{order}"}),
            "group": GROUPS.index(group),
            "order": order,
        }
        for order, (code, group) in enumerate(GROUP_OF.items())
    ]
    regional_indicator = {"hexcode": "1F1E6", "label": "regional indicator A"}
    write_json(names / "en/data.json", [regional_indicator, *records])
    write_json(
        names / "en/messages.json", {"groups": [{"order": n, "message": g} for n, g in enumerate(GROUPS)]}
    )
    for collection in ("cldr", "emojibase", "github", "iamcal", "joypixels"):
        write_json(names / f"en/shortcodes/{collection}.json", {})
    write_json(names / "package.json", {"version": "17.0.0"})


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds every package; read only."""
    folder = tmp_path_factory.mktemp("cache")
    write_packages(folder / "node_modules")
    return folder

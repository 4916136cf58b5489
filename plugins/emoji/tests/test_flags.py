"""The flags source: true Wikidata ids, drawings of the right place, names that several places share."""

import json
import re
import subprocess
import sys
from collections import Counter
from io import BytesIO
from math import sqrt
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mofi_emoji import FlagSource
from mofi_emoji.alt_text import GENERIC
from mofi_emoji.flags_catalogue import FLAG_VERSIONS, Place, read_places
from mofi_emoji.flags_drawings import FLAG_STYLES, emoji_of
from mofi_emoji.flags_text import TEMPLATES, noisy_flag_text
from mofi_lightning import entry_points
from mofi_lightning.sources.base import Source
from mofi_lightning.sources.write import write_pairs
from mofi_lightning.types import InputError

# code -> number of the colour of its flag; each style has its own radius
FLAGS = {"cd": 10, "cg": 20, "dk": 30, "ge": 40, "gb-sct": 50, "bq-bo": 60, "la": 70}
PLACES = [
    {"m49": "001", "wikidata": "Q2", "nameEn": "World", "aliases": ["Earth"], "level": "world"},
    {"m49": "142", "wikidata": "Q48", "nameEn": "Asia", "level": "region"},
    {"m49": "145", "wikidata": "Q27293", "nameEn": "Western Asia", "level": "subregion", "groups": ["142"]},
    {"iso1A2": "CD", "iso1A3": "COD", "wikidata": "Q974", "nameEn": "Democratic Republic of the Congo"},
    {
        "iso1A2": "CG",
        "iso1A3": "COG",
        "wikidata": "Q971",
        "nameEn": "Republic of the Congo",
        "aliases": ["RCB"],
    },
    {"iso1A2": "DK", "iso1A3": "DNK", "wikidata": "Q756617", "nameEn": "Kingdom of Denmark"},
    {"wikidata": "Q35", "nameEn": "Denmark", "country": "DK"},
    {"iso1A2": "GE", "iso1A3": "GEO", "wikidata": "Q230", "nameEn": "Georgia", "groups": ["142", "145"]},
    {"wikidata": "Q22", "nameEn": "Scotland", "aliases": ["GB-SCT"], "country": "GB"},
    {"iso1A2": "LA", "iso1A3": "LAO", "wikidata": "Q819", "nameEn": "Laos"},
    {"iso1A2": "GB", "iso1A3": "GBR", "wikidata": "Q145", "nameEn": "United Kingdom", "aliases": ["UK"]},
    {
        "wikidata": "Q25396",
        "nameEn": "Bonaire",
        "aliases": ["BQ-BO"],
        "level": "subterritory",
        "country": "GB",
    },
    {"wikidata": "Q118863", "nameEn": "North Island", "aliases": ["488"]},
    {"wikidata": "Q22890", "nameEn": "South Isle (old)", "level": "sharedLandform"},
]
SHOWN = {
    "Q974": "cd",
    "Q971": "cg",
    "Q35": "dk",
    "Q230": "ge",
    "Q22": "gb-sct",
    "Q819": "la",
}  # Bonaire has two drawings


def radius(style: str) -> int:
    return 4 + 3 * FLAG_STYLES.index(style)


def body(code: str, style: str) -> str:
    return f'<circle cx="32" cy="24" r="{radius(style)}" fill="#{FLAGS[code]:02x}0080"/>'


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def write_packages(modules: Path) -> None:
    """Small packages in the layout of the real ones, with drawings of our own."""
    for name, version in FLAG_VERSIONS.items():
        write(modules / name / "package.json", {"version": version})
    features = [{"type": "Feature", "properties": place, "geometry": None} for place in PLACES]
    write(modules / "@rapideditor/country-coder/src/data/borders.json", {"features": features})
    known = [
        {"code": "cd", "name": "DR Congo", "capital": "Kinshasa", "continent": "Africa"},
        {"code": "cg", "name": "Congo (Brazzaville)", "capital": "Brazzaville", "continent": "Africa"},
        {"code": "dk", "name": "Denmark", "capital": "Copenhagen", "continent": "Europe"},
        {"code": "ge", "name": "Georgia", "capital": "Tbilisi", "continent": "Asia"},
        {"code": "gb-sct", "name": "Scotland"},
    ]
    write(modules / "flag-icons/country.json", known)
    for style in FLAG_STYLES:
        drawn = [code for code in FLAGS if code != "bq-bo" or style in ("circle-flags", "flagpack")]
        if style.startswith("flag-icons"):
            shape = style.rpartition("-")[2]
            box = "0 0 64 48" if shape == "4x3" else "8 0 48 48"
            for code in drawn:
                svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{body(code, style)}</svg>'
                write(modules / f"flag-icons/flags/{shape}/{code}.svg", svg)
            continue
        slugs = {code: code for code in drawn}
        chars, aliases = {}, {}
        if style in ("twemoji", "emojione"):
            slugs = {code: f"flag-{code}" for code in drawn}
        if style == "twemoji":
            chars = {emoji_of(code).lower(): slug for code, slug in slugs.items()}
            aliases = {f"flag-for-{code}": {"parent": slug} for code, slug in slugs.items()}
        if style == "emojione":
            slugs |= {"ge": "flag-for-ge"}
        if style == "cif":
            slugs |= {"cg": "congo"}
            aliases = {"cg": {"parent": "congo"}}
        icons = {slug: {"body": body(code, style)} for code, slug in slugs.items()}
        package = modules / "@iconify-json" / style
        write(package / "icons.json", {"icons": icons, "aliases": aliases, "width": 64, "height": 48})
        write(package / "chars.json", chars)


@pytest.fixture(scope="module")
def flags_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flags")
    write_packages(folder / "node_modules")
    return folder


@pytest.fixture(scope="module")
def places(flags_cache: Path) -> dict[str, Place]:
    return {place.name: place for place in read_places(flags_cache / "node_modules")}


def test_it_is_a_source_by_the_name_flags():
    assert entry_points.load("flags") is FlagSource
    assert issubclass(FlagSource, Source)


def test_flags_are_emoji_by_the_letters_of_their_codes():
    assert "".join(chr(int(point, 16)) for point in emoji_of("fr").split("-")) == "\U0001f1eb\U0001f1f7"
    assert emoji_of("gb-sct") == "1F3F4-E0067-E0062-E0073-E0063-E0074-E007F"


def test_every_place_is_an_entity_with_its_wikidata_id(flags_cache):
    entities = list(FlagSource(cache=flags_cache).entities())
    assert [(e.id, e.name) for e in entities] == [(p["wikidata"], p["nameEn"]) for p in PLACES]


def test_aliases_are_other_names_codes_and_what_people_leave_of_names(flags_cache):
    aliases = {entity.name: set(entity.aliases) for entity in FlagSource(cache=flags_cache).entities()}
    assert aliases["Democratic Republic of the Congo"] == {"Congo", "DR Congo", "CD", "COD"}
    assert aliases["Republic of the Congo"] == {"Congo", "Congo (Brazzaville)", "CG", "COG", "RCB"}
    assert aliases["Kingdom of Denmark"] == {"Denmark", "DK", "DNK"}
    assert aliases["Georgia"] == {"GE", "GEO"}
    assert aliases["World"] == {"Earth"} and aliases["Western Asia"] == set()
    assert aliases["North Island"] == {"488"} and aliases["South Isle (old)"] == {"South Isle"}


def test_codes_and_spelled_names_are_kept_apart(places):
    assert places["North Island"].codes == ("488",) and places["North Island"].aliases == ()
    assert places["United Kingdom"].codes == ("GB", "GBR", "UK")
    assert places["World"].aliases == ("Earth",) and places["World"].codes == ()


def test_a_description_says_what_a_place_is_and_where(places):
    found = {name: place.description for name, place in places.items()}
    assert found["Georgia"] == "country in Western Asia; capital Tbilisi"
    assert found["Republic of the Congo"] == "country in Africa; capital Brazzaville"
    assert found["Scotland"] == "territory of United Kingdom"
    assert found["Western Asia"] == "part of a continent in Asia" and found["World"] == "all countries"


def test_the_flag_of_a_kingdom_is_that_of_the_country_it_is_called_after(places):
    assert places["Denmark"].code == "dk" and len(places["Denmark"].drawings) == len(FLAG_STYLES)
    assert places["Kingdom of Denmark"].drawings == {} and places["United Kingdom"].drawings == {}


def test_an_image_shows_the_flag_of_its_key_in_its_style(flags_cache):
    source = FlagSource(size=64, cache=flags_cache)
    pairs = list(source.pairs("train"))
    # what circle-flags calls la is the Latin language
    expected = {f"{c}/{s}" for c in SHOWN.values() for s in FLAG_STYLES} - {"la/circle-flags"}
    assert {pair.key for pair in pairs} == expected
    assert len(pairs) == source.count("train") == len(expected)
    for pair in pairs:
        code, style = pair.key.split("/")
        assert pair.entity and SHOWN[pair.entity.id] == code
        image = Image.open(BytesIO(pair.image))
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert image.size == ((64, 48) if style == "flag-icons-4x3" else (64, 64))
        pixels = np.asarray(image).astype(float)
        assert tuple(pixels[image.height // 2, 32]) == (FLAGS[code], 0, 128)
        scale = 64 / 48 if style == "flag-icons-1x1" else 1
        area = (1 - pixels[..., 1] / 255).sum()
        assert area == pytest.approx(np.pi * (radius(style) * scale) ** 2, rel=0.03)


def test_a_place_drawn_by_few_styles_is_an_entity_without_images(flags_cache, places):
    assert len(places["Bonaire"].drawings) == 2
    shown = {pair.entity.id for pair in FlagSource(size=8, cache=flags_cache).pairs("train") if pair.entity}
    assert shown == SHOWN.keys()


def assert_share(count: int, total: int, expected: float) -> None:
    """Within 4 standard errors of a binomial share."""
    assert abs(count / total - expected) < 4 * sqrt(expected * (1 - expected) / total), (count, expected)


def test_texts_have_the_shares_of_noise_that_the_readme_states():
    letters = "abcdefghijklmnop"
    made = [
        Place(
            f"Q{n}",
            f"N{x}{x}",
            (f"S{x}{x}", f"T{x}{x}"),
            (f"C{x}{x}",),
            "country",
            f"R{x}{x}",
            f"K{x}{x}",
            x,
            {},
        )
        for n, x in enumerate(letters)
    ]
    random, calls = Random(1), 8000
    seen: Counter[str] = Counter()
    templates = [
        re.compile(re.escape(t).replace(r"\{\}", r"([NSTC])(\w)\2") + r"(?:, [RK]\2\2)?") for t in TEMPLATES
    ]
    for call in range(calls):
        shown = made[call % len(made)]
        text = noisy_flag_text(shown, made, random)
        if text in GENERIC or not text:
            seen["generic" if text else "empty"] += 1
            continue
        if text.startswith("IMG_"):
            seen["file name"] += 1
            continue
        (match,) = {m.groups() for t in templates if (m := t.fullmatch(text))}
        kind, letter = match
        seen["named"] += 1
        seen["right" if letter == shown.code else "wrong"] += 1
        seen["alias" if kind in "ST" else "code" if kind == "C" else "name"] += 1
        seen["context"] += ", " in text
    for kind, share in (("generic", 0.05), ("file name", 0.03), ("empty", 0.02), ("named", 0.90)):
        assert_share(seen[kind], calls, share)
    for kind, share in (("wrong", 0.3), ("alias", 0.3), ("code", 0.1), ("context", 0.4)):
        assert_share(seen[kind], seen["named"], share)


def test_a_place_without_other_names_is_called_by_its_own():
    place = Place("Q1", "Atlantis", (), (), "country", "", "", "xx", {})
    texts = {noisy_flag_text(place, [place], Random(n)) for n in range(200)}
    assert {t for t in texts if "Atlantis" in t} == {t.format("Atlantis") for t in TEMPLATES}


def test_the_same_seed_gives_the_same_bytes_in_another_process_and_another_seed_others(flags_cache, tmp_path):
    write_pairs(FlagSource(size=8, cache=flags_cache), tmp_path / "here")
    for seed in ("1", "2"):
        code = (
            "from pathlib import Path; from mofi_emoji import FlagSource; "
            "from mofi_lightning.sources.write import write_pairs; "
            f"write_pairs(FlagSource(8, {seed}, Path({str(flags_cache)!r})), Path({str(tmp_path / seed)!r}))"
        )
        subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": "", "PYTHONHASHSEED": seed})
    for name in ("train", "truth", "knowledge_base"):
        here, same, other = (tmp_path / run / f"{name}.parquet" for run in ("here", "1", "2"))
        assert here.read_bytes() == same.read_bytes()
        if name == "train":
            assert here.read_bytes() != other.read_bytes()
    truth = {
        row["key"]: row["entity"] for row in pq.read_table(tmp_path / "here" / "truth.parquet").to_pylist()
    }
    assert truth["dk/twemoji"] == "Q35" and truth["gb-sct/emojione"] == "Q22"


def test_a_damaged_package_and_a_size_out_of_range_are_named(tmp_path):
    write_packages(tmp_path / "node_modules")
    borders = tmp_path / "node_modules/@rapideditor/country-coder/src/data/borders.json"
    borders.write_text("{")
    with pytest.raises(InputError, match=r"borders\.json is missing or damaged"):
        list(FlagSource(cache=tmp_path).entities())
    with pytest.raises(InputError, match="size 4 is out of range; take 8 to 1024 pixels"):
        FlagSource(size=4)

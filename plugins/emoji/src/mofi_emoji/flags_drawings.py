"""The drawings of flags by what the sets call them: ISO codes, or the code points of emoji."""

from __future__ import annotations

from pathlib import Path

from mofi_emoji.catalogue import IconSet
from mofi_emoji.packages import STYLE_VERSIONS, style_package
from mofi_lightning.types import InputError

FLAGS_PACKAGE = "flag-icons"
_SHAPES = ("4x3", "1x1")  # of the drawings of flag-icons
_CODED_STYLES = ("circle-flags", "flagpack", "cif")  # their icons are named by ISO codes
# icons of circle-flags that stand for a language: Arabic, Interlingue, Ido, Latin
_LANGUAGES = {"ar", "ie", "io", "la"}
FLAG_STYLES = (*(f"flag-icons-{shape}" for shape in _SHAPES), *_CODED_STYLES, "twemoji", "emojione")
DRAWING_VERSIONS = {
    FLAGS_PACKAGE: "7.5.0",
    style_package("circle-flags"): "1.2.11",
    style_package("flagpack"): "1.2.8",
    style_package("cif"): "1.2.7",
    style_package("twemoji"): STYLE_VERSIONS["twemoji"],
    style_package("emojione"): STYLE_VERSIONS["emojione"],
}
_BLACK_FLAG, _END_OF_TAGS = 0x1F3F4, 0xE007F


class FlagDrawings:
    """All drawings of flags.

    Args:
        modules: the folder `node_modules` that holds the packages of `DRAWING_VERSIONS`.

    Raises:
        InputError: a file of a package is missing or damaged.
    """

    def __init__(self, modules: Path) -> None:
        self._folder = modules / FLAGS_PACKAGE / "flags"
        sets = {style: IconSet(modules / style_package(style), {}) for style in FLAG_STYLES[len(_SHAPES) :]}
        twemoji, emojione = sets["twemoji"], sets["emojione"]
        # emojione knows no code points, but its names are among those that twemoji has for them
        code_of = {
            name: code for code, slug in twemoji.chars.items() for name in (slug, *twemoji.aliases[slug])
        }
        self._sets = sets
        self._slugs = {style: _slugs(sets[style]) for style in _CODED_STYLES}
        for language in _LANGUAGES:
            self._slugs["circle-flags"].pop(language, None)
        self._slugs["twemoji"] = twemoji.chars
        self._slugs["emojione"] = {code_of[slug]: slug for slug in emojione.icons if slug in code_of}

    def of(self, code: str) -> dict[str, str]:
        """Style -> SVG document of the flag `code`, for instance "ge" or "gb-sct"; empty if there is none."""
        drawings = {}
        for shape in _SHAPES:
            file = self._folder / shape / f"{code}.svg"
            if file.exists():
                drawings[f"flag-icons-{shape}"] = _text(file)
        for style, icons in self._sets.items():
            slug = self._slugs[style].get(code if style in _CODED_STYLES else emoji_of(code))
            if slug:
                drawings[style] = icons.svg(slug)
        return drawings


def _slugs(icons: IconSet) -> dict[str, str]:
    """Name -> slug of an icon set whose icons are found by name."""
    slugs = {slug: slug for slug in icons.icons}
    return slugs | {alias: slug for slug, aliases in icons.aliases.items() for alias in aliases}


def emoji_of(code: str) -> str:
    """The code points of the flag `code` among emoji (Unicode Technical Standard 51, annex B).

    Example:
        >>> emoji_of("ge")
        '1F1EC-1F1EA'
    """
    if len(code) == 2:
        return "-".join(f"{0x1F1E6 + ord(letter) - ord('a'):X}" for letter in code)
    tags = [0xE0000 + ord(letter) for letter in code.replace("-", "")]
    return "-".join(f"{point:X}" for point in (_BLACK_FLAG, *tags, _END_OF_TAGS))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is damaged; remove the cache it is in and run again") from error

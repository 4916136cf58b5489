"""Names and texts in the form in which they are compared."""

from __future__ import annotations

import re
import unicodedata

LONGEST_TEXT = 10_000
"""Characters of a text that are read: a longer one is a page, no caption, and must not cost without bound."""

# scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, Han
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# in a text of letters, digits, marks, apostrophes and spaces: one letter of those scripts with its marks, or
# a run of the others that starts with a letter or digit
_RUN = rf"[^ '{_UNSPACED}]"
_WORD = re.compile(rf"[{_UNSPACED}][^\w ']*|(?=\w){_RUN}+(?:'{_RUN}+)*'?")

# common words that the rules for plurals would not bring together, and none that also cut dense and phase
_SINGULAR = {"gases": "gas", "gasses": "gas", "lens": "lens", "lense": "lens", "lenses": "lens"}

_APOSTROPHES = "'`\u2019\u02bc"
_ACCENTED_SCRIPTS = ("LATIN ", "GREEK ", "CYRILLIC ")
# letters of these scripts with a stroke or ligature, which no decomposition takes apart
_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "\u0131": "i", "æ": "ae", "œ": "oe", "þ": "th"}
)
# marks that belong to no script (U+0300 accents, variation selectors), and the vowel points of Hebrew and
# Arabic, which are written or left out at will; then joiners, the soft hyphen and the Arabic kashida
_DROPPED = re.compile(
    "[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f\U000e0100-\U000e01ef"
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u064b-\u0652\u0670"
    "\u00ad\u0640\u200c-\u200f\u2060\ufeff]"
)


def words(text: str) -> list[str]:
    """The normalised words of `text`, the form in which texts and names are compared.

    1. Only the first `LONGEST_TEXT` characters are read, to the last space in their second half.
    2. Unicode NFKC and case folding (full-width and ligature forms, `STRASSE` for `straße`).
    3. Accents go: those of Latin, Greek and Cyrillic letters (`é`, `ё`, `ø`) and the vowel points of Hebrew
       and Arabic. Marks of other scripts are letters (Devanagari, Thai) and stay.
    4. Words are runs of letters, digits and marks; all else separates, hyphens and underscores too. In the
       scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) every letter is
       a word, so that a name is found in the middle of a sentence: the longest name that starts at a letter.
    5. A possessive ending is cut, other apostrophes are dropped.
    6. A plain English plural ending is cut by rule. Irregular plurals (`mice`, `knives`) stay other words.

    The results are keys, not spelling: `cookies` and `cookie` both give `cooky`, `shoes` and `shoe` `sho`.

    >>> words("The dog\u2019s  BISCUITS, two_boxes, Café 東京Tower")
    ['the', 'dog', 'biscuit', 'two', 'box', 'cafe', '東', '京', 'tower']
    """
    if len(text) > LONGEST_TEXT:
        cut = text[:LONGEST_TEXT]
        head = next(iter(cut.rsplit(maxsplit=1)), "")
        # without a space in the second half, the rest is one word of a script without spaces, or noise
        text = head if len(head) > LONGEST_TEXT // 2 else cut
    if text.isascii():
        # bytes are translated several times faster than a str
        plain = text.encode().translate(_ASCII).decode()
        tokens = _WORD.findall(plain) if "'" in plain else plain.split()
    else:
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        tokens = _WORD.findall(folded.translate(_LETTERS))
    return list(map(_STEMS.__getitem__, tokens))


def normalise(text: str) -> str:
    """The normalised words of `text`, joined by single spaces."""
    return " ".join(words(text))


def _letter(character: str) -> str:
    """What becomes of a character of a folded text: itself without its accent, an apostrophe, a space, ''."""
    if character in _APOSTROPHES:
        return "'"
    if _DROPPED.match(character):
        return ""
    if unicodedata.category(character)[0] not in "LNM":
        return " "
    if unicodedata.name(character, "").startswith(_ACCENTED_SCRIPTS):
        return _DROPPED.sub("", unicodedata.normalize("NFD", character)).translate(_PLAIN)
    return character


def _stem(word: str) -> str:
    word = word.removesuffix("'").removesuffix("'s").replace("'", "")
    if word in _SINGULAR:
        return _SINGULAR[word]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    # singular and plural must meet, so these apply to both: berrie(s), cookie(s); boxe(s), headache(s);
    # buse(s), house(s); irise(s), noise(s); heroe(s), shoe(s)
    if len(word) > 4 and word.endswith("ie"):
        word = word[:-2] + "y"
    elif len(word) > 3 and word.endswith(("xe", "che", "she", "sse", "ze", "use", "ise", "oe")):
        word = word[:-1]
    return word


class _Letters(dict[int, str]):
    """Table of `str.translate`, made as characters are met; as large as the scripts that texts use."""

    def __missing__(self, code: int) -> str:
        return self.setdefault(code, _letter(chr(code)))


class _Stems(dict[str, str]):
    """Stems of the words met last; about 10 MB at most."""

    most = 1 << 16

    def __missing__(self, word: str) -> str:
        if len(self) == self.most:
            self.clear()
        stem = _stem(word)
        if len(word) < 32:
            self[word] = stem
        return stem


_LETTERS = _Letters()
_STEMS = _Stems()
_ASCII = bytes(ord(_letter(chr(code).casefold())) if code < 128 else 0 for code in range(256))

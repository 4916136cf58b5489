"""Only the beginning of a long text is tokenised, and it has the ids of the whole text."""

import timeit
from random import Random

import pytest
import tokenizers

from mofi_lightning.encoders.tokenizer import Tokenizer


def words(count: int) -> str:
    """Words of 1 to 12 letters, with punctuation and emoji in between."""
    random = Random(4)
    drawn = ("".join(random.choices("etaoinshrdluéß日本", k=random.randint(1, 12))) for _ in range(count))
    ends = ["", "", ",", ". 👩\u200d👩", "'s"]
    return " ".join(word + random.choice(ends) for word in drawn)


@pytest.fixture(scope="module", params=["clip", "bytes", "trained"])
def tokenizer(request) -> Tokenizer:
    if request.param == "trained":
        return Tokenizer.train([words(500)], 600)
    return Tokenizer.load(request.param)


@pytest.mark.parametrize(
    "text",
    [
        words(8_000),
        words(300).replace(" ", ""),
        "word " * 2_000,
        "e\u0301" * 3_000,
        "ab" * 3_000,
        " " * 5_000 + "late words",
        "a" + " " * 3_000 + "photo" + "\n" * 3_000 + "of cats",
    ],
    ids=["words", "one word", "repeated", "accents", "pairs", "spaces", "gaps"],
)
def test_a_long_text_has_the_ids_of_the_whole_text(tokenizer, text):
    whole = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    whole.no_padding()
    expected = whole.encode(text).ids
    expected = expected if len(expected) <= 77 else [*expected[:76], tokenizer.eos_id]
    ids, mask = tokenizer([text], 77)
    assert ids[0, : mask.sum()].tolist() == expected


def test_a_text_of_a_megabyte_takes_about_as_long_as_a_short_one(tokenizer):
    long = words(150_000)
    assert len(long.encode()) > 1_000_000

    def seconds(text: str) -> float:
        return min(timeit.repeat(lambda: tokenizer([text], 77), number=1, repeat=20))

    assert seconds(long) < 5 * seconds(long[:1_000])

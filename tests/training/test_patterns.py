"""Shell patterns of parameter names."""

import pytest

from mofi_lightning.training.patterns import matching
from mofi_lightning.types import InputError

NAMES = ["model.image.norm.weight", "model.image.norm.bias", "model.text.norm.weight"]


def test_a_star_matches_dots_and_case_counts():
    assert matching(NAMES, "model.image.*", "freeze") == NAMES[:2]
    assert matching(NAMES, "*.weight", "freeze") == NAMES[::2]
    with pytest.raises(InputError):
        matching(NAMES, "MODEL.*", "freeze")


def test_a_pattern_without_a_match_is_refused_with_the_nearest():
    with pytest.raises(InputError) as caught:
        matching(NAMES, "model.imgae.*", "freeze")
    assert str(caught.value) == (
        "freeze pattern 'model.imgae.*' matches no parameter; did you mean 'model.image.*'?"
    )
    with pytest.raises(InputError, match=r"one is 'model\.image\.norm\.weight'"):
        matching(NAMES, "qqq", "freeze")

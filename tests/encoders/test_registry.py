import pytest
import timm

from mofi_lightning.cli import backbones
from mofi_lightning.encoders.registry import backbone_names
from mofi_lightning.types import InputError


def test_patterns_match_names_with_and_without_prefix():
    assert backbone_names("*patch16_clip_224") == backbone_names("timm/*patch16_clip_224") != []
    assert backbone_names("mofi/*") == ["mofi/tiny", "mofi/b16", "mofi/l14", "mofi/h14"]
    assert len(backbone_names("timm/*")) == len(timm.list_models())


def test_backbones_prints_the_matching_names(capsys):
    backbones("l14")
    assert "mofi/l14" in capsys.readouterr().out
    with pytest.raises(InputError, match="no backbone matches 'xyz'"):
        backbones("xyz")

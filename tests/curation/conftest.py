import io
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.encoders.tokenizer import Tokenizer

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")


@pytest.fixture(scope="session")
def drawings() -> Sequence[bytes]:
    """Twelve PNG files: a dot and a square in each of six colours."""
    files = []
    for colour in COLOURS:
        for shape in ("ellipse", "rectangle"):
            image = Image.new("RGB", (32, 32), "white")
            getattr(ImageDraw.Draw(image), shape)((6, 6, 26, 26), fill=colour)
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            files.append(buffer.getvalue())
    return files


@pytest.fixture(scope="session")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved dual encoder with fresh weights: enough to test what is done with its embeddings."""
    torch.manual_seed(1)
    tokenizer = Tokenizer.train([f"a picture of a {colour} dot" for colour in COLOURS], 300)
    config = DualEncoderConfig(embed_dim=8, text=TextConfig(width=16, layers=1, heads=2))
    folder = tmp_path_factory.mktemp("scorer")
    DualEncoder.from_config(config, tokenizer).save(folder)
    return folder

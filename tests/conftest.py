"""What every test shares: an offline environment, one thread, and the committed slice of real emoji pairs."""

import os
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", DO_NOT_TRACK="1", RAY_USAGE_STATS_ENABLED="0", CUDA_VISIBLE_DEVICES="")

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from mofi_lightning.testing import GlooPool, shared_processes

SLICE = Path(__file__).parent / "data" / "emoji_slice"


@pytest.fixture(scope="session")
def emoji_slice() -> Path:
    """Pairs folder of about 60 entities x 4 drawing styles: parquet splits, knowledge base and truth."""
    return SLICE


@pytest.fixture(scope="session")
def pool() -> GlooPool:
    """Warm processes for tests of several ranks: `pool(2, function, *args)`."""
    return shared_processes()

"""What is planned is what a run holds: bytes of the state exactly, the peak nearly."""

import pytest
from tests.training.planning.real_steps import (
    checkpointed_mofi,
    clip_on_a_vit,
    measure,
    sliced_mofi_on_a_convnext,
)

from mofi_lightning.testing import synthetic_vocabulary
from mofi_lightning.training.planning.rehearsal import AVERAGE, BUFFERS, TABLE, Rehearsal
from mofi_lightning.training.planning.weightless import Weightless, pretended_ranks

ENTITIES = 2000
EXACT = ("parameters", "gradients", "optimizer state")


def rehearse(make, rows, ranks, bf16=False):
    with pretended_ranks(ranks), Weightless() as mode:
        rehearsal = Rehearsal(make(), synthetic_vocabulary(ENTITIES), None, mode, ranks, 1, bf16, 1.0)
        return rehearsal.take(rows // ranks)


@pytest.mark.parametrize(
    "make, rows, ranks, bf16",
    [
        (clip_on_a_vit, 32, 1, False),
        (checkpointed_mofi, 32, 2, False),
        (sliced_mofi_on_a_convnext, 64, 1, False),
        (checkpointed_mofi, 64, 2, True),
    ],
)
def test_state_is_planned_to_the_byte_and_the_peak_within_15_percent(pool, tmp_path, make, rows, ranks, bf16):
    planned = rehearse(make, rows, ranks, bf16)
    real = pool(ranks, measure, str(tmp_path), make, rows, ENTITIES, "bf16-mixed" if bf16 else "32-true")
    for name in EXACT:
        assert planned.held[name] == real[0][0][name], name
        assert planned.total[name] == sum(held[name] for held, _ in real), name
    assert sum(planned.held[name] for name in (AVERAGE, TABLE, BUFFERS)) == real[0][0]["buffers"]
    error = sum(planned.peak.values()) / max(peak for _, peak in real) - 1
    print(f"{make.__name__} on {ranks}: peak {max(p for _, p in real):,} bytes, planned {100 * error:+.2f} %")
    assert abs(error) < 0.15

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


def rehearse(make, rows, ranks, bf16=False, replicas=1):
    with pretended_ranks(ranks), Weightless() as mode:
        rehearsal = Rehearsal(make(), synthetic_vocabulary(ENTITIES), None, mode, ranks, replicas, bf16, 1.0)
        return rehearsal.take(rows // ranks)


@pytest.mark.parametrize(
    "make, rows, ranks, bf16, replicas, tolerance",
    [
        (clip_on_a_vit, 32, 1, False, 1, 0.02),
        (sliced_mofi_on_a_convnext, 64, 1, False, 1, 0.02),
        (checkpointed_mofi, 64, 2, True, 1, 0.02),
        pytest.param(checkpointed_mofi, 48, 3, False, 1, 0.02, marks=pytest.mark.slow),
        # gloo keeps what it all-reduces between copies a while longer
        pytest.param(sliced_mofi_on_a_convnext, 64, 4, True, 2, 0.15, marks=pytest.mark.slow),
        pytest.param(clip_on_a_vit, 32, 2, False, 2, 0.02, marks=pytest.mark.slow),
    ],
)
def test_state_is_planned_to_the_byte_and_the_peak_nearly(
    pool, tmp_path, make, rows, ranks, bf16, replicas, tolerance
):
    planned = rehearse(make, rows, ranks, bf16, replicas)
    precision = "bf16-mixed" if bf16 else "32-true"
    real = pool(ranks, measure, str(tmp_path), make, rows, ENTITIES, precision, replicas)
    for name in EXACT:
        assert planned.held[name] == real[0][0][name], name
        assert planned.total[name] == sum(held[name] for held, _ in real), name
    assert sum(planned.held[name] for name in (AVERAGE, TABLE, BUFFERS)) == real[0][0]["buffers"]
    peak = max(peak for _, peak in real)
    error = planned.peak.total() / peak - 1
    print(f"{make.__name__} on {ranks}: peak {peak:,} bytes, planned {100 * error:+.3f} %")
    assert abs(error) < tolerance

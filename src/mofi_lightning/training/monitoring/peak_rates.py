"""The most operations a second that a device can do, which MFU is a share of."""

from __future__ import annotations

from typing import NamedTuple

import torch


class _Rates(NamedTuple):
    """Dense FLOP/s by the number format of the matrix products."""

    bf16: float
    tf32: float
    fp32: float


# From NVIDIA's datasheets; where these give tensor cores for sparse matrices (Hopper), half of it. The first
# name that a device's own contains counts, so the longer ones stand first.
_RATES = {
    "H200 NVL": _Rates(835e12, 417e12, 60e12),
    "H200": _Rates(989e12, 494e12, 67e12),
    "H100 NVL": _Rates(835e12, 417e12, 60e12),
    "H100 PCIe": _Rates(756e12, 378e12, 51e12),
    "H100": _Rates(989e12, 494e12, 67e12),
    "A100": _Rates(312e12, 156e12, 19.5e12),
    "L40S": _Rates(362e12, 183e12, 91.6e12),
}


def peak_rate(device: str, precision: str) -> float | None:
    """FLOP/s of a device in a run's precision; None where it is not known.

    Args:
        device: the name that `torch.cuda.get_device_name` gives.
        precision: the trainer's; fp32 counts as TF32 where `torch.set_float32_matmul_precision` allows it.
    """
    rates = next((rates for name, rates in _RATES.items() if name in device), None)
    if rates is None or precision not in ("bf16-mixed", "32-true"):
        return None
    if precision == "bf16-mixed":
        return rates.bf16
    return rates.fp32 if torch.get_float32_matmul_precision() == "highest" else rates.tf32

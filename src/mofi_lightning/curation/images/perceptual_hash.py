"""Perceptual hash: 64 bits that hardly change when an image is compressed, scaled or brightened."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

_FREQUENCIES = 8
# rows and columns looked at; a larger image is sampled, which waves this long do not notice
_MOST_SAMPLES = 192
# The cosines are integers. Sums stay below 2^53 (8 bits of a pixel, 3 of the channels' weights, twice 12 of a
# cosine and 9 of the samples), so float64 holds them exactly: the hash depends on no order of addition,
# hence neither on the processor nor on the number of threads.
_COSINE_BITS = 12
_RED, _GREEN, _BLUE = 2, 5, 1  # luma in eighths, near BT.601's 0.299, 0.587, 0.114
# A wave fainter than this, in grey levels, is no feature of an image but noise: it counts as absent. Rounding
# the cosines gives a uniform image waves of at most 255 / 2 / 2^12 grey levels, which is less.
_FAINTEST = 1 / 32


def perceptual_hash(image: Tensor | NDArray[np.uint8]) -> int:
    """Hash an image by its coarse pattern of light and dark: pHash (Zauner 2010, section 3.2.2).

    The coefficients are those of the 8 x 8 lowest frequencies of the DCT-II of the luma (2 R + 5 G + B) / 8,
    without the constant: `c[k, l] = mean of luma[y, x] cos(pi k (y + 1/2) / H) cos(pi l (x + 1/2) / W)`. Bit
    `63 - (8 k + l)` is set where `c[k, l]` is above the median of the 63; bit 63 never is. Of an image with
    more than 383 rows or columns, every second, third ... is taken, so that 192 to 383 are left. Waves below
    1/32 grey level and those too short for a side below 8 pixels count as 0.

    So brightness and contrast do not matter, nor does colour beside its luma. Uniform images, of any size and
    colour, have hash 0: as duplicates they are all alike.

    Args:
        image: uint8 `[3, H, W]`, on the CPU.
    """
    import torch

    pixels = np.asarray(image)
    rows, columns = (max(1, side // _MOST_SAMPLES) for side in pixels.shape[1:])
    # one channel at a time, which suits decoders that interleave them
    red, green, blue = (channel[::rows, ::columns].astype(np.int16) for channel in pixels)
    luma = (_RED * red + _GREEN * green + _BLUE * blue).astype(np.float64)
    # by torch: NumPy's BLAS would start threads of its own for each image
    rows_of, columns_of = (torch.from_numpy(_cosines(side)) for side in luma.shape)
    sums = (rows_of @ torch.from_numpy(luma) @ columns_of.T).numpy()
    sums[np.abs(sums) < _FAINTEST * luma.size * (_RED + _GREEN + _BLUE) * 4**_COSINE_BITS] = 0
    waves = sums.ravel()[1:]
    above = waves > np.partition(waves, len(waves) // 2)[len(waves) // 2]
    return int.from_bytes(np.packbits(np.concatenate(([False], above))).tobytes())


@lru_cache(maxsize=1024)
def _cosines(side: int) -> NDArray[np.float64]:
    """`cos(pi k (x + 1/2) / side)` in fixed point, `[8, side]`; 0 for frequencies that `side` pixels lack."""
    k, x = np.arange(_FREQUENCIES)[:, None], np.arange(side)
    waves = np.cos(np.pi * k * (x + 0.5) / side)
    waves[side:] = 0
    return np.asarray(np.round(waves * 2**_COSINE_BITS))

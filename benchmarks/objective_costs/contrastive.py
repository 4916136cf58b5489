"""CLIP and SigLIP beside open_clip's losses: time and memory of forward and backward."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from mofi_lightning.objectives import CLIP, Objective
from mofi_lightning.types import Batch, Embeddings, ObjectiveSpec, Tokens
from mofi_siglip import SigLIP
from objective_costs.live_memory import LiveMemory, peak_rss_growth
from objective_costs.timing import interleaved, median_ratio

WIDTH = 512
THREADS = 2
CONTEXT_LENGTH = 76
Step = Callable[[], object]


class Pair(NamedTuple):
    """Loss and gradients of the same batch, made by us and by the peer."""

    ours: Step
    peer: Step


def contrastive_figures(rounds: int) -> dict[str, float]:
    """Ratios to open_clip at B rows (4k: 4096), and how our memory grows with the batch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        figures = {
            "clip_time_ratio_4k": _time_ratio("CLIP", clip(4096), 4096, rounds),
            "clip_time_ratio_8k": _time_ratio("CLIP", clip(8192), 8192, rounds),
            "clip_memory_ratio_8k": _memory_ratio("CLIP", clip(8192), 8192),
            "clip_memory_growth_4k_16k": _memory("CLIP", clip(16384).ours, 16384)
            / _memory("CLIP", clip(4096).ours, 4096),
            "siglip_time_ratio_8k": _time_ratio("SigLIP", siglip(8192), 8192, rounds),
            "siglip_memory_ratio_8k": _memory_ratio("SigLIP", siglip(8192), 8192),
        }
    finally:
        torch.set_num_threads(threads)
    return figures


def clip(rows: int) -> Pair:
    """CLIP with its defaults: it looks for repeats among entities and texts, and finds none."""
    image, text, batch = _rows(rows)
    objective, loss = CLIP(ObjectiveSpec(WIDTH, WIDTH)), open_clip.ClipLoss()
    return _pair(objective, image, text, batch, lambda scale: loss(image, text, scale.exp()))


def siglip(rows: int) -> Pair:
    """SigLIP with its defaults."""
    image, text, batch = _rows(rows)
    objective, loss = SigLIP(ObjectiveSpec(WIDTH, WIDTH)), open_clip.loss.SigLipLoss()
    return _pair(
        objective, image, text, batch, lambda scale, bias: loss(image, text, scale.exp(), bias).squeeze()
    )


def _rows(rows: int) -> tuple[Tensor, Tensor, Batch]:
    generator = torch.Generator().manual_seed(0)
    image, text = (
        F.normalize(torch.randn(rows, WIDTH, generator=generator), dim=1).requires_grad_() for _ in range(2)
    )
    ids = torch.randint(50_000, (rows, CONTEXT_LENGTH), generator=generator)
    entity = torch.arange(rows)
    entity[::2] = -1
    return image, text, Batch(text=Tokens(ids, torch.ones_like(ids)), entity=entity)


def _pair(
    objective: Objective, image: Tensor, text: Tensor, batch: Batch, peer_loss: Callable[..., Tensor]
) -> Pair:
    parameters = list(objective.parameters())
    leaves = [image, text, *parameters]

    def ours() -> list[Tensor]:
        loss = objective(Embeddings(image=image, text=text), batch).loss
        return [loss, *torch.autograd.grad(loss, leaves)]

    def peer() -> list[Tensor]:
        loss = peer_loss(*parameters)
        return [loss, *torch.autograd.grad(loss, leaves)]

    for actual, expected in zip(ours(), peer(), strict=True):
        bound = 1e-4 * expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=0, atol=bound)
    return Pair(ours, peer)


def _time_ratio(name: str, pair: Pair, rows: int, rounds: int) -> float:
    seconds = interleaved(pair._asdict(), rounds)
    ratio = median_ratio(seconds["ours"], seconds["peer"])
    ours, peer = (statistics.median(seconds[side]) for side in pair._fields)
    print(f"{name} B={rows}: {ours:.3f} s, open_clip {peer:.3f} s, median of ratios {ratio:.3f}", flush=True)
    return ratio


def _memory_ratio(name: str, pair: Pair, rows: int) -> float:
    return _memory(name, pair.ours, rows) / _memory("open_clip", pair.peer, rows)


def _memory(name: str, step: Step, rows: int) -> int:
    """Peak of the bytes of live tensors beyond the embeddings and the parameters."""
    with LiveMemory() as memory:
        step()
    rss = peak_rss_growth(step)
    print(
        f"{name} B={rows}: {memory.peak / 1e6:.0f} MB of live tensors, the largest of "
        f"{memory.largest / 1e6:.0f} MB; {rss / 1e6:.0f} MB of resident memory",
        flush=True,
    )
    return memory.peak

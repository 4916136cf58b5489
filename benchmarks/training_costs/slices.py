"""What `encode_slices` saves and costs: a CLIP step of 4,096 pairs in slices of 256 beside the step whole.

Memory is the peak of the bytes of live tensors beyond the parameters and the batch; their gradients count.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from mofi_lightning.encoders.dual_encoder import DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.objectives import CLIP
from mofi_lightning.training import PretrainingModule
from mofi_lightning.types import Batch, Tokens
from objective_costs.live_memory import LiveMemory
from objective_costs.timing import interleaved, median_ratio

BATCH, SLICE = 4096, 256
TOKENS = 16
THREADS = 1
SEED = 1
ENCODER = DualEncoderConfig(
    image="timm/vit_tiny_patch16_224",
    image_options={"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 64, "num_heads": 2},
    embed_dim=64,
    text=TextConfig(width=64, layers=2, heads=2, context_length=TOKENS),
)


def slices_figures(rounds: int) -> dict[str, float]:
    """Memory and time of the step in slices over those of the step whole.

    Args:
        rounds: of the comparison of times.

    Raises:
        AssertionError: the gradients differ by more than fp32 rounding.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        torch.manual_seed(SEED)
        module = PretrainingModule(ENCODER, CLIP)
        module.build(None)
        module.train()
        return _compare(module, rounds)
    finally:
        torch.set_num_threads(threads)


def _compare(module: PretrainingModule, rounds: int) -> dict[str, float]:
    size = module.model.preprocess.size
    ids = torch.randint(3, 250, (BATCH, TOKENS))
    batch = Batch(
        image=torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8),
        text=Tokens(ids, torch.ones_like(ids)),
    )

    def step_in(slices: int) -> Callable[[], None]:
        def step() -> None:
            module.encode_slices = slices
            module.zero_grad()
            module(batch).loss.backward()

        return step

    steps = {"sliced": step_in(BATCH // SLICE), "whole": step_in(1)}
    gradients, peaks = {}, {}
    for name, step in steps.items():
        module.zero_grad()
        with LiveMemory() as memory:
            step()
        peaks[name] = memory.peak
        gradients[name] = [p.grad for p in module.parameters() if p.grad is not None]
    for ours, expected in zip(gradients["sliced"], gradients["whole"], strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    gradients.clear()
    seconds = interleaved(steps, rounds)
    for name, peak in peaks.items():
        middle = statistics.median(seconds[name])
        print(
            f"step of {BATCH} pairs, {name}: {peak / 1e6:.0f} MB of live tensors, {middle:.3f} s", flush=True
        )
    return {
        "cache_memory_ratio": peaks["sliced"] / peaks["whole"],
        "cache_time_ratio": median_ratio(seconds["sliced"], seconds["whole"]),
    }

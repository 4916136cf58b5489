"""A CLIP training step on texts padded to the batch's longest, as batches come, and to the whole context.

The text encoder is that of CLIP B/16, the image encoder ViT-S/32, which a CPU can train. What trimming saves
hangs on the image encoder: `image_share_of_step` says what it takes of the step on untrimmed texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

import torch
from torch.nn.functional import pad

from data_costs.rounds import in_turn
from data_costs.rows import make_caption
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.objectives import CLIP
from mofi_lightning.types import Batch, ObjectiveSpec, Tokens
from objective_costs.timing import median_ratio

BATCH = 16
ROUNDS = 5  # at most: a step takes seconds
THREADS = 2
SEED = 1
CONTEXT_LENGTH = 77
TEXT = TextConfig(width=512, layers=12, heads=8, context_length=CONTEXT_LENGTH)
IMAGE = "timm/vit_small_patch32_224"


def trimming_figures(rounds: int) -> dict[str, float]:
    """Time of a step (forward, backward, AdamW) on trimmed texts over that on texts of 77 tokens.

    Args:
        rounds: of the comparison, `ROUNDS` at most.

    Raises:
        AssertionError: the two losses differ by more than fp32 rounding.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    try:
        model = DualEncoder.from_config(
            DualEncoderConfig(image=IMAGE, embed_dim=TEXT.width, text=TEXT, tokenizer="clip")
        )
        return _compare(model, rounds)
    finally:
        torch.set_num_threads(threads)


def _compare(model: DualEncoder, rounds: int) -> dict[str, float]:
    assert model.tokenizer is not None and model.text is not None
    random = Random(SEED)
    texts = model.tokenizer([make_caption(random) for _ in range(BATCH)], CONTEXT_LENGTH)
    missing = CONTEXT_LENGTH - texts.input_ids.shape[1]
    padded = Tokens(
        pad(texts.input_ids, (0, missing), value=model.tokenizer.pad_id),
        pad(texts.attention_mask, (0, missing)),
    )
    image = torch.randint(0, 256, (BATCH, 3, model.preprocess.size, model.preprocess.size), dtype=torch.uint8)
    objective = CLIP(ObjectiveSpec(model.embed_dim, model.feature_dim, None))
    optimizer = torch.optim.AdamW([*model.parameters(), *objective.parameters()], lr=1e-6)

    def loss_of(tokens: Tokens) -> torch.Tensor:
        batch = Batch(image=image, text=tokens)
        return objective(model(batch), batch).loss

    def step(tokens: Tokens) -> None:
        loss_of(tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    def image_alone() -> None:
        model.image(image).embedding.sum().backward()
        optimizer.zero_grad()

    with torch.no_grad():
        torch.testing.assert_close(loss_of(texts), loss_of(padded), rtol=1e-5, atol=1e-6)
    step(padded)  # makes the optimizer's state
    seconds = in_turn(
        {
            "trimmed": lambda: _seconds(lambda: step(texts)),
            "77 tokens": lambda: _seconds(lambda: step(padded)),
            "image encoder alone": lambda: _seconds(image_alone),
        },
        min(rounds, ROUNDS),
        f"s a step ({texts.input_ids.shape[1]} and {CONTEXT_LENGTH} tokens)",
    )
    return {
        "trimmed_step_ratio": median_ratio(seconds["trimmed"], seconds["77 tokens"]),
        "image_share_of_step": median_ratio(seconds["image encoder alone"], seconds["77 tokens"]),
    }


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

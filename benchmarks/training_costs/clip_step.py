"""A CLIP training step beside open_clip's: equal towers, images and captions; two threads.

The towers are those of open_clip's ViT-S-32, which a CPU can train. Both sides do a whole step: forward,
loss, backward, AdamW, the cap of the scale; ours also measures the gradients and normalises the images, which
the peer gets normalised. Captions have 6 to 30 tokens, uniformly; ours are as long as the batch's longest,
open_clip's 77.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable
from random import Random

import open_clip
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from data_costs.rounds import in_turn
from data_costs.rows import make_caption
from mofi_lightning.encoders.dual_encoder import DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.objectives import CLIP
from mofi_lightning.training import Optimization, PretrainingModule
from mofi_lightning.training.optimization.gradients import Gradients
from mofi_lightning.types import Batch
from objective_costs.timing import median_ratio

BATCH = 16
BATCHES = 8
CONTEXT_LENGTH = 77
THREADS = 2
SEED = 1
PEER = "ViT-S-32"
ENCODER = DualEncoderConfig(
    image="timm/vit_base_patch32_clip_224",
    image_options={"embed_dim": 384, "num_heads": 6},
    embed_dim=384,
    text=TextConfig(width=384, layers=12, heads=6, context_length=CONTEXT_LENGTH),
    tokenizer="clip",
)
OPTIMIZATION = Optimization(lr=1e-5)
Step = Callable[[], None]


def clip_step_figures(rounds: int) -> dict[str, float]:
    """Time of our step over that of open_clip's.

    Args:
        rounds: of the comparison; a step takes seconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    try:
        ours, peer = _steps()
        for step in (ours, peer):
            step()  # makes the optimizer's state
        seconds = in_turn(
            {"ours": lambda: _seconds(ours), "open_clip": lambda: _seconds(peer)},
            rounds,
            f"s a CLIP step of {BATCH} pairs, {PEER}, {THREADS} threads",
        )
    finally:
        torch.set_num_threads(threads)
    return {
        "clip_step_over_open_clip": median_ratio(seconds["ours"], seconds["open_clip"]),
        "clip_step_s": statistics.median(seconds["ours"]),
    }


def _steps() -> tuple[Step, Step]:
    module = PretrainingModule(ENCODER, CLIP, OPTIMIZATION)
    module.build(None)
    peer = open_clip.create_model(PEER)
    module.train()
    peer.train()
    _assert_equal_towers(module, peer)
    batches = _batches(module)
    return _our_step(module, batches), _peer_step(peer, module, batches)


def _assert_equal_towers(module: PretrainingModule, peer: nn.Module) -> None:
    """The peer's text tower is spread over the model."""
    text = module.model.text
    assert text is not None
    image = _count(peer.visual.parameters())
    others = _count(peer.parameters()) - image - 1  # less the scale
    assert (_count(module.model.image.parameters()), _count(text.parameters())) == (image, others)
    shape = (len(peer.transformer.resblocks), peer.transformer.resblocks[0].attn.num_heads)
    assert shape == (ENCODER.text.layers, ENCODER.text.heads)  # type: ignore[union-attr]
    blocks = module.model.image.encoder.model.blocks  # type: ignore[union-attr]
    shape = (len(peer.visual.transformer.resblocks), peer.visual.transformer.resblocks[0].attn.num_heads)
    assert (len(blocks), blocks[0].attn.num_heads) == shape


def _batches(module: PretrainingModule) -> list[Batch]:
    random, size = Random(SEED), module.model.preprocess.size
    assert module.model.tokenizer is not None
    return [
        Batch(
            image=torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8),
            text=module.model.tokenizer([make_caption(random) for _ in range(BATCH)], CONTEXT_LENGTH),
        )
        for _ in range(BATCHES)
    ]


def _our_step(module: PretrainingModule, batches: list[Batch]) -> Step:
    optimizer = OPTIMIZATION.build(dict(module.named_parameters()), {})
    text = module.model.text
    assert text is not None
    gradients = Gradients(
        {
            "image": module.model.image.parameters(),
            "text": text.parameters(),
            "objective": module.objective.parameters(),
        }
    )
    waiting = itertools.cycle(batches)

    def step() -> None:
        optimizer.zero_grad()
        loss = module(next(waiting)).loss
        loss.backward()
        gradients.measure(loss.detach())
        optimizer.step()
        module.objective.after_optimizer_step(1.0)

    return step


def _peer_step(peer: nn.Module, module: PretrainingModule, batches: list[Batch]) -> Step:
    """As open_clip trains: its groups of parameters, its AdamW, its cap of the scale."""
    decayed = [p for p in peer.parameters() if p.ndim >= 2]
    others = [p for p in peer.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}],
        lr=OPTIMIZATION.lr,
        betas=OPTIMIZATION.betas,
        eps=OPTIMIZATION.eps,
    )
    loss_of, tower = open_clip.ClipLoss(), module.model.image
    inputs = []
    for batch in batches:
        ids = batch["text"].input_ids * batch["text"].attention_mask  # open_clip pads with zeros
        ids = pad(ids, (0, CONTEXT_LENGTH - ids.shape[1]))
        inputs.append(((batch["image"] / 255 - tower.mean) / tower.std, ids))
    waiting = itertools.cycle(inputs)

    def step() -> None:
        optimizer.zero_grad()
        loss: Tensor = loss_of(*peer(*next(waiting)))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            peer.logit_scale.clamp_(0, math.log(100))

    return step


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start

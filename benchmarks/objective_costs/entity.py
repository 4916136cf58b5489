"""Entity softmax beside what its users would write: sampled at 2 million classes, exact at 1 million."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mofi_lightning.distributed import sample_classes
from mofi_lightning.objectives import EntitySoftmax
from mofi_lightning.types import Batch, Embeddings, ObjectiveSpec
from objective_costs.live_memory import LiveMemory, peak_rss_growth
from objective_costs.timing import interleaved, median_ratio

WIDTH = 256
ROWS = 256
SAMPLED = 8192
MARGIN, SCALE = 0.15, 32.0
SAMPLED_ROUNDS = 40
SLOW_ROUNDS = 5  # of what takes seconds
THREADS = 2
SMALL, LARGE, EXACT = 20_000, 2_000_000, 1_000_000
Step = Callable[[], Tensor]


def entity_figures(rounds: int) -> dict[str, float]:
    """Ratios of time, and the memory of an exact step in MB beyond the table and its gradient.

    Args:
        rounds: of the slow comparisons, `SLOW_ROUNDS` at most.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return {**_sampled(min(rounds, SLOW_ROUNDS)), **_exact(min(rounds, SLOW_ROUNDS))}
    finally:
        torch.set_num_threads(threads)


def _sampled(rounds: int) -> dict[str, float]:
    small, large = (_training_step(_objective(classes, SAMPLED), classes) for classes in (SMALL, LARGE))
    with _sizes() as sizes:
        large()
    assert max(sizes) < LARGE, f"a step at {LARGE} classes makes a tensor with a dimension of {max(sizes)}"
    seconds = interleaved({"small": small, "large": large}, SAMPLED_ROUNDS)
    growth = median_ratio(seconds["large"], seconds["small"])
    _report(f"sampled entity softmax, {LARGE} and {SMALL} classes", seconds, growth)
    seconds = interleaved({"ours": large, "dense gradient": _dense_gradient_step(LARGE)}, rounds)
    speedup = median_ratio(seconds["dense gradient"], seconds["ours"])
    _report(f"sampled entity softmax, {LARGE} classes", seconds, speedup)
    return {"sampled_2m_over_20k": growth, "sampled_speedup_over_dense_gradient_2m": speedup}


def _exact(rounds: int) -> dict[str, float]:
    objective = _objective(EXACT, None)
    image, entity = _rows(EXACT)
    table = objective.table[:, 0].detach().requires_grad_()

    def ours() -> Tensor:
        image.grad = None
        objective(Embeddings(image=image), Batch(entity=entity)).loss.backward()
        return image.grad

    def dense() -> Tensor:
        image.grad = table.grad = None
        _margin_loss(image @ F.normalize(table, dim=1).T, entity).backward()
        table.grad = None
        return image.grad

    _assert_equal(ours(), dense())
    seconds = interleaved({"ours": ours, "dense": dense}, rounds)
    ratio = median_ratio(seconds["ours"], seconds["dense"])
    _report(f"exact entity softmax, {EXACT} classes", seconds, ratio)
    extra = {}
    for name, step in (("ours", _training_step(objective, EXACT)), ("dense", dense)):
        with LiveMemory() as memory:
            step()
        extra[name] = (memory.peak - table.nbytes) / 1e6
        rss = (peak_rss_growth(step) - table.nbytes) / 1e6
        print(
            f"exact entity softmax, {EXACT} classes, {name}, beyond the table and its gradient: "
            f"{extra[name]:.0f} MB of live tensors, {rss:.0f} MB of resident memory",
            flush=True,
        )
    return {"exact_1m_time_ratio": ratio, "exact_1m_extra_mb": extra["ours"]}


def _objective(num_classes: int, num_sampled: int | None) -> EntitySoftmax:
    # of a vocabulary the objective asks for no more than the number of its entities
    spec = ObjectiveSpec(WIDTH, WIDTH, vocabulary=range(num_classes))  # type: ignore[arg-type]
    return EntitySoftmax(spec, margin=MARGIN, scale=SCALE, num_sampled=num_sampled)


def _rows(num_classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(ROWS, WIDTH, generator=generator), dim=1).requires_grad_()
    return image, torch.randint(num_classes, (ROWS,), generator=generator)


def _training_step(objective: EntitySoftmax, num_classes: int) -> Step:
    image, entity = _rows(num_classes)

    def step() -> Tensor:
        image.grad = None
        objective(Embeddings(image=image), Batch(entity=entity)).loss.backward()
        objective.after_optimizer_step(1.0)
        return image.grad

    return step


def _dense_gradient_step(num_classes: int) -> Step:
    """The same classes and loss; the table a parameter, indexed under autograd; the cheapest optimizer."""
    image, entity = _rows(num_classes)
    table = nn.Parameter(_objective(num_classes, SAMPLED).table[:, 0])
    optimizer = torch.optim.SGD([table], lr=0.1)
    draw = 0

    def step() -> Tensor:
        nonlocal draw
        draw += 1
        image.grad = None
        optimizer.zero_grad()
        ids, target = sample_classes(1, draw, entity, num_classes, SAMPLED)
        _margin_loss(image @ F.normalize(table[ids], dim=1).T, target).backward()
        optimizer.step()
        return image.grad

    _assert_equal(step(), _training_step(_objective(num_classes, SAMPLED), num_classes)())
    return step


def _margin_loss(cosine: Tensor, target: Tensor) -> Tensor:
    margins = torch.zeros_like(cosine).scatter_(1, target[:, None], MARGIN)
    return F.cross_entropy(SCALE * (cosine - margins), target)


def _assert_equal(ours: Tensor, peer: Tensor) -> None:
    torch.testing.assert_close(ours, peer, rtol=0, atol=1e-4 * peer.abs().max().item())


def _report(what: str, seconds: dict[str, list[float]], ratio: float) -> None:
    medians = ", ".join(f"{name} {statistics.median(values):.3f} s" for name, values in seconds.items())
    print(f"{what}: {medians}, median of ratios {ratio:.3f}", flush=True)


@contextmanager
def _sizes() -> Iterator[set[int]]:
    """The dimensions of all tensors that are made, views and results in place aside."""
    with _Sizes() as mode:
        yield mode.sizes


class _Sizes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given:
                self.sizes.update(x.shape)
        return result

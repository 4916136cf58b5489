"""The entity table's step on two ranks with half of the classes each, beside one rank with one half.

The step is that of the objective alone: the batch is gathered, the loss is made forward and backward, the
table updated. CPU time is that of the process with all its threads: waiting for the other rank costs nothing,
and what other programs do meanwhile little. The softmax is exact, as is the default; a step of a sampled one
would not depend on the number of classes. Half of the sampled classes on one rank are shown beside it.
"""

from __future__ import annotations

import functools
import statistics
import time
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F

from data_costs.rounds import in_turn
from mofi_lightning.distributed import rank, world_size
from mofi_lightning.objectives import EntitySoftmax
from mofi_lightning.testing import GlooPool
from mofi_lightning.types import Batch, Embeddings, ObjectiveSpec
from objective_costs.live_memory import peak_rss_growth
from objective_costs.timing import median_ratio

CLASSES, WIDTH = 1_000_000, 256
LARGE_CLASSES, LARGE_WIDTH = 2_000_000, 512
ROWS = 256  # of the global batch
SAMPLED = 8192
SAMPLED_STEPS = 10
TIMEOUT = 900.0


class Cost(NamedTuple):
    """Of one step on one rank.

    Attributes:
        cpu: seconds of CPU time of the process.
        wall: seconds.
        peak: bytes of resident memory beyond what the process held before the objective was made; nan if not
            asked for.
    """

    cpu: float
    wall: float
    peak: float


def table_figures(rounds: int) -> dict[str, float]:
    """CPU time per rank on two ranks over that on one, exact and sampled; the step of a large table."""
    pool = GlooPool(TIMEOUT)
    figures = {}
    try:
        for name, steps, share in (("table", 1, None), ("table_sampled", SAMPLED_STEPS, SAMPLED)):
            half = None if share is None else share // 2
            measures = {
                "two": functools.partial(_cpu, pool, 2, CLASSES, share, steps),
                "one": functools.partial(_cpu, pool, 1, CLASSES // 2, half, steps),
            }
            seconds = in_turn(measures, rounds, f"{name}, CPU seconds a rank")
            figures[f"{name}_two_ranks_over_one"] = median_ratio(seconds["two"], seconds["one"])
        large = pool(2, _cost, LARGE_CLASSES, LARGE_WIDTH, SAMPLED, SAMPLED_STEPS, True)
    finally:
        pool.close()
    figures["table_2m_512_step_ms"] = 1000 * max(cost.wall for cost in large)
    figures["table_2m_512_rank_gb"] = max(cost.peak for cost in large) / 1e9
    print(
        f"{LARGE_CLASSES} x {LARGE_WIDTH} on two ranks, {SAMPLED} sampled: "
        f"{figures['table_2m_512_step_ms']:.1f} ms a step, {1000 * max(c.cpu for c in large):.1f} ms of CPU, "
        f"{figures['table_2m_512_rank_gb']:.2f} GB a rank at the peak, table and start included",
        flush=True,
    )
    return figures


def _cpu(pool: GlooPool, world: int, classes: int, num_sampled: int | None, steps: int) -> float:
    """Mean over the ranks."""
    return statistics.mean(cost.cpu for cost in pool(world, _cost, classes, WIDTH, num_sampled, steps))


def _cost(classes: int, width: int, num_sampled: int | None, steps: int, memory: bool = False) -> Cost:
    """Median over `steps` after one to warm up, on this rank's share of classes and batch."""
    torch.set_num_threads(1)
    costs: list[tuple[float, float]] = []

    def run() -> None:
        # of a vocabulary the objective asks for no more than the number of its entities
        spec = ObjectiveSpec(width, width, vocabulary=range(classes))  # type: ignore[arg-type]
        objective = EntitySoftmax(spec, num_sampled=num_sampled)
        objective.shard(init_device_mesh("cpu", (world_size(),)))
        generator = torch.Generator().manual_seed(0)
        own = slice(rank() * ROWS // world_size(), (rank() + 1) * ROWS // world_size())
        image = F.normalize(torch.randn(ROWS, width, generator=generator), dim=1)[own].requires_grad_()
        batch = Batch(entity=torch.randint(classes, (ROWS,), generator=generator)[own])
        for _ in range(1 + steps):
            dist.barrier()
            cpu, wall = time.process_time(), time.perf_counter()
            objective(Embeddings(image=image), batch).loss.backward()
            objective.after_optimizer_step(1.0)
            costs.append((time.process_time() - cpu, time.perf_counter() - wall))

    peak = float("nan")
    if memory:
        peak = peak_rss_growth(run)
    else:
        run()
    cpu, wall = (statistics.median(values) for values in zip(*costs[1:], strict=True))
    return Cost(cpu, wall, peak)

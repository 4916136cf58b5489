"""A plan as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from mofi_lightning.training.planning.estimate import FARTHEST, USABLE, Plan


def show(plan: Plan) -> None:
    """Print `plan`: sizes in GB of 1e9 bytes, operations in TFLOP of 1e12."""
    console = Console(highlight=False)
    for table in (_parameters(plan), _memory(plan), _communication(plan)):
        if table.row_count:
            console.print(table)
    for line in summary(plan):
        console.print(line, soft_wrap=True)


def summary(plan: Plan) -> list[str]:
    """What decides: whether it fits, what would, how fast it is."""
    cluster, step = plan.cluster, plan.step
    usable = USABLE * cluster.gpu_memory
    fits = plan.peak <= usable * 1e9
    largest = f"{plan.largest_batch:,}" if plan.largest_batch else "none"
    if plan.largest_batch >= FARTHEST * plan.batch:
        largest = f"{largest} or more"  # larger ones were not tried
    model = 3 * plan.row_flops * plan.batch / cluster.gpus / 1e12
    peak = f"{plan.peak / 1e9:.1f} GB" if plan.peak >= 1e8 else f"{plan.peak / 1e6:.2f} MB"
    way_out = "" if fits else "; less: model.activation_checkpointing, model.encode_slices, more GPUs"
    copies = ""
    if plan.replicas > 1:
        copies = f" ({plan.replicas} copies of the parameters, {cluster.gpus_per_node} GPUs a node)"
    return [
        f"batch {plan.batch:,} on {cluster.gpus} GPUs{copies}: {peak} a GPU, "
        f"{'fits' if fits else 'does NOT fit'} into {usable:.1f} GB "
        f"({USABLE:.0%} of {cluster.gpu_memory:g} GB)"
        f"{way_out}",
        f"largest global batch that fits: {largest}",
        f"operations a step and GPU: {step.flops / 1e12:.1f} TFLOP, of which {model:.1f} TFLOP are the "
        "encoders' (forward and backward, nothing twice)",
        f"at {cluster.mfu:.0%} of {cluster.tflops:g} TFLOP/s a GPU: {plan.images_per_second:,.0f} images/s, "
        f"{plan.days:.1f} days for {plan.max_steps:,} steps",
    ]


def _parameters(plan: Plan) -> Table:
    table = _table("parameters", "millions")
    for name, number in plan.step.parts.items():
        table.add_row(name, f"{number / 1e6:,.2f}")
    return table


def _memory(plan: Plan) -> Table:
    table = _table("memory, GB", "a GPU holds", "all GPUs", "a GPU at the peak")
    step = plan.step
    for name in dict.fromkeys([*step.held, *step.peak]):
        values = (step.held.get(name), step.total.get(name), step.peak.get(name))
        if any(values):
            table.add_row(name, *("" if value is None else f"{value / 1e9:,.3f}" for value in values))
    table.add_section()
    totals = (step.held.total(), step.total.total(), step.peak.total())
    table.add_row("together", *(f"{total / 1e9:,.3f}" for total in totals))
    return table


def _communication(plan: Plan) -> Table:
    table = _table("received in a step", "GPUs", "GB a GPU")
    for (purpose, kind, ranks), size in sorted(plan.step.received.items()):
        table.add_row(f"{purpose}: {kind}", str(ranks), f"{size / 1e9:,.3f}")
    return table


def _table(*columns: str) -> Table:
    table = Table()
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table

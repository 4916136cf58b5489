"""Peak memory of a computation in a process of its own, where nothing freed earlier hides what it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def peak_mb(module: str, *arguments: object) -> float:
    """MB by which `memory_probe(*arguments)` of a module of this folder exceeds what it holds before.

    Args:
        module: such as `search`; its function prints the bytes.
        arguments: of the function, as text.
    """
    given = [str(argument) for argument in arguments]
    code = f"from evaluation_costs.{module} import memory_probe; memory_probe(*{given!r})"
    folder = Path(__file__).parents[1]
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
    )
    megabytes = int(output.stdout.split()[-1]) / 1e6
    print(f"{module} {' '.join(given)}: {megabytes:.0f} MB of resident memory", flush=True)
    return megabytes

import importlib
import os
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest
import torch
import torch.distributed as dist

from mofi_lightning.distributed import rank


def _identity() -> tuple[int, int, int]:
    return os.getpid(), dist.get_rank(), torch.get_num_threads()


def _fail_on_one_rank() -> None:
    if rank() == 1:
        raise ValueError("rank 1 is broken")
    dist.barrier()


def test_pool_keeps_its_processes_between_calls(pool):
    first, second = pool(2, _identity), pool(2, _identity)
    assert first == second
    assert [result[1:] for result in first] == [(0, 1), (1, 1)]


def test_pool_reports_the_failing_rank_and_works_on(pool):
    before = pool(2, _identity)
    with pytest.raises(RuntimeError, match="rank 1 is broken"):
        pool(2, _fail_on_one_rank)
    assert pool(2, _identity) == before  # the rank that waited failed too, so nothing is stuck


@pytest.fixture
def unimportable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module that is loaded but on nobody's path, as pytest's importlib mode loads test modules."""
    source = tmp_path / "unimportable.py"
    source.write_text(
        "import torch.distributed as dist\n"
        "class Doubled:\n"
        "    def __init__(self, x): self.x = 2 * x\n"
        "def doubled(make): return make(dist.get_rank()).x + Doubled(1).x\n"
    )
    spec = importlib.util.spec_from_file_location("unimportable", source)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "unimportable", module)
    spec.loader.exec_module(module)
    return module


def test_functions_and_classes_of_modules_that_only_the_caller_has_travel(pool, unimportable):
    before = cloudpickle.list_registry_pickle_by_value()
    assert pool(2, unimportable.doubled, unimportable.Doubled) == [2, 4]
    assert pool(2, lambda: rank() + 1) == [1, 2]
    assert cloudpickle.list_registry_pickle_by_value() == before


def test_a_module_that_was_edited_and_loaded_again_travels_as_it_is_now(pool, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "edited_while_the_pool_is_warm.py"
    source.write_text("def version(): return 1\n")
    os.utime(source, (1, 1))  # older than the processes: they import it
    module = importlib.import_module(source.stem)
    assert pool(1, module.version) == [1]
    source.write_text("def version(): return 'two'\n")
    importlib.reload(module)
    assert pool(1, module.version) == ["two"]


def test_a_script_without_a_main_guard_can_use_the_pool_and_outlives_its_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "import torch.distributed as dist\n"
        "from mofi_lightning.testing import shared_processes\n"
        "def job(): return dist.get_rank()\n"
        "print('ranks', shared_processes()(1, job))\n"
        "try: shared_processes()(1, os._exit, 1)\n"
        "except RuntimeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100)
    assert done.stdout == "ranks [0]\nrank 0 of 1: the process died\n", done.stderr

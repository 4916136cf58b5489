"""`mofi checkpoint`: what is in a checkpoint, and one file made of its folder."""

from __future__ import annotations

import pickle
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tests.test_cli import complaint
from tests.training.runs import train_mofi

from mofi_lightning import cli, load
from mofi_lightning.encoders import checkpoint
from mofi_lightning.training.checkpoints.consolidation import write_one_file
from mofi_lightning.training.checkpoints.inspection import describe
from mofi_lightning.training.checkpoints.writing import CheckpointWriter


class Run(NamedTuple):
    """A run of two ranks that was stopped at step 3."""

    root: Path
    newest: Path
    state: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def run(pool: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("run")
    first, _ = pool(2, train_mofi, str(root), torch.float32, 6, 1, None, 3)
    return Run(root, root / "checkpoints" / "step=00000003.ckpt", first["state"])


def test_a_checkpoint_is_shown_part_by_part(run, capsys):
    cli.main(["checkpoint", "inspect", str(run.root)])
    out = capsys.readouterr().out
    facts, parts = (
        dict(re.findall(r"^(\w+(?: \w+)?)  +(.+?) *$", table, re.MULTILINE)) for table in out.split("\n\n")
    )
    assert facts["checkpoint"].startswith(f"{run.newest}, complete, of 2")
    assert facts["step"] == "3" and facts["written by"] == "2 processes"
    assert facts["objective"] == "MOFI" and facts["image encoder"] == "mofi/tiny"
    assert facts["entities"] == "101" and facts["precision"] == "32-true"
    assert facts["embedding"] == "16 dimensions" and facts["text encoder"] == "width 32, 1 layers"
    # warm-up of 2 steps to 1e-3, then a cosine to 0 at step 6: a quarter of it lies behind step 3
    assert float(facts["learning rate"]) == pytest.approx(1e-3 * (1 + 2**-0.5) / 2, rel=1e-3)
    for prefix, part in (("model.image.", "image tower"), ("model.text.", "text tower")):
        values = sum(v.numel() for n, v in run.state.items() if n.startswith(prefix))
        assert parts[part].split()[0] == f"{values:,}"
    # 101 rows of 16, and a second moment a row, in fp32
    assert parts["entity table"].split() == ["1,717", "6.87", "kB", "float32"]
    trained = sum(v.numel() for n, v in run.state.items() if "optim" not in n)
    assert int(parts["optimizer state"].split()[0].replace(",", "")) > 1.9 * (trained - 1717)


def test_a_folder_of_checkpoints_and_a_checkpoint_are_the_same_thing(run):
    found = [describe(path) for path in (run.root, run.root / "checkpoints", run.newest)]
    assert {d.path for d in found} == {run.newest} and {d.ranks for d in found} == {2}


def test_one_file_holds_what_the_folder_holds_and_is_read_as_a_model(run, tmp_path, capsys):
    file = tmp_path / "deep" / "one.ckpt"
    cli.main(["checkpoint", "consolidate", str(run.root), str(file)])
    assert "step 3" in capsys.readouterr().out
    assert [path.name for path in file.parent.iterdir()] == ["one.ckpt"]
    for mmap in (True, False):
        saved = torch.load(file, weights_only=True, mmap=mmap)
        assert saved["state_dict"].keys() == run.state.keys()
        for name, expected in run.state.items():
            assert torch.equal(saved["state_dict"][name], expected), name
    assert saved["global_step"] == 3 and saved["vocabulary"]["entities"] == 101
    assert not saved.keys() & {"optimizers", "loops", "callbacks", "lr_schedulers"}
    folder, one = load(run.newest).state_dict(), load(file).state_dict()
    assert folder.keys() == one.keys() and all(torch.equal(folder[name], one[name]) for name in one)
    cli.main(["checkpoint", "inspect", str(file)])
    assert "mofi checkpoint consolidate" in capsys.readouterr().out
    assert describe(file).parts["entity table"] == describe(run.newest).parts["entity table"]


def test_one_file_of_a_model_in_another_memory_format_holds_its_values(tmp_path):
    kernel = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    tensor = kernel.contiguous(memory_format=torch.channels_last)
    path = tmp_path / "step=00000001.ckpt"
    writer = CheckpointWriter(None)
    writer.begin({"state_dict.model.a": tensor}, {"dual_encoder": {"config": {}}}, path, None)
    assert writer.wait() is None
    write_one_file(path, tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"]["model.a"]
    assert torch.equal(saved, kernel)


def test_brackets_in_a_path_are_shown_as_they_are(run, tmp_path, capsys):
    path = tmp_path / "run [red]" / run.newest.name
    shutil.copytree(run.newest, path)
    cli.main(["checkpoint", "inspect", str(path)])
    assert "run [red]" in capsys.readouterr().out


def test_training_starts_from_one_file_but_is_not_resumed_from_it(run, tmp_path, capsys):
    file = tmp_path / "one.ckpt"
    write_one_file(run.root, file)
    words = [
        *("fit", "--data", "mofi_lightning.testing.SyntheticDataModule", "--data.rows", "24"),
        *("--data.num_entities", "101", "--trainer.accelerator", "cpu", "--trainer.max_steps", "1"),
        *("--model.encoder", "{image: mofi/tiny, embed_dim: 16, text: {width: 32, layers: 1, heads: 2}}"),
        *("--model.encoder.text.context_length", "32", "--model.objective", "MOFI"),
        *("--trainer.default_root_dir", str(tmp_path / "fit"), "--trainer.logger", "false"),
    ]
    cli.main([*words, "--model.init_from", str(file)])
    assert "one.ckpt" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "fit")
    assert "one.ckpt" in complaint(capsys, *words, "--ckpt_path", str(file))


def test_an_existing_file_is_never_overwritten(run, tmp_path, capsys):
    (tmp_path / "one.ckpt").write_bytes(b"mine")
    words = ["checkpoint", "consolidate", str(run.root), str(tmp_path / "one.ckpt")]
    assert "exists" in complaint(capsys, *words)
    assert (tmp_path / "one.ckpt").read_bytes() == b"mine"


def test_what_was_cut_off_is_told_apart_from_what_is_complete(run, tmp_path, capsys):
    partial = tmp_path / "checkpoints" / "step=00000009.ckpt.partial"
    shutil.copytree(run.newest, partial)
    for path in (tmp_path, partial):
        line = complaint(capsys, "checkpoint", "inspect", str(path))
        assert f"{partial} was cut off while it was written" in line
    shutil.copytree(run.newest, tmp_path / "checkpoints" / run.newest.name)
    cli.main(["checkpoint", "inspect", str(tmp_path)])
    out = capsys.readouterr().out
    assert f"{run.newest.name}, complete" in out and partial.name in out
    (tmp_path / "checkpoints" / run.newest.name / "meta.pt").unlink()
    assert "no complete checkpoint" in complaint(capsys, "checkpoint", "inspect", str(tmp_path))


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("verb", [["inspect"], ["consolidate", "out.ckpt"]])
def test_damaged_and_malicious_checkpoints_end_with_one_line(run, tmp_path, capsys, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)

    def refusal(path: Path) -> str:
        line = complaint(capsys, "checkpoint", verb[0], str(path), *verb[1:])
        assert not list(tmp_path.glob("out.ckpt*"))
        return line

    assert "does not exist" in refusal(tmp_path / "nowhere.ckpt")
    assert "no complete checkpoint" in refusal(tmp_path)
    (tmp_path / "garbage.ckpt").write_bytes(b"no checkpoint")
    assert "garbage.ckpt" in refusal(tmp_path / "garbage.ckpt")
    for file, content in ((".metadata", b"garbage"), ("meta.pt", b"garbage"), (".metadata", None)):
        bad = tmp_path / "bad.ckpt"
        shutil.copytree(run.newest, bad)
        (bad / file).write_bytes(pickle.dumps(Touch(tmp_path / "ran")) if content is None else content)
        assert "bad.ckpt" in refusal(bad)
        shutil.rmtree(bad)
    assert not (tmp_path / "ran").exists()


def test_a_shard_that_is_cut_short_leaves_no_file(run, tmp_path, capsys):
    bad = tmp_path / "bad.ckpt"
    shutil.copytree(run.newest, bad)
    shard = max(bad.glob("*.distcp"), key=lambda path: path.stat().st_size)
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    line = complaint(capsys, "checkpoint", "consolidate", str(bad), str(tmp_path / "one.ckpt"))
    assert "damaged" in line and not list(tmp_path.glob("one*"))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_memory_stays_near_a_piece_of_the_largest_tensor(tmp_path):
    rows = torch.arange(2**20, dtype=torch.float32)
    table = rows[:, None].expand(-1, 256).contiguous()  # 1 GiB
    meta = {"dual_encoder": {"config": {}}, "global_step": 1}
    writer = CheckpointWriter(None)
    path = tmp_path / "step=00000001.ckpt"
    writer.begin({"state_dict.objective.table": table}, meta, path, None)
    assert writer.wait() is None
    del table, writer
    before, most, done = _anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], _anonymous() - before)
            time.sleep(0.005)

    watching = threading.Thread(target=watch)
    watching.start()
    write_one_file(path, tmp_path / "one.ckpt")
    done.set()
    watching.join()
    assert 0 < most[0] < 2**28, most  # a quarter of the tensor
    (found,) = (
        rows for first, rows in checkpoint.read_rows(tmp_path / "one.ckpt", "objective.table") if not first
    )
    assert torch.equal(found[:, 3], rows[: len(found)])


def _anonymous() -> int:
    """Bytes of memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(r"RssAnon:\s+(\d+) kB", status)
    return int(kilobytes) * 1024

"""Images a second, MFU and memory of B/16 on one GPU, against what `mofi plan` says.

    python benchmarks/gpu.py [--seconds 12] [--tflops 989] [--output benchmarks/results/gpu.json] [--tiny]

Real training steps, by Lightning's Trainer under `ShardedStrategy` with one process and in bf16, on rows
made in memory: CLIP alone and MOFI with a sampled table of two million entities, plain, with compiled blocks,
with activation checkpointing and with sliced encoding. `--tiny` runs the same on a CPU with a small model.
"""

from __future__ import annotations

import argparse
import functools
import gc
import inspect
import json
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from mofi_lightning.encoders.dual_encoder import DualEncoderConfig
from mofi_lightning.encoders.presets import TEXT_CONFIGS
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.objectives import CLIP, MOFI, EntitySoftmax
from mofi_lightning.training import Optimization, PretrainingModule, ShardedStrategy
from mofi_lightning.training.planning.flops import image_flops, text_flops
from mofi_lightning.training.planning.rehearsal import Rehearsal
from mofi_lightning.training.planning.weightless import Weightless, pretended_ranks
from mofi_lightning.types import Batch, Tokens

WARM_UP = 5  # steps before the clock starts: compiling, the allocator's growth, cuDNN's choices


@dataclass(frozen=True)
class Case:
    """A run: objective, rows of a batch, and what is laid over the encoders."""

    name: str
    objective: str
    rows: int
    compile_blocks: bool = False
    activation_checkpointing: bool = False
    encode_slices: int = 1


CASES = [
    Case("clip", "clip", 512),
    Case("clip, compiled", "clip", 512, compile_blocks=True),
    Case("mofi", "mofi", 512),
    Case("mofi, compiled", "mofi", 512, compile_blocks=True),
    Case("mofi, checkpointed, compiled", "mofi", 1024, compile_blocks=True, activation_checkpointing=True),
    Case("mofi, 4 slices, compiled", "mofi", 1024, compile_blocks=True, encode_slices=4),
]
TINY = [
    Case("clip", "clip", 32),
    Case("mofi", "mofi", 32),
    Case("mofi, checkpointed", "mofi", 32, activation_checkpointing=True),
    Case("mofi, 4 slices", "mofi", 32, encode_slices=4),
]


@dataclass(frozen=True)
class Entities:
    """A vocabulary of numbers."""

    number: int
    fingerprint: str = "numbers"

    def __len__(self) -> int:
        return self.number

    def save(self, path: Path) -> None:
        """There is nothing to keep."""


class Repeated(Dataset[Batch]):
    """The same rows, as often as one likes."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> Batch:
        return self.batch


class Noise(LightningDataModule):
    """Labelled rows of noise whose texts fill the context."""

    def __init__(self, rows: int, entities: int) -> None:
        super().__init__()
        self.rows, self.vocabulary = rows, Entities(entities)
        self.fields = {"noise": frozenset({"image", "text", "entity"})}

    def use(self, preprocess: Any, tokenizer: Any, context_length: int) -> None:
        """Take sizes from the model."""
        self.size, self.ids, self.length = preprocess.size, tokenizer.vocab_size, context_length

    def train_dataloader(self) -> DataLoader[Batch]:
        """One batch, again and again."""
        ids = torch.randint(3, self.ids, (self.rows, self.length))
        batch: Batch = {
            "image": _pinned(torch.randint(256, (self.rows, 3, self.size, self.size), dtype=torch.uint8)),
            "text": Tokens(_pinned(ids), _pinned(torch.ones_like(ids))),
            "entity": _pinned(torch.randint(len(self.vocabulary), (self.rows,))),
        }
        return DataLoader(Repeated(batch), batch_size=None)


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Once, not again for every step: what a loader costs is no matter of this benchmark."""
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


class Clock(Callback):
    """Times the steps after the warm-up and takes their peak of memory."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Start after the warm-up, stop when the time is over."""
        if trainer.global_step == WARM_UP:
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            self.start = now()
        if trainer.global_step > WARM_UP and time.perf_counter() - self.start > self.seconds:
            self.took, self.steps = now() - self.start, trainer.global_step - WARM_UP
            trainer.should_stop = True


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def make(case: Case, tiny: bool) -> PretrainingModule:
    sampled = 500 if tiny else 512_000
    entity = functools.partial(EntitySoftmax, num_sampled=sampled)
    encoder = DualEncoderConfig("mofi/b16", embed_dim=512, text=TEXT_CONFIGS["b16"])
    if tiny:
        vit = {"img_size": 32, "depth": 3, "embed_dim": 48}
        encoder = DualEncoderConfig("timm/vit_tiny_patch16_224", vit, 32, text=TextConfig(48, 3, 3, 16))
    return PretrainingModule(
        encoder,
        CLIP if case.objective == "clip" else functools.partial(MOFI, entity=entity),
        Optimization(lr=1e-4),
        compile_blocks=case.compile_blocks,
        activation_checkpointing=case.activation_checkpointing,
        encode_slices=case.encode_slices,
    )


def predict(case: Case, tiny: bool, entities: int) -> dict[str, Any]:
    """What a plan says of the case; before the first trainer, whose process group would be in its way."""
    with pretended_ranks(1, sharded=True), Weightless() as mode:
        rehearsal = Rehearsal(make(case, tiny), Entities(entities), None, mode, 1, 1, True, 1.0)
        peak = rehearsal.take(case.rows).peak
    model = rehearsal.module.model
    flops = image_flops(model) + text_flops(model, model.text.encoder.context_length)
    return {"planned_bytes": peak.total(), "planned": dict(peak), "row_flops": flops}


def measure(case: Case, tiny: bool, entities: int, seconds: float) -> dict[str, Any]:
    clock = Clock(seconds)
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(
            accelerator="cpu" if tiny else "auto",
            devices=1,
            strategy=ShardedStrategy(),
            precision="bf16-mixed",
            max_steps=10**6,
            max_epochs=-1,
            check_val_every_n_epoch=None,
            val_check_interval=10**6,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=root,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
            gradient_clip_val=1.0,
            callbacks=[clock],
        )
        trainer.fit(make(case, tiny), datamodule=Noise(case.rows, entities))
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {
        "steps": clock.steps,
        "images_per_second": case.rows * clock.steps / clock.took,
        "peak_bytes": peak,
    }


def allow_older_torch() -> None:
    """Before `torch.compile` took the limit of recompilations, it was a setting of the process."""
    if "recompile_limit" not in inspect.signature(torch.compile).parameters:
        compiled = torch.compile
        torch._dynamo.config.recompile_limit = 512
        torch.compile = lambda model, recompile_limit=None: compiled(model)  # type: ignore[assignment]


def guarded(call: Any, *args: Any) -> dict[str, Any]:
    """The result, or what went wrong: the other cases go on."""
    try:
        return dict(call(*args))
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=12.0, help="of timed steps a case")
    parser.add_argument(
        "--tflops", type=float, default=989.0, help="peak of the GPU in bf16, by its datasheet"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU")
    options = parser.parse_args()
    tiny, entities = options.tiny, 2000 if options.tiny else 2_000_000
    if not tiny and not torch.cuda.is_available():
        print("there is no GPU here: nothing is measured (--tiny runs a small model on the CPU)")
        print(json.dumps({"benchmark": "gpu", "figures": {}}))
        return
    allow_older_torch()
    torch.set_float32_matmul_precision("high")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() and not tiny else "cpu"
    cases = TINY if tiny else CASES
    results: dict[str, Any] = {"device": device, "torch": torch.__version__, "tflops": options.tflops}
    results |= {"entities": entities, "cases": []}
    plans = [guarded(predict, case, tiny, entities) for case in cases]
    for case, plan in zip(cases, plans, strict=True):
        row = asdict(case) | plan | guarded(measure, case, tiny, entities, options.seconds)
        if "images_per_second" in row and "row_flops" in row:
            row["mfu"] = 3 * row["row_flops"] * row["images_per_second"] / (options.tflops * 1e12)
        if row.get("peak_bytes") and "planned_bytes" in row:
            row["planned_error"] = row["planned_bytes"] / row["peak_bytes"] - 1
        results["cases"].append(row)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps({key: value for key, value in row.items() if key != "planned"}), flush=True)
    figures = {
        f"{row['name'].replace(', ', '_').replace(' ', '_')}_{name}": round(row[name], 4)
        for row in results["cases"]
        for name in ("images_per_second", "mfu", "planned_error")
        if name in row
    }
    print(json.dumps({"benchmark": "gpu", "figures": figures}))


if __name__ == "__main__":
    main()

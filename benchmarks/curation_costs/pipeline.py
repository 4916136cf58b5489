"""The whole pipeline's CPU time against its decoding, embedding and matching done bare."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from data_costs.rows import make_jpegs

FEW, MANY = 10_000, 200_000
PICTURES = 500
ENTITIES = 20_000
GROUP = 1_000
PART_ROWS = 4_000


def pipeline_figures(folder: Path, rounds: int, many: int = MANY) -> dict[str, float]:
    """CPU time of `mofi curate` over that of the work it cannot do without, and its growth with the rows.

    Args:
        folder: for corpora and outputs, some 15 GB with 200,000 rows.
        rounds: of 10,000 rows, bare and whole in turn; medians count.
        many: rows of the large corpus, curated once.
    """
    images = make_jpegs(PICTURES, Random(0), 400, 300)
    scorer = _scorer(folder / "scorer")
    names = _knowledge_base(folder / "knowledge_base")
    sizes = {"few": FEW, "many": many}
    for name, rows in sizes.items():
        _write_pairs(folder / f"{name}.parquet", images, names, rows)
    _bare(folder, scorer, 512)  # what is loaded only once
    bare, few = [], []
    for number in range(rounds):
        bare.append(_bare(folder, scorer, FEW) / FEW)
        few.append(_whole(folder, "few", scorer, number) / FEW)
    whole = _whole(folder, "many", scorer, 0) / many
    return {
        "pipeline_over_bare": whole / median(bare),
        "cost_per_row_200k_over_10k": whole / median(few),
        "bare_ms_a_row": 1e3 * median(bare),
        "pipeline_ms_a_row_10k": 1e3 * median(few),
        "pipeline_ms_a_row_200k": 1e3 * whole,
        "pipeline_more_ms_a_row": 1e3 * (whole - median(bare)),
    }


def _scorer(folder: Path) -> Path:
    from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
    from mofi_lightning.encoders.preprocess import Preprocess
    from mofi_lightning.encoders.text import TextConfig
    from mofi_lightning.encoders.tokenizer import Tokenizer

    torch.manual_seed(1)
    tokenizer = Tokenizer.train(["a picture of something"], 300)
    text = TextConfig(width=64, layers=1, heads=2)
    config = DualEncoderConfig("mofi/tiny", text=text, embed_dim=128, preprocess=Preprocess(size=128))
    DualEncoder.from_config(config, tokenizer).save(folder)
    return folder


def _knowledge_base(folder: Path) -> Sequence[str]:
    from curation_costs.mentions import make_aliases
    from mofi_lightning.curation.knowledge_bases.knowledge_base import build_knowledge_base
    from mofi_lightning.sources.base import Entity

    names = make_aliases(2 * ENTITIES)
    build_knowledge_base(
        (
            Entity(f"Q{number}", names[2 * number], (names[2 * number + 1],), f"thing number {number}")
            for number in range(ENTITIES)
        ),
        folder,
    )
    return names


def _write_pairs(file: Path, images: Sequence[bytes], names: Sequence[str], rows: int) -> None:
    from curation_costs.mentions import make_texts

    schema = pa.schema([("key", pa.string()), ("image", pa.binary()), ("text", pa.string())])
    texts = make_texts(list(names), rows, seed=3)
    with pq.ParquetWriter(file, schema, use_dictionary=["text"], write_statistics=False) as writer:
        for start in range(0, rows, GROUP):
            group = range(start, start + GROUP)
            columns = [[str(row) for row in group], [images[row % len(images)] for row in group]]
            columns.append([next(texts) for _ in group])
            writer.write_table(pa.table(columns, schema=schema))


def _bare(folder: Path, scorer: Path, rows: int) -> float:
    """CPU seconds of decoding, embedding and matching the first rows, on one thread."""
    from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
    from mofi_lightning.curation.texts.mentions import Gazetteer
    from mofi_lightning.encoders.decoding import decode
    from mofi_lightning.encoders.dual_encoder import load

    torch.set_num_threads(1)
    model, base, gazetteer = load(scorer), KnowledgeBase(folder / "knowledge_base"), Gazetteer()
    table = pq.ParquetFile(folder / "few.parquet").read(["image", "text"]).slice(0, rows)
    images, texts = table["image"].to_pylist(), table["text"].to_pylist()
    start = time.process_time()
    with torch.inference_mode():
        for batch in _batches(images, 256):
            model.encode_image(torch.stack([model.preprocess(decode(image)) for image in batch]))
    gazetteer.find(texts, base)
    return time.process_time() - start


def _batches(items: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _whole(folder: Path, name: str, scorer: Path, number: int) -> float:
    """CPU seconds of `mofi curate`, its processes and all they load included."""
    words = ["curate", folder / f"{name}.parquet", folder / f"{name}-{number}", "--scorer", scorer]
    words += ["--knowledge_base", folder / "knowledge_base", "--min_images", "2", "--keep", "0.8"]
    words += ["--part_rows", str(PART_ROWS)]
    before = _children()
    subprocess.run(
        [sys.executable, "-m", "mofi_lightning", *map(str, words)], check=True, stdout=subprocess.DEVNULL
    )
    return _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

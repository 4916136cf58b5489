"""DeViSE from pairs to zero-shot: the label space is trained, sharded, exported, found again and measured."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import seed_everything
from safetensors.torch import load_file
from tests.training.runs import trainer
from torch.nn import functional as F

from mofi_lightning import cli, load
from mofi_lightning.curation.pipeline import curate
from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.dual_encoder import DualEncoderConfig
from mofi_lightning.evaluation.datasets import at_path
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.evaluators import ZeroShot
from mofi_lightning.evaluation.suite.results import Result, read_results
from mofi_lightning.objectives import DeViSE
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import Evaluation, Optimization, PretrainingModule, StepCheckpoint
from mofi_lightning.training.checkpoints.folders import latest_checkpoint

DIM = 16


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@pytest.fixture(scope="module")
def word_vectors(emoji_slice, tmp_path_factory) -> Path:
    """A random vector for every word of the knowledge base."""
    folder = tmp_path_factory.mktemp("words")
    entities = pq.read_table(emoji_slice / "knowledge_base.parquet").to_pylist()
    words = sorted({word for e in entities for word in words_of(f"{e['name']}, {e['description']}")})
    np.save(folder / "tiny_emb.npy", np.random.default_rng(0).standard_normal((len(words), DIM), np.float32))
    pq.write_table(pa.table({"index": words}), folder / "tiny_index.parquet")
    return folder


@pytest.fixture(scope="module")
def run(emoji_slice, word_vectors, tmp_path_factory) -> Path:
    """The folder of a short DeViSE run on curated real images, by the commands themselves."""
    folder = tmp_path_factory.mktemp("devise")
    curate(emoji_slice / "train.parquet", folder / "i2e", min_images=1)
    vectors = folder / "vectors.parquet"
    cli.main(
        ["vectors", str(emoji_slice / "knowledge_base.parquet"), str(vectors), "--model", str(word_vectors)]
    )
    sources = f"{{i2e: {{path: {folder / 'i2e'}, rows: 16}}}}"
    words = ["fit", "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(folder / "run")]
    words += [
        "--trainer.max_steps",
        "4",
        "--trainer.logger",
        "false",
        "--trainer.enable_progress_bar",
        "false",
    ]
    words += ["--trainer.callbacks", "[{class_path: StepCheckpoint, init_args: {every_n_steps: 4}}]"]
    words += ["--model.encoder.image", "mofi/tiny", "--model.objective", "DeViSE"]
    words += ["--model.objective.label_vectors", str(vectors), "--data", "I2EDataModule"]
    words += ["--data.sources", sources, "--data.num_workers", "0"]
    cli.main(words)
    return folder / "run"


def ranks_by_hand(model: Path, word_vectors: Path, pairs: Path) -> torch.Tensor:
    """How many classes' mean word vectors are at least as near to the mapped image as its own class's."""
    data = at_path(pairs).open()
    truth = pq.read_table(pairs.parent / "truth.parquet").to_pylist()
    text = {row["entity"]: f"{row['name']}, {row['description']}" for row in truth}
    words = pq.read_table(word_vectors / "tiny_index.parquet").column(0).to_pylist()
    table = torch.from_numpy(np.load(word_vectors / "tiny_emb.npy"))
    known = [[words.index(w) for w in words_of(text[entity]) if w in words] for entity in data.classes]
    classes = torch.stack([table[rows].mean(0) for rows in known])
    encoder = load(model)
    with torch.no_grad():
        image = torch.cat([encoder.encode_image(encoder.preprocess(decode(i))[None]) for i in data.images])
    mapped = image @ load_file(model / "model.safetensors")["label_space.map.weight"].T
    cosine = F.cosine_similarity(mapped[:, None], classes[None], dim=2)
    return (cosine >= cosine.gather(1, data.labels()[:, None])).sum(1)


def evaluated(output: Path, pairs: Path, *models: str) -> dict[str, dict[str, Result]]:
    """The results of each model by task."""
    cli.main(["evaluate", "--model", *models, "--data", str(pairs), "--output", str(output)])
    found: dict[str, dict[str, Result]] = {}
    for result in read_results(output):
        found.setdefault(result.model, {})[result.task] = result
    return found


def test_zero_shot_of_a_run_is_that_of_its_mapped_images(run, word_vectors, emoji_slice, tmp_path):
    test = emoji_slice / "test.parquet"
    checkpoint = latest_checkpoint(run)
    rows = evaluated(tmp_path, test, f"run={run}", f"checkpoint={checkpoint}")
    ranks = ranks_by_hand(run / "model", word_vectors, test)
    assert list(rows) == ["checkpoint", "run"]
    for row in rows.values():
        found = row["zeroshot_classification"].metrics
        assert found["acc1"] == pytest.approx(float((ranks <= 1).double().mean()))
        assert found["acc5"] == pytest.approx(float((ranks <= 5).double().mean()))
        assert 0 < found["acc5"] < 1  # else the comparison says nothing
        assert row["zeroshot_retrieval"].skipped == "the model has no text tower"


def test_without_the_text_model_only_zero_shot_is_left_out(run, word_vectors, emoji_slice, tmp_path):
    shutil.copytree(run / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["label_space"]["model"] = "a-model-that-is-not-here"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    row = evaluated(tmp_path / "out", emoji_slice / "test.parquet", f"devise={tmp_path / 'model'}")["devise"]
    zero_shot = row["zeroshot_classification"]
    assert not zero_shot.metrics and row["retrieval"].metrics["map"] > 0
    assert "'a-model-that-is-not-here' is neither a folder nor" in zero_shot.skipped


def test_retrieval_and_embed_keep_the_embedding_before_the_map(run, emoji_slice, tmp_path):
    cli.main(["embed", str(run), str(emoji_slice / "test.parquet"), str(tmp_path / "vectors")])
    stored = torch.tensor(pq.read_table(tmp_path / "vectors" / "part-00000.parquet")["vector"].to_pylist())
    encoder, data = load(run / "model"), at_path(emoji_slice / "test.parquet").open()
    with torch.no_grad():
        first = encoder.encode_image(encoder.preprocess(decode(data.images[0]))[None])
    torch.testing.assert_close(stored[:1], first, atol=1e-5, rtol=0)


def train_devise(root: str, label_vectors: str) -> None:
    """Three steps with a checkpoint at the end, in fp64."""
    torch.set_default_dtype(torch.float64)
    try:
        seed_everything(3, verbose=False)
        module = PretrainingModule(
            DualEncoderConfig(image="mofi/tiny", embed_dim=DIM),
            partial(DeViSE, label_vectors=label_vectors),
            Optimization(lr=1e-3, warmup_steps=2),
        )
        run = trainer(Path(root), 3, callbacks=[StepCheckpoint(3)], enable_checkpointing=True)
        run.fit(module, datamodule=SyntheticDataModule(rows=16, num_entities=40))
    finally:
        torch.set_default_dtype(torch.float32)


def test_two_ranks_export_the_label_space_of_one_and_their_checkpoint_holds_it(pool, tmp_path):
    rows = np.random.default_rng(0).standard_normal((40, 5))
    table = pa.table({"id": [f"S{i:06d}" for i in range(40)], "vector": rows.tolist()})
    vectors = tmp_path / "vectors.parquet"
    pq.write_table(
        table.replace_schema_metadata({"mofi.model": "glove", "mofi.descriptions": "true"}), vectors
    )
    for ranks in (1, 2):
        pool(ranks, train_devise, str(tmp_path / str(ranks)), str(vectors))
    one, two = (load(tmp_path / ranks / "model").label_space for ranks in ("1", "2"))
    assert one.config == two.config and one.config.model == "glove" and one.config.descriptions
    torch.testing.assert_close(two.map.weight, one.map.weight, rtol=0, atol=1e-6)  # loaded as fp32
    for ranks, exported in (("1", one), ("2", two)):
        path = latest_checkpoint(tmp_path / ranks)
        assert path is not None and path.is_dir()
        stored = load(path).label_space
        assert stored.config == exported.config
        assert torch.equal(stored.map.weight, exported.map.weight)


def zero_shot_in_training(root: str, label_vectors: str, pairs: str) -> dict[str, float]:
    """What an evaluation after three steps finds in the label space, which the ranks share."""
    seed_everything(3, verbose=False)
    module = PretrainingModule(
        DualEncoderConfig(image="mofi/tiny", embed_dim=DIM),
        partial(DeViSE, label_vectors=label_vectors),
        Optimization(lr=1e-2, warmup_steps=1),
    )
    evaluation = Evaluation(Path(pairs), "test", [ZeroShot()], every_n_steps=3)
    run = trainer(Path(root), 3, callbacks=[evaluation])
    run.fit(module, datamodule=SyntheticDataModule(rows=16, num_entities=40))
    return evaluation.found


def test_zero_shot_by_the_label_space_is_measured_during_training(pool, word_vectors, emoji_slice, tmp_path):
    rows = np.random.default_rng(0).standard_normal((40, DIM))
    table = pa.table({"id": [f"S{i:06d}" for i in range(40)], "vector": rows.tolist()})
    vectors, pairs = tmp_path / "vectors.parquet", emoji_slice / "test.parquet"
    about = {"mofi.model": str(word_vectors), "mofi.descriptions": "true"}
    pq.write_table(table.replace_schema_metadata(about), vectors)
    (one,) = pool(1, zero_shot_in_training, str(tmp_path / "1"), str(vectors), str(pairs))
    expected = ZeroShot()(Embedder(load(tmp_path / "1" / "model")), at_path(pairs).open()).metrics()
    assert 0 < expected["acc5"] < 1  # else the comparison says nothing
    assert one == pytest.approx({f"test/{name}": value for name, value in expected.items()}, nan_ok=True)
    for two in pool(2, zero_shot_in_training, str(tmp_path / "2"), str(vectors), str(pairs)):
        assert two == pytest.approx(one, abs=1e-9, nan_ok=True)

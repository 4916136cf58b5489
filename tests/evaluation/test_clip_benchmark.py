"""CLIP_benchmark's own code on the same model and data: equal numbers, and it reads our results."""

import csv
import json
from argparse import Namespace
from collections.abc import Callable
from typing import NamedTuple

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import to_pil_image

pytest.importorskip("clip_benchmark")

from clip_benchmark.cli import main_build
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

from mofi_lightning.cli import main
from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.evaluation.datasets import EvaluationSet, PairsFile
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.embedding.images import EmbeddingModel
from mofi_lightning.evaluation.evaluators import ImageText, ZeroShot
from mofi_lightning.evaluation.models.words import parse_model

TEMPLATES = ("a photo of {}", "a drawing of {}", "{}")


class Texts(list):
    """What CLIP_benchmark's code takes for tokens: strings that can be sent `to` a device."""

    def to(self, device: str) -> "Texts":
        return self


class Images(Dataset):
    """Preprocessed images with what CLIP_benchmark wants beside them: a label, or the captions."""

    def __init__(self, preprocess: Callable, data: EvaluationSet, beside: list) -> None:
        self.pixels = [preprocess(decode(image)) for image in data.images]
        self.beside = beside
        self.classes = data.class_names

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> tuple[Tensor, object]:
        return self.pixels[row], self.beside[row]


class Peer(NamedTuple):
    """A model as CLIP_benchmark takes it, and as we do."""

    model: nn.Module
    preprocess: Callable
    tokenizer: Callable
    ours: EmbeddingModel


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder.from_config(DualEncoderConfig(text=TextConfig())).eval()


@pytest.fixture(params=("ours", "open_clip"))
def peer(request, tmp_path, monkeypatch, model) -> Peer:
    """Our small model, and one of open_clip with its own transform and tokens, as CLIP_benchmark takes it."""
    if request.param == "ours":
        return Peer(model, model.preprocess, Texts, model)
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [tmp_path])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    open_clip.factory._rescan_model_configs()
    torch.manual_seed(1)
    torch.save(open_clip.create_model("tiny").state_dict(), tmp_path / "weights.pt")
    theirs, transform = open_clip.create_model_from_pretrained("tiny", str(tmp_path / "weights.pt"))
    return Peer(
        theirs.eval(),
        lambda pixels: transform(to_pil_image(pixels)),
        open_clip.get_tokenizer("tiny"),
        parse_model(f"open_clip:tiny={tmp_path / 'weights.pt'}").load(),
    )


@pytest.fixture(scope="module")
def data(emoji_slice) -> EvaluationSet:
    return PairsFile(emoji_slice / "test.parquet").open()


def test_zero_shot_classification_is_that_of_clip_benchmark(peer, data, monkeypatch):
    # it counts with float(array of one element), which NumPy no longer takes
    monkeypatch.setattr(zeroshot_classification, "float", lambda count: count.item(), raising=False)
    images = Images(peer.preprocess, data, data.labels().tolist())
    templates = [template.replace("{}", "{c}") for template in TEMPLATES]
    theirs = zeroshot_classification.evaluate(
        peer.model, DataLoader(images, 16), peer.tokenizer, data.class_names, templates, "cpu", amp=False
    )
    ours = ZeroShot(templates=TEMPLATES)(Embedder(peer.ours), data).metrics()
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-6)
    assert set(theirs) == {"acc1", "acc5", "mean_per_class_recall"}
    assert theirs["acc5"] > 0


@pytest.mark.parametrize("most_captions", (1, 3))
def test_image_text_retrieval_is_that_of_clip_benchmark(peer, data, most_captions):
    # there each image has captions of its own, so each is an entity here; none twice: it orders ties anyhow
    captions = [
        [f"{data.names[entity]} {row} {i}" for i in range(1 + row % most_captions)]
        for row, entity in enumerate(data.entities)
    ]
    own = EvaluationSet(
        "captioned",
        data.keys,
        data.images,
        data.keys,
        captions=[(text, key) for key, texts in zip(data.keys, captions, strict=True) for text in texts],
    )

    def together(rows: list) -> tuple[Tensor, list]:
        return torch.stack([pixels for pixels, _ in rows]), [texts for _, texts in rows]

    loader = DataLoader(Images(peer.preprocess, own, captions), 16, collate_fn=together)
    theirs = zeroshot_retrieval.evaluate(
        peer.model, loader, peer.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    ours = ImageText(k=(1, 5, 10))(Embedder(peer.ours), own).metrics()
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-6)
    assert len(theirs) == 6
    assert all(0 < theirs[f"image_retrieval_recall@{k}"] < 1 for k in (5, 10))


def test_clip_benchmark_builds_its_table_from_our_results(tmp_path, emoji_slice, model):
    model.save(tmp_path / "clip")
    data, output = str(emoji_slice / "test.parquet"), str(tmp_path / "out")
    main(["evaluate", "--model", "pixels", f"clip={tmp_path / 'clip'}", "--data", data, "--output", output])
    results = sorted((tmp_path / "out" / "results").glob("*/*/*.json"))
    table = tmp_path / "benchmark.csv"
    main_build(Namespace(files=[str(file) for file in results], output=str(table)))
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results)
    zero_shot = [row for row in rows if row["task"] == "zeroshot_classification"]
    assert {row["model"] for row in zero_shot} == {"pixels", "clip"}
    clip = next(row for row in zero_shot if row["model"] == "clip")
    assert clip["dataset"] == "emoji_slice/test"
    assert clip["model_fullname"] == f"clip {clip['pretrained']}"
    ours = ZeroShot()(Embedder(model), PairsFile(emoji_slice / "test.parquet").open()).metrics()
    assert float(clip["acc1"]) == pytest.approx(ours["acc1"])

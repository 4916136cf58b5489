from collections.abc import Sequence

import open_clip
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from torch import Tensor, nn
from torchmetrics import MetricCollection

from mofi_lightning.evaluation.measures import scores, zero_shot
from mofi_lightning.evaluation.measures.linear_classifier import class_recall
from mofi_lightning.evaluation.measures.zero_shot import ZeroShotAccuracy, class_weights, zero_shot_rank
from mofi_lightning.evaluation.templates import read_templates
from mofi_lightning.types import InputError

NAMES = ["prayer beads", "boar", "whale", "hole"]
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def _encode(texts: Sequence[str]) -> Tensor:
    rows = [torch.randn(16, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
    return torch.stack(rows)


def _labelled(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(classes, 8, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    return weights[labels] + 2 * torch.randn(rows, 8, generator=generator), labels, weights


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    torch.manual_seed(0)
    return open_clip.CLIP(**TINY).eval()


@pytest.mark.parametrize("block", [7, 4096])
@pytest.mark.parametrize("templates", ["entity_5", "openai_simple_7", "openai_imagenet_80"])
def test_class_weights_equal_open_clip(clip, templates, block, monkeypatch):
    monkeypatch.setattr(zero_shot, "PROMPTS", block)
    prompts = read_templates(templates)
    with torch.inference_mode():
        got = class_weights(lambda texts: clip.encode_text(open_clip.tokenize(texts)), NAMES, prompts)
    # open_clip takes functions, or strings of `str.format`
    want = open_clip.build_zero_shot_classifier(clip, open_clip.tokenize, NAMES, prompts, device="cpu")
    torch.testing.assert_close(got, want.T, atol=1e-6, rtol=0)


def test_no_call_embeds_more_texts_than_a_block(monkeypatch):
    monkeypatch.setattr(zero_shot, "PROMPTS", 10)
    asked = []

    def encode(texts: Sequence[str]) -> Tensor:
        asked.append(len(texts))
        return _encode(texts)

    class_weights(encode, NAMES, ["{}", "a {}", "the {}"])
    assert asked == [9, 3]


def test_classes_of_one_name_have_one_vector():
    weights = class_weights(_encode, ["boar", "crane", "crane"], ["{}", "a {}"])
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("block", [10, 2**23])
def test_accuracy_and_recall_equal_scikit_learns(block, monkeypatch):
    monkeypatch.setattr(scores, "BLOCK", block)
    images, labels, weights = _labelled(300, 30)
    rank = zero_shot_rank(images, labels, weights)
    logits = F.normalize(images, dim=1) @ F.normalize(weights, dim=1).T
    for k in (1, 5):
        want = top_k_accuracy_score(labels, logits, k=k, labels=range(30))
        assert float((rank <= k).double().mean()) == pytest.approx(want, abs=1e-12)
        assert 0.1 < want < 0.9
    recall = balanced_accuracy_score(labels, logits.argmax(dim=1))
    assert float(class_recall((rank <= 1).double(), labels).nanmean()) == pytest.approx(recall, abs=1e-12)
    metric = ZeroShotAccuracy(weights, per_class=True)
    metric.update(images[:100], labels[:100])
    metric.update(images[100:], labels[100:])
    assert float(metric.compute()) == pytest.approx(recall, abs=1e-12)


def test_rank_equals_a_sorted_list():
    images, labels, weights = _labelled(20, 4, seed=1)
    cosines = F.normalize(images, dim=1) @ F.normalize(weights, dim=1).T
    want = (cosines.argsort(dim=1, descending=True) == labels[:, None]).nonzero()[:, 1] + 1
    assert zero_shot_rank(images, labels, weights).tolist() == want.tolist()


def test_classes_that_tie_with_the_true_one_stand_before_it():
    assert zero_shot_rank(torch.ones(2, 3), torch.tensor([0, 3]), torch.ones(4, 3)).tolist() == [4, 4]


@pytest.mark.parametrize("classes", [6, 34, 1000])
def test_equal_vectors_tie_wherever_they_stand(classes):
    # of two classes with one vector neither is first, whichever columns of the product they are
    half = torch.randn(classes // 2, 37, generator=torch.Generator().manual_seed(0))
    weights = torch.cat([half, half])
    assert zero_shot_rank(weights, torch.arange(classes), weights).tolist() == [2] * classes


def test_metric_counts_over_batches_and_leaves_unlabelled_rows_out():
    metric = ZeroShotAccuracy(torch.eye(3))
    metric.update(torch.eye(3), torch.tensor([0, 1, 1]))
    metric.update(torch.eye(3), torch.tensor([-1, 1, -1]))
    metric.update(torch.eye(3), torch.tensor([-1, -1, -1]))
    assert float(metric.compute()) == 3 / 4
    for per_class in (False, True):
        metric = ZeroShotAccuracy(torch.eye(3), per_class=per_class)
        metric.update(torch.eye(3), torch.tensor([-1, -1, -1]))
        assert metric.compute().isnan()


@pytest.mark.parametrize("start", ["update", "forward"])
@pytest.mark.parametrize("first", ["right", "unlabelled"])
def test_metrics_of_other_settings_stay_apart_in_a_collection(start, first):
    # counts are equal after a first batch that is all right, or has no labels
    images, labels, weights = _labelled(60, 30)
    settings = {
        "a": (weights, 1),
        "b": (weights, 5),
        "c": (weights.flip(0), 1),
        "d": (weights * 1.5 + 0.1, 1),
    }
    metrics = MetricCollection({name: ZeroShotAccuracy(*given) for name, given in settings.items()})
    easy = torch.arange(30)
    batches = [(weights, easy if first == "right" else -torch.ones(30).long()), (images, labels)]
    for batch, classes in batches:
        getattr(metrics, start)(batch, classes)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    for name, (vectors, k) in settings.items():
        rank = zero_shot_rank(images[labels >= 0], labels[labels >= 0], vectors)
        want = float((rank <= k).double().mean())
        assert float(metrics.compute()[name]) == pytest.approx(want, abs=1e-12)


def test_a_class_without_a_vector_beats_none_and_is_never_right():
    weights = torch.tensor([[-1.0, 0.1], [0, 0], [0, 1], [-1, -1]])
    images = torch.tensor([[1.0, -3], [1, -3]])
    # all cosines but that with the last are negative; the zero vector's would be second
    assert zero_shot_rank(images, torch.tensor([3, 0]), weights).tolist() == [1, 2]
    assert zero_shot_rank(images, torch.tensor([1, 2]), weights).tolist() == [4, 3]


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (NAMES, ["a photo"], "'a photo' has no '{}'"),
        (NAMES, [], "needs a template"),
        ([], ["{}"], "needs a class"),
        (["boar", " "], ["{}"], "class 1 of 2 has no name"),
    ],
)
def test_names_and_templates_that_cannot_work_are_named(names, templates, message):
    with pytest.raises(InputError, match=message):
        class_weights(_encode, names, templates)


@pytest.mark.parametrize("broken", ["images", "weights", "texts"])
def test_numbers_that_are_not_finite_are_refused(broken):
    images, labels, weights = _labelled(4, 3)
    with pytest.raises(InputError, match=r"1 of .* not finite"):
        if broken == "texts":
            class_weights(
                lambda texts: torch.tensor([[1.0]] * (len(texts) - 1) + [[torch.inf]]), ["a", "b"], ["{}"]
            )
        (images if broken == "images" else weights)[1, 2] = torch.nan
        zero_shot_rank(images, labels, weights)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_without_a_class_is_named(label):
    with pytest.raises(InputError, match=rf"label {label} is none of the 3 classes"):
        zero_shot_rank(torch.ones(2, 8), torch.tensor([0, label]), torch.ones(3, 8))


def _measure_own_rows() -> list[float]:
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    images, labels, weights = _labelled(101, 10)
    metrics = [
        ZeroShotAccuracy(weights),
        ZeroShotAccuracy(weights, 5),
        ZeroShotAccuracy(weights, per_class=True),
    ]
    for metric in metrics:
        metric.update(images[rank::world], labels[rank::world])
    return [float(metric.compute()) for metric in metrics]


def test_two_ranks_give_one_ranks_numbers(pool):
    (one,) = pool(1, _measure_own_rows)
    assert len(set(one)) == 3
    assert pool(2, _measure_own_rows) == [pytest.approx(one, abs=1e-9)] * 2

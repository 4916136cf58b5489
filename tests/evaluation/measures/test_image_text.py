import pytest
import torch
from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k
from torch import Tensor

from mofi_lightning.evaluation.measures.image_text import ImageTextRecallAtK, image_text_recall


def _naive(queries: Tensor, labels: Tensor, found: Tensor, found_labels: Tensor, k: int) -> list[float]:
    scores = torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(found).T
    best = scores.argsort(dim=1, descending=True)[:, :k]
    return [float((found_labels[row] == label).any()) for row, label in zip(best, labels, strict=True)]


def test_both_directions_equal_a_naive_search_with_several_captions_and_images():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(30, 8, generator=generator), torch.randn(17, 8, generator=generator)
    image_labels = torch.randint(6, (30,), generator=generator)
    text_labels = torch.cat([torch.arange(6), torch.randint(6, (11,), generator=generator)])
    recall = image_text_recall(images, image_labels, texts, text_labels, k=(1, 5))
    for k in (1, 5):
        assert recall.image_to_text[k].tolist() == _naive(images, image_labels, texts, text_labels, k)
        assert recall.text_to_image[k].tolist() == _naive(texts, text_labels, images, image_labels, k)


def test_a_text_without_image_counts_in_no_direction():
    recall = image_text_recall(
        torch.eye(2), torch.tensor([0, 1]), torch.eye(3)[:, :2], torch.arange(3), k=(1,)
    )
    assert recall.image_to_text[1].tolist() == [1.0, 1.0]
    assert recall.text_to_image[1][:2].tolist() == [1.0, 1.0]
    assert recall.text_to_image[1][2].isnan()


def test_metric_is_the_mean_of_both_directions_over_batches():
    generator = torch.Generator().manual_seed(2)
    images, texts = torch.randn(20, 4, generator=generator), torch.randn(20, 4, generator=generator)
    labels = torch.arange(20) // 2
    metric = ImageTextRecallAtK(k=3)
    metric.update(images[:9], texts[:9], labels[:9])
    metric.update(images[9:], texts[9:], labels[9:])
    both = _naive(images, labels, texts, labels, 3) + _naive(texts, labels, images, labels, 3)
    torch.testing.assert_close(metric.compute(), torch.tensor(both, dtype=torch.float64).mean())


@pytest.mark.parametrize("k", [1, 3, 8])
def test_equals_clip_benchmark_where_each_text_has_one_image_and_an_image_several_texts(k):
    # its `recall_at_k` is a share of the positives; its task then asks whether there is any (`> 0`)
    generator = torch.Generator().manual_seed(1)
    images, texts = torch.randn(12, 8, generator=generator), torch.randn(40, 8, generator=generator)
    of_image = torch.randint(12, (40,), generator=generator)
    of_image[:12] = torch.arange(12)
    unit = torch.nn.functional.normalize
    scores = unit(texts) @ unit(images).T
    positive = of_image[:, None] == torch.arange(12)
    recall = image_text_recall(images, torch.arange(12), texts, of_image, k=(k,))
    for found, score, pairs in (
        (recall.text_to_image[k], scores, positive),
        (recall.image_to_text[k], scores.T, positive.T),
    ):
        assert found.tolist() == (recall_at_k(score, pairs, k) > 0).double().tolist()

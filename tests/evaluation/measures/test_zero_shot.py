from collections.abc import Sequence

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mofi_lightning.evaluation.zero_shot import TEMPLATES, ZeroShotAccuracy, class_weights, zero_shot_rank
from mofi_lightning.types import InputError

NAMES = ["prayer beads", "boar", "whale", "hole"]


def _encode(texts: Sequence[str]) -> Tensor:
    rows = [torch.randn(16, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
    return torch.stack(rows)


class _Peer(nn.Module):
    """What open_clip asks of a model; its tokenizer hands the texts through as characters."""

    def encode_text(self, tokens: Tensor, normalize: bool) -> Tensor:
        texts = ["".join(chr(c) for c in row if c) for row in tokens.tolist()]
        return F.normalize(_encode(texts), dim=-1)


def _tokens(texts: Sequence[str]) -> Tensor:
    return torch.tensor([[ord(c) for c in text.ljust(60, "\0")] for text in texts])


def test_class_weights_equal_open_clip():
    got = class_weights(_encode, NAMES)
    templates = [template.replace("{}", "{0}").format for template in TEMPLATES]
    want = open_clip.build_zero_shot_classifier(_Peer(), _tokens, NAMES, templates, device="cpu")
    torch.testing.assert_close(got, want.T)


def test_rank_equals_a_sorted_list():
    weights = F.normalize(_encode(NAMES), dim=1)
    images = torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(20) % 4
    order = (images @ weights.T).argsort(dim=1, descending=True)
    want = (order == labels[:, None]).nonzero()[:, 1] + 1
    assert zero_shot_rank(images, labels, weights).tolist() == want.tolist()


def test_classes_that_tie_with_the_true_one_stand_before_it():
    assert zero_shot_rank(torch.ones(2, 3), torch.tensor([0, 3]), torch.ones(4, 3)).tolist() == [4, 4]


def test_metric_counts_over_batches_and_leaves_unlabelled_rows_out():
    weights = torch.eye(3)
    metric = ZeroShotAccuracy(weights)
    metric.update(torch.eye(3), torch.tensor([0, 1, 1]))
    metric.update(torch.eye(3), torch.tensor([-1, 1, -1]))
    assert float(metric.compute()) == 3 / 4


@pytest.mark.parametrize(
    ("templates", "message"), [(["a photo"], "'a photo' has no '{}'"), ([], "needs a template")]
)
def test_templates_that_cannot_work_are_named(templates, message):
    with pytest.raises(InputError, match=message):
        class_weights(_encode, NAMES, templates)

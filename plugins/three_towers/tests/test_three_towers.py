import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mofi_lightning import InputError, cli, load
from mofi_lightning.testing import check_objective
from mofi_lightning.types import Batch, Embeddings, ObjectiveSpec
from mofi_three_towers import ThreeTowers

SPEC = ObjectiveSpec(embed_dim=5, feature_dim=6, teacher_dim=7)


def naive(objective: ThreeTowers, image, text, teacher) -> torch.Tensor:
    """Three dense symmetric cross-entropies."""

    def contrast(left, right, scale):
        logits = scale.exp() * left @ right.T
        target = torch.arange(len(left))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def unit(vectors):
        return vectors / vectors.square().sum(1, keepdim=True).sqrt()

    o = objective
    image_side = unit(image @ o.image_head.weight.T), unit(teacher @ o.teacher_for_image.weight.T)
    text_side = unit(text @ o.text_head.weight.T), unit(teacher @ o.teacher_for_text.weight.T)
    return (
        contrast(image, text, o.image_text.logit_scale)
        + contrast(*image_side, o.image_teacher.logit_scale)
        + contrast(*text_side, o.text_teacher.logit_scale)
    ) / 3


def test_the_loss_and_its_gradients_are_the_mean_of_three_dense_contrastive_losses():
    torch.manual_seed(0)
    objective = ThreeTowers(SPEC, head_dim=4).double()
    with torch.no_grad():
        for scale, value in zip((objective.image_text, objective.text_teacher), (1.0, 2.0), strict=True):
            scale.logit_scale.fill_(value)  # told apart
    reference = copy.deepcopy(objective)
    image, text, teacher = (F.normalize(torch.randn(9, d, dtype=torch.float64), dim=1) for d in (5, 5, 7))
    leaves = [[image.clone().requires_grad_(), text.clone().requires_grad_()] for _ in range(2)]
    loss = objective(Embeddings(*leaves[0], teacher=teacher), Batch()).loss
    expected = naive(reference, *leaves[1], teacher)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    ours = [leaf.grad for leaf in leaves[0]] + [p.grad for p in objective.parameters()]
    theirs = [leaf.grad for leaf in leaves[1]] + [p.grad for p in reference.parameters()]
    largest = max(gradient.abs().max() for gradient in theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=float(1e-10 * largest))


def test_the_kit_finds_nothing():
    check_objective(ThreeTowers)


def test_without_a_teacher_the_way_out_is_named():
    with pytest.raises(InputError, match=r"model\.teacher\.image"):
        ThreeTowers(ObjectiveSpec(embed_dim=5, feature_dim=6))


def test_the_configuration_trains_and_leaves_a_model_without_teacher_and_heads(tmp_path):
    config = Path(__file__).parents[1] / "config.yaml"
    words = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    cli.main(["fit", "-c", str(config), "--trainer.default_root_dir", str(tmp_path), *words])
    names = load(tmp_path).state_dict().keys()
    assert names and not any("teacher" in name or "_head" in name for name in names)

"""Encoding in slices gives the gradient of the whole batch and keeps one slice's activations."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tests.training.runs import whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from mofi_lightning.distributed import rank, world_size
from mofi_lightning.distributed.parallelize import shard
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.teacher import TeacherConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.objectives import CLIP, MOFI, EntitySoftmax
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import PretrainingModule
from mofi_lightning.training.slicing import encode_in_slices, refuse_batch_statistics
from mofi_lightning.types import Batch, Embeddings, InputError, Tokens

ROWS = 12
VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3, "drop_path_rate": 0.0}
ENCODER = DualEncoderConfig(
    image="timm/vit_tiny_patch16_224", image_options=VIT, embed_dim=16, text=TextConfig(32, 2, 2, 32)
)
# what the gradient reaches last
FIRST = (
    "model.image.encoder.model.patch_embed.proj.weight",
    "model.text.encoder.model.embeddings.token_embedding.weight",
)


def objective(name: str) -> Any:
    """The factory of an objective; what it needs of the encoders differs."""
    if name == "filip":
        from mofi_filip import FILIP

        return functools.partial(FILIP, token_dim=8)
    if name == "three_towers":
        from mofi_three_towers import ThreeTowers

        return ThreeTowers
    return {
        "clip": CLIP,
        "mofi": functools.partial(MOFI, entity=functools.partial(EntitySoftmax, num_sampled=20)),
    }[name]


def step(name: str, slices: int, rows: int = ROWS) -> tuple[float, dict[str, torch.Tensor]]:
    """This rank's loss of a step in fp64, and the gradients of all parameters."""
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        teacher = TeacherConfig("mofi/tiny") if name == "three_towers" else None
        module = PretrainingModule(ENCODER, objective(name), teacher=teacher, encode_slices=slices)
        data = SyntheticDataModule(rows=rows, num_entities=40)
        module.build(data.vocabulary)
        text = module.model.text
        assert text is not None
        data.use(module.model.preprocess, module.model.tokenizer, text.encoder.context_length)
        share = rows // world_size()
        mine = slice(rank() * share, (rank() + 1) * share)
        batch = data.global_batch(0)
        batch = Batch(
            image=batch["image"][mine],
            text=Tokens(*(part[mine] for part in batch["text"])),
            entity=batch["entity"][mine],
            key=batch["key"][mine],
        )
        module.freeze_parameters()
        if world_size() > 1:
            mesh = init_device_mesh("cpu", (world_size(),), mesh_dim_names=("shard",))
            shard(module.towers(), module.objective, mesh, mesh, False)
        loss = module(batch).loss
        loss.backward()
        gradients = {n: whole(p.grad) for n, p in module.named_parameters() if p.grad is not None}
        return loss.item(), gradients
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", ["clip", "mofi", "filip", "three_towers"])
def test_the_gradient_of_slices_is_that_of_the_whole_batch(pool, name, ranks):
    if name in ("filip", "three_towers"):
        pytest.importorskip(f"mofi_{name}")
    expected = pool(ranks, step, name, 1)
    for slices in (3, 4 if ranks == 1 else 5):  # 5 does not divide the 6 rows of a rank
        for (loss, found), (unsliced, gradients) in zip(
            pool(ranks, step, name, slices), expected, strict=True
        ):
            assert loss == pytest.approx(unsliced, abs=1e-12)
            assert found.keys() == gradients.keys() and len(gradients) > 40
            assert all(gradients[parameter].any() for parameter in FIRST)
            for parameter, gradient in gradients.items():
                torch.testing.assert_close(found[parameter], gradient, rtol=0, atol=1e-12, msg=parameter)


def rows_of(batch: Batch, seen: list[int]) -> Embeddings:
    """An encoder that notes how many rows it gets."""
    seen.append(len(batch["image"]))
    image = batch["image"].flatten(1).sin()  # keeps its input for the backward
    return Embeddings(image=image, text=None, image_features=image)


@pytest.mark.parametrize(
    "rows, slices, sizes",
    [(8, 1, [8]), (8, 4, [2] * 4), (7, 3, [3, 3, 1]), (3, 8, [1] * 3), (5, 4, [2, 2, 1])],
)
def test_slices_are_consecutive_rows_and_no_more_than_there_are(rows, slices, sizes):
    images = torch.arange(rows * 3.0).reshape(rows, 3, 1, 1).requires_grad_()
    for enabled in (True, False):
        seen: list[int] = []
        with torch.set_grad_enabled(enabled):
            joined = encode_in_slices(lambda batch, s=seen: rows_of(batch, s), {"image": images}, slices)
        assert seen == sizes
        assert torch.equal(joined.image, images.flatten(1).sin()) and joined.text is None
        assert joined.image.requires_grad == enabled


def test_the_backward_runs_each_slice_once_more_and_evaluation_does_not():
    images = torch.randn(6, 3, 1, 1).requires_grad_()
    seen: list[int] = []
    encode_in_slices(lambda batch: rows_of(batch, seen), {"image": images}, 3).image.sum().backward()
    assert seen == [2] * 6
    seen.clear()
    with torch.no_grad():
        encode_in_slices(lambda batch: rows_of(batch, seen), {"image": images}, 3)
    assert seen == [2] * 3


def test_dropout_of_a_slice_is_repeated_in_its_backward():
    weight = torch.ones(3, requires_grad=True)

    def encode(batch: Batch) -> Embeddings:
        image = nn.functional.dropout(batch["image"].flatten(1) * weight, 0.5)
        return Embeddings(image=image, text=None, image_features=image)

    torch.manual_seed(0)
    images = torch.ones(64, 3, 1, 1)
    joined = encode_in_slices(encode, {"image": images}, 4)
    joined.image.square().sum().backward()
    # d/dw of sum (w m)^2 is 2 w m^2, with the masks m of the forward
    torch.testing.assert_close(weight.grad, 2 * joined.image.detach().square().sum(0))


def test_slices_of_an_encoder_with_batch_statistics_are_refused_unless_it_is_in_eval_mode():
    model = DualEncoder.from_config(DualEncoderConfig(image="timm/resnet18", embed_dim=8))
    with pytest.raises(
        InputError, match=r"encode_slices is 4, but image\..*bn1 is a BatchNorm.*model.freeze"
    ):
        refuse_batch_statistics(model, 4)
    refuse_batch_statistics(model, 1)
    refuse_batch_statistics(model.eval(), 4)


def test_a_number_of_slices_below_one_is_refused():
    with pytest.raises(InputError, match="encode_slices is 0"):
        PretrainingModule(encode_slices=0)

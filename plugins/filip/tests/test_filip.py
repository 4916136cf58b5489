import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mofi_filip import FILIP
from mofi_filip.late_interaction import late_interaction
from mofi_lightning import cli, load
from mofi_lightning.testing import check_objective, shared_processes
from mofi_lightning.types import Batch, Embeddings, InputError, ObjectiveSpec

SPEC = ObjectiveSpec(embed_dim=4, feature_dim=5, text_feature_dim=3)
ROWS, IMAGE_TOKENS, TEXT_TOKENS = 6, 4, 7
LENGTHS = (2, 5, 3, 7, 6, 4)  # of the texts; the longest lies on the second of two ranks


def tokens() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(ROWS, IMAGE_TOKENS, 5, generator=generator, dtype=torch.float64)
    text = torch.randn(ROWS, TEXT_TOKENS, 3, generator=generator, dtype=torch.float64)
    mask = (torch.arange(TEXT_TOKENS) < torch.tensor(LENGTHS)[:, None]).to(torch.int64)
    return image.requires_grad_(), text.requires_grad_(), mask


def objective() -> FILIP:
    torch.manual_seed(0)
    return FILIP(SPEC, token_dim=8).double()


def embeddings(image: Tensor, text: Tensor, mask: Tensor) -> Embeddings:
    pooled = F.normalize(image.mean(1)[:, :4], dim=1)
    return Embeddings(image=pooled, image_tokens=image, text_tokens=text, text_tokens_mask=mask)


def naive_similarities(image: list[Tensor], text: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The equations as they are written; each image and text is a list of its tokens."""
    to_text = [[sum(max(v @ t for t in y) for v in x) / len(x) for y in text] for x in image]
    to_image = [[sum(max(v @ t for v in x) for t in y) / len(y) for y in text] for x in image]
    return tuple(torch.stack([torch.stack(row) for row in rows]) for rows in (to_text, to_image))


def naive_loss(filip: FILIP, image: Tensor, text: Tensor) -> Tensor:
    def unit(token: Tensor, projection: torch.nn.Linear) -> Tensor:
        token = projection.weight @ token
        return token / token.norm()

    images = [[unit(token, filip.image_projection) for token in row] for row in image]
    texts = [
        [unit(token, filip.text_projection) for token in row[:length]]
        for row, length in zip(text, LENGTHS, strict=True)
    ]
    to_text, to_image = (filip.logit_scale.exp() * s for s in naive_similarities(images, texts))
    pairs = torch.arange(ROWS)
    return (F.cross_entropy(to_text, pairs) + F.cross_entropy(to_image.T, pairs)) / 2


def assert_equal(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Each within `tolerance` of its largest entry."""
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * other.abs().max().item())


def test_loss_and_gradient_are_those_of_the_equations():
    filip, (image, text, mask) = objective(), tokens()
    inputs = [image, text, *filip.parameters()]
    expected, actual = naive_loss(filip, image, text), filip(embeddings(image, text, mask), Batch()).loss
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    assert_equal(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), 1e-10)


@pytest.mark.parametrize("tile", (1, 60, 200), ids=("pairs", "rows of pairs in parts", "rows"))
def test_tiles_change_nothing(tile):
    image, text, mask = tokens()
    text = text @ torch.ones(3, 5, dtype=torch.float64)
    results = []
    for size in (tile, 10**6):
        to_text, to_image = late_interaction(image, text, mask, size)
        gradients = torch.autograd.grad((to_text.exp() + 2 * to_image.exp()).sum(), [image, text])
        results.append([to_text.detach(), to_image.detach(), *gradients])
    assert_equal(*results, tolerance=1e-14)


def test_padding_changes_nothing_and_gets_no_gradient():
    filip, (image, text, mask) = objective(), tokens()
    padded = torch.where(mask[..., None] == 1, text, 100.0).detach().requires_grad_()
    loss = filip(embeddings(image, padded, mask), Batch()).loss
    torch.testing.assert_close(loss, filip(embeddings(image, text, mask), Batch()).loss)
    (gradient,) = torch.autograd.grad(loss, padded)
    assert gradient[mask == 0].eq(0).all() and gradient[mask == 1].abs().min() > 0


def on_rank() -> tuple[Tensor, list[Tensor]]:
    """Loss, and the gradients as data parallelism averages them; the shorter texts' rank pads less."""
    import torch.distributed as dist

    rank, share = dist.get_rank(), ROWS // dist.get_world_size()
    own = slice(rank * share, (rank + 1) * share)
    filip, (image, text, mask) = objective(), tokens()
    longest = max(LENGTHS[own])
    local = embeddings(image[own], text[own, :longest], mask[own, :longest])
    loss = filip(local, Batch()).loss
    loss.backward()
    gradients = [tensor.grad for tensor in (image, text, *filip.parameters())]
    for gradient in gradients:
        dist.all_reduce(gradient)
    return loss.detach(), [gradient / dist.get_world_size() for gradient in gradients]


def test_two_processes_give_the_loss_and_gradient_of_one():
    filip, (image, text, mask) = objective(), tokens()
    loss = filip(embeddings(image, text, mask), Batch()).loss
    expected = torch.autograd.grad(loss, [image, text, *filip.parameters()])
    losses, gradients = zip(*shared_processes()(2, on_rank), strict=True)
    torch.testing.assert_close(torch.stack(losses).mean(), loss.detach(), rtol=1e-12, atol=0)
    for averaged in gradients:
        assert_equal(averaged, expected, 1e-12)


def test_tokens_of_lower_precision_are_computed_with_in_full():
    filip, (image, text, mask) = objective().float(), tokens()
    output = filip(embeddings(image.bfloat16(), text.bfloat16(), mask), Batch())
    assert output.loss.dtype == torch.float32
    full = filip(embeddings(image.bfloat16().float(), text.bfloat16().float(), mask), Batch())
    assert output.loss == full.loss


def test_the_kit_finds_nothing_and_the_products_of_all_tokens_never_exist():
    report = check_objective(FILIP)
    assert report.largest.nbytes == 4 * 2**22  # a tile; all products would be 8 times as many


def test_the_scale_starts_at_clips_and_stays_below_its_cap():
    filip = objective()
    assert filip.logit_scale.shape == (1,)
    output = filip(embeddings(*tokens()), Batch())
    assert output.logs["logit_scale"].item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        filip.logit_scale.fill_(9.0)
    filip.after_optimizer_step(1.0)
    assert filip.logit_scale.item() == pytest.approx(math.log(100))


def test_a_model_without_text_tower_is_refused():
    with pytest.raises(InputError, match="text tower"):
        FILIP(ObjectiveSpec(embed_dim=4, feature_dim=5))


def test_an_encoder_whose_tokens_are_not_as_wide_as_its_features_is_refused():
    image, text, mask = tokens()
    with pytest.raises(InputError, match="tokens are 4 wide, its features 5"):
        objective()(embeddings(image[..., :4], text, mask), Batch())


def test_the_configuration_trains(tmp_path):
    config = Path(__file__).parents[1] / "config.yaml"
    words = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    cli.main(["fit", "-c", str(config), "--trainer.default_root_dir", str(tmp_path), *words])
    assert load(tmp_path).text is not None

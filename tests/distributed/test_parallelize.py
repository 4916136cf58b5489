"""Activation checkpointing, compiling and sharding change how an encoder computes, not what."""

import copy

import pytest
import timm
import torch
import transformers
from torch import nn
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mofi_lightning.distributed import rank, world_size
from mofi_lightning.distributed.blocks import encoder_blocks
from mofi_lightning.distributed.parallelize import checkpoint_activations, compile_blocks, shard
from mofi_lightning.objectives import CLIP
from mofi_lightning.testing import GlooPool
from mofi_lightning.testing.batches import synthetic_spec
from mofi_lightning.types import InputError

IMAGES, TOKENS, WIDTH = 4, 17, 48


def vit(depth: int = 3, **options: object) -> nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=depth, **shape, **options)


def text(layers: int = 2, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        attention_dropout=dropout,
    )
    return transformers.CLIPTextModel(config)


def pixels() -> torch.Tensor:
    return torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def ids(length: int = 12) -> torch.Tensor:
    return torch.randint(3, 99, (IMAGES, length), generator=torch.Generator().manual_seed(length))


def outputs(model: nn.Module, value: torch.Tensor) -> torch.Tensor:
    """The features, of timm's or transformers' model."""
    found = model(value)
    return found if isinstance(found, torch.Tensor) else found.last_hidden_state


def gradients(model: nn.Module, value: torch.Tensor, seed: int = 7) -> dict[str, torch.Tensor]:
    """Of the sum of squares of the output, with the random numbers of `seed`."""
    model.zero_grad()
    torch.manual_seed(seed)
    outputs(model, value).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def saved_bytes(model: nn.Module, value: torch.Tensor) -> int:
    """What autograd keeps of a forward, parameters left out."""
    kept = {p.untyped_storage().data_ptr() for p in model.parameters()}
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in kept:
            kept.add(storage.data_ptr())
            total += storage.nbytes()
            alive.append(tensor)  # else another tensor may get its address
        return tensor

    alive: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs(model, value).sum()
    return total


@pytest.mark.parametrize(
    "build, value",
    [
        (lambda: vit(drop_path_rate=0.4, proj_drop_rate=0.2).double(), pixels().double()),
        (lambda: text(dropout=0.3).double(), ids()),
    ],
    ids=["vit", "text"],
)
def test_checkpointing_repeats_dropout_and_gives_the_same_gradients(build, value):
    plain, checkpointed = build().train(), build().train()
    checkpoint_activations(checkpointed)
    expected, found = gradients(plain, value), gradients(checkpointed, value)
    assert found.keys() == expected.keys() and len(expected) > 20
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    other = gradients(plain, value, seed=8)
    assert any(not torch.equal(other[name], expected[name]) for name in expected)  # dropout is on


def test_checkpointing_keeps_one_tensor_a_block():
    def checkpointed(depth: int) -> int:
        model = vit(depth)
        checkpoint_activations(model)
        return saved_bytes(model, pixels())

    input_of_a_block = IMAGES * TOKENS * WIDTH * 4  # bytes
    assert checkpointed(4) - checkpointed(3) == input_of_a_block
    assert saved_bytes(vit(4), pixels()) - saved_bytes(vit(3), pixels()) > 10 * input_of_a_block


def test_checkpointing_and_compiling_keep_every_name():
    model = vit()
    names = list(model.state_dict())
    checkpoint_activations(model)
    compile_blocks(model)
    assert list(model.state_dict()) == names


def test_an_encoder_without_blocks_is_refused_unless_it_is_frozen():
    with torch.device("meta"):
        encoder = nn.ModuleList([timm.create_model("vgg11", num_classes=0)])
    for transform, setting in (
        (checkpoint_activations, "activation_checkpointing"),
        (compile_blocks, "compile_blocks"),
    ):
        with pytest.raises(InputError, match=f"{setting} .*VGG.* set {setting}: false"):
            transform(encoder)
        transform(copy.deepcopy(encoder).requires_grad_(False))


def sharded(bf16: bool, checkpointing: bool = False, compiled: bool = False) -> list[nn.Module]:
    """A ViT, a text model and an objective over all ranks."""
    towers = [vit(), text()]
    for tower in towers:
        if checkpointing:
            checkpoint_activations(tower)
        if compiled:
            compile_blocks(tower)
    objective = CLIP(synthetic_spec(9, 16))
    mesh = init_device_mesh("cpu", (world_size(),), mesh_dim_names=("shard",))
    shard(towers, objective, mesh, mesh, bf16)
    return [*towers, objective]


def names_and_dtypes() -> dict[str, object]:
    modules = sharded(bf16=True, checkpointing=True)
    seen: dict[str, object] = {
        "names": [list(module.state_dict()) for module in modules],
        "sharded": all(isinstance(p, DTensor) for module in modules for p in module.parameters()),
        "units": [sum(isinstance(m, FSDPModule) for m in module.modules()) for module in modules],
        "inside": set(),
        "weights": set(),
    }

    def look(block: nn.Module, args: tuple, kwargs: dict) -> None:
        seen["inside"] |= {x.dtype for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)}
        seen["weights"] |= {p.dtype for p in block.parameters()}

    for tower in modules[:2]:
        for block in encoder_blocks(tower):
            block.register_forward_pre_hook(look, with_kwargs=True)
    found = [outputs(modules[0], pixels()), outputs(modules[1], ids())]
    seen["outputs"] = {x.dtype for x in found}
    (found[0].square().mean() + found[1].square().mean()).backward()
    seen["gradients"] = {p.grad.dtype for m in modules[:2] for p in m.parameters() if p.grad is not None}
    return seen


def test_sharding_keeps_names_and_with_bf16_computes_blocks_in_it_and_gives_fp32(pool):
    for seen in pool(2, names_and_dtypes):
        expected = [vit(), text(), CLIP(synthetic_spec(9, 16))]
        assert seen["names"] == [list(module.state_dict()) for module in expected]
        assert seen["sharded"]
        assert seen["units"] == [3 + 1, 2 + 1, 1]  # each block, the rest of a tower, the objective
        assert seen["inside"] == seen["weights"] == {torch.bfloat16}
        assert seen["outputs"] == seen["gradients"] == {torch.float32}


def whole_gradients(checkpointing: bool, compiled: bool) -> tuple[list[dict[str, torch.Tensor]], int]:
    """Gradients of a step on the ranks' rows, the ranks' mean, and how many pieces of code were compiled."""
    counters.clear()
    modules = sharded(False, checkpointing, compiled)
    share = IMAGES // world_size()
    rows = slice(rank() * share, (rank() + 1) * share)
    found = []
    for tower, value in zip(modules[:2], (pixels(), ids()), strict=True):
        outputs(tower, value[rows]).square().sum().backward()
        pairs = ((name, p.grad) for name, p in tower.named_parameters() if p.grad is not None)
        found.append({name: grad.full_tensor() for name, grad in pairs})
    return found, counters["stats"]["unique_graphs"]


def test_checkpointing_under_sharding_gives_the_mean_of_the_ranks_gradients(pool):
    (found, _), _ = pool(2, whole_gradients, True, False)
    for model, value, got in zip((vit(), text()), (pixels(), ids()), found, strict=True):
        for name, expected in gradients(model, value).items():
            torch.testing.assert_close(got[name] * 2, expected, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_checkpointed_compiled_and_sharded_blocks_give_the_gradients_of_plain_ones():
    processes = GlooPool(timeout=500)
    try:
        (found, graphs), _ = processes(2, whole_gradients, True, True)
    finally:
        processes.close()
    assert graphs == 2  # one for the ViT's blocks, one for the text model's
    for model, value, got in zip((vit(), text()), (pixels(), ids()), found, strict=True):
        for name, expected in gradients(model, value).items():
            torch.testing.assert_close(got[name] * 2, expected, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_encoders_equal_eager_ones_and_compile_for_two_text_lengths_only(checkpointing):
    torch._dynamo.reset()
    counters.clear()
    image, words = vit(), text()
    for model in (image, words):
        if checkpointing:
            checkpoint_activations(model)
        compile_blocks(model)
    eager = gradients(vit(), pixels())
    for name, found in gradients(image, pixels()).items():
        torch.testing.assert_close(found, eager[name], rtol=1e-3, atol=1e-3, msg=name)
    assert counters["stats"]["unique_graphs"] == 1  # three blocks, one code
    graphs = []
    for length in (9, 12, 15, 20, 31):
        eager = gradients(text(), ids(length))
        for name, found in gradients(words, ids(length)).items():
            torch.testing.assert_close(found, eager[name], rtol=1e-3, atol=1e-3, msg=name)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == 2 and graphs[1] <= 3 and len(set(graphs[1:])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_block_is_compiled_where_each_drops_paths_at_its_own_rate(monkeypatch, checkpointing):
    torch._dynamo.reset()
    counters.clear()
    original = torch.compile
    # tracing without code generation: what is counted is the same, in a hundredth of the time
    monkeypatch.setattr(torch, "compile", lambda fn, **options: original(fn, backend="eager", **options))
    image, words = vit(depth=12, drop_path_rate=0.1).train(), text()
    for model in (image, words):
        if checkpointing:
            checkpoint_activations(model)
        compile_blocks(model)
    outputs(image, pixels()).sum().backward()
    assert counters["frames"]["ok"] == counters["frames"]["total"] == 12
    outputs(words, ids()).sum().backward()
    assert counters["frames"]["ok"] == counters["frames"]["total"] == 13

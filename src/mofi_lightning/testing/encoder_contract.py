"""The contract of encoders, as checks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from mofi_lightning.encoders.base import EncoderOutput, ImageEncoder, TextEncoder
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.testing.batches import synthetic_vocabulary
from mofi_lightning.testing.checks import (
    close,
    drawn_from,
    last_line,
    random_state,
    seed_everything,
    zero_dimensional,
)
from mofi_lightning.types import Tokens

_ROWS = 3
_FP32 = 1e-3  # of the largest entry: kernels add up in another order for another batch


class Contract:
    """Checks of one encoder; each returns what is wrong, or raises.

    Args:
        factory: makes the encoder.
        tokenizer: of a text encoder.
    """

    def __init__(self, factory: Callable[[], ImageEncoder | TextEncoder], tokenizer: Tokenizer) -> None:
        self.factory = factory
        self.tokenizer = tokenizer
        self.name = getattr(factory, "__name__", "the encoder").replace("<lambda>", "the encoder")

    def build(self, seed: int = 0) -> ImageEncoder | TextEncoder:
        """A new encoder in eval mode."""
        seed_everything(seed)
        return self.factory().eval()

    @torch.no_grad()
    def encode(self, inputs: tuple[Tensor, ...] | None = None, tokens: bool = False) -> EncoderOutput:
        """What the encoder in eval mode makes of `inputs`."""
        output: EncoderOutput = self.encoder(*(inputs or self.inputs), tokens=tokens)
        return output

    def kind(self) -> list[str]:
        """It is an encoder with its attributes set, and holds no 0-D parameter."""
        self.encoder = encoder = self.build()
        kinds = (ImageEncoder, TextEncoder)
        if not isinstance(encoder, kinds):
            return [f"the factory makes a {type(encoder).__name__}; derive from ImageEncoder or TextEncoder"]
        self.name = type(encoder).__name__
        numbers = ["feature_dim", *(["context_length"] if isinstance(encoder, TextEncoder) else [])]
        found = [
            f"`{name}` is {getattr(encoder, name, 'missing')}; set it to a positive int in __init__"
            for name in numbers
            if not isinstance(getattr(encoder, name, None), int) or getattr(encoder, name) < 1
        ]
        if isinstance(encoder, ImageEncoder) and not isinstance(
            getattr(encoder, "preprocess", None), Preprocess
        ):
            found.append("`preprocess` is no Preprocess; set it in __init__")
        if not found:
            self.inputs = self._inputs()
        return found + zero_dimensional(encoder)

    def features(self) -> list[str]:
        """Features are finite, `[B, F]`, depend on the input and come alone."""
        output = self.encode()
        if not isinstance(output, EncoderOutput):
            return [f"forward returns a {type(output).__name__}; return EncoderOutput(features)"]
        shape = (_ROWS, self.encoder.feature_dim)
        if tuple(output.features.shape) != shape:
            return [f"features are {tuple(output.features.shape)}, not [B, feature_dim] = {shape}"]
        if not output.features.isfinite().all():
            return ["features are not finite"]
        if close(output.features[:1], output.features[1:2]):
            return ["two different inputs have the same features"]
        if output.tokens is not None:
            return ["tokens are returned without being asked for, and would be kept for the backward"]
        return []

    def preprocess(self) -> list[str]:
        """The geometry can be used."""
        assert isinstance(self.encoder, ImageEncoder)
        geometry = self.encoder.preprocess
        found = []
        if not 0 < geometry.crop <= 1:
            found.append(f"`preprocess.crop` is {geometry.crop}; it is a share in 0..1")
        for name in ("mean", "std"):
            values = getattr(geometry, name)
            if len(values) != 3 or not all(0 <= v <= 1 for v in values) or (name == "std" and 0 in values):
                found.append(f"`preprocess.{name}` is {values}; give three shares of full intensity, 0..1")
        if not found:
            image = torch.randint(256, (3, 40, 30), dtype=torch.uint8)
            size = geometry(image).shape
            if tuple(size) != (3, geometry.size, geometry.size):
                found.append(f"`preprocess` makes {tuple(size)} of an image")
        return found

    def lengths(self) -> list[str]:
        """Texts from empty to `context_length` tokens can be encoded."""
        assert isinstance(self.encoder, TextEncoder)
        words = "ba do fi ku " * self.encoder.context_length
        for text in ("", words):
            length = self.encoder.context_length
            try:
                self.encode(self.tokenizer([text], length))
            except Exception as error:
                what = f"a text of {length} tokens" if text else "an empty text"
                return [f"{what} raises {last_line(error)}"]
        return []

    def tokens(self) -> list[str]:
        """Tokens and mask come when asked for, and leave the features as they are."""
        with_tokens = self.encode(tokens=True)
        found = []
        if not close(with_tokens.features, self.encode().features, _FP32):
            found.append("features are others when tokens are asked for")
        tokens, mask = with_tokens.tokens, with_tokens.tokens_mask
        if tokens is None or mask is None:
            return [*found, "tokens=True gives no tokens, or none of their mask; return both"]
        wanted = (_ROWS, tokens.shape[1] if tokens.ndim > 1 else 0, self.encoder.feature_dim)
        if tuple(tokens.shape) != wanted:
            found.append(f"tokens are {tuple(tokens.shape)}, not [B, T, feature_dim] = {wanted}")
        elif not tokens.isfinite().all():
            found.append("tokens are not finite")
        if mask.shape != tokens.shape[:2] or not ((mask == 0) | (mask == 1)).all() or not mask.any(1).all():
            found.append(
                f"tokens_mask is {tuple(mask.shape)} of {mask.unique().tolist()[:3]}; make it 1 or 0, [B, T]"
            )
        return found

    def rows(self) -> list[str]:
        """In eval mode a row's features depend on its own input alone."""
        features = self.encode().features
        alone = torch.cat(
            [self.encode(tuple(x[i : i + 1] for x in self.inputs)).features for i in range(_ROWS)]
        )
        if close(alone, features, _FP32):
            return []
        return ["in eval mode the features of a row depend on the other rows of the batch"]

    def padding(self) -> list[str]:
        """What stands behind a text does not count."""
        assert isinstance(self.encoder, TextEncoder)
        ids, mask = self.inputs
        here = mask == 1
        longer = torch.full((_ROWS, self.encoder.context_length), int(ids[0, 1]))
        longer[:, : ids.shape[1]] = torch.where(here, ids, longer[:, : ids.shape[1]])
        longer_mask = torch.zeros_like(longer)
        longer_mask[:, : ids.shape[1]] = mask
        short, long = self.encode(tokens=True), self.encode((longer, longer_mask), tokens=True)
        found = []
        if not close(long.features, short.features, _FP32):
            found.append("features depend on what stands behind a text, where attention_mask is 0; mask it")
        if short.tokens is not None and long.tokens is not None:
            seen = long.tokens[:, : ids.shape[1]]
            if not close(seen[here], short.tokens[here], _FP32):
                found.append("tokens depend on what stands behind a text, where attention_mask is 0; mask it")
        return found

    def gradients(self) -> list[str]:
        """A gradient reaches every trainable parameter."""
        encoder = self.build().train()
        output: EncoderOutput = encoder(*self.inputs, tokens=True)
        loss = output.features.square().sum()
        if output.tokens is not None:
            loss = loss + output.tokens.square().sum()
        loss.backward()
        return [
            f"none reaches parameter {name!r}; use it for features or tokens, or set requires_grad to False"
            for name, parameter in encoder.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]

    def eval_mode(self) -> list[str]:
        """In eval mode nothing is drawn, changed, or different from call to call."""
        before, state = random_state(), {n: x.clone() for n, x in self.encoder.state_dict().items()}
        threads, default = torch.get_num_threads(), torch.get_default_dtype()
        first, second = self.encode(), self.encode()
        found = []
        if drawn := drawn_from(before):
            found.append(
                f"draws from the global generator of {' and '.join(drawn)}; draw only if self.training"
            )
        if (torch.get_num_threads(), torch.get_default_dtype()) != (threads, default):
            found.append("changes torch's number of threads or default dtype, which are the caller's")
            torch.set_num_threads(threads)
        if not drawn and not close(second.features, first.features, _FP32):
            found.append("the features of the same input differ from call to call")
        changed = [n for n, x in self.encoder.state_dict().items() if not torch.equal(x, state[n])]
        return found + [f"{n!r} of the state dict changes; change it only if self.training" for n in changed]

    def bf16(self) -> list[str]:
        """Features in bf16 are about those in fp32."""
        exact, found = self.encode().features, []
        cast = tuple(x.bfloat16() if x.is_floating_point() else x for x in self.inputs)
        ways = {
            "under autocast": (self.encoder, self.inputs, True),
            "with bf16 parameters and fp32 buffers": (_in_bf16(self.build()), cast, False),
        }
        for way, (encoder, inputs, autocast) in ways.items():
            try:
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    features = encoder(*inputs).features.float()
            except Exception as error:
                found.append(f"{way}, raises {last_line(error)}; cast buffers to the dtype of their input")
                continue
            likeness = torch.cosine_similarity(features, exact).min()
            if not likeness > 0.98:
                found.append(f"{way}, the cosine of the features to those in fp32 is only {likeness:.3f}")
        return found

    def state_dict(self) -> list[str]:
        """The state dict holds all that the features depend on."""
        features = self.encode().features
        other = self.build(seed=1)
        other.load_state_dict(self.encoder.state_dict())
        with torch.no_grad():
            loaded = other(*self.inputs).features
        if close(loaded, features, _FP32):
            return []
        return [
            "an encoder that loaded the state of another has other features; keep all weights in the state"
        ]

    def _inputs(self) -> tuple[Tensor, ...]:
        if isinstance(self.encoder, TextEncoder):
            names = synthetic_vocabulary(_ROWS).names
            texts = [name[: 3 + 2 * row] for row, name in enumerate(names)]
            return Tokens(*self.tokenizer(texts, self.encoder.context_length))
        size = self.encoder.preprocess.size
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(_ROWS, 3, size, size, generator=generator)
        return (pixels.contiguous(memory_format=torch.channels_last),)


def _in_bf16(encoder: ImageEncoder | TextEncoder) -> ImageEncoder | TextEncoder:
    """Parameters in bf16, buffers as they are; batch norms, which mix the two, stay in fp32."""
    for module in encoder.modules():
        if not isinstance(module, _BatchNorm):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.bfloat16()
    return encoder

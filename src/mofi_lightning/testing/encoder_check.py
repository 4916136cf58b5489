"""The kit for image and text encoders: one call that tells whether one is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mofi_lightning.encoders.base import ImageEncoder, TextEncoder
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.testing.checks import Findings, isolated
from mofi_lightning.testing.encoder_contract import Contract


@dataclass(frozen=True)
class EncoderReport:
    """What `check_encoder` found in order.

    Attributes:
        name: class of the encoder.
        feature_dim: F.
        tokens: T for an image of the encoder's size, or for the longest text.
        parameters: number of trainable values.
        checks: names of the checks it passed.
    """

    name: str
    feature_dim: int
    tokens: int
    parameters: int
    checks: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.parameters / 1e6:.3g} M parameters, features of {self.feature_dim}, "
            f"{self.tokens} tokens) passes {len(self.checks)} checks: {', '.join(self.checks)}"
        )


def check_encoder(
    factory: Callable[[], ImageEncoder | TextEncoder], *, tokenizer: Tokenizer | None = None
) -> EncoderReport:
    """Check that an encoder keeps to the contract of `ImageEncoder` or `TextEncoder`.

    It encodes three random images of the encoder's size, or three texts of different lengths, a few times.
    Dropout and the like may draw from torch's global generator in train mode; in eval mode features must
    depend on nothing but their own row. bf16 is tried in both ways in which training uses it: under
    autocast, and with parameters of bf16 beside buffers that stay fp32, as sharding has them.

    Args:
        factory: makes the encoder: its class, or `lambda: MyLibrary().build("small")`.
        tokenizer: of a text encoder; plain bytes if left out.

    Returns:
        What was checked; printable.

    Raises:
        AssertionError: something is wrong; the message has a line for each finding, with the way out.
    """
    with isolated():
        return _check(Contract(factory, tokenizer or Tokenizer.load("bytes")))


def _check(contract: Contract) -> EncoderReport:
    findings = Findings()
    # what follows means nothing where one of these fails
    first = (("contract", contract.kind), ("features", contract.features), ("eval mode", contract.eval_mode))
    for name, check in first:
        if not findings.run(name, check):
            findings.raise_if_any(f"encoder {contract.name!r}")
    if isinstance(contract.encoder, ImageEncoder):
        findings.run("preprocess", contract.preprocess)
    elif findings.run("lengths", contract.lengths):
        findings.run("padding", contract.padding)
    if findings.run("tokens", contract.tokens):
        findings.run("gradients", contract.gradients)
    findings.run("rows", contract.rows)
    findings.run("bf16", contract.bf16)
    findings.run("state dict", contract.state_dict)
    findings.raise_if_any(f"encoder {contract.name!r}")
    tokens = contract.encode(tokens=True).tokens
    return EncoderReport(
        contract.name,
        contract.encoder.feature_dim,
        0 if tokens is None else tokens.shape[1],
        sum(p.numel() for p in contract.encoder.parameters() if p.requires_grad),
        tuple(findings.checked),
    )

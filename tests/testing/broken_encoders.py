"""Encoders with one fault each; the two `Right...` have none."""

import dataclasses

import torch
from torch import nn

from mofi_lightning.encoders.base import EncoderOutput, ImageEncoder, TextEncoder
from mofi_lightning.encoders.preprocess import Preprocess


class RightImage(ImageEncoder):
    """Patches, a layer, their mean."""

    preprocess = Preprocess(size=16)
    feature_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 8, 8)
        self.norm = nn.BatchNorm1d(6)

    def grid(self, pixels):
        return self.patches(pixels).flatten(2).transpose(1, 2)

    def pool(self, grid):
        return self.norm(grid.mean(1))

    def forward(self, pixels, tokens=False):
        grid = self.grid(pixels)
        if not tokens:
            return EncoderOutput(self.pool(grid))
        return EncoderOutput(self.pool(grid), grid, torch.ones(grid.shape[:2]))


class NoPreprocess(RightImage):
    preprocess = None


class PercentCrop(RightImage):
    preprocess = dataclasses.replace(RightImage.preprocess, crop=87.5)


class ZeroDimensional(RightImage):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))


class OtherWidth(RightImage):
    feature_dim = 7


class SameForAll(RightImage):
    def pool(self, grid):
        return super().pool(grid) * 0 + 1


class UnaskedTokens(RightImage):
    def forward(self, pixels, tokens=False):
        return super().forward(pixels, True)


class NoTokens(RightImage):
    def forward(self, pixels, tokens=False):
        return super().forward(pixels)


class TokensMoveFeatures(RightImage):
    def forward(self, pixels, tokens=False):
        output = super().forward(pixels, tokens)
        return output._replace(features=output.features + tokens)


class NarrowTokens(RightImage):
    def forward(self, pixels, tokens=False):
        output = super().forward(pixels, tokens)
        return output._replace(tokens=output.tokens[..., :3]) if tokens else output


class UnusedParameter(RightImage):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 6, bias=False)


class LooksAcrossTheBatch(RightImage):
    def pool(self, grid):
        return super().pool(grid) - grid.mean((0, 1))


class DropoutInEval(RightImage):
    def pool(self, grid):
        return nn.functional.dropout(super().pool(grid), 0.5, training=True)


class CountsInEval(RightImage):
    def pool(self, grid):
        self.norm.num_batches_tracked += 1
        return super().pool(grid)


class Fp32Buffer(RightImage):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.ones(3, 1, 1))

    def grid(self, pixels):
        return super().grid(pixels - self.offset)


class WeightOutsideTheState(RightImage):
    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.randn(6)

    def pool(self, grid):
        return super().pool(grid) + self.offset


class RightText(TextEncoder):
    """Mean of the tokens and their positions."""

    feature_dim = 5
    context_length = 32

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(259, 5)
        self.places = nn.Parameter(torch.randn(32, 5))

    def mask(self, attention_mask):
        return attention_mask[..., None]

    def forward(self, input_ids, attention_mask, tokens=False):
        hidden = self.words(input_ids) + self.places[: input_ids.shape[1]]
        mask = self.mask(attention_mask)
        features = (hidden * mask).sum(1) / mask.sum(1)
        return EncoderOutput(features, hidden, attention_mask) if tokens else EncoderOutput(features)


class ReadsPadding(RightText):
    def mask(self, attention_mask):
        return torch.ones_like(attention_mask)[..., None]


class TooFewPlaces(RightText):
    context_length = 40


class NoContextLength(RightText):
    context_length = None

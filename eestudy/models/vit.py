"""Vision transformers: every encoder block is a stage (Dosovitskiy et al. 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.models.backbone import Backbone


class Embed1d(nn.Module):
    """A sequence (B, C, L) cut into patches, with a class token in front and learned positions: (B, 1 + L/patch, D)."""

    def __init__(self, channels: int, length: int, patch: int, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv1d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 1 + length // patch, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).transpose(1, 2)
        return torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1) + self.positions


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP, tokens (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.out(attended)
        return x + self.mlp(self.norm_mlp(x))


class ClassToken(nn.Module):
    """Tokens (B, T, D) -> the first one (B, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def vit1d(
    input_shape: tuple[int, ...],
    num_classes: int,
    width: int = 48,
    depth: int = 8,
    heads: int = 4,
    patch: int = 4,
) -> Backbone:
    """A transformer over patches of a sequence (C, L), MLP twice as wide. Features: tokens (B, 1 + L/patch, width)."""
    channels, length = input_shape
    if length % patch or width % heads:
        raise EestudyError(
            f"architecture_args: patch {patch} must divide the length {length}, heads {heads} the width {width}"
        )
    stages: list[nn.Module] = [EncoderBlock(width, heads, 2 * width) for _ in range(depth)]
    stages[0] = nn.Sequential(Embed1d(channels, length, patch, width), stages[0])
    classifier = nn.Sequential(ClassToken(), nn.LayerNorm(width), nn.Linear(width, num_classes))
    return Backbone(stages, classifier, input_shape, num_classes, "tokens")

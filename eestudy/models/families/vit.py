"""Vision transformers: every encoder block is a stage (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.models.backbone import Backbone

EPS = 1e-6  # of the layer norms, as published; vit1d keeps torch's
# Up to so many tokens, attention is two plain products: torch's fused one takes longer to set up than to compute.
FEW_TOKENS = 16
PATCHES = ((128, 16), (48, 8), (16, 4), (0, 2))  # images of so many pixels -> side of their patches


class Embed(nn.Module):
    """What is cut into patches, row by row, with a class token in front and learned positions: tokens (B, T, D)."""

    def __init__(self, patches: nn.Module, positions: Tensor) -> None:
        super().__init__()
        self.patches = patches
        self.class_token = nn.Parameter(torch.zeros(1, 1, positions.shape[2]))
        self.positions = nn.Parameter(positions)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], 1) + self.positions


class Embed1d(Embed):
    """Sequences (B, C, L) -> (B, 1 + L/patch, D)."""

    def __init__(self, channels: int, length: int, patch: int, width: int) -> None:
        patches = nn.Conv1d(channels, width, patch, stride=patch)
        super().__init__(patches, torch.randn(1, 1 + length // patch, width) * 0.02)


class Embed2d(Embed):
    """Images (B, C, H, W) -> (B, 1 + H/patch * W/patch, D)."""

    def __init__(self, channels: int, height: int, width: int, patch: int, features: int) -> None:
        patches = nn.Conv2d(channels, features, patch, stride=patch)
        super().__init__(patches, torch.zeros(1, 1 + (height // patch) * (width // patch), features))


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP, tokens (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width, eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, eps)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if tokens <= FEW_TOKENS:
            attended = F.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2), -1) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.norm_mlp(x))


class ClassToken(nn.Module):
    """Tokens (B, T, D) -> the first one (B, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def vit1d(
    input_shape: tuple[int, ...], num_classes: int, width: int = 48, depth: int = 8, heads: int = 4, patch: int = 4
) -> Backbone:
    """A transformer over patches of a sequence (C, L), MLP twice as wide. Features: tokens (B, 1 + L/patch, width)."""
    channels, length = input_shape
    if length % patch or width % heads:
        raise EestudyError(
            f"architecture_args: patch {patch} must divide the length {length}, heads {heads} the width {width}"
        )
    blocks = [EncoderBlock(width, heads, 2 * width) for _ in range(depth)]
    return _backbone(blocks, Embed1d(channels, length, patch, width), input_shape, num_classes)


def vit(
    input_shape: tuple[int, ...], num_classes: int, width: int = 192, depth: int = 12, heads: int = 3,
    patch: int | None = None, mlp: int = 4,
) -> Backbone:  # fmt: skip
    """ViT-Ti/16 of DeiT (Touvron et al. 2021) for images (C, H, W): 5,717,416 parameters at 224 pixels, 1,000 classes.

    vit_small: ViT-S/16 of DeiT, 22,050,664 parameters; vit_base: ViT-B/16 (Dosovitskiy et al. 2021), 86,567,656.
    patch: side of a patch in pixels; default 16 from 128 pixels on, 8 from 48, 4 from 16, else 2. mlp: how many times
    as wide as the tokens. Width 96, depth 8 makes a small one for 28 and 32 pixels, of 50 and 65 tokens.
    Features: tokens (B, 1 + H/patch * W/patch, width), the class token first.
    """
    channels, rows, columns = input_shape
    # 16 to 64 tokens at 8, 28, 32 and 64 pixels.
    patch = patch or next(size for least, size in PATCHES if min(rows, columns) >= least)
    if rows % patch or columns % patch:
        fitting = [size for size in range(1, min(rows, columns) + 1) if not (rows % size or columns % size)]
        raise EestudyError(
            f"architecture_args: patch {patch} must divide the image's {rows} x {columns} pixels; "
            f"valid: {', '.join(map(str, fitting))}"
        )
    if width % heads:
        raise EestudyError(f"architecture_args: heads {heads} must divide the width {width}")
    blocks = [EncoderBlock(width, heads, mlp * width, EPS) for _ in range(depth)]
    backbone = _backbone(blocks, Embed2d(channels, rows, columns, patch, width), input_shape, num_classes, EPS)
    # As DeiT starts them: normal, deviation 0.02, cut off at 2; biases 0.
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Embed2d):
            nn.init.trunc_normal_(module.class_token, std=0.02)
            nn.init.trunc_normal_(module.positions, std=0.02)
    return backbone


def _backbone(
    blocks: list[EncoderBlock], embed: Embed, input_shape: tuple[int, ...], num_classes: int, eps: float = 1e-5
) -> Backbone:
    width = embed.positions.shape[2]
    stages = [nn.Sequential(embed, blocks[0]), *blocks[1:]]
    classifier = nn.Sequential(ClassToken(), nn.LayerNorm(width, eps), nn.Linear(width, num_classes))
    return Backbone(stages, classifier, input_shape, num_classes, "tokens")


vit_small = partial(vit, width=384, heads=6)
vit_base = partial(vit, width=768, heads=12)

"""Two small networks for digits of 8x8 pixels that lose much of their accuracy in eight bits.

    residual   a stream of residual additions whose channels differ in size by two decades
    vit        a transformer of patches whose layer norms make two channels far larger than the others

Features are random, and the last layer is fitted to them by least squares, so that a network takes no training. The
scales change no result of the float model: the layers that read a channel undo them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.digits.data import DigitsData

__all__ = ["Residual", "Transformer", "fitted"]


class Residual(nn.Module):
    """Residual branches between two convolutions, with scaled channels."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.branches = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.last = nn.Conv2d(channels, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32 * 16, 10)
        scale = torch.logspace(-1.0, 1.0, channels)
        with torch.no_grad():
            for layer in (self.first, *self.branches):
                assert isinstance(layer, nn.Conv2d)
                layer.weight.mul_(scale.reshape(-1, 1, 1, 1))
                assert layer.bias is not None
                layer.bias.mul_(scale)
            for layer in (*self.branches, self.last):
                assert isinstance(layer, nn.Conv2d)
                layer.weight.div_(scale.reshape(1, -1, 1, 1))

    def features(self, x: Tensor) -> Tensor:
        """[N, 512]."""
        y = self.first(x)
        for branch in self.branches:
            y = y + branch(functional.relu(y))
        return functional.relu(self.last(functional.relu(y))).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes, [N, 10]."""
        scores: Tensor = self.head(self.features(x))
        return scores


class Block(nn.Module):
    """Attention and two linear layers, each after a layer norm with outlier channels."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        with torch.no_grad():
            for norm, layer in ((self.norm1, self.qkv), (self.norm2, self.up)):
                for channel in (3, 11):
                    norm.weight[channel] *= 60.0
                    layer.weight[:, channel] /= 60.0

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, width]."""
        count, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.out(mixed.permute(0, 2, 1, 3).reshape(count, tokens, width))
        added: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return added


class Transformer(nn.Module):
    """Sixteen patches of 2x2 pixels, two blocks, and a linear head on all tokens."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(0.3 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(Block(width, heads), Block(width, heads))
        self.head = nn.Linear(16 * width, 10)

    def features(self, x: Tensor) -> Tensor:
        """[N, 512]."""
        tokens = self.patches(x).flatten(2).permute(0, 2, 1) + self.positions
        found: Tensor = self.blocks(tokens).flatten(1)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes, [N, 10]."""
        scores: Tensor = self.head(self.features(x))
        return scores


def fitted(model: Residual | Transformer, data: DigitsData) -> nn.Module:
    """The model with its head fitted by ridge regression, in eval mode."""
    with torch.no_grad():
        x = model.eval().features(data.train_images).double()
        x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        wanted = functional.one_hot(data.train_labels, 10).double()
        ridge = 3.0 * torch.eye(x.shape[1], dtype=torch.float64) * x.square().mean()
        solved = torch.linalg.solve(x.T @ x + ridge, x.T @ wanted)
        model.head.weight.copy_(solved[:-1].T.float())
        model.head.bias.copy_(solved[-1].float())
    return model

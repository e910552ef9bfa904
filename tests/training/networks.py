"""Small networks with all that training meets: batch norms, a depthwise layer, a sum, a concat, dropouts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

INPUTS = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(7))
LABELS = torch.randint(5, (24,), generator=torch.Generator().manual_seed(8))


class Small(nn.Module):
    """[N, 3, 8, 8] -> [N, 5]."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU())
        self.point = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x + self.point(self.depthwise(x))
        pooled = torch.cat([y.mean((2, 3)), torch.nn.functional.max_pool2d(y, 8).flatten(1)], 1)
        result: Tensor = self.head(self.drop(pooled))
        return result


def small(dropout: float = 0.0, seed: int = 0) -> Small:
    """In eval mode, its statistics those of `INPUTS`, gammas of both signs and one of them 0."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Small(dropout)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 1.5)
                    module.weight[1] *= -1
                    module.bias.uniform_(-0.5, 0.5)
            model.get_parameter("depthwise.1.weight")[3] = 0.0
            for _ in range(30):
                model.train()(INPUTS)
    return model.eval()

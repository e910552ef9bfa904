"""A network with the names of the digits network, of a tenth of its layers: for tests in which accuracy does not count."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Few(nn.Module):
    """[N, 1, 8, 8] -> [N, 10], with two sums and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 8, 1),
        )
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        first = self.features[0](x)
        second = first + self.features[1](first)
        third = second + self.features[2](second)
        result: Tensor = self.classifier(self.dropout(third.mean((2, 3))))
        return result


def few() -> nn.Module:
    """The same weights at each call, in eval mode; the random state stays."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Few()
        with torch.no_grad():
            for _ in range(30):
                model.train()(torch.rand(16, 1, 8, 8))
    return model.eval()

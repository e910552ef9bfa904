"""Poolings, means and interpolations of torch become operators that compute the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qcompiler.errors import UnsupportedError
from qcompiler.frontends import capture, rules_pooling
from tests.support.spellings import RuleTests, Spelling, image, model_of, node_of

ATEN = torch.ops.aten
pytestmark = pytest.mark.filterwarnings("ignore:.*upsample.* is deprecated")  # it is a rule all the same


def lines(x: Tensor) -> Tensor:
    """An image as lines [N, 4, 16]."""
    return x.flatten(2)


def boxes(x: Tensor) -> Tensor:
    """An image as boxes [N, 1, 4, 4, 4]."""
    return x.unsqueeze(1)


SPELLED: dict[str, Spelling] = {
    "max_pool2d": lambda x: F.max_pool2d(x, 2, 1, padding=1, dilation=2, ceil_mode=True),
    "max_pool2d_with_indices": lambda x: F.max_pool2d(x, 3, return_indices=True)[0],
    "max_pool1d_with_indices": lambda x: F.max_pool1d(lines(x), 3, 2, 1, 2, True, return_indices=True)[0],
    "avg_pool2d": lambda x: F.avg_pool2d(x, (2, 3), 1, (1, 0), count_include_pad=False, ceil_mode=True),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (None, 3)),
    "max_pool3d": lambda x: F.max_pool3d(boxes(x), (1, 2, 3), (1, 2, 1), padding=(0, 1, 1)),
    "max_pool3d_with_indices": lambda x: ATEN.max_pool3d_with_indices.default(boxes(x), [2, 2, 2])[0],
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(lines(x), 5),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (3, 2)),
    "adaptive_max_pool3d": lambda x: F.adaptive_max_pool3d(boxes(x), (2, 3, 4)),
    "adaptive_max_pool1d_with_indices": lambda x: F.adaptive_max_pool1d_with_indices(lines(x), [8])[0],
    "adaptive_max_pool2d_with_indices": lambda x: F.adaptive_max_pool2d_with_indices(x, 2)[0],
    "adaptive_max_pool3d_with_indices": lambda x: F.adaptive_max_pool3d_with_indices(boxes(x), 3)[0],
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(lines(x), 1),
    "adaptive_avg_pool3d": lambda x: F.adaptive_avg_pool3d(boxes(x), 1),
    "max_pool1d": lambda x: F.max_pool1d(lines(x), 3, 2, 1, dilation=2),
    "avg_pool1d": lambda x: F.avg_pool1d(lines(x), 3, 2, 1),
    "interpolate": lambda x: F.interpolate(x, (7, 3), mode="bilinear", align_corners=True),
    "upsample_nearest2d": lambda x: ATEN.upsample_nearest2d.default(x, [8, 12]),
    "upsample_bicubic2d": lambda x: ATEN.upsample_bicubic2d.default(x, [7, 3], False),
    "upsample_bilinear2d": lambda x: ATEN.upsample_bilinear2d.default(x, [8, 12], True),
    "upsample": node_of(F.upsample, scale_factor=2),
}

SAME: dict[str, list[Spelling]] = {
    "max_pool2d": [nn.MaxPool2d(2), lambda x: F.max_pool2d(x, 2), lambda x: torch.max_pool2d(x, (2, 2), 2), lambda x: F.max_pool2d(x, 2, return_indices=True)[0], lambda x: ATEN.max_pool2d_with_indices.default(x, [2, 2])[0], lambda x: F.adaptive_max_pool2d(x, 2)],
    "avg_pool2d": [nn.AvgPool2d(2), lambda x: F.avg_pool2d(x, (2, 2)), lambda x: F.adaptive_avg_pool2d(x, (2, 2)), nn.AdaptiveAvgPool2d(2)],
    "max_pool3d": [lambda x: nn.MaxPool3d((1, 2, 2))(x.unsqueeze(2)), lambda x: F.max_pool3d(x.unsqueeze(2), (1, 2, 2), (1, 2, 2))],
    "mean": [
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: torch.mean(x, dim=[-1, -2], keepdim=True),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        nn.AdaptiveAvgPool2d((1, 1)),
        lambda x: F.avg_pool2d(x, x.shape[2:]),
        nn.AvgPool2d(4),
    ],
    "resize": [
        nn.Upsample(scale_factor=2),
        nn.UpsamplingNearest2d(scale_factor=2),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, size=(8, 8), mode="nearest"),
        lambda x: F.interpolate(x, 8),
    ],
    "resize by cubes": [
        nn.Upsample((8, 8), mode="bicubic"),
        lambda x: F.interpolate(x, (8, 8), mode="bicubic", align_corners=False),
    ],
    "resize by lines": [
        nn.Upsample((8, 8), mode="bilinear"),
        lambda x: F.interpolate(x, scale_factor=(2.0, 2.0), mode="bilinear", align_corners=False),
    ],
}  # fmt: skip

REFUSED: dict[str, tuple[Spelling, str]] = {
    "average of lines": (lambda x: F.adaptive_avg_pool1d(lines(x), 2), "adaptive_avg_pool1d to [2]"),
    "areas": (lambda x: F.interpolate(x, 8, mode="area"), "interpolation of mode 'area' over f32[N, 4, 4, 4]"),
    "lines": (lambda x: F.interpolate(lines(x), 8), "interpolation of mode 'nearest' over f32[N, 4, 16]"),
    "antialias": (lambda x: F.interpolate(x, 3, mode="bilinear", antialias=True), "interpolation of mode 'bilinear'"),
    "a part of a pixel": (lambda x: F.interpolate(x, scale_factor=1.3), "interpolation by 1.3 of f32[N, 4, 4, 4]"),
}


class TestRules(RuleTests):
    file, spelled, same, refused = rules_pooling, SPELLED, SAME, REFUSED


@pytest.mark.parametrize(
    "spelling",
    [
        lambda x: ATEN.max_pool2d_with_indices.default(x, [2, 2])[1],
        lambda x: ATEN.max_pool3d_with_indices.default(boxes(x), [2, 2, 2])[1],
        lambda x: ATEN.adaptive_max_pool2d.default(x, [2, 2])[1],
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), [2, 2]),
        nn.MaxPool2d(2, return_indices=True),
    ],
)
def test_indices_of_maxima_may_not_be_read(spelling: Spelling) -> None:
    with pytest.raises(UnsupportedError, match="the indices of"):
        capture(model_of(spelling), image())

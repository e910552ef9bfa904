"""Results whose sizes the values of the inputs decide are refused, with the line that begins them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import batched_nms, nms

import qcompiler
from qcompiler.errors import UnsupportedError
from qcompiler.frontends import capture


class Ends(nn.Module):
    """A convolution, and the end of a forward."""

    def __init__(self, end: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 3)
        self.end = end

    def forward(self, x: Tensor) -> object:
        y = self.layer(x).flatten(2).transpose(1, 2)
        return self.end(y[..., :4], y[..., 4])


def boxes(x: Tensor) -> Tensor:
    return torch.cat([x[..., :2] - x[..., 2:].exp(), x[..., :2] + x[..., 2:].exp()], -1)


def by_nms(places: Tensor, scores: Tensor) -> object:
    return [boxes(place)[nms(boxes(place), score, 0.5)] for place, score in zip(places, scores, strict=True)]


def by_batched_nms(places: Tensor, scores: Tensor) -> object:
    return batched_nms(boxes(places[0]), scores[0], torch.zeros(len(scores[0]), dtype=torch.long), 0.5)


def by_mask(places: Tensor, scores: Tensor) -> object:
    return places[scores > 0.0]


def by_where(places: Tensor, scores: Tensor) -> object:
    rows = torch.where(scores[0] > 0.0)[0]
    return {"places": places[0][rows] * 2.0, "scores": scores}


def in_place(places: Tensor, scores: Tensor) -> object:
    kept = torch.masked_select(scores, scores > 0.0)
    kept += 1.0
    return kept


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (by_nms, "non-maximum suppression"),
        (by_batched_nms, "non-maximum suppression"),
        (by_mask, "aten::index.Tensor"),
        (by_where, "aten::nonzero"),
        (in_place, "aten::masked_select"),
    ],
)
def test_a_result_with_as_many_rows_as_the_values_decide_is_refused_at_its_line(
    end: Callable[[Tensor, Tensor], object], found: str
) -> None:
    torch.manual_seed(0)
    with pytest.raises(UnsupportedError, match="the values of the inputs decide") as raised:
        qcompiler.compile(Ends(end).eval(), example_inputs=torch.rand(2, 3, 8, 8))
    assert f"elements {found} returns" in str(raised.value)
    assert f"{__name__}:{end.__name__}" in str(raised.value)
    assert "after=rest, steps_after=" in str(raised.value)


def test_detectors_of_torchvision_are_refused_before_they_are_traced() -> None:
    torch.manual_seed(0)
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    model.transform.fixed_size = (64, 64)
    with pytest.raises(UnsupportedError, match=r"SSD\.postprocess_detections.*split_host\(model, images\) is enough"):
        qcompiler.compile(model, example_inputs=([torch.rand(3, 64, 64)],))


def of_constants(places: Tensor, scores: Tensor) -> object:
    rows = torch.tensor([True, False, True, False])
    return places[..., rows] * torch.nonzero(rows).sum()


def unused(places: Tensor, scores: Tensor) -> object:
    scores[scores > 0.0].mean()
    return places


@pytest.mark.parametrize("end", [of_constants, unused])
def test_masks_of_constants_and_calls_without_a_use_are_no_obstacle(end: Callable[[Tensor, Tensor], object]) -> None:
    found = capture(Ends(end).eval(), torch.rand(2, 3, 8, 8))
    assert found.module.main.outputs

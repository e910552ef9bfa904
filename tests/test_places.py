"""Places of the largest and smallest elements: exact on codes, in every form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.targets import Target, load_target
from tests.reference.maker import check as check_against_loops

Reader = Callable[[Tensor], tuple[Tensor, ...]]
READERS: dict[str, Reader] = {
    "one axis": lambda y: (y.argmax(1), y.argmin(2, keepdim=True), y.flatten(1).argmax(1)),
    "with values": lambda y: (*y.max(1), *y.min(3, keepdim=True)),
    "several": lambda y: (*torch.topk(y, 3, 1), *y.topk(2, 2, largest=False)),
    "read again": lambda y: (torch.gather(y, 3, y.topk(5, 3).indices), y.argmax(1) + 1, y.argmax(1) == y.argmin(1)),
}


class Net(nn.Module):
    """A convolution, the places of whose results are read: [N, 3, 8, 8] -> [N, 8, 6, 6] and more."""

    def __init__(self, read: Reader) -> None:
        super().__init__()
        self.layer, self.read = nn.Conv2d(3, 8, 3), read

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.layer(x)
        return y, *self.read(y)


def compiled_net(read: Reader, target: str | Target) -> tuple[qcompiler.Compiled, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    return qcompiler.compile(Net(read).eval(), target, calibration_data=[x]), x


def results(compiled: qcompiler.Compiled, x: Tensor) -> tuple[Tensor, ...]:
    found = compiled.run(x)
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize("target", ["int8_dsp", "ort_cpu", "int16x8", "hexagon_htp_a16w8"])
@pytest.mark.parametrize("name", READERS)
def test_places_are_those_of_the_codes_in_every_form(name: str, target: str) -> None:
    compiled, x = compiled_net(READERS[name], target)
    assert compiled.verification is not None and compiled.verification.passed
    assert not compiled.artifact.islands
    assert {compiled.verification.form(form).status for form in ("integer graph", "integer program", "C")} == {"equal"}
    y, *found = results(compiled, x)
    for ours, wanted in zip(found, READERS[name](y), strict=True):
        if ours.dtype.is_floating_point or "one" in name or "values" in name:  # torch.topk takes any of equal ones
            assert torch.equal(ours, wanted)
    check_against_loops(compiled.integer.main, [x])


def test_equal_codes_give_the_first_place() -> None:
    """With two bits, most elements have an equal one: the place is that of the first in every form."""
    target = load_target("int8_dsp").override(activation_bits=2)
    compiled, x = compiled_net(lambda y: (y.argmax(1), y.topk(8, 1).indices), target)
    assert compiled.verification is not None and compiled.verification.passed
    assert compiled.verification.form("C").status == "equal"
    assert compiled.verification.form("onnxruntime unoptimized, layer by layer").status in ("equal", "within bound")
    y, place, places = results(compiled, x)
    assert torch.equal(place, y.argmax(1))
    assert torch.equal(places, torch.sort(y, dim=1, descending=True, stable=True).indices)
    largest = (y == y.amax(1, keepdim=True)).sum(1)
    assert int(largest.max()) > 1, "elements are equal"


def test_a_place_chooses_a_row_of_a_table() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.rows, self.head = nn.Linear(6, 9), nn.Embedding(9, 5), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.rows(self.layer(x).argmax(1)))
            return result

    torch.manual_seed(0)
    model, x = Words().eval(), torch.randn(64, 6)
    compiled = qcompiler.compile(model, "int8_dsp", calibration_data=[x])
    assert compiled.verification is not None and compiled.verification.passed
    assert not compiled.artifact.islands
    result = compiled.run(x)
    assert isinstance(result, Tensor)
    with torch.no_grad():
        error = (result - model(x)).abs().amax(1)
    assert float((error < 0.05).float().mean()) > 0.9, "the others have two logits within a step"


def test_operators_before_a_place_stay_in_integers_next_to_islands() -> None:
    target = load_target("int8_dsp").override(fallback="float")
    compiled, _ = compiled_net(lambda y: (torch.relu(y + 1).argmax(1), torch.sort(y, 1).values), target)
    assert compiled.verification is not None and compiled.verification.passed
    assert [item["name"] for item in compiled.artifact.islands] == ["sort"]

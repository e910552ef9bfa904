"""Given grids on quantizers: values that are moved, and what the target dictates."""

from __future__ import annotations

import pytest

from qcompiler.errors import EncodingsError
from qcompiler.ir.types import Stage
from qcompiler.passes import PassContext
from qcompiler.passes.apply_encodings import ApplyEncodings
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.quant.encoding import Encoding, Encodings
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.golden import lines, module, run

MOVED = [
    "%r = relu(%x) : f32[N, 4, 6, 6]",
    "%p = max_pool2d(%r) {kernel = (2, 2), stride = (2, 2)} : f32[N, 4, 3, 3]",
    "%p",
]
DICTATED = [
    "%s = sigmoid(%x) : f32[N, 4, 6, 6]",
    "%p = max_pool2d(%s) {kernel = (2, 2), stride = (2, 2)} : f32[N, 4, 3, 3]",
    "%p",
]


def grid(name: str, scale: float, zero_point: int = 0, bits: int = 8) -> Encoding:
    return Encoding(name, bits, (scale,), (zero_point,))


def applied(text: list[str], *given: Encoding, target: str = "int8_dsp") -> tuple[list[str], dict[str, float]]:
    """The nodes, and the scales of quantizers."""
    subject = module("canonical", *text)
    context = PassContext(load_target(target), encodings=Encodings(given, "1.0.0"))
    run(InsertQuantizers(), subject, context)
    run(ApplyEncodings(), subject, context)
    scales = {name: float(tensor) for name, tensor in subject.tensors.items() if name.endswith(".scale")}
    return [line.partition(" {")[0].partition(" :")[0] for line in lines(subject)], scales


def test_a_moved_value_on_the_grid_of_its_source_needs_no_quantizer() -> None:
    text, scales = applied(MOVED, grid("r.q", 0.5), grid("p", 0.5))
    assert text[-2:] == ["%p = max_pool2d(%r.q)", "return %p"]
    assert scales["r.scale"] == 0.5


def test_a_moved_value_tells_the_grid_of_its_source() -> None:
    text, scales = applied(MOVED, grid("p", 0.5))
    assert text[-2:] == ["%p = max_pool2d(%r.q)", "return %p"]
    assert scales["r.scale"] == 0.5


@pytest.mark.parametrize("names", [("r.q", "p"), ("r.q", "p.q")])
def test_a_moved_value_on_another_grid_has_a_quantizer(names: tuple[str, str]) -> None:
    text, scales = applied(MOVED, grid(names[0], 0.5), grid(names[1], 0.25, 3, bits=16))
    assert text[-2:] == ["%p.q = fake_quantize(%p, %p.scale, %p.zero_point)", "return %p.q"]
    assert (scales["r.scale"], scales["p.scale"]) == (0.5, 0.25)


def test_a_moved_value_on_a_dictated_grid_needs_no_quantizer() -> None:
    text, _ = applied(DICTATED, grid("p", 1 / 256))
    assert text[-1] == "return %p"
    text, scales = applied(DICTATED, grid("p", 1 / 128))
    assert text[-1] == "return %p.q"
    assert scales["p.scale"] == 1 / 128


def test_one_value_has_one_grid() -> None:
    with pytest.raises(EncodingsError, match=r"the encodings of 'r' and 'r\.q' belong to one tensor but differ"):
        applied(MOVED, grid("r", 0.5), grid("r.q", 0.25))
    applied(MOVED, grid("r", 0.5), grid("r.q", 0.5))


def test_what_it_needs_and_establishes() -> None:
    check_declared(
        ApplyEncodings(),
        {Stage.QUANTIZED},
        requires={"quantizers"},
        establishes={"encodings"},
        invalidates={"fixed-ranges", "ties"},
    )

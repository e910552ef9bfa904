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


def applied(
    text: list[str], *given: Encoding, target: str = "int8_dsp", own: bool = False
) -> tuple[list[str], dict[str, float]]:
    """The nodes, and the scales of quantizers."""
    subject = module("canonical", *text)
    context = PassContext(load_target(target), encodings=Encodings(given, "1.0.0", own=own))
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


FUSED = [
    "%s = add(%x, %x) : f32[N, 4, 6, 6]",
    "%r = relu(%s) : f32[N, 4, 6, 6]",
    "%r",
]


def test_a_quantized_model_may_have_a_quantizer_within_a_supergroup() -> None:
    text, scales = applied(FUSED, grid("x", 0.5), grid("s", 0.25, 128), grid("r", 0.125), own=True)
    assert "%s.q = fake_quantize(%s, %s.scale, %s.zero_point)" in text
    assert "%r = relu(%s.q)" in text
    assert (scales["s.scale"], scales["r.scale"]) == (0.25, 0.125)


def test_a_quantizer_with_the_grid_of_the_next_one_is_not_needed() -> None:
    text, scales = applied(FUSED, grid("x", 0.5), grid("s", 0.125), grid("r", 0.125), own=True)
    assert "%r = relu(%s)" in text
    assert set(scales) == {"x.scale", "r.scale"}


def test_any_node_of_a_quantized_model_may_read_a_copy() -> None:
    text, scales = applied(FUSED, grid("x", 0.5), grid("s.input1.q", 0.25), grid("r", 0.125), own=True)
    assert "%s = add(%x.q, %s.input1.q)" in text
    assert scales["s.input1.scale"] == 0.25


def test_a_grid_of_a_quantized_model_that_the_target_lacks_is_left_out() -> None:
    given = (grid("x", 0.5, 3), grid("s", 0.25, 3), grid("r", 0.125, 3))
    _, scales = applied(FUSED, *given, target="tensorrt", own=True)
    assert scales["x.scale"] != scales["x.scale"], "not calibrated"
    with pytest.raises(EncodingsError, match="tensorrt is symmetric"):
        applied(FUSED, given[0], target="tensorrt")

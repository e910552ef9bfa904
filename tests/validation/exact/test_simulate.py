"""A QUANTIZED graph is evaluated on codes, as a function of inputs, tensors and state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.errors import CalibrationError, GraphError, InputError
from qcompiler.ir.graph import Value
from qcompiler.ir.text import parse_module
from qcompiler.validation.exact import Codes, Exact, Pending, output_codes, simulate
from tests.support.exact import ARITHMETIC
from tests.support.quantized import INPUT, LINEAR, linear


def test_outputs_are_the_codes_computed_by_hand() -> None:
    module = linear()
    (found,), state = simulate(module.main, [INPUT], module.tensors, ARITHMETIC)
    assert isinstance(found, Codes)
    assert found.codes.tolist() == [[10, 0]]
    assert found.real().tolist() == [[5.0, 0.0]]
    assert (found.qmin, found.qmax) == (0, 127)  # the relu raises the lower limit
    assert state == {}
    assert [x.tolist() for x in output_codes(module.main, [INPUT], ARITHMETIC)] == [[[10, 0]]]


def test_tensors_are_arguments() -> None:
    module = linear()
    tensors = {**module.tensors, "w": torch.tensor([[2.0, 2.0], [1.0, 1.0]])}
    (found,), _ = simulate(module.main, [INPUT], tensors, ARITHMETIC)
    assert isinstance(found, Codes)
    assert found.codes.tolist() == [[12, 6]]
    moved = {"zero": torch.tensor(-8, dtype=torch.int32)}
    (found,), state = simulate(module.main, [INPUT], module.tensors, ARITHMETIC, state=moved)
    assert isinstance(found, Codes)
    assert found.codes.tolist() == [[2, -8]]
    assert state == moved


def test_every_value_is_observed_and_may_be_replaced() -> None:
    module = linear()
    kinds: dict[str, str] = {}

    def observe(value: Value, item: Exact) -> None:
        kinds[value.name] = type(item).__name__

    def replace(value: Value, item: Exact) -> Exact:
        if value.name == "x.q":
            assert isinstance(item, Codes)
            return Codes(item.codes * 2, item.params, item.qmin, item.qmax, item.bits)
        return item

    (found,), _ = simulate(module.main, [INPUT], module.tensors, ARITHMETIC, observe=observe, replace=replace)
    assert isinstance(found, Codes)
    assert found.codes.tolist() == [[20, 0]]
    assert {name: kinds[name] for name in ("x", "x.q", "a", "r", "r.q")} == {
        "x": "Tensor", "x.q": "Codes", "a": "Pending", "r": "Pending", "r.q": "Codes",
    }  # fmt: skip


def test_an_output_may_wait_for_a_grid() -> None:
    module = linear()
    module.main.set_outputs([next(node.output for node in module.main.nodes if node.op == "linear")], 0)
    (found,), _ = simulate(module.main, [INPUT], module.tensors, ARITHMETIC)
    assert isinstance(found, Pending)


def test_operators_on_real_numbers_are_computed_as_before() -> None:
    text = LINEAR.replace("%r.scale =", "%half = mul(%x, %x) : f32[N, 2]\n  %r.scale =").replace(
        "return %r.q", "return %half"
    )
    module = parse_module(text, linear().tensors)
    (found,), _ = simulate(module.main, [INPUT], module.tensors, ARITHMETIC)
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == [[1.0, 4.0]]


def test_what_cannot_be_exact_is_refused_by_name() -> None:
    text = LINEAR.replace("relu(%a)", "div(%x.q, %x.q)")
    module = parse_module(text, linear().tensors)
    with pytest.raises(GraphError, match=r"div has no exact evaluation \(at %r\)"):
        simulate(module.main, [INPUT], module.tensors, ARITHMETIC)
    without = {**linear().tensors, "r.scale": torch.tensor(torch.nan)}
    with pytest.raises(CalibrationError, match=r"no range yet \(at %r.q\)"):
        simulate(linear().main, [INPUT], without, ARITHMETIC)
    with pytest.raises(InputError, match="f32"):
        simulate(linear().main, [INPUT.long()], linear().tensors, ARITHMETIC)


def test_codes_of_the_lowered_graph_are_the_same() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(16, 4)
    compiled = qcompiler.compile(model, "int8_dsp", calibration_data=[x], verify="off")
    assert [graph.main.stage.name for graph in (compiled.quantized, compiled.integer)] == ["QUANTIZED", "INTEGER"]
    (before,), (after,) = (output_codes(m.main, [x], ARITHMETIC) for m in (compiled.quantized, compiled.integer))
    assert len(before.unique()) > 3
    assert torch.equal(before, after)

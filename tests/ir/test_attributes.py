"""Typed access to attributes: the value in its type, or an error that names attribute and place."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import dims, flag, integer, integers, number, spec, text
from qcompiler.ir.dims import symbol
from qcompiler.ir.graph import Graph, Location, Node
from qcompiler.ir.types import DType, TensorType
from qcompiler.program.program import Instruction
from qcompiler.quant.spec import QuantSpec

SPEC = QuantSpec(bits=8)


def pool() -> Node:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (symbol("N"), 3, 8, 8)))
    attributes = {"kernel": (2, 2), "stride": (2, 2)}
    return graph.append("avg_pool2d", [x], attributes, name="pool", location=Location("net.pool", "model:f:7"))


def test_each_reader_gives_the_value_in_its_type() -> None:
    given = {"axis": 1, "pad": (0, 2), "eps": 1e-5, "count": 3, "keep": True, "one": 1, "mode": "nearest", "spec": SPEC}
    assert integer(given, "axis") == 1
    assert integers(given, "pad") == (0, 2)
    assert (number(given, "eps"), number(given, "count")) == (1e-5, 3.0)
    assert isinstance(number(given, "count"), float)
    assert (flag(given, "keep"), flag(given, "one")) == (True, True)
    assert text(given, "mode") == "nearest"
    assert spec(given, "spec") is SPEC


def test_sizes_may_be_symbolic() -> None:
    n = symbol("N")
    assert dims({"shape": (n, 4)}, "shape") == (n, 4)
    with pytest.raises(GraphError, match="expected integers"):
        integers({"shape": (n, 4)}, "shape")


@pytest.mark.parametrize("read", [integer, integers, dims, number, flag, text, spec])
def test_a_value_of_another_type_and_an_absent_attribute_are_refused(read: Callable[..., object]) -> None:
    wrong = {"a": ("x",) if read is not text else 1.5}
    with pytest.raises(GraphError, match=r"^a is "):
        read(wrong, "a")
    with pytest.raises(GraphError, match="no attribute 'b'"):
        read(wrong, "b")


def test_the_error_of_a_node_names_the_node_its_module_and_its_line() -> None:
    node = pool()
    assert node.integers("kernel") == (2, 2)
    with pytest.raises(
        GraphError, match=r"kernel is \(2, 2\) \(at %pool \(net.pool, model:f:7\)\); expected an integer"
    ):
        node.integer("kernel")
    with pytest.raises(GraphError, match=r"no attribute 'spec' \(at %pool"):
        node.spec  # noqa: B018


def test_a_default_stands_for_an_attribute_that_is_absent_or_none() -> None:
    node = pool()
    assert not node.given("divisor_override")
    assert node.integer("divisor_override", 4) == 4
    assert node.integer("groups", 1) == 1
    assert node.integers("stride", ()) == (2, 2)
    with pytest.raises(GraphError, match="divisor_override is None"):
        node.integer("divisor_override")


def test_instructions_of_a_program_are_read_in_the_same_way() -> None:
    instruction = Instruction(op="slice", inputs=("x",), outputs=("y",), attributes={"axis": 1, "pad": (1, 2)})
    assert (instruction.integer("axis"), instruction.integers("pad")) == (1, (1, 2))
    assert [*instruction.model_dump()] == ["op", "inputs", "outputs", "attributes"]
    with pytest.raises(GraphError, match=r"no attribute 'step' \(at %y\)"):
        instruction.integer("step")


def test_sizes_of_a_type_are_numbers_or_refused() -> None:
    type = TensorType(DType.F32, (symbol("N"), 3))
    assert (type.size(1), type.size(-1)) == (3, 3)
    with pytest.raises(GraphError, match="axis 0"):
        type.size(0)
    with pytest.raises(GraphError, match="axis 0"):
        type.sizes  # noqa: B018

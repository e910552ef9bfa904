"""Printed graphs of any kind parse back; other text is refused with line and column."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.errors import ParseError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.dims import symbol
from qcompiler.ir.graph import Graph, Location, Module
from qcompiler.ir.hashing import module_hash
from qcompiler.ir.registry import REQUIRED, OpDef, register
from qcompiler.ir.text import parse_module, print_module
from qcompiler.ir.types import DType, Stage, TensorType
from qcompiler.quant.spec import QuantSpec
from tests.backends.integer.test_executor import build

# An operator that takes anything, so that every kind of attribute and any number of results is printed.
register(
    OpDef(
        name="test_anything",
        operands=("x*",),
        infer=lambda types, attributes: (types[0],) * int(str(attributes["results"])),
        evaluate=lambda node, tensors: (tensors[0],),
        stages=frozenset(Stage),
        attributes={"results": 1, "first": None, "second": REQUIRED},
    )
)

numbers = st.one_of(st.integers(), st.floats(allow_nan=False), st.just(math.inf), st.just(-math.inf))
texts = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
dims = st.builds(lambda a, b: a * symbol("N") + b, st.integers(1, 9), st.integers(0, 9))
specs = st.builds(QuantSpec, bits=st.integers(2, 16), signed=st.booleans(), axis=st.sampled_from([None, 0, 1]))
scalars = st.one_of(numbers, st.booleans(), st.none(), texts, dims, specs)
attributes: st.SearchStrategy[Attribute] = st.one_of(scalars, st.lists(scalars, max_size=4).map(tuple))
names = st.one_of(st.from_regex(r"[a-z][a-z0-9_.]{0,6}", fullmatch=True), texts.filter(bool))


@st.composite
def modules(draw: st.DrawFn) -> Module:
    module = Module()
    for index in range(draw(st.integers(1, 2))):
        graph = module.add(Graph("main" if not index else draw(names.filter(lambda name: name != "main"))))
        graph.stage = draw(st.sampled_from(Stage))
        graph.bounds["N"] = (1, draw(st.integers(1, 2**31)))
        shape = draw(st.lists(st.one_of(st.integers(0, 9), dims), max_size=3).map(tuple))
        values = [graph.add_input(draw(names), TensorType(draw(st.sampled_from(DType)), shape))]
        graph.input_names = draw(st.lists(texts, max_size=2))
        for _ in range(draw(st.integers(0, 5))):
            node = graph.append(
                "test_anything",
                draw(st.lists(st.sampled_from(values), min_size=1, max_size=3)),
                {"second": draw(attributes), "first": draw(attributes), "results": draw(st.integers(1, 3))},
                name=draw(names),
                location=Location(draw(texts), draw(texts)),
            )
            node.origins = tuple(draw(st.lists(texts, min_size=1, max_size=3)))
            values += node.outputs
        outputs = draw(st.lists(st.sampled_from(values), max_size=3))
        graph.set_outputs(outputs, ("dict", [(str(i), i) for i in range(len(outputs))]))
        graph.input_tree = ("tuple", [0])
    return module


@given(modules())
@settings(max_examples=60)
def test_round_trip(module: Module) -> None:
    text = print_module(module)
    parsed = parse_module(text)
    assert print_module(parsed) == text
    assert module_hash(parsed) == module_hash(module)


@pytest.mark.parametrize("network", ["mixed", "mobilenet_v2"])
def test_round_trip_of_a_compiled_network(network: str) -> None:
    module = build(network, "int8_dsp_per_channel")
    text = print_module(module)
    parsed = parse_module(text, module.tensors)
    assert print_module(parsed) == text
    assert module_hash(parsed) == module_hash(module)


def test_reads_as_documented() -> None:
    text = (
        "graph @main stage=float {\n"
        "  input %x : f32[N, 4]\n"
        '  names "x"\n'
        "  bound N 1 64\n"
        '  %w = parameter() {ref = "fc.weight", dtype = "f32", shape = (2, 4)} : f32[2, 4]\n'
        '  %fc = linear(%x, %w) : f32[N, 2] loc("fc", "net:Net.forward:7") from("fc", "norm")\n'
        '  results ["dict", [["logits", 0]]]\n'
        "  return %fc\n"
        "}\n"
    )
    module = parse_module(text, {"fc.weight": torch.zeros(2, 4)})
    assert print_module(module) == text
    (node,) = [node for node in module.main.nodes if node.op == "linear"]
    assert node.location == Location("fc", "net:Net.forward:7")
    assert node.origins == ("fc", "norm")
    assert module.main.output_tree == ("dict", [("logits", 0)])
    assert "loc(" not in print_module(module, locations=False)


BROKEN = {
    "an operator that is unknown": ("%y = reluu(%x) : f32[2]", "reluu", "line 3, column 8"),
    "a value that is not defined": ("%y = relu(%z) : f32[2]", "%z is not", "line 3, column 14"),
    "a name that is taken": ("%x = relu(%x) : f32[2]", "but %x exists", "line 3, column 4"),
    "a type that does not follow": ("%y = relu(%x) : f32[3]", "f32[2]", "line 3"),
    "an element type that is unknown": ("%y = relu(%x) : f33[2]", "one of i4", "line 3, column 19"),
    "a missing type": ("%y = relu(%x)", "`:`", "line 3"),
    "an attribute that is unknown": ("%y = relu(%x) {slope = 1} : f32[2]", "slope", "line 3"),
    "a value of no kind": ("%y = clamp(%x) {min = ?} : f32[2]", "spec", "line 3"),
    "an open list": ("%y = clamp(%x) {min = (1, 2 : f32[2]", "`)`", "line 3"),
    "a quantizer that is none": ('%y = clamp(%x) {min = spec"q8"} : f32[2]', "q8", "line 3"),
    "a size that is none": ("%y = relu(%x) : f32[2 +]", "dimension", "line 3"),
    "two results of one": ("%y, %z = relu(%x) : f32[2], f32[2]", "1 results", "line 3"),
    "more on the line": ("%y = relu(%x) : f32[2] 7", "end of the line", "line 3"),
    "a statement that is none": ("while", "`return`", "line 3"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_graph_is_refused_with_its_place(case: str) -> None:
    line, expected, place = BROKEN[case]
    text = f"graph @main stage=float {{\n  input %x : f32[2]\n  {line}\n  return %x\n}}\n"
    with pytest.raises(ParseError) as caught:
        parse_module(text)
    assert expected in str(caught.value)
    assert place in str(caught.value)


def test_a_text_that_ends_too_early_is_refused() -> None:
    with pytest.raises(ParseError, match="return"):
        parse_module("graph @main stage=float {\n  input %x : f32[2]\n")

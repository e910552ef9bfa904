"""Nodes, graphs and tensors without a reader are removed."""

from __future__ import annotations

import torch

from qcompiler.ir.text import parse_module
from qcompiler.ir.types import Stage
from qcompiler.ir.verify import verify_module
from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from tests.support.declared import check_declared
from tests.support.golden import PADDED, computes_the_same, conv, leaf, lines, module, run


def test_eliminate_dead_code_removes_nodes_and_tensors() -> None:
    subject = module(
        "float", *conv("dead", "%x", 8, "f32[N, 8, 6, 6]", PADDED), "%r = relu(%x) : f32[N, 4, 6, 6]", "%r"
    )
    run(EliminateDeadCode(), subject)
    assert lines(subject) == ["%r = relu(%x) : f32[N, 4, 6, 6]", "return %r"]
    assert subject.tensors == {}


def test_a_chain_that_nothing_reads_goes_in_one_sweep_and_what_is_read_stays() -> None:
    text = [
        leaf("w", "f32", 6),
        leaf("v", "f32", 6),
        "%a = add(%x, %w) : f32[N, 4, 6, 6]",
        "%b = relu(%a) : f32[N, 4, 6, 6]",
        "%c = mul(%b, %v) : f32[N, 4, 6, 6]",  # nothing reads it
        "%d = relu(%c) : f32[N, 4, 6, 6]",  # nor this
        "%a, %b",
    ]
    subject = module("float", *text)
    run(EliminateDeadCode(), subject)
    assert lines(subject) == [text[2], text[3], "return %a, %b"]
    assert set(subject.tensors) == {"w"}
    computes_the_same(module("float", *text), subject, rtol=0.0)


def test_a_living_graph_is_left_alone() -> None:
    text = [*conv("c", "%x", 8, "f32[N, 8, 6, 6]", PADDED), "%c"]
    subject = module("float", *text)
    before = lines(subject)
    run(EliminateDeadCode(), subject)
    assert lines(subject) == before
    assert set(subject.tensors) == {"c.weight"}


def test_graphs_without_callers_go_with_their_tensors() -> None:
    def graph(name: str, weight: str) -> str:
        body = [f"graph @{name} stage=float {{", "input %x : f32[2]", leaf(weight, "f32", 2)]
        return "\n".join([*body, f"%y = add(%x, %{weight}) : f32[2]", "return %y", "}"])

    main = 'graph @main stage=float {\ninput %x : f32[2]\n%y = call(%x) {graph = "called", results = ("f32[2]",)} : f32[2]\nreturn %y\n}'
    tensors = {name: torch.ones(2) for name in ("used", "unused")}
    subject = parse_module("\n".join([main, graph("called", "used"), graph("forgotten", "unused")]), tensors)
    run(EliminateDeadCode(), subject)
    assert set(subject.graphs) == {"main", "called"}
    assert set(subject.tensors) == {"used"}
    verify_module(subject)


def test_statistics_of_a_batch_norm_belong_to_the_layer_that_names_them() -> None:
    text = conv("c", "%x", 8, "f32[N, 8, 6, 6]", PADDED.replace("}", ', statistics = "n"}'))
    subject = module("float", *text, "%c", tensors={"n": torch.ones(2, 8), "m": torch.ones(2, 8)})
    run(EliminateDeadCode(), subject)
    assert set(subject.tensors) == {"c.weight", "n"}


def test_what_it_needs_and_establishes() -> None:
    check_declared(EliminateDeadCode(), set(Stage))

"""Results that depend on constants alone are computed at compile time."""

from __future__ import annotations

import pytest
import torch

from qcompiler.ir.types import Stage
from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from qcompiler.passes.fold_constants import FoldConstants
from tests.support.declared import check_declared
from tests.support.golden import computes_the_same, leaf, lines, module, refusals, run


def test_fold_constants_computes_what_it_may() -> None:
    text = [
        leaf("a", "f32", 4, 1, 1, kind="constant"),
        leaf("b", "f32", 4, 1, 1, kind="constant"),
        "%s = add(%a, %b) : f32[4, 1, 1]",
        "%y = mul(%x, %s) : f32[N, 4, 6, 6]",
        "%y",
    ]
    subject = module("canonical", *text)
    expected = subject.tensors["a"] + subject.tensors["b"]
    run(FoldConstants(), subject)
    run(EliminateDeadCode(), subject)
    assert [line.partition(" : ")[0] for line in lines(subject)] == ["%y = mul(%x, %s_1)", "return %y"]
    assert torch.equal(next(iter(subject.tensors.values())), expected)


SUM = [
    leaf("a", "f32", 40, 1, kind="constant"),
    leaf("b", "f32", 1, 6, kind="constant"),
    "%s = add(%a, %b) : f32[40, 6]",
    "%y = add(%x, %s) : f32[N, 4, 40, 6]",
    "%y",
]
X = "%x : f32[N, 4, 1, 6]"


def test_a_result_that_grows_beyond_the_limit_is_refused() -> None:
    subject = module("canonical", *SUM, inputs=X)
    record = run(FoldConstants(max_elements=239), subject)
    assert refusals(record) == ["its 240 elements exceed the limit of 239"]
    assert [event.node for event in record.events] == ["s"]
    assert lines(subject) == [*SUM[2:4], "return %y"]
    subject = module("canonical", *SUM, inputs=X)
    record = run(FoldConstants(max_elements=240), subject)
    assert [(event.kind, event.detail) for event in record.events] == [
        ("rewrite", "computed at compile time from a, b")
    ]
    assert list(subject.tensors) and lines(subject)[0].startswith("%y = add(%x, %s")
    computes_the_same(module("canonical", *SUM, inputs=X), subject, rtol=1e-6)


def test_a_result_as_large_as_its_operand_is_always_computed() -> None:
    text = [
        leaf("w", "f32", 6, 40),
        "%t = permute(%w) {axes = (1, 0)} : f32[40, 6]",
        "%y = add(%x, %t) : f32[N, 4, 40, 6]",
    ]
    subject = module("canonical", *text, "%y", inputs=X)
    expected = subject.tensors["w"].T
    run(FoldConstants(max_elements=1), subject)
    node = next(node for node in subject.main.nodes if node.op == "constant")
    found = subject.tensors[str(node.attributes["ref"])]
    assert torch.equal(found, expected) and found.is_contiguous()


@pytest.mark.parametrize("kind", ["constant", "parameter", "state"])
def test_a_chain_is_computed_to_its_end_and_what_others_read_stays(kind: str) -> None:
    text = [
        leaf("a", "f32", 6, kind=kind),
        "%b = exp(%a) : f32[6]",
        "%c = relu(%b) : f32[6]",
        "%y = mul(%x, %c) : f32[N, 4, 6, 6]",
        "%z = add(%y, %a) : f32[N, 4, 6, 6]",
        "%z",
    ]
    subject = module("canonical", *text)
    run(FoldConstants(), subject)
    assert [node.op for node in subject.main.nodes if node.inputs] == ["mul", "add"]
    assert sum(not node.inputs for node in subject.main.nodes) == 2
    computes_the_same(module("canonical", *text), subject, rtol=1e-6)


def test_what_depends_on_an_input_is_left_alone() -> None:
    text = [leaf("a", "f32", 6), "%y = mul(%x, %a) : f32[N, 4, 6, 6]", "%z = relu(%y) : f32[N, 4, 6, 6]", "%z"]
    subject = module("canonical", *text)
    record = run(FoldConstants(), subject)
    assert lines(subject) == [*text[1:3], "return %z"]
    assert not record.events


def test_what_it_needs_and_establishes() -> None:
    check_declared(FoldConstants(), {Stage.CANONICAL})

"""The common parts of all passes: options, a contract, and a context that refuses to be without what a pass needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from qcompiler.errors import InputError, PassError
from qcompiler.ir.graph import Graph
from qcompiler.ir.types import Stage
from qcompiler.passes import Pass, PassContext
from qcompiler.passes.base import LARGEST_SEED, only_user
from qcompiler.quant.encoding import Encodings
from qcompiler.targets import load_target
from qcompiler.validation.contracts import Exact
from tests.support.declared import Nothing, check_declared
from tests.support.golden import lines, module, run


@dataclass(frozen=True)
class RemoveIdentity(Pass):
    """Remove identities."""

    name: ClassVar[str] = "remove-identity"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    how_many: int = 3
    only: str | None = None

    def run(self, graph: Graph, context: PassContext) -> None:
        rewriter = context.rewriter(graph)
        for node in graph.nodes:
            if node.op == "identity":
                rewriter.note(node, "removed")
                rewriter.replace(node, node.inputs[0])


def test_a_pass_rewrites_and_records() -> None:
    subject = module("float", "%a = identity(%x) : f32[N, 4, 6, 6]", "%b = relu(%a) : f32[N, 4, 6, 6]", "%b")
    record = run(RemoveIdentity(), subject)
    assert lines(subject) == ["%b = relu(%x) : f32[N, 4, 6, 6]", "return %b"]
    assert [(event.kind, event.node, event.detail) for event in record.events] == [("rewrite", "a", "removed")]


def test_a_pass_that_declares_nothing_promises_the_same_bits_and_keeps_all_facts() -> None:
    assert Nothing().contract == Exact()
    assert not Nothing().prepare(module("float", "%x").main, PassContext())
    check_declared(Nothing(), set(Stage))
    plain = type("Plain", (Pass,), {"name": "plain", "run": Nothing.run})
    check_declared(plain(), {Stage.CANONICAL, Stage.QUANTIZED})


def test_a_pass_without_a_rewrite_is_none() -> None:
    with pytest.raises(TypeError, match=r"abstract method '?run'?"):
        type("Empty", (Pass,), {"name": "empty"})()


def test_options_are_fields_and_text_names_those_that_differ() -> None:
    assert RemoveIdentity().options() == {"how_many": 3, "only": None}
    assert str(RemoveIdentity()) == "remove-identity"
    assert str(RemoveIdentity(how_many=4, only="a")) == "remove-identity{how-many=4, only=a}"
    assert RemoveIdentity(how_many=4) != RemoveIdentity()


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "0", None])
def test_a_seed_that_a_generator_refuses_is_refused(seed: object) -> None:
    with pytest.raises(InputError, match=r"the seed is .*an integer from 0 to 2\^63 - 1"):
        PassContext(seed=seed)  # type: ignore[arg-type]


def test_the_generator_follows_from_the_seed() -> None:
    drawn = [torch.rand(3, generator=PassContext(seed=seed).generator) for seed in (5, 5, LARGEST_SEED)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_context_refuses_what_it_lacks_and_names_who_asks() -> None:
    with pytest.raises(PassError, match=r"fix-ranges needs a target\. Give PassContext\(target="):
        PassContext().require_target("fix-ranges")
    with pytest.raises(PassError, match=r"check-encodings needs encodings\. Call compile\(\.\.\., encodings="):
        PassContext().require_encodings("check-encodings")
    target, encodings = load_target("int8_dsp"), Encodings((), "1.0.0")
    assert PassContext(target).require_target("a pass") is target
    assert PassContext(encodings=encodings).require_encodings("a pass") is encodings


def test_data_that_can_be_read_once_serves_every_pass() -> None:
    batches = [[torch.full((2,), float(index))] for index in range(3)]
    context = PassContext(calibration_data=iter(batches))
    assert context.calibration_data is not None
    for _ in range(2):
        read = list(context.calibration_data)
        assert len(read) == 3
        assert all(torch.equal(a[0], b[0]) for a, b in zip(read, batches, strict=True))


def test_the_only_user_of_a_node() -> None:
    graph = module(
        "float",
        "%a = relu(%x) : f32[N, 4, 6, 6]",  # two users
        "%b = relu(%a) : f32[N, 4, 6, 6]",  # one user
        "%c = add(%a, %b) : f32[N, 4, 6, 6]",  # an output
        "%c",
    ).main
    a, b, c = graph.nodes
    assert [only_user(node) for node in (a, b, c)] == [None, c, None]
    twice = module("float", "%a = relu(%x) : f32[N, 4, 6, 6]", "%b = add(%a, %a) : f32[N, 4, 6, 6]", "%b").main
    first, second = twice.nodes
    assert only_user(first) is second, "a node that reads a value twice is one user"
    both = module("float", "%a = relu(%x) : f32[N, 4, 6, 6]", "%b = relu(%a) : f32[N, 4, 6, 6]", "%a, %b").main
    assert only_user(next(both.nodes)) is None, "an output has a reader outside of the graph"

"""Calls of torch as models, for the tests of the rules that turn them into operators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler.errors import UnsupportedError
from qcompiler.frontends import capture
from qcompiler.frontends.builder import Builder, Rule
from qcompiler.frontends.rules import RULES
from qcompiler.ir import tree
from qcompiler.ir.graph import Module
from qcompiler.ir.hashing import module_hash
from qcompiler.ir.text import print_module
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from qcompiler.passes.fold_constants import FoldConstants
from tests.support.running import outputs_of

Spelling = Callable[..., Any]
"""A module, or a function of an image, or of an image and a `Spelled` with tensors."""


class Spelled(nn.Module):
    """A spelling as a model; a module is a child of it."""

    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling
        weight = torch.linspace(-1, 1, 4)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(weight.flip(0).clone())
        self.kernel = nn.Parameter(torch.linspace(-1, 1, 4 * 4 * 3 * 3).reshape(4, 4, 3, 3))
        self.mean, self.variance = nn.Buffer(weight * 0.1), nn.Buffer(weight.abs() + 0.5)

    def forward(self, x: Tensor) -> object:
        takes_model = not isinstance(self.spelling, nn.Module) and self.spelling.__code__.co_argcount == 2
        return self.spelling(x, self) if takes_model else self.spelling(x)


def model_of(spelling: Spelling) -> nn.Module:
    """The spelling in eval mode; a graph module as it is, since torch.fx would trace it anew."""
    return spelling if isinstance(spelling, fx.GraphModule) else Spelled(spelling).eval()


def node_of(function: Callable[..., object], *arguments: Any, **keywords: Any) -> fx.GraphModule:
    """A graph of one call, for functions that torch.fx traces into. The image is the first argument."""
    graph = fx.Graph()
    graph.output(graph.call_function(function, (graph.placeholder("x"), *arguments), keywords))
    return fx.GraphModule(nn.Module(), graph)


def image() -> Tensor:
    """An image [2, 4, 4, 4] of multiples of 1/8 up to 2, which every floating-point type holds."""
    return torch.randint(-16, 17, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0)) / 8


def canonical(module: Module) -> Module:
    PassManager([Canonicalize(), FoldConstants(), EliminateDeadCode()]).run(module, PassContext())
    return module


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch", min=1, max=65536)},)
    return torch.export.export(model, (image(),), dynamic_shapes=shapes)


def rules_of(file: ModuleType) -> list[str]:
    """The names of the rules that a file enters into the table."""
    return [name for name, rule in RULES.items() if rule.__module__ == file.__name__]


@contextlib.contextmanager
def noted_rules() -> Iterator[set[str]]:
    """The names of the rules that build a graph."""
    names: set[str] = set()
    call = Builder.call

    def note(self: Builder, rule: Rule, function: str, *rest: Any) -> object:
        names.add(function)
        return call(self, rule, function, *rest)

    with mock.patch.object(Builder, "call", note):
        yield names


def check_rule(name: str, spelling: Spelling) -> None:
    """Check that `spelling` goes through the rule `name`, and that its graph computes what torch does."""
    model = model_of(spelling)
    with noted_rules() as names:
        graph = capture(model, image()).module.main
    assert name in names
    assert all(node.op != "custom" for node in graph.nodes)
    x = torch.cat([image(), image().neg().flip(-1)])
    with torch.no_grad():
        expected, _ = tree.flatten(model(x.clone()))
    found = outputs_of(graph, [x])
    assert len(found) == len(expected)
    for result, wanted in zip(found, expected, strict=True):
        assert result.shape == wanted.shape
        # Sums over axes run in the order of the strides, which a graph without views may have otherwise.
        torch.testing.assert_close(result, wanted.to(result.dtype), rtol=1e-5, atol=1e-6)


def check_same(spellings: Sequence[Spelling]) -> None:
    """Check that all spellings are one canonical graph, by both tracers."""
    found: dict[str, str] = {}
    for index, spelling in enumerate(spellings):
        model = model_of(spelling)
        for route, subject in (("fx", model), ("export", exported(model))):
            module = canonical(capture(subject, image()).module)
            assert all(node.op != "custom" for node in module.main.nodes), f"spelling {index}: {print_module(module)}"
            found[f"spelling {index} by {route}"] = module_hash(module)
    different = [key for key, value in found.items() if value != next(iter(found.values()))]
    assert not different


def refusal(spelling: Spelling) -> tuple[str, str]:
    """Reason and place of the one call that has no operator: kept as a custom op, or refused by an error."""
    try:
        graph = capture(model_of(spelling), image()).module.main
    except UnsupportedError as error:
        return error.found, str(error.where)
    (node,) = [node for node in graph.nodes if node.op == "custom"]
    return str(node.attributes["reason"]), str(node.location)


def check_refused(name: str, table: Mapping[str, tuple[Spelling, str]]) -> None:
    """Check that a spelling is refused with the words and in the line of the table."""
    spelling, words = table[name]
    reason, place = refusal(spelling)
    assert words in reason
    if not isinstance(spelling, nn.Module):
        # torch.export notes only the frames of modules.
        assert f":<lambda>:{spelling.__code__.co_firstlineno}" in place or ":Spelled.forward:" in place


class RuleTests:
    """The tests of one file of rules; a subclass in the test module gives the tables."""

    file: ModuleType
    spelled: Mapping[str, Spelling]
    """One spelling for each rule of the file, by the name of the rule."""
    same: Mapping[str, Sequence[Spelling]]
    """Spellings of one operator."""
    refused: Mapping[str, tuple[Spelling, str]]
    """Spellings without an operator, and words of the reason."""
    unreached: Mapping[str, str] = {}
    """Rules that this machine cannot reach, and the rule that is the same function."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each entry of the table that a test takes."""
        for name in ("spelled", "same", "refused"):
            if f"{name}_name" in metafunc.fixturenames:
                metafunc.parametrize(f"{name}_name", list(getattr(self, name)))

    def test_each_rule_is_spelled(self) -> None:
        assert {*self.spelled, *self.unreached} == {*rules_of(self.file)}
        assert all(RULES[name] is RULES[other] for name, other in self.unreached.items())

    def test_the_graph_of_a_spelling_computes_what_torch_does(self, spelled_name: str) -> None:
        check_rule(spelled_name, self.spelled[spelled_name])

    def test_spellings_of_one_operator_are_one_graph(self, same_name: str) -> None:
        check_same(self.same[same_name])

    def test_what_has_no_operator_is_refused_with_reason_and_place(self, refused_name: str) -> None:
        check_refused(refused_name, self.refused)

"""The manager checks the order before anything runs, and after each pass what the pass declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from qcompiler.errors import ContractError, GraphError, PassError, PipelineError, UnsupportedError
from qcompiler.ir.graph import Graph, Module
from qcompiler.ir.interpret import interpret
from qcompiler.ir.types import Stage
from qcompiler.passes import Pass, PassContext, PassManager, manager
from qcompiler.session.pipeline import default_pipeline, parse_pipeline, print_pipeline
from qcompiler.targets import load_target
from qcompiler.validation.contracts import Close, Contract, Exact, IntegerMatch, Lossy
from tests.support.declared import FACTS, Nothing
from tests.support.golden import leaf, module

EXACT = Exact()


def subject() -> Module:
    """x + w."""
    return module("float", leaf("w", "f32", 6), "%y = add(%x, %w) : f32[N, 4, 6, 6]", "%y")


def samples() -> list[list[torch.Tensor]]:
    return [[torch.ones(2, 4, 6, 6)], [torch.full((1, 4, 6, 6), 2.0)]]


def named(name: str, **declared: object) -> Pass:
    """A pass that changes nothing and declares `declared`."""
    item: Pass = type(name, (Nothing,), {"name": name, **declared})()
    return item


@dataclass(frozen=True)
class Shift(Pass):
    """Add to w, under a contract given from outside."""

    name: ClassVar[str] = "shift"
    stages: ClassVar[frozenset[Stage]] = frozenset(Stage)
    by: float = 1.0
    promise: Contract = EXACT
    announced: bool = False

    @property
    def contract(self) -> Contract:
        return self.promise

    def prepare(self, graph: Graph, context: PassContext) -> bool:
        if self.announced:
            graph.module.tensors["w"] += self.by
        return self.announced

    def run(self, graph: Graph, context: PassContext) -> None:
        if not self.announced:
            graph.module.tensors["w"] += self.by


def test_what_is_no_pass_is_refused() -> None:
    with pytest.raises(PipelineError, match=r"'fold-constants' is not a pass; expected an instance of .*Pass"):
        PassManager([Nothing(), "fold-constants"])  # type: ignore[list-item]


def test_the_order_is_checked_before_anything_runs() -> None:
    model, ran = subject(), []
    first = type("First", (Nothing,), {"name": "first", "run": lambda self, graph, context: ran.append(self)})()
    needy, giver = named("needy", requires=frozenset({"b", "a"})), named("giver", establishes=frozenset({"a", "b"}))
    place = r"needy needs a, b, which is not established before it \(at position 2 of first, needy, giver\)"
    with pytest.raises(PipelineError, match=rf"{place}\. Run giver before it\."):
        PassManager([first, needy, giver]).run(model, PassContext())
    assert not ran and model.main.stage is Stage.FLOAT
    PassManager([first, giver, needy]).run(model, PassContext())
    assert ran == [first]


def test_a_fact_that_no_pass_establishes_is_told() -> None:
    with pytest.raises(PipelineError, match="No pass of this pipeline establishes that"):
        PassManager([named("needy", requires=frozenset({"a"}))]).check_order(Stage.FLOAT)
    PassManager([named("needy", requires=frozenset({"a"}))], facts={"a"}).check_order(Stage.FLOAT)


def test_a_fact_holds_until_a_pass_invalidates_it() -> None:
    giver, needy = named("giver", establishes=frozenset({"a"})), named("needy", requires=frozenset({"a"}))
    spoiler = named("spoiler", invalidates=frozenset({"a"}))
    PassManager([giver, Nothing(), needy]).check_order(Stage.FLOAT)
    with pytest.raises(PipelineError, match="needy needs a"):
        PassManager([giver, spoiler, needy]).check_order(Stage.FLOAT)
    PassManager([giver, spoiler, giver, needy]).check_order(Stage.FLOAT)
    renewer = named("renewer", establishes=frozenset({"a"}), invalidates=frozenset({"a"}))
    PassManager([renewer, needy]).check_order(Stage.FLOAT)


def test_the_stage_of_a_graph_is_checked_and_followed() -> None:
    late = named("late", stages=frozenset({Stage.QUANTIZED, Stage.INTEGER}))
    with pytest.raises(PipelineError, match=r"late cannot run on a graph at stage float.*stage quantized or integer"):
        PassManager([late]).check_order(Stage.FLOAT)
    lift = named("lift", becomes=Stage.QUANTIZED)
    PassManager([lift, late]).check_order(Stage.FLOAT)
    model = subject()
    PassManager([named("lift", becomes=Stage.CANONICAL), Nothing()]).run(model, PassContext())
    assert model.main.stage is Stage.CANONICAL, "the manager sets the stage, and a pass with becomes=None keeps it"


def test_no_pass_that_alone_establishes_a_fact_can_be_left_out() -> None:
    passes = default_pipeline("best")
    PassManager(passes).check_order(Stage.FLOAT)
    for index, item in enumerate(passes):
        if item.establishes and sum(bool(item.establishes & other.establishes) for other in passes) == 1:
            with pytest.raises(PipelineError):
                PassManager([*passes[:index], *passes[index + 1 :]]).check_order(Stage.FLOAT)
    assert frozenset().union(*(item.establishes for item in passes)) | {"encodings"} == FACTS


BROKEN: dict[str, tuple[Contract, float, str]] = {
    "exact": (Exact(), 1e-6, r"shift changed output 0 by a difference of .*; expected the same bits"),
    "close": (Close(rtol=1e-3), 1e-2, r"a difference of 0\.0\d*; expected at most 0\.00"),
    "lossy": (Lossy(min_sqnr_db=20.0), 1.0, r"a signal-to-noise ratio of \d+\.\d+ dB; expected 20\.0 dB"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_contract_names_the_pass_and_the_figure(case: str) -> None:
    contract, by, message = BROKEN[case]
    with pytest.raises(ContractError, match=message):
        PassManager([Nothing(), Shift(by, contract)]).run(subject(), PassContext(samples=samples()))
    (record,) = PassManager([Shift(0.0, contract)]).run(subject(), PassContext(samples=samples()))
    kept = {"sqnr_db": float("inf")} if case == "lossy" else {"max_difference": 0.0}
    assert record.metrics == kept


def test_each_pass_is_compared_with_the_pass_before_it() -> None:
    passes = [Shift(0.1, Close(rtol=0.06)) for _ in range(5)]
    records = PassManager(passes).run(subject(), PassContext(samples=samples()))
    assert all(record.metrics["max_difference"] == pytest.approx(0.1, rel=1e-4) for record in records)


def test_facts_that_a_pass_removes_beforehand_are_no_change_of_its_own() -> None:
    PassManager([Shift(5.0, announced=True), Nothing()]).run(subject(), PassContext(samples=samples()))
    with pytest.raises(ContractError):
        PassManager([Shift(5.0)]).run(subject(), PassContext(samples=samples()))


def test_without_samples_nothing_is_compared() -> None:
    PassManager([Shift(5.0)]).run(subject(), PassContext())


def test_codes_are_compared_to_the_bit_and_need_a_target() -> None:
    promise = IntegerMatch()
    text = [
        leaf("s", "f32"),
        leaf("z", "i32", kind="state"),
        leaf("w", "f32"),
        '%y = fake_quantize(%x, %s, %z) {spec = spec"s8"} : f32[N, 4, 6, 6]',
        "%y",
    ]

    @dataclass(frozen=True)
    class Rescale(Shift):
        def run(self, graph: Graph, context: PassContext) -> None:
            graph.module.tensors["s"] *= self.by

    def ran(by: float, context: PassContext) -> float | int | str:
        model = module("quantized", *text, tensors={"s": torch.tensor(0.5)})
        (record,) = PassManager([Rescale(by, promise)]).run(model, context)
        return record.metrics["max_difference"]

    context = PassContext(load_target("int8_dsp"), samples=samples())
    assert ran(1.0, context) == 0.0
    with pytest.raises(ContractError, match=r"a difference of \d+ steps; expected at most 0 steps"):
        ran(0.5, context)
    with pytest.raises(PassError, match="validation to the bit needs a target"):
        ran(1.0, PassContext(samples=samples()))


def test_a_graph_that_breaks_an_invariant_names_the_pass() -> None:
    def spoil(self: Pass, graph: Graph, context: PassContext) -> None:
        del graph.module.tensors["w"]

    with pytest.raises(GraphError, match="after spoiler"):
        PassManager([type("Spoiler", (Nothing,), {"name": "spoiler", "run": spoil})()]).run(subject(), PassContext())


def test_an_error_says_which_pass_raised_it_and_what_ran_before() -> None:
    def refuse(self: Pass, graph: Graph, context: PassContext) -> None:
        raise PassError("no")

    broken = type("Broken", (Nothing,), {"name": "broken", "run": refuse})()
    for passes, note in (([broken], "no pass"), ([Nothing(), named("second"), broken], "nothing, second")):
        with pytest.raises(PassError) as caught:
            PassManager(passes).run(subject(), PassContext())
        assert caught.value.__notes__ == [f"raised by broken after {note}"]


def test_an_error_about_the_model_names_the_pass_alone() -> None:
    def refuse(self: Pass, graph: Graph, context: PassContext) -> None:
        raise UnsupportedError("no")

    broken = type("Broken", (Nothing,), {"name": "broken", "run": refuse})()
    with pytest.raises(UnsupportedError) as caught:
        PassManager([Nothing(), broken]).run(subject(), PassContext())
    assert caught.value.__notes__ == ["raised by the pass broken"]


def test_each_pass_writes_into_a_record_of_its_own() -> None:
    def note(self: Pass, graph: Graph, context: PassContext) -> None:
        context.rewriter(graph).note(next(node for node in graph.nodes if node.op == "add"), self.name)

    passes = [type("Noting", (Nothing,), {"name": name, "run": note})() for name in ("a", "b")]
    records = PassManager(passes).run(subject(), PassContext())
    assert [(record.pass_name, [event.detail for event in record.events]) for record in records] == [
        ("a", ["a"]),
        ("b", ["b"]),
    ]


def between(seen: list[tuple[str, str]]) -> Callable[[Pass | None, Module, Pass | None], None]:
    def call(before: Pass | None, model: Module, after: Pass | None) -> None:
        assert model.main.stage is (Stage.CANONICAL if before is not None else Stage.FLOAT)
        seen.append((before.name if before else "", after.name if after else ""))

    return call


def test_the_callback_gets_the_pass_before_and_the_pass_after() -> None:
    passes, seen = [named("a", becomes=Stage.CANONICAL), named("b")], list[tuple[str, str]]()
    PassManager(passes, between=between(seen)).run(subject(), PassContext())
    assert seen == [("", "a"), ("a", "b"), ("b", "")]


def test_parts_of_a_sequence_run_as_the_whole_does() -> None:
    passes, seen = [named("a", becomes=Stage.CANONICAL), named("b"), named("c")], list[tuple[str, str]]()
    manager, model = PassManager(passes, between=between(seen)), subject()
    first = manager.run_part(model, PassContext(), 0, 1)
    rest = manager.run_part(model, PassContext(), 1, 3)
    assert [record.pass_name for record in (*first, *rest)] == ["a", "b", "c"]
    assert seen == [("", "a"), ("a", "b"), ("b", "c"), ("c", "")]


def test_a_sequence_is_told_as_text_that_reads_back() -> None:
    passes = default_pipeline("best", weight_bits=4)
    text = PassManager(passes).describe()
    assert text == print_pipeline(passes) and parse_pipeline(text) == passes


class Rewriting(Nothing):
    """Writes the weight again, with the same numbers."""

    name = "rewriting"

    def run(self, graph: Graph, context: PassContext) -> None:
        tensors = graph.module.tensors
        tensors["w"] = tensors["w"].clone()


def test_the_graph_runs_once_for_each_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs after a pass are the reference of the next one, also after a pass that changed nothing."""
    calls: list[Graph] = []
    original = interpret

    def counted(graph: Graph, *arguments: object) -> object:
        calls.append(graph)
        return original(graph, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(manager, "interpret", counted)
    given = samples()
    PassManager([named("first"), Rewriting(), named("second"), Rewriting()]).run(subject(), PassContext(samples=given))
    assert len(calls) == (1 + 2) * len(given)


def test_parts_on_copies_of_the_module_share_the_outputs_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Graph] = []
    original = interpret

    def counted(graph: Graph, *arguments: object) -> object:
        calls.append(graph)
        return original(graph, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(manager, "interpret", counted)
    model, context = subject(), PassContext(samples=samples())
    parts = PassManager([Rewriting(), Rewriting()])
    parts.run_part(model, context, 0, 1)
    parts.run_part(model.clone(), context, 1, 2)
    assert len(calls) == 3 * len(context.samples)


class InPlace(Nothing):
    """Changes a weight in its own memory, past the rewriter."""

    name = "in-place"

    def run(self, graph: Graph, context: PassContext) -> None:
        graph.module.tensors["w"].add_(1.0)


def test_a_change_in_the_memory_of_a_tensor_is_seen() -> None:
    with pytest.raises(ContractError, match="in-place"):
        PassManager([InPlace()]).run(subject(), PassContext(samples=samples()))

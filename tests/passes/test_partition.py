"""Float islands: what goes into one, what stays out, and what a target without them says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qcompiler
from qcompiler import frontends
from qcompiler.errors import UnsupportedError
from qcompiler.ir.graph import Module
from qcompiler.ir.text import print_graph
from qcompiler.ir.types import Stage
from qcompiler.passes import PassManager
from qcompiler.passes.base import Override, PassContext
from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from qcompiler.passes.partition import Partition
from qcompiler.session.pipeline import structural_passes
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.golden import leaf, lines, module, run
from tests.support.running import outputs_of

CUMSUM = 'function = "torch.cumsum", arguments = "[[{\\"operand\\": 0}, 1], {}]"'
TOPK = 'function = "torch.topk", arguments = "[[{\\"operand\\": 0}, 2], {\\"dim\\": 1}]"'
SHAPE = "f32[N, 4, 6, 6]"


def cumsum(name: str, operand: str) -> str:
    return f'%{name} = custom(%{operand}) {{{CUMSUM}, results = ("{SHAPE}",)}} : {SHAPE}'


def partitioned(
    *text: str, overrides: dict[str, Override] | None = None
) -> tuple[Module, dict[str, float | int | str]]:
    """The module after the pass, whose graph gives the same bits as before."""
    subject = module("canonical", *text)
    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    before = outputs_of(subject.main, [x])
    target = load_target("int8_dsp").override(fallback="float")
    record = run(Partition(), subject, PassContext(target, overrides=overrides or {}))
    for old, new in zip(before, outputs_of(subject.main, [x]), strict=True):
        assert torch.equal(old, new)
    return subject, record.metrics


def island(subject: Module, name: str) -> list[str]:
    text = print_graph(subject.graphs[name], locations=False).splitlines()
    return [line.strip().split(" {")[0].split(" :")[0] for line in text if line.startswith("  %")]


def test_what_the_core_has_stays() -> None:
    text = [f"%a = relu(%x) : {SHAPE}", f"%b = add(%a, %x) : {SHAPE}", "%b"]
    subject, metrics = partitioned(*text)
    assert lines(subject) == [*(line.split(" :")[0] + f" : {SHAPE}" for line in text[:2]), "return %b"]
    assert list(subject.graphs) == ["main"]
    assert not metrics


def test_neighbours_share_an_island_with_what_moves_between_them() -> None:
    subject, metrics = partitioned(
        f"%a = relu(%x) : {SHAPE}",
        cumsum("b", "a"),
        f"%c = permute(%b) {{axes = (0, 1, 3, 2)}} : {SHAPE}",
        cumsum("d", "c"),
        f"%e = relu(%d) : {SHAPE}",
        "%e",
    )
    assert island(subject, "b") == ["%b = custom(%a)", "%c = permute(%b)", "%d = custom(%c)", "%e = relu(%d)"]
    assert lines(subject) == [
        f"%a = relu(%x) : {SHAPE}",
        f'%e = call(%a) {{graph = "b", results = ("{SHAPE}",)}} : {SHAPE}',
        "return %e",
    ]
    assert metrics["b.elements"] == 4 / 5


def test_a_path_that_leaves_and_comes_back_makes_two_islands() -> None:
    """`c` is integer and reads the first island: the second reads `c`."""
    subject, _ = partitioned(
        cumsum("a", "x"),
        f"%c = mul(%a, %a) : {SHAPE}",
        f'%d = custom(%a, %c) {{function = "torch.atan2", arguments = '
        f'"[[{{\\"operand\\": 0}}, {{\\"operand\\": 1}}], {{}}]", results = ("{SHAPE}",)}} : {SHAPE}',
        "%d",
    )
    assert [line.split(" = ")[1].split("(")[0] for line in lines(subject)[:-1]] == ["call", "mul", "call"]
    assert list(subject.graphs) == ["main", "a", "d"]


def test_what_reads_an_island_moves_behind_it() -> None:
    """`r` reads the first part and stands before the second, which it does not feed."""
    subject, _ = partitioned(
        cumsum("a", "x"),
        f"%r = relu(%a) : {SHAPE}",
        f"%s = mul(%r, %r) : {SHAPE}",
        cumsum("b", "a"),
        f"%t = add(%s, %b) : {SHAPE}",
        "%t",
    )
    order = [line.split(" = ")[0] for line in lines(subject)[:-1]]
    assert order == ["%a, %b", "%r", "%s", "%t"]


def test_parts_that_are_not_numbers_stay_inside() -> None:
    subject, _ = partitioned(
        f'%v, %i = custom(%x) {{{TOPK}, results = ("f32[N, 2, 6, 6]", "i64[N, 2, 6, 6]")}} '
        ": f32[N, 2, 6, 6], i64[N, 2, 6, 6]",
        '%g = custom(%x, %i) {function = "torch.gather", arguments = '
        '"[[{\\"operand\\": 0}, 1, {\\"operand\\": 1}], {}]", results = ("f32[N, 2, 6, 6]",)} : f32[N, 2, 6, 6]',
        "%m = mul(%g, %v) : f32[N, 2, 6, 6]",
        "%m, %i",
    )
    assert island(subject, "v") == ["%v, %i = custom(%x)", "%g = custom(%x, %i)"]
    assert lines(subject)[0].startswith("%v, %i, %g = call(%x)")


def test_tensors_go_along_and_stay_where_others_read_them() -> None:
    weight = 'arguments = "[[{\\"operand\\": 0}, {\\"operand\\": 1}], {}]"'
    subject, _ = partitioned(
        leaf("w", "f32", 6),
        leaf("u", "f32", 6),
        f'%a = custom(%x, %w) {{function = "torch.atan2", {weight}, results = ("{SHAPE}",)}} : {SHAPE}',
        f'%b = custom(%a, %u) {{function = "torch.atan2", {weight}, results = ("{SHAPE}",)}} : {SHAPE}',
        f"%c = mul(%b, %w) : {SHAPE}",
        "%c",
    )
    assert [node.name for node in subject.main.nodes] == ["w", "b", "c"]
    assert [node.op for node in subject.graphs["a"].nodes] == ["parameter", "custom", "parameter", "custom"]


def test_the_user_asks_for_float() -> None:
    text = [f"%a = relu(%x) : {SHAPE}", f"%b = mul(%a, %x) : {SHAPE}", f"%c = mul(%b, %x) : {SHAPE}", "%c"]
    subject, metrics = partitioned(*text, overrides={"b": "float"})
    assert island(subject, "b") == ["%b = mul(%a, %x)"]
    assert metrics["b.elements"] == 1 / 3


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ([cumsum("a", "x"), "%a"], {}, ["'cumsum' has no operator", "%a", 'rule("cumsum")', 'fallback="float"']),
        (
            ["%a = div(%x, %x) : f32[N, 4, 6, 6]", "%a"],
            {},
            ["int8_dsp has no integer div", "add a rule for div", 'fallback="float"'],
        ),
        (
            [f"%a = relu(%x) : {SHAPE}", "%a"],
            {"relu": "float"},
            ["an override selects float", "%a", 'fallback="float"'],
        ),
    ],
)
def test_a_target_without_islands_refuses(text: list[str], overrides: dict[str, Override], words: list[str]) -> None:
    subject = module("canonical", *text)
    with pytest.raises(UnsupportedError) as caught:
        run(Partition(), subject, PassContext(load_target("int8_dsp"), overrides=overrides))
    assert [word for word in words if word not in str(caught.value)] == []


def test_all_that_is_missing_is_listed_with_its_places() -> None:
    text = [cumsum("a", "x"), "%b = div(%a, %a) : f32[N, 4, 6, 6]", cumsum("c", "b"), cumsum("d", "c"), "%d"]
    with pytest.raises(UnsupportedError) as caught:
        run(Partition(), module("canonical", *text), PassContext(load_target("int8_dsp")))
    listed = str(caught.value).partition("Also missing:\n")[2].splitlines()
    assert listed == [
        "    the target int8_dsp has no integer div (at %b)",
        "    the torch function 'cumsum' has no operator (at %c; %d)",
    ]


def test_the_line_that_the_user_wrote_is_quoted() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1).cumsum(1) + torch.searchsorted(torch.arange(4.0), x.flatten(1))

    with pytest.raises(UnsupportedError) as caught:
        qcompiler.compile(Model().eval(), example_inputs=torch.randn(2, 3, 4))
    assert str(caught.value).count(": `return x.flatten(1).cumsum(1) + torch.searchsorted(") == 3, "and their sum"
    found = qcompiler.check(Model().eval(), example_inputs=torch.randn(2, 3, 4))
    assert {node.op for node in found.of("refused")} >= {"cumsum", "searchsorted"}


def test_a_graph_that_nobody_calls_is_removed() -> None:
    subject, _ = partitioned(cumsum("a", "x"), f"%b = relu(%x) : {SHAPE}", "%a, %b")
    assert list(subject.graphs) == ["main", "a"]
    subject.main.set_outputs([subject.main.value("b")], ("list", [0]))
    run(EliminateDeadCode(), subject)
    assert list(subject.graphs) == ["main"]
    assert lines(subject) == [f"%b = relu(%x) : {SHAPE}", "return %b"]


def test_what_nobody_reads_is_no_reason_for_an_island() -> None:
    subject = module("canonical", cumsum("a", "x"), f"%b = relu(%x) : {SHAPE}", "%b")
    run(Partition(), subject, PassContext(load_target("int8_dsp")))
    assert lines(subject) == [f"%b = relu(%x) : {SHAPE}", "return %b"]


def test_attention_written_by_hand_sums_in_another_order_on_its_island() -> None:
    """The transposed keys are contiguous in the island: equal but for the last bits, as the contract says."""
    torch.manual_seed(0)
    layer = nn.Linear(32, 32)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            weights: torch.Tensor = torch.softmax(y @ self.layer(x).transpose(1, 2), -1)
            return weights.matmul(y)

    x = torch.randn(8, 10, 32)
    module = frontends.capture(Attention().eval(), x).module
    context = PassContext(load_target("int8_dsp").override(fallback="float"), [[x]])
    records = PassManager([*structural_passes()[0], Partition()]).run(module, context)
    difference = records[-1].metrics["max_difference"]
    assert isinstance(difference, float)
    assert difference <= 1e-5 * float(layer(x).detach().abs().max())


def test_what_it_needs_and_establishes() -> None:
    check_declared(
        Partition(), {Stage.CANONICAL}, requires={"canonical", "batch-norm-folded"}, establishes={"partitioned"}
    )

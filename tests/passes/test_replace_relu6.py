"""Clamps from 0 to a cap become ReLUs where equalization would stop at the cap."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from qcompiler.errors import ContractError
from qcompiler.ir.types import Stage
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.cross_layer_equalization import CrossLayerEqualization
from qcompiler.passes.replace_relu6 import ReplaceRelu6
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.equalized import Net, image, measured, run_alike, wide
from tests.support.golden import PADDED, computes_the_same, conv, lines, module, refusals, run, shown


def test_relu6_is_replaced_behind_layers_only() -> None:
    torch.manual_seed(0)
    net = Net(lambda m, x: functional.relu6(m.a(functional.relu6(x)) * 5), a=nn.Conv2d(3, 4, 1))
    _, records = run_alike(net, [ReplaceRelu6()], image())
    assert [event.detail for event in records[-1].events] == ["no layer directly before it"] * 2
    net = Net(lambda m, x: m.b(functional.relu6(m.a(x))), a=wide(nn.Conv2d(3, 8, 1)), b=nn.Conv2d(8, 2, 1))
    _, records = run_alike(net, [ReplaceRelu6(), CrossLayerEqualization()], image())
    assert [event.detail for event in records[-2].events] == ["is not limited above 6"]
    assert measured(records[-1], "pairs") == 1


SHAPE = "f32[N, 8, 6, 6]"
LAYER = conv("c", "%x", 8, SHAPE, PADDED)


def test_a_cap_after_a_layer_goes() -> None:
    subject = module("canonical", *LAYER, f"%r = clamp(%c) {{min = 0.0, max = 6.0}} : {SHAPE}", "%r")
    record = run(ReplaceRelu6(), subject)
    assert shown(subject) == ["%c = conv2d(%x, %c.weight)", "%r_1 = relu(%c)", "return %r_1"]
    assert [(event.kind, event.node, event.detail) for event in record.events] == [
        ("rewrite", "r_1", "is not limited above 6")
    ]
    relu = module("canonical", *LAYER, f"%r = relu(%c) : {SHAPE}", "%r")
    computes_the_same(relu, subject, rtol=0.0)


REFUSED: dict[str, tuple[list[str], str]] = {
    "another start": ([*LAYER, f"%r = clamp(%c) {{min = -1.0, max = 6.0}} : {SHAPE}"], "it clamps from -1"),
    "no cap": ([*LAYER, f"%r = clamp(%c) {{min = 0.0}} : {SHAPE}"], "it clamps from 0"),
    "an input": (["%r = clamp(%x) {min = 0.0, max = 6.0} : f32[N, 4, 6, 6]"], "no layer directly before it"),
    "a function before it": (
        [*LAYER, f"%e = exp(%c) : {SHAPE}", f"%r = clamp(%e) {{min = 0.0, max = 6.0}} : {SHAPE}"],
        "no layer directly before it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_clamp_that_is_no_relu6_after_a_layer_is_refused(case: str) -> None:
    text, reason = REFUSED[case]
    subject = module("canonical", *text, "%r")
    before = lines(subject)
    record = run(ReplaceRelu6(), subject)
    assert refusals(record) == [reason] and [event.node for event in record.events] == ["r"]
    assert lines(subject) == before


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_target_with_limits_per_channel_keeps_the_cap(per_channel: bool) -> None:
    target = load_target("int8_dsp").override(per_channel_clamp=per_channel)
    subject = module("canonical", *LAYER, f"%r = clamp(%c) {{min = 0.0, max = 6.0}} : {SHAPE}", "%r")
    record = run(ReplaceRelu6(), subject, PassContext(target))
    reason = "equalization keeps the cap of 6, because the target has limits per channel"
    assert refusals(record) == ([reason] if per_channel else [])
    assert ("relu" in {node.op for node in subject.main.nodes}) != per_channel


def noise(gain: float) -> float | int | str:
    """The signal-to-noise ratio that the manager measures on inputs of this size."""
    subject = module("canonical", *LAYER, f"%r = clamp(%c) {{min = 0.0, max = 6.0}} : {SHAPE}", "%r")
    context = PassContext(samples=[[gain * torch.randn(2, 4, 6, 6)]])
    (record,) = PassManager([ReplaceRelu6()], {"canonical", "batch-norm-folded"}).run(subject, context)
    return record.metrics["sqnr_db"]


def test_what_values_above_the_cap_change_is_measured_and_bounded() -> None:
    assert noise(0.01) == float("inf"), "nothing reaches the cap"
    figure = noise(1.0)
    assert isinstance(figure, float) and -20.0 < figure < 20.0
    with pytest.raises(ContractError, match=r"replace-relu6 changed output 0 by a signal-to-noise ratio of -\d+"):
        noise(100.0)


def test_what_it_needs_and_establishes() -> None:
    check_declared(ReplaceRelu6(), {Stage.CANONICAL}, requires={"canonical", "batch-norm-folded"})

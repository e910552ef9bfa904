"""Ties where grids are fixed already: by the target, or because they are given."""

from __future__ import annotations

import torch

from qcompiler.ir.graph import Module, Node
from qcompiler.ir.types import Stage
from qcompiler.passes import Pass, PassContext
from qcompiler.passes.fix_ranges import FixRanges
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.unify_scales import UnifyScales
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.golden import PADDED, leaf, lines, module, quantized, run
from tests.support.golden import conv as padded

PLAIN = "{stride = (1, 1), padding = (0, 0, 0, 0), dilation = (1, 1)} "


def conv(name: str, source: str = "%x") -> list[str]:
    weight = leaf(f"{name}.weight", "f32", 4, 4, 1, 1)
    return [weight, f"%{name} = conv2d({source}, %{name}.weight) {PLAIN}: f32[N, 4, 6, 6]"]


def unified(*text: str, grids: dict[str, float]) -> Module:
    """Quantizers placed, those named on grids of these scales, ties solved."""
    subject = module("canonical", *text)
    context = PassContext(load_target("int8_dsp"))
    passes: list[Pass] = [InsertQuantizers(), FixRanges()]
    for item in passes:
        run(item, subject, context)
    for name, scale in grids.items():
        subject.tensors[f"{name}.scale"] = torch.tensor(scale)
    run(UnifyScales(), subject, context)
    return subject


def scale_of(subject: Module, name: str) -> str:
    node = next(node for node in subject.main.nodes if node.name == name)
    return node.inputs[1].name


def concat(subject: Module) -> Node:
    return next(node for node in subject.main.nodes if node.op == "concat")


def test_an_average_takes_the_grid_that_is_fixed_for_its_input() -> None:
    text = [
        "%g = sigmoid(%x) : f32[N, 4, 6, 6]",
        "%p = avg_pool2d(%g) {kernel = (2, 2), stride = (2, 2)} : f32[N, 4, 3, 3]",
        "%p",
    ]
    subject = unified(*text, grids={})
    assert scale_of(subject, "p.q") == scale_of(subject, "g.q") == "g.scale"


def test_an_average_keeps_the_grid_that_is_given_for_it() -> None:
    """A step more for the device, which averages on the grid of the input; nothing saturates on the way."""
    text = [
        *conv("c"),
        "%p = avg_pool2d(%c) {kernel = (2, 2), stride = (2, 2)} : f32[N, 4, 3, 3]",
        "%p",
    ]
    subject = unified(*text, grids={"c": 0.5, "p": 0.25})
    assert (scale_of(subject, "c.q"), scale_of(subject, "p.q")) == ("c.scale", "p.scale")
    assert not any(".input" in line for line in lines(subject))


PARTS = [
    *conv("a"),
    *conv("b"),
    "%c = concat(%a, %b) {axis = 1} : f32[N, 8, 6, 6]",
]


def test_parts_on_one_given_grid_are_left_alone() -> None:
    subject = unified(*PARTS, "%c", grids={"a": 0.5, "b": 0.5})
    assert [value.name for value in concat(subject).inputs] == ["a.q", "b.q"]


def test_a_part_without_a_grid_leads_and_the_others_are_rescaled() -> None:
    subject = unified(*PARTS, "%c", grids={"a": 0.5})
    assert [value.name for value in concat(subject).inputs] == ["c.input0.q", "b.q"]
    assert scale_of(subject, "c.input0.q") == "b.scale"
    assert scale_of(subject, "a.q") == "a.scale"


def test_a_given_part_leads_where_the_target_dictates_the_other() -> None:
    text = ["%g = sigmoid(%x) : f32[N, 4, 6, 6]", *conv("b"), "%c = concat(%g, %b) {axis = 1} : f32[N, 8, 6, 6]", "%c"]
    subject = unified(*text, grids={"b": 0.5})
    assert [value.name for value in concat(subject).inputs] == ["c.input0.q", "b.q"]
    assert scale_of(subject, "c.input0.q") == "b.scale"


def test_parts_on_different_given_grids_go_to_that_of_the_whole() -> None:
    subject = unified(*PARTS, "%c", grids={"a": 0.5, "b": 0.25})
    assert [value.name for value in concat(subject).inputs] == ["c.input0.q", "c.input1.q"]
    assert {scale_of(subject, name) for name in ("c.input0.q", "c.input1.q", "c.q")} == {"c.scale"}
    assert [value.name for value in subject.main.outputs] == ["c.q"]
    assert bool(subject.tensors["c.scale"].isnan()), "calibration finds the range"


def test_unify_scales_makes_one_grid_of_a_concat() -> None:
    text = [
        *padded("a", "%x", 8, "f32[N, 8, 6, 6]", PADDED),
        *padded("b", "%x", 8, "f32[N, 8, 6, 6]", PADDED),
        "%c = concat(%a, %b) {axis = 1} : f32[N, 16, 6, 6]",
        "%c",
    ]
    subject, _, _ = quantized(*text, upto=UnifyScales)
    a, b = (node for node in subject.main.nodes if node.name in ("a.q", "b.q"))
    assert a.inputs[1:] == b.inputs[1:]


def test_the_scale_of_a_bias_follows_the_grid_that_it_shares() -> None:

    text = [
        *padded("a", "%x", 8, "f32[N, 8, 6, 6]", PADDED),
        *padded("b", "%x", 8, "f32[N, 8, 6, 6]", PADDED),
        "%g = sigmoid(%x) : f32[N, 4, 6, 6]",
        "%c = concat(%g, %b, %a) {axis = 1} : f32[N, 20, 6, 6]",
        leaf("d.weight", "f32", 2, 20, 1, 1),
        leaf("d.bias", "f32", 2),
        "%d = conv2d(%c, %d.weight, %d.bias) : f32[N, 2, 6, 6]",
        "%d",
    ]
    subject, _, _ = quantized(*text, upto=UnifyScales)
    product = next(node for node in subject.main.nodes if node.op == "scale_product" and node.name.startswith("d"))
    concat = next(node for node in subject.main.nodes if node.op == "concat")
    grids = {value.producer.inputs[1] for value in concat.inputs if value.producer is not None}
    assert grids == {product.inputs[0]}, "one grid for all parts, and for the bias"


def test_what_it_needs_and_establishes() -> None:
    check_declared(
        UnifyScales(),
        {Stage.QUANTIZED},
        requires={"quantizers", "fixed-ranges"},
        establishes={"ties"},
        invalidates={"activation-ranges"},
    )

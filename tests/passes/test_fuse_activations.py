"""Activations merge, and move next to the operator that makes their input."""

from __future__ import annotations

import pytest
import torch

from qcompiler.ir.types import Stage
from qcompiler.passes.fuse_activations import FuseActivations
from tests.support.declared import check_declared
from tests.support.golden import computes_the_same, leaf, lines, module, refusals, run

FUSED: dict[str, tuple[list[str], list[str]]] = {
    "two in a row": (
        ["%a = relu(%x) : f32[N, 4, 6, 6]", "%b = clamp(%a) {min = -1.0, max = 6.0} : f32[N, 4, 6, 6]", "%b"],
        ["%a = clamp(%x) {min = 0.0, max = 6.0} : f32[N, 4, 6, 6]", "return %a"],
    ),
    "over a pooling": (
        [
            "%p = max_pool2d(%x) {kernel = (2, 2), stride = (2, 2)} : f32[N, 4, 3, 3]",
            "%r = relu(%p) : f32[N, 4, 3, 3]",
            "%r",
        ],
        [
            "%r_1 = relu(%x) : f32[N, 4, 6, 6]",
            "%p = max_pool2d(%r_1) {kernel = (2, 2), stride = (2, 2)} : f32[N, 4, 3, 3]",
            "return %p",
        ],
    ),
    "two in a row with a pooling between them": (
        [
            "%a = clamp(%x) {min = -1.0, max = 1.0} : f32[N, 4, 6, 6]",
            "%p = max_pool2d(%a) {kernel = (2, 2), stride = (2, 2)} : f32[N, 4, 3, 3]",
            "%r = relu(%p) : f32[N, 4, 3, 3]",
            "%r",
        ],
        [
            "%a = clamp(%x) {min = 0.0, max = 1.0} : f32[N, 4, 6, 6]",
            "%p = max_pool2d(%a) {kernel = (2, 2), stride = (2, 2)} : f32[N, 4, 3, 3]",
            "return %p",
        ],
    ),
    "intervals that do not overlap": (
        [
            "%a = clamp(%x) {min = -3.0, max = -1.0} : f32[N, 4, 6, 6]",
            "%b = clamp(%a) {min = 0.5, max = 2.0} : f32[N, 4, 6, 6]",
            "%b",
        ],
        ["%a = clamp(%x) {min = 0.5, max = 0.5} : f32[N, 4, 6, 6]", "return %a"],
    ),
    "not over what reads several values": (
        ["%c = concat(%x, %x) {axis = 1} : f32[N, 8, 6, 6]", "%r = relu(%c) : f32[N, 8, 6, 6]", "%r"],
        ["%c = concat(%x, %x) {axis = 1} : f32[N, 8, 6, 6]", "%r = relu(%c) : f32[N, 8, 6, 6]", "return %r"],
    ),
    "not over a border, which it would change": (
        [
            "%p = pad(%x) {pad = (0, 0, 1, 1, 0, 0, 1, 1), value = -1.0} : f32[N, 4, 8, 8]",
            "%r = relu(%p) : f32[N, 4, 8, 8]",
            "%r",
        ],
        [
            "%p = pad(%x) {pad = (0, 0, 1, 1, 0, 0, 1, 1), value = -1.0} : f32[N, 4, 8, 8]",
            "%r = relu(%p) : f32[N, 4, 8, 8]",
            "return %r",
        ],
    ),
    "not where others read": (
        [
            "%p = permute(%x) {axes = (0, 2, 3, 1)} : f32[N, 6, 6, 4]",
            "%r = relu(%p) : f32[N, 6, 6, 4]",
            "%s = add(%p, %r) : f32[N, 6, 6, 4]",
            "%s",
        ],
        [
            "%p = permute(%x) {axes = (0, 2, 3, 1)} : f32[N, 6, 6, 4]",
            "%r = relu(%p) : f32[N, 6, 6, 4]",
            "%s = add(%p, %r) : f32[N, 6, 6, 4]",
            "return %s",
        ],
    ),
}


@pytest.mark.parametrize("case", FUSED)
def test_fuse_activations(case: str) -> None:
    before, after = FUSED[case]
    subject = module("canonical", *before)
    record = run(FuseActivations(), subject)
    assert lines(subject) == after
    computes_the_same(module("canonical", *before), subject, rtol=0.0)
    assert (refusals(record) == ["p has other users"]) == (case == "not where others read")


def test_a_rewrite_says_what_it_replaces_and_where_it_moves() -> None:
    before, _ = FUSED["two in a row with a pooling between them"]
    record = run(FuseActivations(), module("canonical", *before))
    assert [(event.kind, event.detail) for event in record.events] == [
        ("rewrite", "moved before p"),
        ("rewrite", "replaces a and r_1"),
    ]


@pytest.mark.parametrize(("activation", "moves"), [("relu", True), ("clamp", False)])
def test_a_dropout_scales_up_what_a_cap_would_limit(activation: str, moves: bool) -> None:
    limits = "" if activation == "relu" else "{min = 0.0, max = 6.0} "
    text = ["%d = dropout(%x) {p = 0.5} : f32[N, 4, 6, 6]", f"%r = {activation}(%d) {limits}: f32[N, 4, 6, 6]", "%r"]
    subject = module("canonical", *text)
    run(FuseActivations(), subject)
    assert [node.op for node in subject.main.nodes] == ([activation, "dropout"] if moves else ["dropout", activation])


LIMITS = [leaf(name, "f32", 4) for name in ("low", "high")]
CHANNELS = "%b = clamp_channels({source}, %low, %high) {{axis = {axis}}} : f32[N, 4, 6, 6]"


def test_limits_per_channel_merge_and_stay_where_they_are() -> None:
    text = [
        *LIMITS,
        "%a = relu(%x) : f32[N, 4, 6, 6]",
        CHANNELS.format(source="%a", axis=1),
        "%b",
    ]
    tensors = {"low": torch.tensor([-1.0, 0.0, 1.0, -2.0]), "high": torch.tensor([2.0, 1.0, 3.0, 0.5])}
    subject = module("canonical", *text, tensors=tensors)
    run(FuseActivations(), subject)
    assert [node.op for node in subject.main.nodes if node.inputs] == ["clamp_channels"]
    computes_the_same(module("canonical", *text, tensors=tensors), subject, rtol=0.0)
    pooled = [
        *LIMITS,
        "%p = permute(%x) {axes = (0, 1, 3, 2)} : f32[N, 4, 6, 6]",
        CHANNELS.format(source="%p", axis=1),
        "%b",
    ]
    subject = module("canonical", *pooled, tensors=tensors)
    run(FuseActivations(), subject)
    assert [node.op for node in subject.main.nodes if node.inputs] == ["permute", "clamp_channels"]


def test_limits_along_two_axes_do_not_merge() -> None:
    text = [
        *LIMITS,
        *[leaf(name, "f32", 6) for name in ("l", "h")],
        "%a = clamp_channels(%x, %l, %h) {axis = 2} : f32[N, 4, 6, 6]",
        CHANNELS.format(source="%a", axis=1),
        "%b",
    ]
    subject = module("canonical", *text)
    record = run(FuseActivations(), subject)
    assert refusals(record) == ["a clamps along another axis"]
    assert [event.node for event in record.events] == ["b"]
    assert len(lines(subject)) == 3


def test_what_it_needs_and_establishes() -> None:
    check_declared(FuseActivations(), {Stage.CANONICAL}, requires={"canonical"})

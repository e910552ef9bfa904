"""Weak parts of graphs whose grids are set by hand."""

from __future__ import annotations

import pytest
import torch

from qcompiler.ir.graph import Module
from qcompiler.passes import PassContext
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.partition import Partition
from qcompiler.passes.unify_scales import UnifyScales
from qcompiler.targets import load_target
from qcompiler.validation.joined_parts import leads_out, weak_parts
from tests.support.golden import leaf, module, run

PARTS = [
    leaf("k", "f32", 1, 1, 1, 1),
    "%small = sigmoid(%x) : f32[N, 4, 6, 6]",
    "%large = mul(%x, %k) : f32[N, 4, 6, 6]",
    "%c = concat(%small, %large) {axis = 1} : f32[N, 8, 6, 6]",
]
SHAPE = "f32[N, 4, 6, 6]"


def both(*text: str, scale: float, factor: float = 1000.0, name: str = "large") -> tuple[Module, Module]:
    """A graph, and the same with quantizers on one grid of this scale."""
    tensors = {"k": torch.full((1, 1, 1, 1), factor)}
    reference, subject = (module("canonical", *text, tensors=tensors) for _ in range(2))
    context = PassContext(load_target("int8_dsp"))
    for item in (Partition(), InsertQuantizers(), UnifyScales()):
        run(item, subject, context)
    for tensor in [key for key in subject.tensors if key.endswith(".scale")]:
        subject.tensors[tensor] = torch.tensor(scale)
    return reference, subject


def images() -> list[torch.Tensor]:
    return [torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))]


def test_the_loss_is_that_of_the_part_on_the_grid_of_the_whole() -> None:
    reference, subject = both(*PARTS, "%c", scale=20.0)
    (part,) = weak_parts(reference.main, subject.main, images())
    assert (part.join.name, part.name) == ("c", "small")
    assert part.sqnr == pytest.approx(0.0), "all codes are 0"
    assert part.own > 40
    assert part.reach[1] > 1000
    assert part.power == pytest.approx(float(images()[0].sigmoid().square().mean()))
    assert torch.zeros(2, 8, 6, 6)[part.elements].shape == images()[0].shape


def test_a_grid_that_holds_all_parts_has_no_weak_one() -> None:
    reference, subject = both(*PARTS, "%c", scale=0.05, factor=3.0)
    assert not weak_parts(reference.main, subject.main, images())


def test_a_part_that_is_hardly_felt_after_the_concat_is_left_out() -> None:
    """The mean of all channels depends on the large ones."""
    text = [*PARTS, "%m = mean(%c) {axes = (1,), keepdim = true} : f32[N, 1, 6, 6]", "%m"]
    reference, subject = both(*text, scale=20.0)
    assert not weak_parts(reference.main, subject.main, images())
    only = [
        *PARTS,
        "%s = slice(%c) {axis = 1, start = 0, stop = 4} : f32[N, 4, 6, 6]",
        f"%r = relu(%s) : {SHAPE}",
        "%r",
    ]
    reference, subject = both(*only, scale=20.0)
    assert [part.name for part in weak_parts(reference.main, subject.main, images())] == ["small"]
    assert not leads_out(next(node for node in reference.main.nodes if node.name == "c"))


def test_a_constant_added_to_a_border_is_a_part() -> None:
    text = [
        leaf("token", "f32", 1, 4, 7, 6),
        "%p = pad(%x) {pad = (0, 0, 1, 0, 0, 0, 0, 0)} : f32[N, 4, 7, 6]",
        "%s = add(%p, %token) : f32[N, 4, 7, 6]",
        "%s",
    ]
    reference, subject = both(*text, scale=8.0)
    (part,) = weak_parts(reference.main, subject.main, images())
    assert (part.join.name, part.name) == ("s", "token")
    assert torch.zeros(2, 4, 7, 6)[part.elements].numel() == 2 * 4 * 6

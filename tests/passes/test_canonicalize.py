"""One spelling for each computation: what each rule makes of a small graph, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from qcompiler.ir.types import Stage
from qcompiler.passes import PassContext
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.golden import computes_the_same, conv, leaf, lines, module, run, shown

CANONICAL: dict[str, tuple[list[str], list[str]]] = {
    "identity and dropout": (
        ["%a = identity(%x) : f32[N, 4, 6, 6]", "%b = dropout(%a) {p = 0.5} : f32[N, 4, 6, 6]", "%b"],
        ["return %x"],
    ),
    "reshape of a reshape": (
        [
            '%a = reshape(%x) {shape = (dim"N", 24, 6)} : f32[N, 24, 6]',
            '%b = reshape(%a) {shape = (dim"N", 144)} : f32[N, 144]',
            "%b",
        ],
        ['%b = reshape(%x) {shape = (dim"N", 144)} : f32[N, 144]', "return %b"],
    ),
    "permutations that cancel": (
        [
            "%a = permute(%x) {axes = (0, 2, 3, 1)} : f32[N, 6, 6, 4]",
            "%b = permute(%a) {axes = (0, 3, 1, 2)} : f32[N, 4, 6, 6]",
            "%b",
        ],
        ["return %x"],
    ),
    "gathers that follow each other": (
        [
            "%a = gather(%x) {axis = 1, indices = (3, 2, 0)} : f32[N, 3, 6, 6]",
            "%b = gather(%a) {axis = 1, indices = (2, 2)} : f32[N, 2, 6, 6]",
            "%b",
        ],
        ["%b = gather(%x) {axis = 1, indices = (0, 0)} : f32[N, 2, 6, 6]", "return %b"],
    ),
    "gathers that cancel": (
        [
            "%a = gather(%x) {axis = 1, indices = (3, 2, 1, 0)} : f32[N, 4, 6, 6]",
            "%b = gather(%a) {axis = 1, indices = (3, 2, 1, 0)} : f32[N, 4, 6, 6]",
            "%b",
        ],
        ["return %x"],
    ),
    "a product with a matrix": (
        [leaf("w", "f32", 6, 8), "%a = matmul(%x, %w) : f32[N, 4, 6, 8]", "%a"],
        ["%a_1 = linear(%x, %w_1) : f32[N, 4, 6, 8]", "return %a_1"],
    ),
    "a product with a matrix that is turned": (
        [
            leaf("w", "f32", 8, 6),
            "%t = permute(%w) {axes = (1, 0)} : f32[6, 8]",
            "%a = matmul(%x, %t) : f32[N, 4, 6, 8]",
            "%a",
        ],
        ["%a_1 = linear(%x, %w) : f32[N, 4, 6, 8]", "return %a_1"],
    ),
    "a matrix times a value": (
        [leaf("w", "f32", 8, 6), "%a = matmul(%w, %x) : f32[N, 4, 8, 6]", "%a"],
        [
            "%a_1 = permute(%x) {axes = (0, 1, 3, 2)} : f32[N, 4, 6, 6]",
            "%a_2 = linear(%a_1, %w) : f32[N, 4, 6, 8]",
            "%a_3 = permute(%a_2) {axes = (0, 1, 3, 2)} : f32[N, 4, 8, 6]",
            "return %a_3",
        ],
    ),
    "adaptive pooling to one": (
        ["%a = adaptive_avg_pool2d(%x) {output_size = (1, 1)} : f32[N, 4, 1, 1]", "%a"],
        ["%a_1 = mean(%x) {axes = (2, 3), keepdim = true} : f32[N, 4, 1, 1]", "return %a_1"],
    ),
    "adaptive pooling that divides": (
        ["%a = adaptive_avg_pool2d(%x) {output_size = (3, 2)} : f32[N, 4, 3, 2]", "%a"],
        ["%a_1 = avg_pool2d(%x) {kernel = (2, 3), stride = (2, 3)} : f32[N, 4, 3, 2]", "return %a_1"],
    ),
    "zero padding in front of a convolution": (
        [
            "%a = pad(%x) {pad = (0, 0, 1, 2, 0, 0, 0, 1)} : f32[N, 4, 7, 9]",
            *conv("c", "%a", 8, "f32[N, 8, 5, 7]", "{stride = (1, 1), padding = (0, 0, 0, 0), dilation = (1, 1)} "),
            "%c",
        ],
        [
            "%c = conv2d(%x, %c.weight) {padding = (1, 2, 0, 1)} : f32[N, 8, 5, 7]",
            "return %c",
        ],
    ),
    "clamps that are something else": (
        [
            "%a = clamp(%x) {min = 0.0} : f32[N, 4, 6, 6]",
            "%b = clamp(%a) : f32[N, 4, 6, 6]",
            "%c = clamp(%b) {min = 0.0, max = 6.0} : f32[N, 4, 6, 6]",
            "%c",
        ],
        [
            "%a_1 = relu(%x) : f32[N, 4, 6, 6]",
            "%c = clamp(%a_1) {min = 0.0, max = 6.0} : f32[N, 4, 6, 6]",
            "return %c",
        ],
    ),
    "resizing to the same size": (
        ['%a = resize(%x) {size = (6, 6), mode = "nearest"} : f32[N, 4, 6, 6]', "%a"],
        ["return %x"],
    ),
    "adaptive pooling to the same size": (
        ["%a = adaptive_avg_pool2d(%x) {output_size = (6, 6)} : f32[N, 4, 6, 6]", "%a"],
        ["return %x"],
    ),
    "pooling over the whole image": (
        ["%a = avg_pool2d(%x) {kernel = (6, 6), stride = (6, 6), padding = (0, 0)} : f32[N, 4, 1, 1]", "%a"],
        ["%a_1 = mean(%x) {axes = (2, 3), keepdim = true} : f32[N, 4, 1, 1]", "return %a_1"],
    ),
    "a sum divided by another number than its terms": (
        [
            "%a = avg_pool2d(%x) {kernel = (2, 2), stride = (2, 2), divisor_override = 8} : f32[N, 4, 3, 3]",
            "%a",
        ],
        [
            "%a_1 = avg_pool2d(%x) {kernel = (2, 2), stride = (2, 2)} : f32[N, 4, 3, 3]",
            "%a_2 = mul(%a_1, %a.factor) : f32[N, 4, 3, 3]",
            "return %a_2",
        ],
    ),
    "limits alike in all channels": (
        [
            leaf("low", "f32", 4),
            leaf("high", "f32", 4),
            "%a = clamp_channels(%x, %low, %high) {axis = 1} : f32[N, 4, 6, 6]",
            "%a",
        ],
        ["%a = clamp(%x) {min = -0.5, max = 2.0} : f32[N, 4, 6, 6]", "return %a"],
    ),
    "a maximum and a minimum with one constant": (
        [
            leaf("lowest", "f32", 1, kind="constant"),
            leaf("highest", "f32", kind="constant"),
            "%a = maximum(%x, %lowest) : f32[N, 4, 6, 6]",
            "%b = minimum(%highest, %a) : f32[N, 4, 6, 6]",
            "%b",
        ],
        [
            "%a = clamp(%x) {min = -0.5} : f32[N, 4, 6, 6]",
            "%b = clamp(%a) {max = 2.0} : f32[N, 4, 6, 6]",
            "return %b",
        ],
    ),
    "scales that are all 1": (
        [
            leaf("ones", "f32", 4),
            '%a = scaled_unary(%x, %ones) {function = "celu", parameters = (0.5,), axis = 1} : f32[N, 4, 6, 6]',
            "%a",
        ],
        ["%a = celu(%x) {alpha = 0.5} : f32[N, 4, 6, 6]", "return %a"],
    ),
    "a constant divided by a value": (
        [
            leaf("k", "f32", 4, 1, 1, kind="constant"),
            "%e = exp(%x) : f32[N, 4, 6, 6]",
            "%a = div(%k, %e) : f32[N, 4, 6, 6]",
            "%a",
        ],
        [
            "%e = exp(%x) : f32[N, 4, 6, 6]",
            "%a_1 = reciprocal(%e) : f32[N, 4, 6, 6]",
            "%a_2 = mul(%a_1, %k) : f32[N, 4, 6, 6]",
            "return %a_2",
        ],
    ),
    "a value divided by a value": (
        ["%e = exp(%x) : f32[N, 4, 6, 6]", "%a = div(%x, %e) : f32[N, 4, 6, 6]", "%a"],
        [
            "%e = exp(%x) : f32[N, 4, 6, 6]",
            "%a_1 = reciprocal(%e) : f32[N, 4, 6, 6]",
            "%a_2 = mul(%a_1, %x) : f32[N, 4, 6, 6]",
            "return %a_2",
        ],
    ),
    "constants come second": (
        [
            leaf("k", "f32", 4, 1, 1, kind="constant"),
            "%a = add(%k, %x) : f32[N, 4, 6, 6]",
            "%b = mul(%k, %a) : f32[N, 4, 6, 6]",
            "%b",
        ],
        ["%a = add(%x, %k) : f32[N, 4, 6, 6]", "%b = mul(%a, %k) : f32[N, 4, 6, 6]", "return %b"],
    ),
    "division by a constant": (
        [leaf("k", "f32", 4, 1, 1, kind="constant"), "%a = div(%x, %k) : f32[N, 4, 6, 6]", "%a"],
        ["%a_1 = mul(%x, %k) : f32[N, 4, 6, 6]", "return %a_1"],
    ),
}


TENSORS = {"low": torch.full((4,), -0.5), "high": torch.full((4,), 2.0), "ones": torch.ones(4)}
TENSORS |= {"lowest": torch.full((1,), -0.5), "highest": torch.tensor(2.0)}


@pytest.mark.parametrize("case", CANONICAL)
def test_canonicalize(case: str) -> None:
    before, after = CANONICAL[case]
    subject = module("float", *before, tensors=TENSORS)
    record = run(Canonicalize(), subject)
    assert lines(subject) == after
    assert subject.main.stage is Stage.CANONICAL
    assert record.events and {event.kind for event in record.events} == {"rewrite"}
    computes_the_same(module("float", *before, tensors=TENSORS), subject, rtol=1e-6)
    again = run(Canonicalize(), subject)
    assert not again.events, "a canonical graph does not change"


LEFT_ALONE: dict[str, list[str]] = {
    "a maximum with a tensor that training changes": [
        leaf("lowest", "f32", 1),
        "%a = maximum(%x, %lowest) : f32[N, 4, 6, 6]",
        "%a",
    ],
    "a maximum with one constant per channel, without a target that has such limits": [
        leaf("k", "f32", 4, 1, 1, kind="constant"),
        "%a = maximum(%x, %k) : f32[N, 4, 6, 6]",
        "%a",
    ],
    "a sum divided by the number of its terms": [
        "%a = avg_pool2d(%x) {kernel = (2, 2), stride = (2, 2), divisor_override = 4} : f32[N, 4, 3, 3]",
        "%a",
    ],
    "windows of different sizes": ["%a = adaptive_avg_pool2d(%x) {output_size = (4, 4)} : f32[N, 4, 4, 4]", "%a"],
    "dropout that drops": ["%a = dropout(%x) {p = 0.5, training = true} : f32[N, 4, 6, 6]", "%a"],
    "resizing to another size": ['%a = resize(%x) {size = (3, 3), mode = "nearest"} : f32[N, 4, 3, 3]', "%a"],
    "a border that is not zero": [
        "%p = pad(%x) {pad = (0, 0, 1, 1, 0, 0, 1, 1), value = 1.0} : f32[N, 4, 8, 8]",
        *conv("c", "%p", 8, "f32[N, 8, 6, 6]"),
        "%c",
    ],
    "a border of channels": [
        "%p = pad(%x) {pad = (0, 1, 0, 0, 0, 1, 0, 0)} : f32[N, 6, 6, 6]",
        *conv("c", "%p", 8, "f32[N, 8, 4, 4]", inputs=6),
        "%c",
    ],
    "a border that is cut off": [
        "%p = pad(%x) {pad = (0, 0, -1, 0, 0, 0, 0, 0)} : f32[N, 4, 5, 6]",
        *conv("c", "%p", 8, "f32[N, 8, 3, 4]"),
        "%c",
    ],
    "a product of two values": ["%a = matmul(%x, %x) : f32[N, 4, 6, 6]", "%a"],
    "a clamp with one end that is not zero": ["%a = clamp(%x) {min = 0.5} : f32[N, 4, 6, 6]", "%a"],
    "limits that differ": [
        leaf("limits", "f32", 4),
        leaf("high", "f32", 4),
        "%a = clamp_channels(%x, %limits, %high) {axis = 1} : f32[N, 4, 6, 6]",
        "%a",
    ],
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_what_is_something_else_stays_as_it_is(case: str) -> None:
    subject = module("float", *LEFT_ALONE[case], tensors=TENSORS)
    before = lines(subject)
    record = run(Canonicalize(), subject)
    assert lines(subject) == before
    assert not record.events


def test_limits_per_channel_for_a_target_that_has_them() -> None:
    text = [
        leaf("k", "f32", 4, 1, 1, kind="constant"),
        "%a = minimum(%x, %k) : f32[N, 4, 6, 6]",
        "%a",
    ]
    subject = module("float", *text, tensors=TENSORS)
    run(Canonicalize(), subject, PassContext(load_target("int8_dsp")))
    assert lines(subject)[-2:] == [
        "%a = clamp_channels(%x, %a.low, %a.high) {axis = 1} : f32[N, 4, 6, 6]",
        "return %a",
    ]
    computes_the_same(module("float", *text, tensors=TENSORS), subject, rtol=0.0)


def test_a_producer_that_others_read_stays() -> None:
    text = [
        '%a = reshape(%x) {shape = (dim"N", 24, 6)} : f32[N, 24, 6]',
        '%b = reshape(%a) {shape = (dim"N", 144)} : f32[N, 144]',
        "%a, %b",
    ]
    subject = module("float", *text)
    run(Canonicalize(), subject)
    assert lines(subject) == [text[0], text[1].replace("%a)", "%x)"), "return %a, %b"]


def test_dropouts_stay_for_training() -> None:
    text = ["%a = dropout(%x) {p = 0.5} : f32[N, 4, 6, 6]", "%b = identity(%a) : f32[N, 4, 6, 6]", "%b"]
    subject = module("float", *text)
    run(Canonicalize(keep_dropout=True), subject)
    assert shown(subject) == ["%a = dropout(%x)", "return %a"]


def test_what_it_needs_and_establishes() -> None:
    check_declared(Canonicalize(), {Stage.FLOAT, Stage.CANONICAL}, establishes={"canonical"})

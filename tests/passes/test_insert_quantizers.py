"""Quantizers are placed as the descriptor of the target and the overrides of the user require."""

from __future__ import annotations

from typing import Any

import pytest

from qcompiler.errors import InputError, PassError, TargetError, UnsupportedError
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Module
from qcompiler.ir.text import parse_module
from qcompiler.ir.types import Stage
from qcompiler.passes import PassContext
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.golden import PADDED, computes_the_same, conv, leaf, lines, module, quantized, refusals, run, shown

SHAPE = "f32[N, 8, 6, 6]"
LAYER = [
    *conv("c", "%x", 8, SHAPE, PADDED)[:1],
    leaf("c.bias", "f32", 8),
    f"%c = conv2d(%x, %c.weight, %c.bias) {PADDED}: {SHAPE}",
    "%p = max_pool2d(%c) {kernel = (2, 2), stride = (2, 2)} : f32[N, 8, 3, 3]",
    "%p",
]


def placed(*text: str, target: str = "int8_dsp", **overrides: Any) -> tuple[Module, Record]:
    subject = module("canonical", *text)
    return subject, run(InsertQuantizers(), subject, PassContext(load_target(target), overrides=overrides))


def specs(subject: Module) -> dict[str, str]:
    return {node.name: str(node.spec) for node in subject.main.nodes if node.op == "fake_quantize"}


def test_insert_quantizers_follows_the_descriptor() -> None:
    text = [
        *conv("c", "%x", 8, "f32[N, 8, 6, 6]", PADDED),
        "%r = relu(%c) : f32[N, 8, 6, 6]",
        "%p = max_pool2d(%r) {kernel = (2, 2), stride = (2, 2)} : f32[N, 8, 3, 3]",
        "%s = add(%p, %p) : f32[N, 8, 3, 3]",
        "%s",
    ]
    subject, _, _ = quantized(*text, upto=InsertQuantizers)
    assert shown(subject) == [
        "%x.q = fake_quantize(%x, %x.scale, %x.zero_point)",
        "%c.weight.q = fake_quantize(%c.weight, %c.weight.scale, %c.weight.zero_point)",
        "%c = conv2d(%x.q, %c.weight.q)",
        "%r = relu(%c)",  # no quantizer in between: a supergroup
        "%r.q = fake_quantize(%r, %r.scale, %r.zero_point)",
        "%p = max_pool2d(%r.q)",  # moves codes: on the grid of its input
        "%s = add(%p, %p)",
        "%s.q = fake_quantize(%s, %s.scale, %s.zero_point)",
        "return %s.q",
    ]
    specs = [str(node.attributes["spec"]) for node in subject.main.nodes if node.op == "fake_quantize"]
    assert specs == ["s8", "s8 symmetric narrow", "s8", "s8"]


def test_insert_quantizers_refuses_what_the_target_lacks() -> None:
    text = [
        '%c = compare(%x, %x) {compute = "less"} : bool[N, 4, 6, 6]',
        "%c",
    ]
    with pytest.raises(UnsupportedError, match=r"the target int8_dsp has no integer compare.*add a rule"):
        quantized(*text, upto=InsertQuantizers)


def test_a_bias_is_on_the_scales_of_input_and_weight() -> None:
    subject, record = placed(*LAYER)
    assert shown(subject) == [
        "%x.q = fake_quantize(%x, %x.scale, %x.zero_point)",
        "%c.weight.q = fake_quantize(%c.weight, %c.weight.scale, %c.weight.zero_point)",
        "%c.bias.scale = scale_product(%x.scale, %c.weight.scale)",
        "%c.bias.q = fake_quantize_bias(%c.bias, %c.bias.scale)",
        "%c = conv2d(%x.q, %c.weight.q, %c.bias.q)",
        "%c.q = fake_quantize(%c, %c.scale, %c.zero_point)",
        "%p = max_pool2d(%c.q)",
        "return %p",
    ]
    assert subject.main.stage is Stage.QUANTIZED
    assert [(event.kind, event.node, event.detail) for event in record.events] == [
        ("rewrite", "x.q", "a quantizer s8"),
        ("rewrite", "c.weight.q", "a quantizer s8 symmetric narrow"),
        ("rewrite", "c.q", "a quantizer s8"),
    ]


@pytest.mark.parametrize("target", ["int8_dsp", "int8_dsp_per_channel", "w4a8_npu_blocks", "lsq_paper"])
def test_no_number_changes_before_ranges_are_found(target: str) -> None:
    subject, _ = placed(*LAYER, target=target)
    computes_the_same(module("canonical", *LAYER), subject, rtol=0.0)
    scales = [tensor for name, tensor in subject.tensors.items() if name.endswith(".scale")]
    assert scales and all(bool(scale.isnan().all()) for scale in scales)


def test_weights_have_a_scale_per_output_channel_where_the_target_has() -> None:
    subject, _ = placed(*LAYER, target="int8_dsp_per_channel")
    assert specs(subject)["c.weight.q"] == "s8 symmetric narrow axis=0"
    assert subject.tensors["c.weight.scale"].shape == subject.tensors["c.weight.zero_point"].shape == (8,)
    assert subject.tensors["c.scale"].shape == ()


def test_a_transposed_convolution_in_groups_has_one_scale_and_says_why() -> None:
    text = [
        leaf("w", "f32", 4, 3, 3, 3),
        "%c = conv_transpose2d(%x, %w) {stride = (2, 2), padding = (1, 1), output_padding = (1, 1), groups = 2} : f32[N, 6, 12, 12]",
        "%c",
    ]
    subject, record = placed(*text, target="int8_dsp_per_channel")
    assert specs(subject)["c.weight.q"] == "s8 symmetric narrow"
    why = "one weight scale for all channels, because it is a transposed convolution with groups"
    assert [(event.node, event.detail) for event in record.events if event.kind == "refusal"] == [("c", why)]


def test_widths_follow_the_overrides() -> None:
    subject, record = placed(*LAYER, c={"activation_bits": 16, "weight_bits": 4})
    assert specs(subject) == {"x.q": "s8", "c.weight.q": "s4 symmetric narrow", "c.q": "s16"}
    assert not refusals(record)
    subject, record = placed(*LAYER, p=16)
    assert specs(subject)["c.q"] == "s8"
    assert refusals(record) == ["16 bits were requested, but max_pool2d keeps the grid of its input"]


def test_a_width_of_a_concat_is_that_of_its_operands() -> None:
    text = [
        *LAYER[:3],
        *conv("d", "%x", 8, SHAPE, PADDED),
        f"%g = sigmoid(%x) : {SHAPE.replace('8', '4')}",
        "%j = concat(%c, %d, %g) {axis = 1} : f32[N, 20, 6, 6]",
        f"%r = relu(%d) : {SHAPE}",
        "%j, %r",
    ]
    subject, record = placed(*text, j=16)
    wide = {name: spec for name, spec in specs(subject).items() if not name.endswith("weight.q")}
    # Only the concat reads c; relu reads d, too; the target fixes the grid of g.
    assert wide == {
        "x.q": "s8",
        "c.q": "s16",
        "d.q": "s8",
        "g.q": "s8",
        "j.input1.q": "s16",
        "j.input2.q": "s16",
        "r.q": "s8",
    }
    assert "%j = concat(%c.q, %j.input1.q, %j.input2.q)" in shown(subject)
    assert [event.code for event in record.events if event.node.startswith("j.")] == [
        "quantizer-inserted",
        "operand-copied",
    ] * 2
    subject, _ = placed(*text, j=16, c=8)
    assert specs(subject)["c.q"] == "s8"
    assert specs(subject)["j.input0.q"] == "s16"
    subject, record = placed(*text, j=16, target="tflite_int8")
    assert refusals(record) == ["16 bits were requested, but tflite_int8 has no activations of that width"]


def test_a_width_asked_for_within_a_supergroup_is_that_of_its_result() -> None:
    text = [*LAYER[:3], f"%r = relu(%c) : {SHAPE}", "%r"]
    subject, _ = placed(*text, c={"activation_bits": 16})
    assert set(specs(subject)) == {"x.q", "c.weight.q", "r.q"}
    assert specs(subject)["r.q"] == "s16"


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no node": ({"cc": 8}, InputError, "the override 'cc' matches no node"),
    "no width": ({"c": "wide"}, InputError, r"an override has the value 'wide' \(at overrides\['c'\]\)"),
    "no key": ({"c": {"bits": 8}}, InputError, "an override has the key 'bits'.*weight_bits or gradient_bits"),
    "no such codes": ({"c": 12}, TargetError, "12"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_overrides_that_cannot_be_followed_are_refused(case: str) -> None:
    overrides, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        placed(*LAYER, **overrides)


def test_widths_that_the_core_does_not_multiply_are_refused_with_the_place() -> None:
    text = ["%a = add(%x, %x) : f32[N, 4, 6, 6]", *conv("c", "%a", 8, SHAPE, PADDED), "%c"]
    message = r"conv2d of 16-bit activations and 4-bit weights, but cmsis_nn supports .*\(at %c.*Override the widths"
    with pytest.raises(UnsupportedError, match=message):
        placed(*text, target="cmsis_nn", a={"activation_bits": 16}, c={"weight_bits": 4})
    placed(*text, target="cmsis_nn", a={"activation_bits": 16})
    placed(*text, target="cmsis_nn", c={"weight_bits": 4})


def test_a_constant_that_is_read_like_an_activation_has_a_quantizer_for_each_reader() -> None:
    text = [
        leaf("k", "f32", 6, kind="constant"),
        "%a = add(%x, %k) : f32[N, 4, 6, 6]",
        "%b = mul(%a, %k) : f32[N, 4, 6, 6]",
        "%b",
    ]
    subject, _ = placed(*text)
    a, b = (node for node in subject.main.nodes if node.op in ("add", "mul"))
    quantizers = [node.inputs[1].producer for node in (a, b)]
    assert quantizers[0] is not quantizers[1]
    assert all(node is not None and node.inputs[0].name == "k" for node in quantizers)


def test_a_border_outside_of_the_range_has_a_quantizer() -> None:
    pad = "%p = pad(%x) {{pad = (0, 0, 1, 1, 0, 0, 1, 1), value = {value}}} : f32[N, 4, 8, 8]"
    subject, _ = placed(pad.format(value=0.0), "%p")
    assert list(specs(subject)) == ["x.q"], "zero is on every grid"
    subject, record = placed(pad.format(value=9.0), "%p")
    assert specs(subject) == {"x.q": "s8", "p.q": "s8"}
    assert "the border of p may be outside of the range of its operand" in {event.detail for event in record.events}


def test_what_a_float_island_reads_and_gives() -> None:
    text = [
        "graph @main stage=canonical {",
        "input %x : f32[2, 4]",
        "%r = relu(%x) : f32[2, 4]",
        '%y = call(%r) {graph = "island", results = ("f32[2, 4]",)} : f32[2, 4]',
        "%z = add(%y, %r) : f32[2, 4]",
        "return %z, %y",
        "}",
        "graph @island stage=float {",
        "input %x : f32[2, 4]",
        "%y = erf(%x) : f32[2, 4]",
        "return %y",
        "}",
    ]
    subject = parse_module("\n".join(text), {})
    run(InsertQuantizers(), subject, PassContext(load_target("int8_dsp")))
    assert [line.partition(" {")[0].partition(" :")[0] for line in lines(subject)] == [
        "%x.q = fake_quantize(%x, %x.scale, %x.zero_point)",
        "%r = relu(%x.q)",
        "%r.q = fake_quantize(%r, %r.scale, %r.zero_point)",
        "%y = call(%r.q)",
        "%y.q = fake_quantize(%y, %y.scale, %y.zero_point)",
        "%z = add(%y.q, %r.q)",
        "%z.q = fake_quantize(%z, %z.scale, %z.zero_point)",
        "return %z.q, %y",
    ]


def test_a_target_for_simulation_quantizes_what_layers_read() -> None:
    text = [
        *conv("a", "%x", 8, SHAPE, PADDED),
        f"%r = relu(%a) : {SHAPE}",
        *conv("b", "%r", 8, SHAPE, PADDED, inputs=8),
        *conv("c", "%b", 8, SHAPE, PADDED, inputs=8),
        "%c",
    ]
    target = load_target("lsq_paper")
    subject, _ = placed(*text, target="lsq_paper")
    found = specs(subject)
    assert list(found) == ["a.weight.q", "b.input.q", "b.weight.q", "c.input.q", "c.weight.q"]
    assert found["b.input.q"][0] == "u" and found["c.input.q"][0] == "s", "unsigned after the ReLU alone"
    assert target.simulation is not None
    ends = {node.spec.bits for node in subject.main.nodes if node.name in ("a.weight.q", "c.input.q", "c.weight.q")}
    assert ends == {target.simulation.first_last_bits}


def test_what_it_needs_and_establishes() -> None:
    check_declared(InsertQuantizers(), {Stage.CANONICAL}, requires={"partitioned"}, establishes={"quantizers"})
    with pytest.raises(PassError, match="insert-quantizers needs a target"):
        run(InsertQuantizers(), module("canonical", *LAYER))


@pytest.mark.parametrize(("target", "bits"), [("int8_dsp", 16), ("tflite_int8", 8)])
def test_the_reciprocal_of_a_division_is_wide_where_the_target_has_the_width(target: str, bits: int) -> None:
    text = ["%r = reciprocal(%x) : f32[N, 4, 6, 6]", "%y = mul(%r, %x) : f32[N, 4, 6, 6]", "%y"]
    subject = module("canonical", *text)
    run(InsertQuantizers(), subject, PassContext(target=load_target(target)))
    widths = {node.name: node.spec.bits for node in subject.main.nodes if node.op == "fake_quantize"}
    assert widths == {"x.q": 8, "r.q": bits, "y.q": 8}

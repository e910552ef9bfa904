"""Quantizers and the operators before them become integer operators, with the same codes or a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qcompiler.errors import CalibrationError, PassError, UnsupportedError
from qcompiler.ir.graph import Module
from qcompiler.ir.text import parse_module
from qcompiler.ir.types import DType, Stage
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.passes.fuse_requantization import FuseRequantization
from qcompiler.passes.lower_to_integer import LowerToInteger
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.golden import PADDED, conv, leaf, module, quantized, run, shown

LAYER = [
    *conv("c", "%x", 8, "f32[N, 8, 6, 6]", PADDED)[:1],
    leaf("c.bias", "f32", 8),
    f"%c = conv2d(%x, %c.weight, %c.bias) {PADDED}: f32[N, 8, 6, 6]",
]
NETWORK = [
    *LAYER,
    "%r = relu(%c) : f32[N, 8, 6, 6]",
    "%p = max_pool2d(%r) {kernel = (2, 2), stride = (2, 2)} : f32[N, 8, 3, 3]",
    "%g = sigmoid(%p) : f32[N, 8, 3, 3]",
    "%s = add(%g, %p) : f32[N, 8, 3, 3]",
    "%m = mean(%s) {axes = (2, 3), keepdim = false} : f32[N, 8]",
    "%m",
]
FACTS = {"ties", "requantization-fused"}


def test_a_network_in_integers() -> None:
    subject, context, _ = quantized(*NETWORK, upto=FuseRequantization)
    scales = {name: subject.tensors[f"{name}.scale"] for name in ("x", "r", "g", "s", "m")}
    record = run(LowerToInteger(), subject, context)
    assert shown(subject) == [
        "%x.q = quantize(%x)",
        "%r.q = int_conv2d(%x.q, %c.weight.q, %r.q.bias, %r.q.multiplier, %r.q.exponent)",
        "%p = max_pool2d(%r.q)",  # moves codes
        "%g.q = lookup(%p, %g.q.table)",
        "%s.q = int_add(%g.q, %p)",
        "%m.q = int_mean(%s.q, %m.q.multiplier, %m.q.exponent)",
        "%m.q.real = dequantize(%m.q)",
        "return %m.q.real",
    ]
    assert subject.main.stage is Stage.INTEGER
    for name, scale in scales.items():
        type = subject.main.value(f"{name}.q").type
        assert type.dtype is DType.I8 and type.quant is not None
        assert torch.equal(type.quant.scale_tensor(), scale), "grids are in types"
    assert {event.kind for event in record.events} == {"rewrite"}
    assert "conv2d and its quantizer in integers" in {event.detail for event in record.events}


@pytest.mark.parametrize("target", ["int8_dsp", "int8_dsp_per_channel", "ort_cpu", "pow2_mcu", "int16x8"])
def test_codes_are_those_of_the_exact_evaluation(target: str) -> None:
    subject, context, _ = quantized(*NETWORK[:-3], "%g", upto=FuseRequantization, target=target)
    context.samples = [[torch.randn(3, 4, 6, 6)], [10 * torch.randn(1, 4, 6, 6)]]
    (record,) = PassManager([LowerToInteger()], FACTS).run(subject, context)
    assert record.metrics == {"max_difference": 0.0}
    assert subject.main.stage is Stage.INTEGER


GRIDS = {
    "s": torch.tensor(0.5),
    "sz": torch.tensor(3, dtype=torch.int32),
    "t": torch.tensor(0.25),
    "tz": torch.tensor(-5, dtype=torch.int32),
}
LEAVES = [part for name in "st" for part in (leaf(name, "f32"), leaf(f"{name}z", "i32", kind="state"))]
SHAPE = "f32[N, 4, 6, 6]"


def quantizer(name: str, source: str, scale: str = "s", limits: str = "", shape: str = SHAPE) -> str:
    return f'%{name} = fake_quantize({source}, %{scale}, %{scale}z) {{spec = spec"s8"{limits}}} : {shape}'


def lowered(*text: str, tensors: dict[str, Tensor] | None = None, inputs: str = f"%x : {SHAPE}") -> Module:
    """A graph on grids by hand, lowered, its codes compared with the exact evaluation."""
    subject = module("quantized", *LEAVES, *text, inputs=inputs, tensors={**GRIDS, **(tensors or {})})
    shape = [2 if not isinstance(size, int) else size for size in subject.main.inputs[0].type.shape]
    samples = [[4 * torch.randn(shape)]]
    PassManager([LowerToInteger()], FACTS).run(subject, PassContext(load_target("int8_dsp"), samples=samples))
    return subject


def ops(subject: Module) -> list[str]:
    return [node.op for node in subject.main.nodes if node.inputs]


POOL = "%p = permute(%q) {axes = (0, 1, 3, 2)} : f32[N, 4, 6, 6]"
AGAIN: dict[str, tuple[list[str], list[str]]] = {
    "the same grid": (
        [quantizer("q", "%x"), POOL, quantizer("o", "%p"), "%o"],
        ["quantize", "permute", "dequantize"],
    ),
    "another scale": (
        [quantizer("q", "%x"), POOL, quantizer("o", "%p", "t"), "%o"],
        ["quantize", "permute", "rescale", "dequantize"],
    ),
    "fewer codes": (
        [quantizer("q", "%x"), POOL, quantizer("o", "%p", "s", ", qmin = 3, qmax = 127"), "%o"],
        ["quantize", "permute", "rescale", "dequantize"],
    ),
}


@pytest.mark.parametrize("case", AGAIN)
def test_a_value_that_is_quantized_again(case: str) -> None:
    text, expected = AGAIN[case]
    assert ops(lowered(*text)) == expected


def test_an_output_is_a_real_number_again_and_read_as_codes_elsewhere() -> None:
    subject = lowered(quantizer("q", "%x"), f"%r = add(%q, %q) : {SHAPE}", quantizer("o", "%r", "t"), "%q, %o")
    assert shown(subject) == [
        "%q = quantize(%x)",
        "%o = int_add(%q, %q)",
        "%q.real = dequantize(%q)",
        "%o.real = dequantize(%o)",
        "return %q.real, %o.real",
    ]


def test_limits_of_codes_are_those_of_the_quantizer() -> None:
    text = [
        quantizer("q", "%x"),
        f"%r = add(%q, %q) : {SHAPE}",
        quantizer("o", "%r", "t", ", qmin = -5, qmax = 40"),
        "%o",
    ]
    node = next(node for node in lowered(*text).main.nodes if node.op == "int_add")
    assert (node.attributes["qmin"], node.attributes["qmax"]) == (-5, 40)


def test_a_float_island_reads_real_numbers() -> None:
    text = [
        "graph @main stage=quantized {",
        f"input %x : {SHAPE}",
        "bound N 1 64",
        *LEAVES,
        quantizer("q", "%x"),
        f'%y = call(%q) {{graph = "island", results = ("{SHAPE}",)}} : {SHAPE}',
        quantizer("o", "%y", "t"),
        "return %o",
        "}",
        "graph @island stage=float {",
        f"input %x : {SHAPE}",
        "bound N 1 64",
        f"%y = erf(%x) : {SHAPE}",
        "return %y",
        "}",
    ]
    subject = parse_module("\n".join(text), GRIDS)
    run(LowerToInteger(), subject, PassContext(load_target("int8_dsp")))
    assert shown(subject) == [
        "%q = quantize(%x)",
        "%q.real = dequantize(%q)",
        "%y = call(%q.real)",
        "%o = quantize(%y)",
        "%o.real = dequantize(%o)",
        "return %o.real",
    ]


def layer(weight: Tensor, bias: float, scale: float) -> dict[str, Any]:
    """A linear layer on codes, for `lowered`."""
    outputs, inputs = weight.shape
    text = [
        *[
            leaf("w", "f32", outputs, inputs),
            leaf("ws", "f32"),
            leaf("wz", "i32", kind="state"),
            leaf("b", "f32", outputs),
        ],
        quantizer("q", "%x", shape=f"f32[N, {inputs}]"),
        f'%wq = fake_quantize(%w, %ws, %wz) {{spec = spec"s8 symmetric narrow"}} : f32[{outputs}, {inputs}]',
        "%bs = scale_product(%s, %ws) : f32[]",
        f'%bq = fake_quantize_bias(%b, %bs) {{rounding = "rne"}} : f32[{outputs}]',
        f"%y = linear(%q, %wq, %bq) : f32[N, {outputs}]",
        quantizer("o", "%y", "t", shape=f"f32[N, {outputs}]"),
        "%o",
    ]
    tensors = {
        "w": weight,
        "ws": torch.tensor(scale),
        "wz": torch.tensor(0, dtype=torch.int32),
        "b": torch.full((outputs,), bias),
        # Codes from 0 on, and one step of the result for some hundred of the products.
        "s": torch.tensor(2.0**-7),
        "sz": torch.tensor(-128, dtype=torch.int32),
    }
    return {"text": text, "tensors": tensors, "inputs": f"%x : f32[N, {inputs}]"}


def lowered_layer(weight: Tensor, bias: float = 0.0, scale: float = 2.0**-7) -> Module:
    parts = layer(weight, bias, scale)
    return lowered(*parts["text"], tensors=parts["tensors"], inputs=parts["inputs"])


def test_weights_and_biases_are_integers_in_steps_of_their_products() -> None:
    weight = torch.tensor([[0.5, -0.25], [1.0, 0.0078125]])
    subject = lowered_layer(weight, bias=1.5)
    node = next(node for node in subject.main.nodes if node.op == "int_linear")
    codes, bias, multiplier = (value.producer for value in node.inputs[1:4])
    assert codes is not None and bias is not None and multiplier is not None
    found = [subject.tensors[str(item.attributes["ref"])] for item in (codes, bias)]
    assert torch.equal(found[0], torch.tensor([[64, -32], [127, 1]], dtype=torch.int8)), "128 is clipped"
    assert torch.equal(found[1], torch.tensor([24576, 24576], dtype=torch.int32))


def test_an_accumulator_that_may_overflow_is_refused_with_the_place() -> None:
    most = (2**31 - 1) // (127 * 255)
    lowered_layer(torch.ones(1, most), scale=1 / 127)
    with pytest.raises(UnsupportedError, match=r"the accumulator can reach 2147\d+ \(at %y.*of int8_dsp has 32 bits"):
        lowered_layer(torch.ones(1, most + 1), scale=1 / 127)


def test_a_bias_that_does_not_fit_is_refused_with_the_place() -> None:
    parts = layer(torch.ones(1, 2), bias=2.0**20, scale=2.0**-7)
    subject = module(
        "quantized", *LEAVES, *parts["text"], inputs=parts["inputs"], tensors={**GRIDS, **parts["tensors"]}
    )
    with pytest.raises(
        UnsupportedError, match=r"17179869184 steps \(at %y.*fits into 32 bits\. Increase the weights of"
    ):
        run(LowerToInteger(), subject, PassContext(load_target("int8_dsp")))


REFUSED: dict[str, tuple[list[str], type[Exception], str]] = {
    "an activation that is not fused": (
        [quantizer("q", "%x"), f"%r = relu(%q) : {SHAPE}", quantizer("o", "%r", "t"), "%o"],
        PassError,
        r"relu .* quantizer \(at %r.*Run fuse-requantization",
    ),
    "a real number that is moved": (
        [f"%r = permute(%x) {{axes = (0, 1, 3, 2)}} : {SHAPE}", quantizer("o", "%r"), "%o"],
        PassError,
        r"the quantizer .* permute \(at %r",
    ),
    "an operator without a rule": (
        [quantizer("q", "%x"), f"%r = div(%q, %q) : {SHAPE}", quantizer("o", "%r", "t"), "%o"],
        UnsupportedError,
        r"div has no integer form \(at %r",
    ),
    "a result without a quantizer": (
        [quantizer("q", "%x"), f"%r = exp(%q) : {SHAPE}", "%r"],
        PassError,
        r"exp has no integer form \(at %r.*expected a quantizer",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_integer_form_is_refused_with_its_place(case: str) -> None:
    text, kind, message = REFUSED[case]
    subject = module("quantized", *LEAVES, *text, tensors=GRIDS)
    with pytest.raises(kind, match=message):
        run(LowerToInteger(), subject, PassContext(load_target("int8_dsp")))


def test_a_quantizer_without_a_range_is_refused_with_its_place() -> None:
    subject = module("quantized", *LEAVES, quantizer("q", "%x"), "%q", tensors={**GRIDS, "s": torch.tensor(torch.nan)})
    with pytest.raises(CalibrationError, match=r"the quantizer has no range yet \(at %q.*Calibrate first"):
        run(LowerToInteger(), subject, PassContext(load_target("int8_dsp")))


@pytest.mark.parametrize(
    ("limit", "message"),
    [("max_entries = 65535", "a table of 65536 entries"), ("max_bytes = 65535", "tables of 65536 bytes")],
)
def test_a_table_larger_than_that_of_the_target_is_refused(limit: str, message: str, tmp_path: Path) -> None:
    text = [
        f'%q = fake_quantize(%x, %s, %sz) {{spec = spec"s16"}} : {SHAPE}',
        f"%g = tanh(%q) : {SHAPE}",
        quantizer("o", "%g", "t"),
        "%o",
    ]
    path = tmp_path / "small.toml"
    head = 'schema = "qcompiler.hw/1"\nextends = "int8_dsp"\n[target]\nname = "small"\n'
    path.write_text(f"{head}[table]\n{limit}\n", encoding="utf-8")
    with pytest.raises(UnsupportedError, match=rf"{message} \(at %g.*at most 65535 on small"):
        run(LowerToInteger(), module("quantized", *LEAVES, *text, tensors=GRIDS), PassContext(load_target(path)))
    assert ops(lowered(*text)) == ["quantize", "lookup", "dequantize"]


def test_a_mean_over_an_axis_of_symbolic_size_is_refused() -> None:
    text = [
        quantizer("q", "%x"),
        "%m = mean(%q) {axes = (0,), keepdim = false} : f32[4, 6, 6]",
        quantizer("o", "%m", "t", shape="f32[4, 6, 6]"),
        "%o",
    ]
    with pytest.raises(UnsupportedError, match=r"the mean is over an axis of symbolic size \(at %m"):
        lowered(*text)


def test_what_it_needs_and_establishes() -> None:
    check_declared(LowerToInteger(), {Stage.QUANTIZED}, requires=FACTS)
    with pytest.raises(PassError, match="lower-to-integer needs a target"):
        run(LowerToInteger(), module("quantized", "%x"))
    unfused, context, _ = quantized(*NETWORK, upto=CalibrateActivations)
    with pytest.raises(PassError, match="Run fuse-requantization"):
        run(LowerToInteger(), unfused, context)

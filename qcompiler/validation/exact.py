"""Exact evaluation of a quantized graph: on integer codes, with the target's arithmetic.

The evaluation reads the graph before lowering. It is therefore a second, independent definition of the results of the
integer graph, the integer program and the exported file. A value is one of

    Tensor     real numbers: graph inputs, parameters, scales
    Codes      integers with scale and zero point: the result of a quantizer
    Pending    the result of integer arithmetic that waits for its quantizer, because an accumulator becomes a code
               only when the grid of the output is known

An activation between an op and its quantizer becomes a clamp within the pending value.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.errors import CalibrationError, GraphError, InputError, UnsupportedError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import LEAVES, Evaluation, Tensors, check_inputs, evaluate_node, interpret, interpret_with
from qcompiler.ir.registry import Trait
from qcompiler.ir.types import Stage
from qcompiler.ops import SCALED, UNARY, prelu_function, unary_of
from qcompiler.ops.borders import border
from qcompiler.ops.integer import window_counts, window_sums
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.ops.quantization import spread_factors
from qcompiler.ops.quantizers import activation_bounds, border_code, channel_limits, clamped_limits, with_zero
from qcompiler.ops.resampling import resampling_weights
from qcompiler.quant.accumulator import exact_in_float64
from qcompiler.quant.affine import AffineParams, along_axis, dequantize, quantize, quantize_bias
from qcompiler.quant.arithmetic import (
    Arithmetic,
    FloatOperation,
    RealFunction,
    add_codes,
    add_parameters,
    average_parameters,
    elementwise_float32,
    global_average_codes,
    lookup_table,
    mul_codes,
    mul_parameters,
    rescale_codes,
    rescale_multiplier,
    windowed_average_codes,
)
from qcompiler.quant.layer_norm import layer_norm_codes, layer_norm_parameters
from qcompiler.quant.requant import prepare_requantization, real_multiplier
from qcompiler.quant.spec import QuantSpec

Requantize: TypeAlias = Callable[[AffineParams, int, int], Tensor]


@dataclass(frozen=True)
class Codes:
    """int64 codes with scale and zero point, code limits and width."""

    codes: Tensor
    params: AffineParams
    qmin: int
    qmax: int
    bits: int

    def real(self) -> Tensor:
        """float32 values."""
        return dequantize(self.codes, self.params.scale, self.params.zero_point, self.params.axis)

    def steps(self) -> Tensor:
        """int64 codes with the zero point removed."""
        return self.codes - along_axis(self.params.zero_point, self.codes.dim(), self.params.axis)

    def largest_step(self) -> int:
        """Largest magnitude of a code within the limits, zero point removed. Per tensor."""
        zero = int(self.params.zero_point)
        return max(abs(self.qmin - zero), abs(self.qmax - zero))


@dataclass(frozen=True)
class Pending:
    """Arithmetic that waits for the scale and zero point of its output.

    Args:
        requantize: Function from output grid and code limits to int64 codes.
        low: Real lower bound of an activation in between.
        high: Real upper bound.
        channels: Real bounds of a clamp per channel in between, [C] each, and the channel axis; applied before `low`
            and `high`.
    """

    requantize: Requantize
    low: float = -math.inf
    high: float = math.inf
    channels: tuple[Tensor, Tensor, int] | None = None


Exact: TypeAlias = "Tensor | Codes | Pending"


def simulate(
    graph: Graph,
    inputs: Sequence[Tensor],
    tensors: Tensors,
    arithmetic: Arithmetic,
    *,
    state: Tensors | None = None,
    observe: Callable[[Value, Exact], None] | None = None,
    replace: Callable[[Value, Exact], Exact] | None = None,
) -> tuple[list[Exact], dict[str, Tensor]]:
    """Evaluate a QUANTIZED graph on codes: a function of inputs, tensors and state, which changes none of them.

    Args:
        graph: Calibrated graph at stage QUANTIZED.
        inputs: Float tensors, one per graph input.
        tensors: Tensors that leaves read, usually those of the module.
        arithmetic: Arithmetic of the target.
        state: Values of states, which replace those in `tensors`.
        observe: Callback with each value and its evaluation.
        replace: Function that replaces the evaluation read by the users of a value; `observe` receives the original.

    Returns:
        The outputs, `Codes` for quantized outputs, tensors otherwise; and the state of the next run, `state` with the
        updates.

    Raises:
        CalibrationError: A quantizer has no scale yet.
        GraphError: An op has no exact evaluation for its operands.
    """
    check_inputs(graph, inputs)
    evaluation = Evaluation(tensors, state)

    def rule(node: Node, operands: Sequence[Exact]) -> tuple[Exact, ...]:
        if node.op in LEAVES or node.op == "call":
            real = [item.real() if isinstance(item, Codes) else _real(node, item) for item in operands]
            return evaluation(node, real)
        return (_evaluate(node, operands, arithmetic),)

    outputs = interpret_with(graph, list[Exact](inputs), rule, observe, replace)
    return outputs, evaluation.state


def output_codes(graph: Graph, inputs: Sequence[Tensor], arithmetic: Arithmetic) -> list[Tensor]:
    """The outputs of a QUANTIZED or an INTEGER graph as codes where quantized, for bit-exact comparison."""
    if graph.stage is Stage.QUANTIZED:
        exact, _ = simulate(graph, inputs, graph.module.tensors, arithmetic)
        return [item.codes if isinstance(item, Codes) else cast("Tensor", item) for item in exact]
    seen: dict[str, Tensor] = {}
    wanted = {
        position: value.producer.inputs[0].name
        for position, value in enumerate(graph.outputs)
        if value.producer is not None and value.producer.op == "dequantize"
    }
    names = set(wanted.values())

    def observe(value: Value, tensor: Tensor) -> None:
        if value.name in names:
            seen[value.name] = tensor

    outputs, _ = interpret(graph, inputs, graph.module.tensors, observe=observe)
    for position, name in wanted.items():
        outputs[position] = seen[name].to(torch.int64)
    return outputs


def _evaluate(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    bits = max((item.bits for item in operands[:2] if isinstance(item, Codes)), default=8)
    arithmetic = arithmetic.at(_COMPUTES.get(node.op, node.op), bits)
    rule = _RULES.get(node.op)
    if rule is not None:
        return rule(node, operands, arithmetic)
    if node.definition.has(Trait.MOVEMENT):
        return _movement(node, operands)
    if all(isinstance(item, Tensor) for item in operands):
        return evaluate_node(node, cast("Sequence[Tensor]", operands))[0]
    if node.op in UNARY:
        return _table(node, operands, arithmetic)
    raise GraphError(f"{node.op} has no exact evaluation", where=node.where, fix="Quantize around it, not through it.")


def _fake_quantize(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    x, scale, zero_point = operands[:3]
    spec = cast("QuantSpec", node.attributes["spec"])
    params = _params(node, scale, zero_point, spec)
    qmin = cast("int", _default(node.attributes["qmin"], spec.qmin))
    qmax = cast("int", _default(node.attributes["qmax"], spec.qmax))
    if isinstance(x, Tensor):
        factors = spread_factors(spec, x, [_real(node, item) for item in operands[3:]])
        codes = quantize(x, params.scale, params.zero_point, spec, qmin, qmax, factors).to(torch.int64)
        if factors is None:
            return Codes(codes, params, qmin, qmax, spec.bits)
        # In sums of products, a weight counts as code times block factor.
        largest = int(factors.max())
        return Codes(codes * factors, params, qmin * largest, qmax * largest, spec.bits)
    if isinstance(x, Codes):
        x = _rescale(x, arithmetic)
    low, high = clamped_limits(x.low, x.high, params, spec, qmin, qmax)
    if x.channels is None:
        return Codes(x.requantize(params, low, high), params, low, high, spec.bits)
    least, most, axis = x.channels
    limits = [torch.tensor(codes) for codes in channel_limits(least, most, params, spec, low, high)]
    low, high = int(limits[0].min()), int(limits[1].max())
    codes = x.requantize(params, low, high)
    limited = codes.clamp(*(along_axis(ends, codes.dim(), axis) for ends in limits))
    return Codes(limited, params, low, high, spec.bits)


def _fake_quantize_bias(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    bias, scale = _real(node, operands[0]), _real(node, operands[1])
    params = AffineParams(scale, torch.zeros_like(scale, dtype=torch.int32), 0 if scale.dim() else None)
    bits = cast("int", node.attributes["bits"])
    limit = 2 ** (bits - 1)
    return Codes(quantize_bias(bias, scale, arithmetic.bias_rounding, bits), params, -limit, limit - 1, bits)


def _mac(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    x, weight = operands[0], operands[1]
    bias = operands[2] if len(operands) > 2 else None
    if isinstance(x, Tensor) and isinstance(weight, Tensor):
        return evaluate_node(node, cast("Sequence[Tensor]", operands))[0]
    x, weight = _codes(node, x), _codes(node, weight)
    layer = Layer(node) if is_weighted(node) else None
    low, high = (code - int(x.params.zero_point) for code in (x.qmin, x.qmax))
    if not exact_in_float64(weight.steps(), low, high, int(layer is not None and layer.transposed)):
        raise GraphError("a sum of products may leave float64", where=node.where, expected="less than 2^53")
    terms = [x.steps().to(torch.float64), weight.steps().to(torch.float64)]
    acc = node.definition.evaluate(node, terms)[0].to(torch.int64)
    axis = acc.dim() - 1 if layer is None else layer.output_axis
    if bias is not None:
        acc = acc + along_axis(_codes(node, bias).codes, acc.dim(), axis)
    per_channel = weight.params.axis is not None

    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        real = real_multiplier(x.params.scale, weight.params.scale, out.scale, arithmetic.requant)
        multiplier = prepare_requantization(real, arithmetic.requant)
        zero_point = int(out.zero_point)
        return multiplier.apply(acc, zero_point=zero_point, qmin=qmin, qmax=qmax, axis=axis if per_channel else None)

    return Pending(requantize)


def _binary(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    if all(isinstance(item, Tensor) for item in operands):
        return evaluate_node(node, cast("Sequence[Tensor]", operands))[0]
    a, b = _codes(node, operands[0]), _codes(node, operands[1])

    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        if arithmetic.elementwise == "f32":
            operation = cast("FloatOperation", node.op)
            grids = (a.params, b.params)
            return elementwise_float32(operation, (a.codes, b.codes), grids, out, qmin=qmin, qmax=qmax)
        if node.op in ("add", "sub"):
            largest = max(item.largest_step() for item in (a, b))
            sums = add_parameters(a.params, b.params, out, arithmetic, largest=largest, subtract=node.op == "sub")
            return add_codes(a.codes, b.codes, sums, qmin=qmin, qmax=qmax)
        products = mul_parameters(a.params, b.params, out, arithmetic)
        return mul_codes(a.codes, b.codes, products, qmin=qmin, qmax=qmax)

    return Pending(requantize)


def _mean(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    if isinstance(operands[0], Tensor):
        return evaluate_node(node, [operands[0]])[0]
    x = _codes(node, operands[0])
    axes = tuple(cast("tuple[int, ...]", node.attributes["axes"]))
    count = math.prod(x.codes.shape[axis] for axis in axes)

    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        return global_average_codes(
            x.codes,
            axes,
            average_parameters(x.params.scale, out.scale, count, arithmetic),
            in_zero_point=int(x.params.zero_point),
            out_zero_point=int(out.zero_point),
            qmin=qmin,
            qmax=qmax,
            keepdim=bool(node.attributes["keepdim"]),
        )

    return Pending(requantize)


def _avg_pool2d(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    if isinstance(operands[0], Tensor):
        return evaluate_node(node, [operands[0]])[0]
    x = _codes(node, operands[0])
    height, width = x.codes.shape[2:]
    total = window_sums(x.steps(), node.attributes)
    count = window_counts((height, width), node.attributes)
    qmin, qmax = with_zero(node, x.params, (x.qmin, x.qmax))
    average = windowed_average_codes(
        total, count, arithmetic.average_rounding, zero_point=int(x.params.zero_point), qmin=qmin, qmax=qmax
    )
    return Codes(average, x.params, qmin, qmax, x.bits)


def _resample(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    if isinstance(operands[0], Tensor):
        return evaluate_node(node, [operands[0]])[0]
    x = _codes(node, operands[0])
    divisor = resampling_weights(node)[2]
    # The float64 means of torch times the divisor are integers up to a relative error of 1e-10.
    means = node.definition.evaluate(node, [x.steps().to(torch.float64)])[0]
    total = (means * divisor + 0.5).floor().to(torch.int64)
    average = windowed_average_codes(
        total, divisor, arithmetic.average_rounding, zero_point=int(x.params.zero_point), qmin=x.qmin, qmax=x.qmax
    )
    return Codes(average, x.params, x.qmin, x.qmax, x.bits)


def _layer_norm(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    if isinstance(operands[0], Tensor):
        return evaluate_node(node, cast("Sequence[Tensor]", operands))[0]
    x = _codes(node, operands[0])
    weight, bias = (_real(node, item) for item in operands[1:])
    eps = float(cast("float", node.attributes["eps"]))

    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        try:
            constants = layer_norm_parameters(x.params, weight, bias, eps, out, arithmetic, largest=x.largest_step())
        except InputError as error:
            raise UnsupportedError(error.found, where=node.where, expected=error.expected, fix=error.fix) from None
        zero_point = int(out.zero_point)
        return layer_norm_codes(x.steps(), constants, out_zero_point=zero_point, qmin=qmin, qmax=qmax)

    return Pending(requantize)


def _activation(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    x = operands[0]
    if isinstance(x, Tensor):
        return evaluate_node(node, [x])[0]
    low, high = activation_bounds(node)
    pending = _rescale(x, arithmetic) if isinstance(x, Codes) else x
    # clamp(clamp(x, a, b), c, d) clamps a and b as well.
    low, high = min(max(pending.low, low), high), max(min(pending.high, high), low)
    return dataclasses.replace(pending, low=low, high=high)


def _clamp_channels(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    x = operands[0]
    if isinstance(x, Tensor):
        return evaluate_node(node, cast("Sequence[Tensor]", operands))[0]
    pending = _rescale(x, arithmetic) if isinstance(x, Codes) else x
    axis = cast("int", node.attributes["axis"])
    low, high = (_real(node, item) for item in operands[1:])
    before = (torch.full_like(low, -math.inf), torch.full_like(low, math.inf))
    if pending.channels is not None:
        before = pending.channels[:2]
        if pending.channels[2] != axis:
            raise GraphError("channels are clamped along two axes", where=node.where, expected="a quantizer in between")
    # Order: bounds per channel, bounds of the whole tensor, then these bounds.
    ends = [bound.clamp(pending.low, pending.high).clamp(low, high) for bound in before]
    return Pending(pending.requantize, channels=(ends[0], ends[1], axis))


def _table(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    return _tables(_codes(node, operands[0]), [UNARY[node.op].table(node)], torch.tensor(0), 1, arithmetic)


def _prelu(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    if isinstance(operands[0], Tensor):
        return evaluate_node(node, cast("Sequence[Tensor]", operands))[0]
    x, slopes = _codes(node, operands[0]), _real(node, operands[1])
    rows = torch.arange(len(slopes)) if len(slopes) > 1 else torch.tensor(0)
    return _tables(x, [prelu_function(float(slope)) for slope in slopes], rows, 1, arithmetic)


def _scaled_unary(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    if isinstance(operands[0], Tensor):
        return evaluate_node(node, cast("Sequence[Tensor]", operands))[0]
    x, scales, function = _codes(node, operands[0]), _real(node, operands[1]), unary_of(node)
    different, rows = scales.unique(return_inverse=True)
    functions = [function.table(node, float(scale)) for scale in different]
    return _tables(x, functions, rows, cast("int", node.attributes["axis"]), arithmetic)


def _tables(x: Codes, functions: Sequence[RealFunction], rows: Tensor, axis: int, arithmetic: Arithmetic) -> Pending:
    """Function `rows[c]` for channel c; one function for all channels if `rows` is one number."""

    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        limits = {"in_qmin": x.qmin, "in_qmax": x.qmax, "out_qmin": qmin, "out_qmax": qmax}
        tables = torch.stack([lookup_table(item, x.params, out, arithmetic, **limits) for item in functions])
        return tables[along_axis(rows, x.codes.dim(), axis), x.codes - x.qmin]

    return Pending(requantize)


def _movement(node: Node, operands: Sequence[Exact]) -> Exact:
    if all(isinstance(item, Tensor) for item in operands):
        return evaluate_node(node, cast("Sequence[Tensor]", operands))[0]
    if len(operands) == 1 and isinstance(operands[0], Pending):
        inner = _per_tensor(node, operands[0])

        def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
            return _move(node, [inner.requantize(out, qmin, qmax)])

        return Pending(requantize, inner.low, inner.high)
    items = [_codes(node, item) for item in operands]
    first = items[0]
    for item in items[1:]:
        if not (
            torch.equal(item.params.scale, first.params.scale)
            and torch.equal(item.params.zero_point, first.params.zero_point)
        ):
            raise GraphError(f"the operands of {node.op} are on different grids", where=node.where)
    codes = _move(node, [item.codes for item in items])
    low, high = min(i.qmin for i in items), max(i.qmax for i in items)
    return Codes(codes, first.params, low, high, max(i.bits for i in items))


def _move(node: Node, codes: list[Tensor]) -> Tensor:
    return node.definition.evaluate(node, codes)[0]


def _pad(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    x = operands[0]
    if isinstance(x, Tensor):
        return evaluate_node(node, [x])[0]
    pad = cast("tuple[int, ...]", node.attributes["pad"])
    half = len(pad) // 2
    torch_pad = [size for axis in reversed(range(half)) for size in (pad[axis], pad[half + axis])]
    if isinstance(x, Codes):
        code = border_code(node, x.params, (x.qmin, x.qmax))
        qmin, qmax = (min(x.qmin, code), max(x.qmax, code)) if border(node) is not None else (x.qmin, x.qmax)
        return dataclasses.replace(x, codes=functional.pad(x.codes, torch_pad, value=code), qmin=qmin, qmax=qmax)
    raise GraphError(f"{node.op} is given an accumulator", where=node.where, expected="a quantizer in front of it")


def _per_tensor(node: Node, x: Pending) -> Pending:
    if x.channels is not None:
        raise GraphError(f"{node.op} moves what is clamped per channel", where=node.where, expected="a quantizer first")
    return x


def _rescale(x: Codes, arithmetic: Arithmetic) -> Pending:
    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        return rescale_codes(
            x.codes,
            rescale_multiplier(x.params, out, arithmetic),
            in_zero_point=int(x.params.zero_point),
            out_zero_point=int(out.zero_point),
            qmin=qmin,
            qmax=qmax,
        )

    return Pending(requantize)


def _scale_product(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    return _real(node, operands[0]) * _real(node, operands[1])


def _codes(node: Node, item: Exact) -> Codes:
    if isinstance(item, Codes):
        return item
    kind = "real numbers" if isinstance(item, Tensor) else "an accumulator"
    raise GraphError(f"{node.op} is given {kind}", where=node.where, expected="a quantizer in front of it")


def _real(node: Node, item: Exact) -> Tensor:
    if isinstance(item, Tensor):
        return item
    raise GraphError(f"{node.op} is given codes", where=node.where, expected="real numbers")


def _params(node: Node, scale: Exact, zero_point: Exact, spec: QuantSpec) -> AffineParams:
    s, z = _real(node, scale), _real(node, zero_point)
    if not bool(torch.isfinite(s).all()):
        raise CalibrationError("the quantizer has no range yet", where=node.where, fix="Run a calibration pass first.")
    return AffineParams(s.detach(), z.detach().to(torch.int32), spec.axis if s.dim() else None)


def _default(value: Attribute, default: int) -> Attribute:
    return default if value is None else value


_COMPUTES = dict.fromkeys(("fake_quantize", "relu", "clamp", "clamp_channels"), "rescale")
"""Rule for a quantizer or an activation on codes."""

_RULES: dict[str, Callable[[Node, Sequence[Exact], Arithmetic], Exact]] = {
    "fake_quantize": _fake_quantize,
    "fake_quantize_bias": _fake_quantize_bias,
    "scale_product": _scale_product,
    "conv1d": _mac,
    "conv2d": _mac,
    "conv3d": _mac,
    "conv_transpose1d": _mac,
    "conv_transpose2d": _mac,
    "conv_transpose3d": _mac,
    "linear": _mac,
    "add": _binary,
    "sub": _binary,
    "mul": _binary,
    "mean": _mean,
    "avg_pool2d": _avg_pool2d,
    "layer_norm": _layer_norm,
    "adaptive_avg_pool2d": _resample,
    "resize": _resample,
    "prelu": _prelu,
    SCALED: _scaled_unary,
    "relu": _activation,
    "clamp": _activation,
    "clamp_channels": _clamp_channels,
    "pad": _pad,
}

"""Lower a quantized graph to integer ops: quantization moves from ops into types.

    fq(conv(fq(x), fq(W), fq_bias(b)))   becomes   int_conv2d(x', W', b', multiplier, exponent) : i8[...] q(scale:zero)

Each quantizer and the op before it become one integer op, whose multiplier is computed here, in double from the
float32 scales. Weights and biases become integer constants, functions become lookup tables. Overflows that the target
forbids are proven absent: accumulators are bounded from the real weights, per channel.

Source: Jacob et al. 2018, arXiv:1712.05877, section 2.2 (integer-arithmetic-only matrix multiplication).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from qcompiler.errors import InputError, PassError, UnsupportedError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import LEAVES, evaluate_node
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import DType, QuantParams, Stage, TensorType
from qcompiler.ops import SCALED, UNARY, prelu_function, unary_of
from qcompiler.ops.borders import border, leaves_range
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.ops.quantization import spread_factors
from qcompiler.ops.quantizers import (
    border_code,
    channel_bounds,
    channel_limits,
    code_limits,
    grid,
    leaf_tensor,
    with_zero,
)
from qcompiler.ops.resampling import resampling_weights
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.proofs import Proofs
from qcompiler.quant.affine import AffineParams, along_axis, quantize, quantize_bias
from qcompiler.quant.arithmetic import (
    ELEMENTWISE_FLOAT32,
    Arithmetic,
    RealFunction,
    add_parameters,
    average_parameters,
    lookup_table,
    mul_parameters,
    rescale_multiplier,
)
from qcompiler.quant.layer_norm import layer_norm_parameters
from qcompiler.quant.requant import Requantization, real_multiplier
from qcompiler.quant.spec import QuantSpec
from qcompiler.targets import Target
from qcompiler.validation.contracts import THRESHOLDS, Contract


@dataclass(frozen=True)
class LowerToInteger(Pass):
    """Rewrite a calibrated QUANTIZED graph into integer ops.

    Raises:
        UnsupportedError: An accumulator may overflow on a target that forbids it, or a bias does not fit.
        CalibrationError: A quantizer has no range.
    """

    name: ClassVar[str] = "lower-to-integer"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    becomes: ClassVar[Stage | None] = Stage.INTEGER
    requires: ClassVar[frozenset[str]] = frozenset({"ties", "requantization-fused"})

    @property
    def contract(self) -> Contract:
        """Every code is the same as in the exact evaluation of the quantized graph."""
        return THRESHOLDS[self.name]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        target = context.require_target(self.name)
        graph.stage = Stage.INTEGER
        _Lowering(graph, target, context.rewriter(graph)).run()


@dataclass(frozen=True)
class _Output:
    """The properties of an op's quantizer that its integer op needs."""

    quantizer: Node
    params: AffineParams
    spec: QuantSpec
    qmin: int
    qmax: int
    channels: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Lowest and highest codes per channel, for an activation with limits per channel."""

    @property
    def limits(self) -> dict[str, Attribute]:
        low, high = self.channels or ((self.qmin,), (self.qmax,))
        return {"qmin": low if len({*low}) > 1 else low[0], "qmax": high if len({*high}) > 1 else high[0]}

    @property
    def zero_point(self) -> int:
        return int(self.params.zero_point)


class _Lowering:
    def __init__(self, graph: Graph, target: Target, rewriter: Rewriter) -> None:
        self.graph = graph
        self.target = target
        self.arithmetic: Arithmetic = target.arithmetic
        self.rewriter = rewriter
        self.lowered: dict[Value, Value] = {}
        self.limits: dict[Value, tuple[int, int]] = {}
        """Lowest and highest code of each lowered value."""

    def run(self) -> None:
        old = list(self.graph.nodes)
        names: dict[Value, str] = {}
        quantized: set[Value] = set()
        for node in old:
            if node.op == "fake_quantize":
                result = self._quantized(node)
            elif node.op == "fake_quantize_bias" or node.op in LEAVES:
                continue
            elif node.op == "call":
                self._call(node)
                continue
            elif node.definition.has(Trait.MOVEMENT) and node.inputs[0] in self.lowered:
                result = self._movement(node)
            elif node.op == "avg_pool2d":
                result = self._avg_pool2d(node)
            elif node.op in ("adaptive_avg_pool2d", "resize"):
                result = self._resample(node)
            else:
                continue  # lowered together with the quantizer that reads it
            self.lowered[node.output] = result
            if result not in quantized:
                names[result] = node.name  # a second quantizer of the same grid is none, and has no name
            if node.op == "fake_quantize":
                quantized.add(result)
        self._set_outputs(old)
        for node in reversed(old):
            if all(not value.users and not self.graph.is_output(value) for value in node.outputs):
                self.rewriter.erase(node)
        alive = set(self.graph.nodes)
        leftover = [node for node in old if node in alive and node.op not in (*LEAVES, "call")]
        if leftover:
            raise PassError(
                f"{leftover[0].op} has no integer form", where=leftover[0].where, expected="a quantizer behind it"
            )
        for value, name in names.items():
            self.rewriter.rename(value, name)

    def _set_outputs(self, old: Sequence[Node]) -> None:
        outputs = []
        for value in self.graph.outputs:
            if value not in self.lowered:
                outputs.append(value)
                continue
            like = value.producer or old[-1]
            node = self.rewriter.insert(
                "dequantize", [self.lowered[value]], before=None, like=like, name=f"{value.name}.real"
            )
            outputs.append(node.output)
        self.graph.set_outputs(outputs)

    def _quantized(self, quantizer: Node) -> Value:
        params, spec = grid(quantizer)
        out = _Output(quantizer, params, spec, *code_limits(quantizer))
        source = quantizer.inputs[0]
        if source in self.lowered:
            lowered = self.lowered[source]
            low, high = self.limits[lowered]
            same = QuantParams.of(out.params.scale, out.params.zero_point, out.params.axis) == lowered.type.quant
            if same and DType(out.spec.dtype) is lowered.type.dtype:
                if (low, high) == (out.qmin, out.qmax):
                    return lowered  # the average already has the quantizer's scale and zero point
                if (
                    source.producer is not None
                    and leaves_range(source.producer)
                    and out.qmin <= low <= high <= out.qmax
                ):
                    self.limits[lowered] = (out.qmin, out.qmax)
                    return lowered  # so does a border, whose operand was rescaled before
        return self._computed(source, out)

    def _computed(self, source: Value, out: _Output) -> Value:
        """The codes of `source`, computed for this quantizer."""
        node = source.producer
        if source in self.lowered:
            return self._rescale(source, out)
        if node is None or node.op == "call":
            return self._quantize_real(source, out)
        if node.op in LEAVES:
            return self._constant(source, out)
        rule = _RULES.get(node.op)
        if rule is not None:
            return rule(self, node, out)
        if node.op in UNARY:
            return self._table(node, out)
        if node.definition.has(Trait.MOVEMENT):
            raise PassError(f"the quantizer stands behind {node.op}", where=node.where, fix="Quantize in front of it.")
        raise UnsupportedError(f"{node.op} has no integer form", where=node.where)

    def _insert(
        self, op: str, inputs: Sequence[Value], attributes: Mapping[str, Attribute], out: _Output, like: Node
    ) -> Value:
        dtype = DType(out.spec.dtype)
        shape = out.quantizer.output.type.shape
        params = QuantParams.of(out.params.scale, out.params.zero_point, out.params.axis)
        node = self.rewriter.insert(
            op,
            inputs,
            {**attributes, "dtype": str(dtype), **out.limits},
            before=out.quantizer,
            like=[like, out.quantizer],
            name=f"{out.quantizer.name}.int",
            types=[TensorType(dtype, shape, params)],
        )
        self.rewriter.note(node, f"{like.op} and its quantizer in integers")
        self.limits[node.output] = (out.qmin, out.qmax)
        return node.output

    def _leaf(self, tensor: Tensor, ref: str, like: Node, type: TensorType | None = None) -> Value:
        return self.rewriter.leaf("constant", tensor.contiguous(), ref=ref, before=like, like=like, type=type)

    def _multiplier(self, requantization: Requantization, out: _Output) -> list[Value]:
        parts = (("multiplier", requantization.multiplier), ("exponent", requantization.exponent))
        return [
            self._leaf(part.reshape(-1), f"{out.quantizer.name}.{name}", out.quantizer)
            for name, part in parts
            if part is not None
        ]

    def _call(self, node: Node) -> None:
        """Insert one dequantize for each value that a float island reads."""
        for value in dict.fromkeys(node.inputs):
            if value not in self.lowered:
                continue
            real = self.rewriter.insert(
                "dequantize", [self.lowered[value]], before=node, like=node, name=f"{value.name}.real"
            )
            for index, operand in enumerate(node.inputs):
                if operand is value:
                    self.rewriter.replace_input(node, index, real.output)

    def _quantize_real(self, source: Value, out: _Output) -> Value:
        return self._insert("quantize", [source], {"rounding": str(out.spec.rounding)}, out, out.quantizer)

    def _constant(self, source: Value, out: _Output) -> Value:
        tensor, spec = leaf_tensor(source), out.spec
        factors = [leaf_tensor(value) for value in out.quantizer.inputs[3:]]
        spread = spread_factors(spec, tensor, factors)
        codes = quantize(tensor, out.params.scale, out.params.zero_point, spec, out.qmin, out.qmax, spread)
        dtype = DType(out.spec.dtype)
        params = QuantParams.of(out.params.scale, out.params.zero_point, out.params.axis)
        type = TensorType(dtype, tuple(tensor.shape), params)
        value = self._leaf(codes.to(dtype.torch), f"{out.quantizer.name}.codes", out.quantizer, type)
        self.limits[value] = (out.qmin, out.qmax)
        return value if spread is None else self._expanded(value, factors[0], out)

    def _expanded(self, codes: Value, factors: Tensor, out: _Output) -> Value:
        """Codes times the factors of their blocks."""
        quantizer = out.quantizer
        node = self.rewriter.insert(
            "expand_blocks",
            [codes, self._leaf(factors, f"{quantizer.name}.factors", quantizer)],
            {"axis": out.spec.axis, "block": out.spec.block},
            before=quantizer,
            like=quantizer,
            name=f"{quantizer.name}.int",
            types=[TensorType(DType.I16, codes.type.shape, codes.type.quant)],
        )
        most = int(factors.max())
        self.limits[node.output] = (out.qmin * most, out.qmax * most)
        return node.output

    def mac(self, node: Node, out: _Output) -> Value:
        x, weight = self.lowered[node.inputs[0]], self.lowered[node.inputs[1]]
        scales = self._params(weight)
        codes = _weight(weight).to(torch.int64)
        codes = codes - along_axis(scales.zero_point, codes.dim(), scales.axis)
        x_scale = self._params(x)
        codes = Layer(node).rows(codes).flatten(2).flatten(0, 1)  # one row per output channel
        channels = codes.shape[0]
        proofs = self._proofs(node)
        bias = torch.zeros(channels, dtype=torch.int64)
        if len(node.inputs) > 2:
            bias = self._bias(node, x_scale.scale * scales.scale, proofs.arithmetic)
        requantization = proofs.prepared(
            real_multiplier(x_scale.scale, scales.scale, out.params.scale, proofs.arithmetic.requant)
        )
        proofs.layer(codes, bias, self._steps(x), int(x_scale.zero_point), requantization)
        bias_params = QuantParams.of(
            x_scale.scale * scales.scale, torch.zeros_like(scales.zero_point), 0 if scales.scale.dim() else None
        )
        dtype = DType.I32 if proofs.arithmetic.bias_bits <= 32 else DType.I64
        bias_type = TensorType(dtype, (channels,), bias_params)
        bias_value = self._leaf(bias.to(dtype.torch), f"{out.quantizer.name}.bias", out.quantizer, bias_type)
        geometry = {key: value for key, value in node.attributes.items() if key in _GEOMETRY}
        attributes = {**geometry, "mode": str(requantization.mode)}
        operands = [x, weight, bias_value, *self._multiplier(requantization, out)]
        return self._insert(f"int_{node.op}", operands, attributes, out, node)

    def _proofs(self, node: Node, op: str | None = None) -> Proofs:
        """The conditions on a node, computed with the target's arithmetic; they may depend on the input's width."""
        read = node.inputs[:1] if node.definition.has(Trait.MAC) else node.inputs[:2]
        bits = [self.lowered[value].type.dtype.bits for value in read if value in self.lowered]
        return Proofs(node, self.arithmetic.at(op or node.op, max(bits, default=8)), self.target.name)

    def _bias(self, node: Node, scale: Tensor, arithmetic: Arithmetic) -> Tensor:
        fake = node.inputs[2].producer
        source = fake.inputs[0] if fake is not None and fake.op == "fake_quantize_bias" else node.inputs[2]
        try:
            return quantize_bias(leaf_tensor(source), scale, arithmetic.bias_rounding, arithmetic.bias_bits)
        except InputError as error:
            fix = "Give the channel larger weights, or the layer a larger input range."
            raise UnsupportedError(error.found, where=node.where, expected=error.expected, fix=fix) from None

    def _steps(self, value: Value) -> tuple[int, int]:
        """Smallest and largest code of an activation, zero point removed.

        0 is always among them: it is what padding adds, and what an unfinished sum lacks. So the bounds of a final sum
        hold for every sum on the way to it, in any order, that starts with the bias.
        """
        low, high = self.limits[value]
        zero_point = int(self._params(value).zero_point)
        return min(low - zero_point, 0), max(high - zero_point, 0)

    def add(self, node: Node, out: _Output) -> Value:
        a, b = (self.lowered[value] for value in node.inputs)
        if self._proofs(node).arithmetic.elementwise == ELEMENTWISE_FLOAT32:
            parts = ("left", "right", "out")
            unused = dict.fromkeys(f"{name}_{part}" for name in parts for part in ("multiplier", "exponent"))
            offsets = dict.fromkeys(("offset", "scalar_left_offset"))
            said: dict[str, Attribute] = {"mode": ELEMENTWISE_FLOAT32, "shift": 0, "subtract": node.op == "sub"}
            return self._insert("int_add", [a, b], {**said, **unused, **offsets}, out, node)
        largest = max(abs(step) for value in (a, b) for step in self._steps(value))
        grids, subtract = (self._params(a), self._params(b)), node.op == "sub"
        proofs = self._proofs(node)
        constants = add_parameters(*grids, out.params, proofs.arithmetic, largest=largest, subtract=subtract)
        # The requantizations of both operands, and of their sum, each with a factor of at most 1/2.
        proofs.bounded(largest << constants.shift, constants.left, constants.right, constants.out)
        attributes: dict[str, Attribute] = {"mode": str(constants.left.mode), "shift": constants.shift}
        attributes["subtract"] = subtract
        for name, item in (("left", constants.left), ("right", constants.right), ("out", constants.out)):
            attributes.update(_scalar_multiplier(name, item))
        for name, offset in (("offset", constants.offset), ("scalar_left_offset", constants.scalar_left_offset)):
            attributes[name] = None if offset is None else float(offset)
        return self._insert("int_add", [a, b], attributes, out, node)

    def mul(self, node: Node, out: _Output) -> Value:
        a, b = (self.lowered[value] for value in node.inputs)
        proofs = self._proofs(node)
        if proofs.arithmetic.elementwise == ELEMENTWISE_FLOAT32:
            unused = {"product_multiplier": None, "product_exponent": None}
            return self._insert("int_mul", [a, b], {"mode": ELEMENTWISE_FLOAT32, **unused}, out, node)
        constants = mul_parameters(self._params(a), self._params(b), out.params, proofs.arithmetic)
        products = torch.outer(*(torch.tensor(self._steps(value)) for value in (a, b)))
        # One product is no sum: it may have 33 bits where requantization multiplies in 64.
        proofs.requantization(products.min(), products.max(), constants.product)
        attributes = {"mode": str(constants.product.mode), **_scalar_multiplier("product", constants.product)}
        return self._insert("int_mul", [a, b], attributes, out, node)

    def mean(self, node: Node, out: _Output) -> Value:
        x = self.lowered[node.inputs[0]]
        axes = cast("tuple[int, ...]", node.attributes["axes"])
        sizes = [x.type.shape[axis] for axis in axes]
        if not all(isinstance(size, int) for size in sizes):
            raise UnsupportedError("the mean is over an axis of symbolic size", where=node.where)
        count = math.prod(cast("list[int]", sizes))
        proofs = self._proofs(node)
        average = average_parameters(self._params(x).scale, out.params.scale, count, proofs.arithmetic)
        proofs.steps(self._steps(x), count, average.multiplier)
        attributes: dict[str, Attribute] = {
            "axes": axes,
            "keepdim": node.attributes["keepdim"],
            "mode": str(average.multiplier.mode),
        }
        if average.divisor is not None:
            attributes.update(divisor=average.divisor, rounding=str(average.rounding))
        return self._insert("int_mean", [x, *self._multiplier(average.multiplier, out)], attributes, out, node)

    def layer_norm(self, node: Node, out: _Output) -> Value:
        x = self.lowered[node.inputs[0]]
        weight, bias = (leaf_tensor(value) for value in node.inputs[1:])
        eps, largest = float(cast("float", node.attributes["eps"])), max(map(abs, self._steps(x)))
        proofs = self._proofs(node)
        try:
            constants = layer_norm_parameters(
                self._params(x), weight, bias, eps, out.params, proofs.arithmetic, largest=largest
            )
        except InputError as error:
            raise UnsupportedError(error.found, where=node.where, expected=error.expected, fix=error.fix) from None
        proofs.bounded(2**31 - 1, constants.out)
        operands = [x]
        for name, codes, scale, dtype in (
            ("weight", constants.weight, constants.weight_scale, DType.I16),
            ("bias", constants.bias, constants.bias_scale, DType.I32),
        ):
            type = TensorType(dtype, tuple(codes.shape), QuantParams.of(scale, torch.tensor(0), None))
            operands.append(self._leaf(codes.to(dtype.torch), f"{out.quantizer.name}.{name}", out.quantizer, type))
        attributes = {
            "epsilon": constants.epsilon,
            "fraction": constants.fraction,
            "mode": str(constants.out.mode),
        }
        return self._insert("int_layer_norm", [*operands, *self._multiplier(constants.out, out)], attributes, out, node)

    def _rescale(self, source: Value, out: _Output) -> Value:
        x = self.lowered[source]
        arithmetic = self.arithmetic.at("rescale", x.type.dtype.bits)
        proofs = Proofs(source.producer or out.quantizer, arithmetic, self.target.name)
        requantization = rescale_multiplier(self._params(x), out.params, arithmetic)
        proofs.steps(self._steps(x), 1, requantization)
        attributes = {"mode": str(requantization.mode)}
        return self._insert("rescale", [x, *self._multiplier(requantization, out)], attributes, out, out.quantizer)

    def activation(self, node: Node, out: _Output) -> Value:
        raise PassError(f"{node.op} stands in front of a quantizer", where=node.where, fix="Run fuse-requantization.")

    def clamp_channels(self, node: Node, out: _Output) -> Value:
        """Set limits per channel: in the requantization of a layer, or as a separate instruction after other ops."""
        source, axis = node.inputs[0], cast("int", node.attributes["axis"])
        low, high = channel_limits(*channel_bounds(node), out.params, out.spec, out.qmin, out.qmax)
        whole = dataclasses.replace(out, qmin=min(low), qmax=max(high))
        limited = dataclasses.replace(whole, channels=(low, high))
        layer = source.producer
        if layer is not None and is_weighted(layer) and axis == Layer(layer).output_axis:
            return self._computed(source, limited)
        return self._insert("int_clamp", [self._computed(source, whole)], {"axis": axis}, limited, node)

    def _table(self, node: Node, out: _Output) -> Value:
        function = UNARY[node.op]
        table = self._tabulated(node, out, function.table(node))
        return self._lookup(node, out, table, {"parameters": function.parameters(node)})

    def scaled_unary(self, node: Node, out: _Output) -> Value:
        function = unary_of(node)
        scales = leaf_tensor(node.inputs[1]).to(torch.float64)
        different, rows = scales.unique(return_inverse=True)
        tables = torch.stack([self._tabulated(node, out, function.table(node, scale)) for scale in different.tolist()])
        attributes: dict[str, Attribute] = {
            "function": node.attributes["function"],
            "parameters": function.parameters(node),
            "scales": tuple(scales.tolist()),
            "axis": node.attributes["axis"],
        }
        return self._lookup(node, out, tables, attributes, rows)

    def prelu(self, node: Node, out: _Output) -> Value:
        slopes = leaf_tensor(node.inputs[1]).to(torch.float64).tolist()
        tables = torch.stack([self._tabulated(node, out, prelu_function(slope)) for slope in slopes])
        if len(slopes) == 1:
            return self._lookup(node, out, tables[0], {"parameters": tuple(slopes)})
        return self._lookup(node, out, tables, {"parameters": tuple(slopes), "axis": 1})

    def _tabulated(self, node: Node, out: _Output, function: RealFunction) -> Tensor:
        """A lookup table with an entry for each code of the operand."""
        x = self.lowered[node.inputs[0]]
        low, high = self.limits[x]
        most = self.target.table.max_entries
        if high - low >= most:
            raise UnsupportedError(
                f"a table of {high - low + 1} entries",
                where=node.where,
                expected=f"at most {most} on {self.target.name}",
                fix="Use fewer bits for what it reads, or let it run in float.",
            )
        return lookup_table(
            function,
            self._params(x),
            out.params,
            self._proofs(node).arithmetic,
            in_qmin=low,
            in_qmax=high,
            out_qmin=out.qmin,
            out_qmax=out.qmax,
        )

    def _lookup(
        self,
        node: Node,
        out: _Output,
        table: Tensor,
        attributes: Mapping[str, Attribute],
        rows: Tensor | None = None,
    ) -> Value:
        x = self.lowered[node.inputs[0]]
        dtype = DType(out.spec.dtype)
        size, most = table.numel() * dtype.torch.itemsize, self.target.table.max_bytes
        if most is not None and size > most:
            raise UnsupportedError(
                f"tables of {size} bytes",
                where=node.where,
                expected=f"at most {most} on {self.target.name}",
                fix="Use fewer bits, or equalize less: each factor of a channel is a table.",
            )
        type = TensorType(dtype, tuple(table.shape))
        value = self._leaf(table.to(dtype.torch), f"{out.quantizer.name}.table", out.quantizer, type)
        operands = [x, value]
        if rows is not None:
            operands.append(self._leaf(rows.to(torch.int32), f"{out.quantizer.name}.rows", out.quantizer))
        attributes = {"offset": self.limits[x][0], "function": node.op, **attributes}
        return self._insert("lookup", operands, attributes, out, node)

    def _movement(self, node: Node) -> Value:
        operands = [self.lowered[value] for value in node.inputs]
        attributes = dict(node.attributes)
        limits = [self.limits[value] for value in operands]
        if node.op == "pad":
            code = border_code(node, self._params(operands[0]), limits[0])
            attributes["value"] = float(code)
            if border(node) is not None:
                limits.append((code, code))
        moved = self.rewriter.insert(node.op, operands, attributes, before=node, like=node, name=f"{node.name}.int")
        self.limits[moved.output] = (min(low for low, _ in limits), max(high for _, high in limits))
        return moved.output

    def _avg_pool2d(self, node: Node) -> Value:
        x = self.lowered[node.inputs[0]]
        low, high = with_zero(node, self._params(x), self.limits[x])
        proofs = self._proofs(node)
        proofs.steps(self._steps(x), math.prod(cast("tuple[int, ...]", node.attributes["kernel"])))
        attributes = {
            **node.attributes,
            "rounding": str(proofs.arithmetic.average_rounding),
            "dtype": str(x.type.dtype),
            "qmin": low,
            "qmax": high,
        }
        pool = self.rewriter.insert(
            "int_avg_pool2d",
            [x],
            attributes,
            before=node,
            like=node,
            name=f"{node.name}.int",
            types=[TensorType(x.type.dtype, node.output.type.shape, x.type.quant)],
        )
        self.limits[pool.output] = (low, high)
        return pool.output

    def _resample(self, node: Node) -> Value:
        x = self.lowered[node.inputs[0]]
        low, high = self.limits[x]
        weights = resampling_weights(node)
        proofs = self._proofs(node)
        proofs.steps(self._steps(x), int(weights[2].max()))
        operands = [
            self._leaf(item.to(torch.int32), f"{node.name}.{name}", node)
            for name, item in zip(("rows", "columns", "divisor"), weights, strict=True)
        ]
        attributes: dict[str, Attribute] = {
            "rounding": str(proofs.arithmetic.average_rounding),
            "function": node.op,
            "parameters": tuple(value for key, value in node.attributes.items() if key in ("mode", "align_corners")),
            "dtype": str(x.type.dtype),
            "qmin": low,
            "qmax": high,
        }
        result = self.rewriter.insert(
            "int_resample2d",
            [x, *operands],
            attributes,
            before=node,
            like=node,
            name=f"{node.name}.int",
            types=[TensorType(x.type.dtype, node.output.type.shape, x.type.quant)],
        )
        self.limits[result.output] = (low, high)
        return result.output

    @staticmethod
    def _params(value: Value) -> AffineParams:
        quant = value.type.quant
        if quant is None:
            raise PassError(f"%{value.name} has no grid")
        return AffineParams(quant.scale_tensor(), quant.zero_point_tensor(), quant.axis)


_GEOMETRY = ("stride", "padding", "output_padding", "dilation", "groups")
_Rule = Callable[[_Lowering, Node, _Output], Value]
_RULES: dict[str, _Rule] = {
    "conv1d": _Lowering.mac,
    "conv2d": _Lowering.mac,
    "conv3d": _Lowering.mac,
    "conv_transpose1d": _Lowering.mac,
    "conv_transpose2d": _Lowering.mac,
    "conv_transpose3d": _Lowering.mac,
    "linear": _Lowering.mac,
    "add": _Lowering.add,
    "sub": _Lowering.add,
    "mul": _Lowering.mul,
    "mean": _Lowering.mean,
    "layer_norm": _Lowering.layer_norm,
    "prelu": _Lowering.prelu,
    SCALED: _Lowering.scaled_unary,
    "relu": _Lowering.activation,
    "clamp": _Lowering.activation,
    "clamp_channels": _Lowering.clamp_channels,
}


def _weight(value: Value) -> Tensor:
    """The integers of a weight: those of a leaf, or of one times its factors."""
    node = value.producer
    if node is None or node.op != "expand_blocks":
        return leaf_tensor(value)
    return evaluate_node(node, [leaf_tensor(item) for item in node.inputs])[0]


def _scalar_multiplier(name: str, item: Requantization | None) -> dict[str, Attribute]:
    if item is None:
        return {f"{name}_multiplier": None, f"{name}_exponent": None}
    multiplier, exponent = (None if part is None else part.item() for part in (item.multiplier, item.exponent))
    return {f"{name}_multiplier": multiplier, f"{name}_exponent": exponent}

"""Insert the quantizers that the target needs; their ranges are found later.

    x ──► conv(W, b) ──► relu ──► y        becomes

    x ─► fq ─► conv(fq(W), fq_bias(b)) ─► relu ─► fq ─► y

Every operand of an integer op comes from a quantizer, directly or through ops that only move elements. A border that
may be outside of the range of its operand gets a quantizer too. There is no quantizer between the members of a
supergroup of the target, such as a convolution and its activation. A concat has the grid of its operands: with a width
of its own it reads copies of that width, or operands without other readers get it. Weights get the target's weight grid
along their output-channel axis; the scale of a bias is the product of the scales of input and weight. The operands of a
float island are dequantized, and its results are quantized for integer ops. All scales start as NaN, which means "not
calibrated" and passes values unchanged, so this pass is exact.

Source: Nagel et al. 2021, arXiv:2106.08295, section 2.3 (which quantizer goes where).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcompiler.errors import TargetError, UnsupportedError
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops.borders import leaves_range
from qcompiler.ops.exact import computes_exactly
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.ops.movement import joins
from qcompiler.ops.quantizers import activation_bounds, is_leaf, is_quantizer, quantizer_of
from qcompiler.passes.base import Pass, PassContext, only_user
from qcompiler.passes.common.fixed_grids import fixed_grid
from qcompiler.passes.common.overrides import Overrides
from qcompiler.passes.common.own_grids import name_of_copy
from qcompiler.quant.blocks import block_axis, block_count
from qcompiler.quant.spec import QuantSpec
from qcompiler.targets import Target
from qcompiler.targets.schema import Simulation

INSERTED = Sentence("quantizer-inserted", "a quantizer {spec}")
BORDER = Sentence("border-quantized", "the border of {padded} may be outside of the range of its operand")
BITS_OF_INPUT = Sentence("bits-of-input", "{bits} bits were requested, but {op} keeps the grid of its input")
NO_SUCH_WIDTH = Sentence("no-such-width", "{bits} bits were requested, but {target} has no activations of that width")
WIDENED = Sentence("operand-widened", "{bits} bits, because only {reader} reads it")
WIDE_COPY = Sentence("operand-copied", "{reader} reads a copy of {operand} with {bits} bits")
ONE_SCALE = Sentence(
    "one-weight-scale", "one weight scale for all channels, because it is a transposed convolution with groups"
)


WIDE_RECIPROCAL = 16
"""Bits of a reciprocal that is a factor: 8 bits leave no digits of those of large divisors."""


@dataclass(frozen=True)
class InsertQuantizers(Pass):
    """Quantizers according to the target's descriptor and the user's overrides.

    Raises:
        InputError: An override matches nothing, or selects something that the target does not support.
        TargetError: The target lacks a width that an override selects.
        UnsupportedError: The target does not multiply the widths of an activation and a weight of a layer.
    """

    name: ClassVar[str] = "insert-quantizers"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.CANONICAL})
    becomes: ClassVar[Stage | None] = Stage.QUANTIZED
    requires: ClassVar[frozenset[str]] = frozenset({"partitioned"})
    establishes: ClassVar[frozenset[str]] = frozenset({"quantizers"})

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        target = context.require_target(self.name)
        overrides = Overrides.resolve(context.overrides, graph)
        placement = _Placement(graph, target, overrides, context.rewriter(graph))
        if target.simulation is None:
            placement.run()
        else:
            placement.run_layer_inputs(target.simulation)


class _Placement:
    def __init__(self, graph: Graph, target: Target, overrides: Overrides, rewriter: Rewriter) -> None:
        self.graph = graph
        self.target = target
        self.overrides = overrides
        self.rewriter = rewriter
        self.scales: dict[Value, Value] = {}
        """The scale of the grid of each quantized value."""
        self.repeated: dict[tuple[str, Value, QuantSpec], Node] = {}
        """The quantizer of a weight that every step of a loop reads, by place, weight and grid."""
        self.requested: dict[Node, int] = {}
        """Requested width of a supergroup, by the last node, after which the quantizer is inserted."""

    def run(self) -> None:
        nodes = [node for node in self.graph.nodes if not node.definition.has(Trait.LEAF)]
        first = next(self.graph.nodes, None)
        for value in self.graph.inputs:
            readers = [user for user in value.users if user.callee is None]
            if first is not None and value.type.dtype.is_float and readers:
                spec = self.target.activation_spec()
                self._quantize(value, spec, before=first, like=first, stem=value.name, only=readers)
        for node in nodes:
            if node.callee is not None:
                self._quantize_results(node)
                continue
            if computes_exactly(node):
                continue
            for index, value in enumerate(node.inputs):
                if self._is_plain_constant(node, index):
                    spec = self.target.activation_spec(op=node.op)
                    self._quantize(value, spec, before=node, like=node, stem=value.name, only=[node])
            if is_weighted(node):
                self._quantize_parameters(node)
            if node.definition.has(Trait.CONTRACTION):
                self._fit_second_operand(node)
            self._propagate_or_quantize(node)

    def run_layer_inputs(self, scheme: Simulation) -> None:
        """Insert quantizers only on operands of layers, the scheme of a simulation target."""
        layers = [node for node in self.graph.nodes if node.definition.has(Trait.MAC)]
        for index, node in enumerate(layers):
            is_first, is_last = index == 0, index == len(layers) - 1
            bits = scheme.first_last_bits if is_first or is_last else None
            for position, value in enumerate(node.inputs[:1] if is_weighted(node) else node.inputs):
                if is_first and scheme.first_input == "float":
                    continue
                own = self.overrides.activation_bits(node) or (bits if is_last else None)
                spec = self.target.activation_spec(op=node.op, bits=own)
                spec = dataclasses.replace(spec, signed=not _is_never_negative(value))
                stem = f"{node.name}.input" if position == 0 else f"{node.name}.input{position}"
                self._quantize(value, spec, before=node, like=node, stem=stem, only=[node])
            if is_weighted(node):
                self._quantize_weight(node, self.overrides.weight_bits(node) or bits)

    def _is_plain_constant(self, node: Node, index: int) -> bool:
        """Whether operand `index` is a tensor of the module that is quantized like an activation."""
        value = node.inputs[index]
        is_parameter = index > 0 and node.definition.has(Trait.WEIGHTED, Trait.PARAMETRIC)
        return is_leaf(value) and not is_parameter and value.type.dtype.is_float

    def _quantize_parameters(self, node: Node) -> None:
        quantized = self._quantize_weight(node, self.overrides.weight_bits(node))
        if len(node.inputs) < 3:
            return
        scale = self.rewriter.insert(
            "scale_product",
            [self.scales[node.inputs[0]], self.scales[quantized]],
            before=node,
            like=node,
            name=f"{node.name}.bias.scale",
        )
        arithmetic = self.target.arithmetic.at(node.op, self._bits_read(node))
        bias = self.rewriter.insert(
            "fake_quantize_bias",
            [node.inputs[2], scale.output],
            {"rounding": str(arithmetic.bias_rounding), "bits": arithmetic.bias_bits},
            before=node,
            like=node,
            name=f"{node.name}.bias.q",
        )
        self.rewriter.replace_input(node, 2, bias.output)

    def _fit_second_operand(self, node: Node) -> None:
        """Give a product of two activations a copy of its second operand if the core does not multiply the widths."""
        sources = [quantizer_of(value) for value in node.inputs]
        first, second = (self.target.activation_bits if item is None else item.spec.bits for item in sources)
        bits = self.target.second_width(node.op, first, second)
        if bits is None:
            raise UnsupportedError(
                self.target.unmultiplied(node.op, first, second),
                where=node.where,
                expected="a pair of widths that the core multiplies",
                fix="Override the widths of the operands of this product.",
            )
        if bits != second:
            spec = self.target.activation_spec(op=node.op, bits=bits)
            stem = name_of_copy(node, 1).removesuffix(".q")
            copy = self._quantize(node.inputs[1], spec, before=node, like=node, stem=stem, only=[node])
            name = node.inputs[1].name if sources[1] is None else sources[1].name
            self.rewriter.note(copy, WIDE_COPY(operand=name, bits=bits, reader=node.name))

    def _quantize_weight(self, node: Node, bits: int | None) -> Value:
        """Put a quantizer on the weight of a layer whose input has one."""
        layer = Layer(node)
        spec = self.target.weight_spec(node.op, layer.weight_axis, bits=bits)
        if layer.transposed and layer.groups != 1 and spec.axis is not None:
            # Along that axis each entry of the weight belongs to one output channel of every group.
            spec = dataclasses.replace(spec, axis=None, block=None)
            self.rewriter.refuse(node, ONE_SCALE())
        why = self.target.unmultiplied(node.op, self._bits_read(node), spec.bits)
        if why:
            fix = "Override the widths of this layer or of its input."
            raise UnsupportedError(why, where=node.where, expected="a pair of widths that the core multiplies", fix=fix)
        weight = node.inputs[1]
        key = (node.location.place, weight, spec)
        if key in self.repeated:
            self.rewriter.replace_input(node, 1, self.repeated[key].output)
            return self.repeated[key].output
        quantizer = self._quantize(weight, spec, before=node, like=node, stem=f"{node.name}.weight", only=[node])
        if node.location.place:
            self.repeated[key] = quantizer
        return quantizer.output

    def _bits_read(self, node: Node) -> int:
        """Width of the input of a layer."""
        source = quantizer_of(node.inputs[0])
        return self.target.activation_bits if source is None else source.spec.bits

    def _quantize_results(self, call: Node) -> None:
        """Quantize values that pass from a float island to the integer core; outputs of the model stay float."""
        for value in call.outputs:
            readers = [user for user in value.users if user.callee is None]
            if value.type.dtype.is_float and readers:
                spec = self.target.activation_spec()
                self._quantize(value, spec, before=call.following, like=call, stem=value.name, only=readers)

    def _propagate_or_quantize(self, node: Node) -> None:
        value = node.output
        bits = self.overrides.activation_bits(node) or self.requested.get(node) or self._bits_of_reciprocal(node)
        if node.definition.has(Trait.MOVEMENT):
            joined = joins(node) and not leaves_range(node)
            if joined and bits is not None:
                self._widen_operands(node, bits)
            self.scales[value] = self.scales[node.inputs[0]]
            if leaves_range(node):
                self._quantize_border(node, bits)
            elif bits is not None and not joined:
                self.rewriter.refuse(node, BITS_OF_INPUT(bits=bits, op=node.op))
            return
        follower = only_user(node)
        if follower is not None and self.target.absorbs(node.op, follower.op):
            if bits is not None:
                self.requested[follower] = bits
            return  # the quantizer comes after the last member of the supergroup
        spec = self.target.activation_spec(op=node.op, bits=bits)
        self._quantize(value, spec, before=node.following, like=node, stem=node.name)

    def _bits_of_reciprocal(self, node: Node) -> int | None:
        """A wide grid for the reciprocal of a divisor, whose values are far apart, if the target has one."""
        if node.op != "reciprocal" or not all(user.op == "mul" for user in node.output.users):
            return None
        try:
            return self.target.activation_spec(op=node.op, bits=WIDE_RECIPROCAL).bits
        except TargetError:
            return None

    def _widen_operands(self, node: Node, bits: int) -> None:
        """Give the operands of a concat, and thereby its result, another width."""
        try:
            spec = self.target.activation_spec(op=node.op, bits=bits)
        except TargetError:
            self.rewriter.refuse(node, NO_SUCH_WIDTH(bits=bits, target=self.target.name))
            return
        for index, value in enumerate(node.inputs):
            source = quantizer_of(value)
            if source is None or source.spec == spec:
                continue
            if self._may_widen(source, node):
                self.rewriter.set_attributes(source, spec=spec)
                self.rewriter.note(source, WIDENED(bits=bits, reader=node.name))
                continue
            # Other nodes read the operand as well, or its width is given.
            stem = name_of_copy(node, index).removesuffix(".q")
            copy = self._quantize(value, spec, before=node, like=node, stem=stem, only=[node])
            self.rewriter.note(copy, WIDE_COPY(operand=source.name, bits=bits, reader=node.name))

    def _may_widen(self, source: Node, reader: Node) -> bool:
        """Whether only `reader` reads a quantizer, and neither the target nor an override gives it a width."""
        value, node = source.output, only_user(source)
        while node is not None and node is not reader and node.definition.has(Trait.MOVEMENT) and len(node.inputs) == 1:
            value, node = node.output, only_user(node)
        maker = source.inputs[0].producer
        given = maker is not None and self.overrides.activation_bits(maker) is not None
        return node is reader and reader.inputs.count(value) == 1 and not given and not fixed_grid(source, self.target)

    def _quantize_border(self, node: Node, bits: int | None) -> None:
        """Insert a quantizer whose range includes a border; the operand is rescaled to its grid later."""
        source = quantizer_of(node.inputs[0])
        own = self.target.activation_spec(op=node.op, bits=bits)
        spec = own if source is None or bits is not None else source.spec
        quantizer = self._quantize(node.output, spec, before=node.following, like=node, stem=node.name)
        self.rewriter.note(quantizer, BORDER(padded=node.name))

    def _quantize(
        self,
        value: Value,
        spec: QuantSpec,
        *,
        before: Node | None,
        like: Node,
        stem: str,
        only: Sequence[Node] | None = None,
    ) -> Node:
        """Put a quantizer on `value` for all its users, or for `only`."""
        channels = () if spec.axis is None else (value.type.shape[spec.axis],)
        size = tuple(int(c) for c in channels if isinstance(c, int))
        scale = self.rewriter.leaf("parameter", torch.full(size, torch.nan), ref=f"{stem}.scale", before=before)
        zero = torch.zeros(size, dtype=torch.int32)
        zero_point = self.rewriter.leaf("state", zero, ref=f"{stem}.zero_point", before=before)
        factors = []
        if spec.block is not None and spec.axis is not None:
            count = block_count(value.type.size(block_axis(spec.axis)), spec.block)
            ones = torch.ones(*size, count, dtype=torch.uint8)
            factors.append(self.rewriter.leaf("state", ones, ref=f"{stem}.factors", before=before))
        users = list(value.users if only is None else only)
        is_output = only is None and self.graph.is_output(value)
        node = self.rewriter.insert(
            "fake_quantize",
            [value, scale, zero_point, *factors],
            {"spec": spec},
            before=before,
            like=like,
            name=f"{stem}.q",
        )
        self.rewriter.replace_uses(value, node.output, only=users)
        if is_output:
            self.graph.set_outputs([node.output if out is value else out for out in self.graph.outputs])
        self.scales[node.output] = scale
        self.rewriter.note(node, INSERTED(spec=str(spec)))
        return node


def _is_never_negative(value: Value) -> bool:
    """Whether the graph proves that all elements of `value` are at least 0."""
    node = value.producer
    if node is None:
        return False
    if is_quantizer(node):
        return _is_never_negative(node.inputs[0])
    if node.definition.has(Trait.NOT_NEGATIVE):
        return True
    if node.definition.has(Trait.ACTIVATION):
        return activation_bounds(node)[0] >= 0.0
    if not node.definition.has(Trait.KEEPS_SIGN) or node.number("value", 0.0) < 0.0:  # the value of a border
        return False
    return all(map(_is_never_negative, node.inputs))

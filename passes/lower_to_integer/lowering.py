"""The integer form of a graph while it is written: lowered values, their code limits, and what rules insert."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from qcompiler.errors import PassError, UnsupportedError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.table import Table
from qcompiler.ir.types import DType, QuantParams, TensorType
from qcompiler.passes.common.proofs import Proofs
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.arithmetic import Arithmetic, rescale_multiplier
from qcompiler.quant.requant import Requantization
from qcompiler.quant.spec import QuantSpec
from qcompiler.targets import Target

LOWERED = Sentence("lowered", "{op} and its quantizer in integers")


@dataclass(frozen=True)
class Output:
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
        """Lowest and highest code, as attributes of the integer op."""
        low, high = self.channels or ((self.qmin,), (self.qmax,))
        return {"qmin": low if len({*low}) > 1 else low[0], "qmax": high if len({*high}) > 1 else high[0]}


class Lowering:
    """The state of one lowering, and the helpers of its rules.

    Args:
        graph: The graph.
        target: The target.
        rewriter: Rewriter for all edits.
        rules: Rules of operators that are followed by a quantizer.
    """

    def __init__(self, graph: Graph, target: Target, rewriter: Rewriter, rules: Table[Lower]) -> None:
        self.graph = graph
        self.target = target
        self.arithmetic: Arithmetic = target.arithmetic
        self.rewriter = rewriter
        self.rules = rules
        self.lowered: dict[Value, Value] = {}
        """Integer value of each value that has one."""
        self.limits: dict[Value, tuple[int, int]] = {}
        """Lowest and highest code of each lowered value."""
        self._repeated: dict[tuple[object, ...], Value] = {}
        """Constants of the steps of loops, by place, role and elements."""

    def computed(self, source: Value, out: Output) -> Value:
        """The codes of `source`, computed for this quantizer.

        Raises:
            UnsupportedError: An operator has no rule, or its rule refuses it.
        """
        if source in self.lowered:
            return self.rescaled(source, out)
        node = source.producer
        if node is None or node.op == "call":  # real numbers of an input or a float island
            return self.insert("quantize", [source], {"rounding": str(out.spec.rounding)}, out, out.quantizer)
        rule = self.rules.find(node.definition)
        if rule is None:
            raise UnsupportedError(f"{node.op} has no integer form", where=node.where)
        return rule(self, node, out)

    def rescaled(self, source: Value, out: Output) -> Value:
        """The codes of a lowered value on another grid."""
        x = self.lowered[source]
        arithmetic = self.arithmetic.at("rescale", x.type.dtype.bits)
        proofs = Proofs(source.producer or out.quantizer, arithmetic, self.target.name)
        requantization = rescale_multiplier(self.params(x), out.params, arithmetic)
        proofs.steps(self.steps(x), 1, requantization)
        attributes = {"mode": str(requantization.mode)}
        return self.insert("rescale", [x, *self.multiplier(requantization, out)], attributes, out, out.quantizer)

    def insert(
        self, op: str, inputs: Sequence[Value], attributes: Mapping[str, Attribute], out: Output, like: Node
    ) -> Value:
        """The result of a new integer op on the grid of a quantizer.

        Args:
            op: Name of the op.
            inputs: Operands of the op.
            attributes: Attributes of the op without element type and code limits.
            out: The quantizer.
            like: The op that it replaces.
        """
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
        self.rewriter.note(node, LOWERED(op=like.op))
        self.limits[node.output] = (out.qmin, out.qmax)
        return node.output

    def leaf(self, tensor: Tensor, ref: str, like: Node, type: TensorType | None = None) -> Value:
        """A new constant of the module with the name `ref`. The steps of a loop share constants with equal elements."""
        tensor = tensor.contiguous()
        place, role = like.location.place, ref.rpartition(".")[2]
        key = (place, role, tensor.dtype, tensor.shape, tensor.cpu().numpy().tobytes()) if place else None
        if key is not None and key in self._repeated:
            return self._repeated[key]
        leaf = self.rewriter.leaf("constant", tensor, ref=ref, before=like, like=like, type=type)
        if key is not None:
            self._repeated[key] = leaf
        return leaf

    def multiplier(self, requantization: Requantization, out: Output) -> list[Value]:
        """The parts of a multiplier as constants."""
        parts = (("multiplier", requantization.multiplier), ("exponent", requantization.exponent))
        return [
            self.leaf(part.reshape(-1), f"{out.quantizer.name}.{name}", out.quantizer)
            for name, part in parts
            if part is not None
        ]

    def proofs(self, node: Node) -> Proofs:
        """The conditions on a node, computed with the target's arithmetic; they may depend on the input's width."""
        read = node.inputs[:1] if node.definition.has(Trait.WEIGHTED) else node.inputs[:2]
        bits = [self.lowered[value].type.dtype.bits for value in read if value in self.lowered]
        return Proofs(node, self.arithmetic.at(node.op, max(bits, default=8)), self.target.name)

    def keep_grid(
        self, op: str, inputs: Sequence[Value], attributes: Mapping[str, Attribute], limits: tuple[int, int], node: Node
    ) -> Value:
        """The result of a new integer op on the grid of its first operand.

        Args:
            op: Name of the op.
            inputs: Operands of the op.
            attributes: Attributes of the op without element type and code limits.
            limits: Lowest and highest code of the result.
            node: The op that it replaces.
        """
        x = inputs[0].type
        result = self.rewriter.insert(
            op,
            inputs,
            {**attributes, "dtype": str(x.dtype), "qmin": limits[0], "qmax": limits[1]},
            before=node,
            like=node,
            name=f"{node.name}.int",
            types=[TensorType(x.dtype, node.output.type.shape, x.quant)],
        )
        self.limits[result.output] = limits
        return result.output

    def steps(self, value: Value) -> tuple[int, int]:
        """Smallest and largest code of an activation, zero point removed.

        The range always includes 0, which padding adds and which stands for missing terms of unfinished sums. The
        bounds of a final sum therefore hold for every partial sum, in any order, that starts with the bias.
        """
        low, high = self.limits[value]
        zero_point = int(self.params(value).zero_point)
        return min(low - zero_point, 0), max(high - zero_point, 0)

    @staticmethod
    def params(value: Value) -> AffineParams:
        """The grid of a lowered value.

        Raises:
            PassError: The value has no grid.
        """
        quant = value.type.quant
        if quant is None:
            raise PassError(f"%{value.name} has no grid")
        return AffineParams(quant.scale_tensor(), quant.zero_point_tensor(), quant.axis)


Lower: TypeAlias = Callable[[Lowering, Node, Output], Value]
"""(lowering, an operator, its quantizer) -> the codes of its result for that quantizer."""
Keep: TypeAlias = Callable[[Lowering, Node], Value]
"""(lowering, an operator on codes) -> the codes of its result on the grid of its first operand."""

"""The pass: quantizers with the operators before them become integer operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.errors import PassError
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import LEAVES
from qcompiler.ir.types import DType, QuantParams, Stage
from qcompiler.ops.borders import leaves_range
from qcompiler.ops.exact import computes_exactly
from qcompiler.ops.quantizers import code_limits, grid
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.lower_to_integer.lowering import Lowering, Output
from qcompiler.passes.lower_to_integer.rules import KEEPS, LOWERS
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
        _Run(Lowering(graph, target, context.rewriter(graph), LOWERS)).run()


class _Run:
    def __init__(self, state: Lowering) -> None:
        self.state, self.graph, self.rewriter = state, state.graph, state.rewriter

    def run(self) -> None:
        old = list(self.graph.nodes)
        names: dict[Value, str] = {}
        quantized: set[Value] = set()
        for node in old:
            if node.op == "call":
                self._call(node)
                continue
            if computes_exactly(node) and node.op not in LEAVES:
                self._keep(node)
                continue
            if node.op == "fake_quantize":
                result = self._quantized(node)
            elif node.inputs and node.inputs[0] in self.state.lowered and (rule := KEEPS.find(node.definition)):
                result = rule(self.state, node)
            else:
                continue  # lowered together with the quantizer that reads it
            self.state.lowered[node.output] = result
            if result not in quantized:
                names[result] = node.name  # a second quantizer with the same grid has no effect and no name
            if node.op == "fake_quantize":
                quantized.add(result)
        self._set_outputs(old)
        for node in reversed(old):
            if all(not value.users and not self.graph.is_output(value) for value in node.outputs):
                self.rewriter.erase(node)
        alive = set(self.graph.nodes)
        leftover = [
            node for node in old if node in alive and node.op not in (*LEAVES, "call") and not computes_exactly(node)
        ]
        if leftover:
            last = leftover[-1]  # the nodes before it are alive only because it reads them
            raise PassError(f"{last.op} has no integer form", where=last.where, expected="a quantizer after it")
        for value, name in names.items():
            self.rewriter.rename(value, name)

    def _keep(self, node: Node) -> None:
        """Keep a node that computes integers or booleans; it may read the sizes of a quantized value."""
        for index, value in enumerate(node.inputs):
            if value in self.state.lowered:
                self.rewriter.replace_input(node, index, self.state.lowered[value])

    def _set_outputs(self, old: Sequence[Node]) -> None:
        outputs = []
        for value in self.graph.outputs:
            if value not in self.state.lowered:
                outputs.append(value)
                continue
            like = value.producer or old[-1]
            node = self.rewriter.insert(
                "dequantize", [self.state.lowered[value]], before=None, like=like, name=f"{value.name}.real"
            )
            outputs.append(node.output)
        self.graph.set_outputs(outputs)

    def _quantized(self, quantizer: Node) -> Value:
        params, spec = grid(quantizer)
        out = Output(quantizer, params, spec, *code_limits(quantizer))
        source = quantizer.inputs[0]
        if source in self.state.lowered:
            lowered = self.state.lowered[source]
            low, high = self.state.limits[lowered]
            same = QuantParams.of(out.params.scale, out.params.zero_point, out.params.axis) == lowered.type.quant
            if same and DType(out.spec.dtype) is lowered.type.dtype:
                if (low, high) == (out.qmin, out.qmax):
                    return lowered  # the average already has the quantizer's scale and zero point
                if (
                    source.producer is not None
                    and leaves_range(source.producer)
                    and out.qmin <= low <= high <= out.qmax
                ):
                    self.state.limits[lowered] = (out.qmin, out.qmax)
                    return lowered  # so does a border, whose operand was rescaled before
        return self.state.computed(source, out)

    def _call(self, node: Node) -> None:
        """Insert one dequantize for each value that a float island reads."""
        for value in dict.fromkeys(node.inputs):
            if value not in self.state.lowered:
                continue
            real = self.rewriter.insert(
                "dequantize", [self.state.lowered[value]], before=node, like=node, name=f"{value.name}.real"
            )
            for index, operand in enumerate(node.inputs):
                if operand is value:
                    self.rewriter.replace_input(node, index, real.output)

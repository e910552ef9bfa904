"""Evaluate a QUANTIZED graph on codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from qcompiler.errors import GraphError
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import Evaluation, Tensors, check_inputs, interpret, interpret_with
from qcompiler.ir.types import Stage
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.validation.exact.rules import QUANTIZERS, RULES
from qcompiler.validation.exact.values import Codes, Exact, real_of


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
        if node.op == "call":
            return evaluation(node, [x.real() if isinstance(x, Codes) else real_of(node, x) for x in operands])
        if node.op not in QUANTIZERS and all(isinstance(item, Tensor) for item in operands):
            return evaluation(node, cast("Sequence[Tensor]", operands))
        found = RULES.find(node.definition)
        if found is None:
            fix = "Quantize around it, not through it."
            raise GraphError(f"{node.op} has no exact evaluation", where=node.where, fix=fix)
        return (found(node, operands, arithmetic),)

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

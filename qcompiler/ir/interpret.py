"""One interpreter for every stage.

It visits the nodes once and frees each tensor after its last use, so that memory is bounded by the live tensors. A
*rule* maps a node and its operands to its results; by default, the evaluation of the op in torch. Hooks receive every
value: calibration, layer capture, debugging and validation are such hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from qcompiler.errors import GraphError, InputError
from qcompiler.ir.dims import bind
from qcompiler.ir.graph import Graph, Node, Value

T = TypeVar("T")


def evaluate_node(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The results of `node` in torch: a tensor of the module for leaves, else the evaluation of the op."""
    if node.op in LEAVES:
        return (node.graph.module.tensors[str(node.attributes["ref"])],)
    if node.op == "call":
        # The order of sums in torch kernels follows the strides, so equal bits need equal strides in every form.
        contiguous = [tensor.contiguous() for tensor in operands]
        return tuple(interpret(node.graph.module.graphs[str(node.attributes["graph"])], contiguous))
    return node.definition.evaluate(node, operands)


LEAVES = ("parameter", "state", "constant")
"""Ops that return a tensor of the module, named by the attribute `ref`."""


def interpret(
    graph: Graph,
    inputs: Sequence[Tensor],
    observe: Callable[[Value, Tensor], None] | None = None,
    replace: Callable[[Value, Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """Run `graph` in torch.

    Args:
        graph: Graph at any stage.
        inputs: One tensor per graph input, of the declared element type and shape.
        observe: Callback with each value and its tensor, inputs first, in order.
        replace: Function that replaces the tensor read by the users of a value; `observe` receives the original.

    Returns:
        Flat outputs.

    Raises:
        InputError: An input does not fit its declared type.
    """
    check_inputs(graph, inputs)
    return interpret_with(graph, inputs, evaluate_node, observe, replace)


def interpret_with(
    graph: Graph,
    inputs: Sequence[T],
    rule: Callable[[Node, Sequence[T]], tuple[T, ...]],
    observe: Callable[[Value, T], None] | None = None,
    replace: Callable[[Value, T], T] | None = None,
) -> list[T]:
    """Run `graph` in any domain: `rule` maps a node and its operands to its results. Hooks as in `interpret`."""
    environment: dict[Value, T] = {}
    remaining: dict[Value, int] = {}

    def define(value: Value, result: T) -> None:
        if observe is not None:
            observe(value, result)
        if replace is not None:
            result = replace(value, result)
        uses = sum(value.users.values())
        if uses or graph.is_output(value):
            environment[value] = result
            remaining[value] = uses

    for value, tensor in zip(graph.inputs, inputs, strict=True):
        define(value, tensor)
    for node in graph.nodes:
        results = rule(node, [environment[value] for value in node.inputs])
        if len(results) != len(node.outputs):
            raise GraphError(
                f"{node.op} gave {len(results)} results", where=node.where, expected=str(len(node.outputs))
            )
        for value in node.inputs:
            remaining[value] -= 1
            if not remaining[value] and not graph.is_output(value):
                del environment[value]
        for value, result in zip(node.outputs, results, strict=True):
            define(value, result)
    return [environment[value] for value in graph.outputs]


def check_inputs(graph: Graph, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Match `inputs` against the declared types.

    Returns:
        The value of each symbol of the shapes.

    Raises:
        InputError: The number of inputs, an element type, a shape, or a symbol outside its bounds.
    """
    if len(inputs) != len(graph.inputs):
        raise InputError(f"{len(inputs)} inputs were given", expected=str(len(graph.inputs)))
    bindings: dict[str, int] = {}
    for value, tensor in zip(graph.inputs, inputs, strict=True):
        if tensor.dtype != value.type.dtype.torch:
            raise InputError(f"input {value.name!r} has element type {tensor.dtype}", expected=str(value.type))
        difference = bind(value.type.shape, tensor.shape, bindings)
        if difference is not None:
            raise InputError(
                f"input {value.name!r} has shape {list(tensor.shape)}: {difference}", expected=str(value.type)
            )
    for name, size in bindings.items():
        low, high = graph.bounds.get(name, (1, size))
        if not low <= size <= high:
            raise InputError(f"the size {name} is {size}", expected=f"between {low} and {high}")
    return bindings

"""One interpreter for every stage.

It visits the nodes once and frees each tensor after its last use, so that memory is bounded by the live tensors. A
*rule* maps a node and its operands to its results; `Evaluation` is the rule that evaluates ops in torch. Hooks receive
every value: calibration, layer capture, debugging and validation are such hooks.

A run is a function: it reads the tensors and the state that it is given, and returns the outputs and the new state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar

from torch import Tensor

from qcompiler.errors import GraphError, InputError
from qcompiler.ir.dims import bind
from qcompiler.ir.graph import Graph, Node, Value

T = TypeVar("T")
Tensors: TypeAlias = Mapping[str, Tensor]
"""Tensors by the name under which leaves refer to them."""

LEAVES = ("parameter", "state", "constant")
"""Ops that return a tensor of the run, named by the attribute `ref`."""


def evaluate_node(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The results of an operator in torch. Leaves and calls need the tensors of a run; see `Evaluation`."""
    return node.definition.evaluate(node, operands)


class Evaluation:
    """The rule that evaluates every node in torch.

    Leaves read the values from before the run, so that the order of nodes does not matter to a state and its update.

    Args:
        tensors: Tensors that leaves read. They are not changed.
        state: Values of states, which replace those in `tensors`.

    Attributes:
        state: `state`, and the new values of the states that evaluated nodes have updated.
    """

    def __init__(self, tensors: Tensors, state: Tensors | None = None) -> None:
        self._tensors, self._before = tensors, dict(state or {})
        self.state = dict(self._before)

    def __call__(self, node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The results of `node`."""
        if node.op in LEAVES:
            ref = node.text("ref")
            return (self._before[ref] if ref in self._before else self._tensors[ref],)
        if node.op == "call":
            called = node.graph.module.graphs[node.text("graph")]
            # The order of sums in torch kernels follows the strides, so equal bits need equal strides in every form.
            return tuple(interpret_with(called, [tensor.contiguous() for tensor in operands], self))
        if node.definition.update is not None:
            for position, tensor in node.definition.update(node, operands).items():
                self.state[_state_of(node, position)] = tensor
        return evaluate_node(node, operands)


def _state_of(node: Node, position: int) -> str:
    """Name of the state that `node` reads as its operand at `position`."""
    leaf = node.inputs[position].producer
    if leaf is None or leaf.op != "state":
        raise GraphError(
            f"{node.op} updates its operand {node.inputs[position]}", where=node.where, expected="a state of the model"
        )
    return leaf.text("ref")


def interpret(
    graph: Graph,
    inputs: Sequence[Tensor],
    tensors: Tensors,
    *,
    state: Tensors | None = None,
    observe: Callable[[Value, Tensor], None] | None = None,
    replace: Callable[[Value, Tensor], Tensor] | None = None,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Run `graph` in torch: a function of inputs, tensors and state, which changes none of them.

    Args:
        graph: Graph at any stage.
        inputs: One tensor per graph input, of the declared element type and shape.
        tensors: Tensors that leaves read, usually those of the module.
        state: Values of states, which replace those in `tensors`.
        observe: Callback with each value and its tensor, inputs first, in order.
        replace: Function that replaces the tensor read by the users of a value; `observe` receives the original.

    Returns:
        Flat outputs, and the state of the next run: `state` with the updates.

    Raises:
        InputError: An input does not fit its declared type.
        GraphError: A node updates an operand that is no state.
    """
    check_inputs(graph, inputs)
    rule = Evaluation(tensors, state)
    outputs = interpret_with(graph, inputs, rule, observe, replace)
    return outputs, rule.state


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
    """Uses still to come of the values that are no outputs."""

    def define(value: Value, result: T) -> None:
        if observe is not None:
            observe(value, result)
        if replace is not None:
            result = replace(value, result)
        if graph.is_output(value):
            environment[value] = result
        elif value.users:
            environment[value] = result
            remaining[value] = sum(value.users.values())

    for value, tensor in zip(graph.inputs, inputs, strict=True):
        define(value, tensor)
    for node in graph.nodes:
        results = rule(node, [environment[value] for value in node.inputs])
        if len(results) != len(node.outputs):
            raise GraphError(
                f"{node.op} returned {len(results)} results", where=node.where, expected=str(len(node.outputs))
            )
        for value in node.inputs:
            if value in remaining:
                remaining[value] -= 1
                if not remaining[value]:
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

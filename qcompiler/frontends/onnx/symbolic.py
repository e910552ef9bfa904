"""Values that depend on the inputs of a model: tensors and sizes, which record what is computed with them.

A traced tensor holds a node of an fx graph and its shape at one or two batch sizes, as tensors without data. `apply`
calls a function of torch: it appends a node if an argument is traced, and computes the result otherwise. A size that
differs between the batch sizes is a traced number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, fx

from qcompiler.frontends.trace import PATH, PLACE, SOURCE, Leaf
from qcompiler.ir.graph import Location

__all__ = ["Operand", "Recording", "Size", "Traced", "Whole", "apply", "parts"]

_map = cast("Callable[[Any, Callable[[Any], Any]], Any]", fx.node.map_aggregate)


def apply(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Operand:
    """The tensor that a function of torch returns: recorded if an argument is traced, computed otherwise."""
    return cast("Operand", _applied(function, arguments, keywords))


def parts(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> list[Operand]:
    """The tensors that a function of torch returns, as `apply`."""
    return list(_applied(function, arguments, keywords))


def _applied(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    found: list[Recording] = []
    _map(
        (arguments, dict(keywords)),
        lambda item: found.append(item.recording) if isinstance(item, Traced | Size) else None,
    )
    return found[0].call(function, arguments, keywords) if found else function(*arguments, **keywords)


def _whole(function: Callable[..., Any], *arguments: Any) -> Whole:
    return cast("Whole", _applied(function, arguments, {}))


class Recording:
    """An fx graph that grows, and the tensors of the model that it reads.

    Args:
        runs: Number of batch sizes.
    """

    def __init__(self, runs: int) -> None:
        self.graph = fx.Graph()
        self.runs = runs
        self.location = Location()
        self.leaves: dict[str, Leaf] = {}
        """Tensors of the model by the name of their placeholder."""
        self.names: dict[int, tuple[Tensor, str, str]] = {}
        """Kind and name of a tensor of the model, by its id; the tensor keeps the id valid."""
        self._taken: dict[str, tuple[Tensor, fx.Node]] = {}
        self._placed: dict[int, tuple[Tensor, fx.Node]] = {}
        self._last_input: fx.Node | None = None

    def input(self, name: str, shapes: Sequence[Tensor]) -> Traced:
        """A new input of the graph.

        Args:
            name: Name of the placeholder.
            shapes: Tensors without data, one for each batch size.
        """
        return Traced(self, self._placeholder(name), tuple(shapes))

    def name(self, tensor: Tensor, kind: str, name: str) -> Tensor:
        """The tensor, which from now on is a tensor of the model; a number follows the name if another one has it."""
        self.names[id(tensor)] = (tensor, kind, name)
        return tensor

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        """Append a call, and compute the shape of its result."""
        given = (arguments, dict(keywords))
        results = []
        for run in range(self.runs):
            positional, named = _map(given, lambda item, run=run: _without_data(item, run))  # type: ignore[misc]
            with torch.device("meta"):
                results.append(function(*positional, **named))
        nodes = _map(given, self._node_of)
        return self._wrapped(self._note(self.graph.call_function(function, *nodes)), results)

    def size(self, of: Traced, axis: int, values: Sequence[int]) -> Whole:
        """A size of a tensor."""
        if len(set(values)) == 1:
            return values[0]
        return Size(self, self._note(self.graph.call_method("size", (of.node, axis))), tuple(values))

    def node_of_result(self, item: Operand) -> fx.Node:
        """The node of a result of the model."""
        return cast("fx.Node", self._node_of(item))

    def _note(self, node: fx.Node) -> fx.Node:
        at = self.location
        node.meta[PATH], node.meta[SOURCE], node.meta[PLACE] = at.path, at.source, at.place
        return node

    def _placeholder(self, name: str) -> fx.Node:
        after = self._last_input or self.graph._root
        with self.graph.inserting_after(after):
            node = self.graph.placeholder(name)
        self._last_input = node
        return node

    def _node_of(self, item: Any) -> Any:
        if isinstance(item, Traced | Size):
            return item.node
        if not isinstance(item, Tensor):
            return item
        if id(item) not in self._placed:
            self._placed[id(item)] = (item, self._node_of_tensor(item))
        return self._placed[id(item)][1]

    def _node_of_tensor(self, tensor: Tensor) -> fx.Node:
        """The node of a tensor of the model; that of an equal one of the same name, if there is one."""
        _, kind, name = self.names.get(id(tensor), (tensor, "constant", ""))
        chosen, count = name, 0
        while name and chosen in self._taken:
            other, node = self._taken[chosen]
            if _same(other, tensor):
                return node
            count += 1
            chosen = f"{name}_{count}"
        node = self._placeholder(chosen or "constant")
        self._taken[chosen] = (tensor, node)
        self.leaves[node.name] = Leaf(kind, chosen, tensor)
        return node

    def _wrapped(self, node: fx.Node, results: list[Any]) -> Any:
        first = results[0]
        if isinstance(first, Tensor):
            return Traced(self, node, tuple(results))
        if isinstance(first, int) and not isinstance(first, bool):
            return first if len(set(results)) == 1 else Size(self, node, tuple(results))
        if isinstance(first, list | tuple):
            parts = []
            for index in range(len(first)):
                part = self._note(self.graph.call_function(operator.getitem, (node, index)))
                parts.append(self._wrapped(part, [result[index] for result in results]))
            return parts
        return first


class Traced:
    """A tensor that depends on the inputs.

    Args:
        recording: The recording of its calls.
        node: Node of the fx graph.
        shapes: Tensors without data, one for each batch size.
    """

    def __init__(self, recording: Recording, node: fx.Node, shapes: tuple[Tensor, ...]) -> None:
        self.recording, self.node, self.shapes = recording, node, shapes

    def dim(self) -> int:
        """Number of axes."""
        return self.shapes[0].dim()

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""
        return self.shapes[0].dtype

    @property
    def shape(self) -> tuple[Whole, ...]:
        """Sizes; those that depend on the batch are traced."""
        return tuple(
            self.recording.size(self, axis, [x.shape[axis] for x in self.shapes]) for axis in range(self.dim())
        )


class Size:
    """A whole number that depends on the batch size.

    Args:
        recording: The recording of its calls.
        node: Node of the fx graph.
        values: The number at each batch size.
    """

    def __init__(self, recording: Recording, node: fx.Node, values: tuple[int, ...]) -> None:
        self.recording, self.node, self.values = recording, node, values

    def __add__(self, other: Whole) -> Whole:
        return _whole(operator.add, self, other)

    def __radd__(self, other: Whole) -> Whole:
        return _whole(operator.add, other, self)

    def __sub__(self, other: Whole) -> Whole:
        return _whole(operator.sub, self, other)

    def __rsub__(self, other: Whole) -> Whole:
        return _whole(operator.sub, other, self)

    def __mul__(self, other: Whole) -> Whole:
        return _whole(operator.mul, self, other)

    def __rmul__(self, other: Whole) -> Whole:
        return _whole(operator.mul, other, self)

    def __floordiv__(self, other: Whole) -> Whole:
        return _whole(operator.floordiv, self, other)

    def __rfloordiv__(self, other: Whole) -> Whole:
        return _whole(operator.floordiv, other, self)

    def __mod__(self, other: Whole) -> Whole:
        return _whole(operator.mod, self, other)

    def __neg__(self) -> Whole:
        return _whole(operator.mul, self, -1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and self.values == other.values

    def __hash__(self) -> int:
        return hash(self.values)


Whole: TypeAlias = "int | Size"
"""A whole number, known or traced."""
Operand: TypeAlias = "Tensor | Traced"
"""A tensor, known or traced."""


def _without_data(item: Any, run: int) -> Any:
    """An argument at one batch size, without data."""
    if isinstance(item, Traced):
        return item.shapes[run]
    if isinstance(item, Size):
        return item.values[run]
    return item.to("meta") if isinstance(item, Tensor) else item


def _same(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)

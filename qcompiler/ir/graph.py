"""The graph: values defined once, nodes in an order that respects their uses, tensors by name.

A `Module` owns named tensors and one or more graphs; `main` is the model. Nodes form a linked list, so that insertion
and removal cost the same at any size. Passes edit the graph only through `ir.rewrite.Rewriter`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attribute, Attributed
from qcompiler.ir.registry import OpDef, op
from qcompiler.ir.tree import Tree, single
from qcompiler.ir.types import Stage, TensorType


@dataclass(frozen=True)
class Location:
    """Origin of a node in the model and its source.

    Args:
        path: Module path in the model, such as `features.0.conv`; empty for the root.
        source: `module:qualified_name:line` of the user's code, never a file path; empty when unknown.
        place: Name of a place in a step of an unrolled loop, the same in all steps: its values have one grid.
    """

    path: str = ""
    source: str = ""
    place: str = ""

    def __str__(self) -> str:
        return ", ".join(part for part in (self.path, self.source) if part)


class Value:
    """One tensor of the graph: a graph input or a result of a node."""

    __slots__ = ("index", "name", "producer", "type", "users")

    def __init__(self, name: str, type: TensorType, producer: Node | None = None, index: int = 0) -> None:
        self.name = name
        self.type = type
        self.producer = producer
        self.index = index
        self.users: dict[Node, int] = {}
        """Nodes that read this value, in order of first use, with the number of operands."""

    def made_by(self, op: str) -> Node | None:
        """The producer, if it is an `op`."""
        return self.producer if self.producer is not None and self.producer.op == op else None

    def __repr__(self) -> str:
        return f"%{self.name}"


class Node(Attributed):
    """One application of an op. `inputs`, `outputs` and `attributes` are read-only outside `ir`."""

    __slots__ = (
        "_linked",
        "_next",
        "_previous",
        "attributes",
        "graph",
        "inputs",
        "location",
        "op",
        "origins",
        "outputs",
    )

    def __init__(
        self, graph: Graph, op: str, inputs: list[Value], attributes: dict[str, Attribute], location: Location
    ) -> None:
        self.graph = graph
        self.op = op
        self.inputs = inputs
        self.outputs: list[Value] = []
        self.attributes: dict[str, Attribute] = attributes
        self.location = location
        self.origins: tuple[str, ...] = ()
        """Names of the captured nodes represented by this node."""
        self._linked = False
        self._previous: Node | None = None
        self._next: Node | None = None

    @property
    def name(self) -> str:
        """The name of the first result, which is the name of the node."""
        return self.outputs[0].name

    @property
    def output(self) -> Value:
        """The only result.

        Raises:
            GraphError: The node has several results.
        """
        if len(self.outputs) != 1:
            raise GraphError(f"{self.op} has {len(self.outputs)} results, but one is expected", where=self.where)
        return self.outputs[0]

    @property
    def following(self) -> Node | None:
        """The next node in the order, None after the last."""
        return self._next

    @property
    def definition(self) -> OpDef:
        """The definition of the op."""
        return op(self.op)

    @property
    def callee(self) -> Graph | None:
        """The graph that a `call` runs; None for every other node."""
        return self.graph.module.graphs[self.text("graph")] if self.op == "call" else None

    @property
    def where(self) -> str:
        """Node, module path and source line, for messages."""
        place = str(self.location)
        return f"%{self.name}" + (f" ({place})" if place else "")

    def __repr__(self) -> str:
        operands = ", ".join(map(repr, self.inputs))
        return f"%{self.name} = {self.op}({operands})"


class Graph:
    """Inputs, nodes in order, and outputs. Built by front ends and the parser, edited through a `Rewriter`."""

    def __init__(self, name: str = "main", stage: Stage = Stage.FLOAT) -> None:
        self.name = name
        self.stage = stage
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.input_tree: Tree = single()
        self.output_tree: Tree = single()
        self.input_names: list[str] = []
        """Names of the model's forward parameters, one per element of the input tree's top level."""
        self.bounds: dict[str, tuple[int, int]] = {}
        """Smallest and largest value of each symbol of the shapes."""
        self.module: Module = None  # type: ignore[assignment]  # set by Module.add
        self._first: Node | None = None
        self._last: Node | None = None
        self._count = 0
        self._names: dict[str, int] = {}
        self._output_counts: dict[Value, int] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def nodes(self) -> Iterator[Node]:
        """Nodes in order. Nodes may be erased and inserted while iterating."""
        node = self._first
        while node is not None:
            if node._linked:
                yield node
            node = node._next

    @property
    def reversed_nodes(self) -> Iterator[Node]:
        """Nodes from last to first. Nodes may be erased and inserted while iterating."""
        node = self._last
        while node is not None:
            if node._linked:
                yield node
            node = node._previous

    def values(self) -> Iterator[Value]:
        """Inputs, then the results of each node."""
        yield from self.inputs
        for node in self.nodes:
            yield from node.outputs

    def value(self, name: str) -> Value:
        """The value called `name`. Linear in the size of the graph.

        Raises:
            GraphError: No such value exists.
        """
        for value in self.values():
            if value.name == name:
                return value
        raise GraphError(f"graph @{self.name} has no value %{name}")

    def is_output(self, value: Value) -> bool:
        """Whether `value` is among the outputs."""
        return value in self._output_counts

    def unique_name(self, hint: str) -> str:
        """`hint`, or `hint_1`, `hint_2`, ... if taken. The name is then reserved."""
        if hint not in self._names:
            self._names[hint] = 0
            return hint
        count = self._names[hint]
        while True:
            count += 1
            name = f"{hint}_{count}"
            if name not in self._names:
                self._names[hint] = count
                self._names[name] = 0
                return name

    def release_name(self, name: str) -> None:
        """Make `name` free again: its value was removed or renamed."""
        self._names.pop(name, None)

    def name_results(self, node: Node, names: Sequence[str]) -> None:
        """Give the results of `node` these names, one each, made unique."""
        for value in node.outputs:
            self.release_name(value.name)
        for value, name in zip(node.outputs, names, strict=True):
            value.name = self.unique_name(name)

    def add_input(self, name: str, type: TensorType) -> Value:
        """Append a graph input."""
        value = Value(self.unique_name(name), type)
        self.inputs.append(value)
        return value

    def set_outputs(self, outputs: Sequence[Value], tree: Tree | None = None) -> None:
        """Replace the outputs, and their tree when one is given."""
        self.outputs = list(outputs)
        self._output_counts = {}
        for value in self.outputs:
            self._output_counts[value] = self._output_counts.get(value, 0) + 1
        if tree is not None:
            self.output_tree = tree

    def append(
        self,
        op_name: str,
        inputs: Sequence[Value],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        name: str | None = None,
        location: Location | None = None,
        types: Sequence[TensorType] | None = None,
        before: Node | None = None,
    ) -> Node:
        """Add a node at the end, or before another one.

        Args:
            op_name: A registered op.
            inputs: Operands.
            attributes: Attributes that differ from the defaults.
            name: Preferred name of the first result; made unique.
            location: Origin of the node.
            types: Result types, for ops with `Trait.REQUANTIZES`; inferred otherwise.
            before: The following node; None for the end.

        Raises:
            GraphError: Operands or attributes do not fit the op.
        """
        definition = op(op_name)
        location = location or Location()
        where = f"%{name or op_name}" + (f" ({location})" if str(location) else "")
        if not definition.accepts(len(inputs)):
            raise GraphError(
                f"{op_name} was given {len(inputs)} operands", where=where, expected=" ".join(definition.operands)
            )
        complete = definition.complete(attributes or {}, where)
        try:
            inferred = definition.infer([v.type for v in inputs], complete)
        except GraphError as error:
            raise GraphError(error.found, where=where, expected=error.expected, fix=error.fix) from None
        if types is not None and len(types) != len(inferred):
            raise GraphError(f"{op_name} was given {len(types)} types", where=where, expected=str(len(inferred)))
        node = Node(self, op_name, list(inputs), complete, location)
        first = self.unique_name(name or op_name)
        for index, type in enumerate(inferred if types is None else types):
            result_name = first if index == 0 else self.unique_name(f"{first}.{index}")
            node.outputs.append(Value(result_name, type, node, index))
        node.origins = (first,)
        for value in inputs:
            value.users[node] = value.users.get(node, 0) + 1
        self._link(node, before)
        return node

    def _link(self, node: Node, before: Node | None) -> None:
        after = self._last if before is None else before._previous
        node._previous, node._next = after, before
        if after is None:
            self._first = node
        else:
            after._next = node
        if before is None:
            self._last = node
        else:
            before._previous = node
        node._linked = True
        self._count += 1

    def _unlink(self, node: Node) -> None:
        # The removed node keeps its links, so that an iteration at this node can continue.
        previous, following = node._previous, node._next
        if previous is None:
            self._first = following
        else:
            previous._next = following
        if following is None:
            self._last = previous
        else:
            following._previous = previous
        node._linked = False
        self._count -= 1


class Module:
    """Graphs that share named tensors.

    Args:
        tensors: Parameters, states and constants by name; leaf ops refer to them.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        self.graphs: dict[str, Graph] = {}
        self._tensors: dict[str, Tensor] = dict(tensors or {})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The store of tensors by name. Passes change its entries; a run may read other tensors, see `interpret`."""
        return self._tensors

    def add(self, graph: Graph) -> Graph:
        """Take ownership of `graph`.

        Raises:
            GraphError: The name of the graph is taken.
        """
        if graph.name in self.graphs:
            raise GraphError(f"the module already has a graph @{graph.name}")
        graph.module = self
        self.graphs[graph.name] = graph
        return graph

    @property
    def main(self) -> Graph:
        """The model itself."""
        return self.graphs["main"]

    def unique_tensor_name(self, hint: str) -> str:
        """`hint`, or `hint_1`, ... if a tensor has that name."""
        name, count = hint, 0
        while name in self.tensors:
            count += 1
            name = f"{hint}_{count}"
        return name

    def clone(self, tensors: Mapping[str, Tensor] | None = None) -> Module:
        """A copy whose graphs can be edited without changing this module.

        Args:
            tensors: Tensors of the copy; None: those of this module, which both share. Passes replace tensors.
        """
        copy = Module(self.tensors if tensors is None else tensors)
        for graph in self.graphs.values():
            copy.add(_clone_graph(graph, copy))
        return copy


def _clone_graph(graph: Graph, module: Module) -> Graph:
    copy = Graph(graph.name, graph.stage)
    copy.module = module
    copy.input_tree, copy.output_tree = graph.input_tree, graph.output_tree
    copy.input_names, copy.bounds = list(graph.input_names), dict(graph.bounds)
    values = {value: copy.add_input(value.name, value.type) for value in graph.inputs}
    for node in graph.nodes:
        twin = copy.append(
            node.op,
            [values[value] for value in node.inputs],
            node.attributes,
            name=node.name,
            location=node.location,
            types=[value.type for value in node.outputs],
        )
        copy.name_results(twin, [value.name for value in node.outputs])
        twin.origins = node.origins
        values.update(zip(node.outputs, twin.outputs, strict=True))
    copy.set_outputs([values[value] for value in graph.outputs])
    return copy

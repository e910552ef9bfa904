"""The one way to edit a graph.

A `Rewriter` maintains use lists, carries locations and origins over to new nodes, and records edits and refusals: this
record is the provenance of a compile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.events import Event, Message, Record
from qcompiler.ir.graph import Graph, Location, Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.types import DType, TensorType
from qcompiler.storage.tensors import row_major


class Rewriter:
    """Edits `graph` and records into `record`."""

    def __init__(self, graph: Graph, record: Record | None = None) -> None:
        self.graph = graph
        self.record = record or Record("")

    def insert(
        self,
        op_name: str,
        inputs: Sequence[Value],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        before: Node | None,
        like: Node | Iterable[Node],
        name: str | None = None,
        types: Sequence[TensorType] | None = None,
    ) -> Node:
        """Add a node before `before` (None: at the end) with the origin of `like`.

        Args:
            op_name: The op.
            inputs: Operands, defined before the new node.
            attributes: Attributes that differ from the op's defaults.
            before: The following node.
            like: Nodes with the location (of the first) and origins (of all) of the new node.
            name: Preferred name; by default the name of the first of `like`.
            types: Result types for ops with their own output scale and zero point.
        """
        sources = [like] if isinstance(like, Node) else list(like)
        node = self.graph.append(
            op_name,
            inputs,
            attributes,
            name=name or sources[0].name,
            location=sources[0].location,
            types=types,
            before=before,
        )
        node.origins = tuple(dict.fromkeys(origin for source in sources for origin in source.origins))
        return node

    def leaf(
        self,
        op_name: str,
        tensor: Tensor,
        *,
        ref: str,
        before: Node | None,
        like: Node | None = None,
        type: TensorType | None = None,
    ) -> Value:
        """Add `tensor` to the module under a name like `ref`, and the leaf node that reads it."""
        module = self.graph.module
        name = module.unique_tensor_name(ref)
        module.tensors[name] = row_major(tensor)
        dtype = type.dtype if type is not None else DType.of(tensor.dtype)
        node = self.graph.append(
            op_name,
            [],
            {"ref": name, "dtype": str(dtype), "shape": tuple(tensor.shape)},
            name=name,
            location=like.location if like is not None else Location(),
            types=None if type is None else [type],
            before=before,
        )
        if like is not None:
            node.origins = like.origins
        return node.output

    def set_tensor(self, value: Value, tensor: Tensor, *, before: Node, like: Node | None = None) -> Value:
        """The leaf `value` with the new `tensor`, or a new leaf of the same kind if `value` has other users."""
        leaf = value.producer
        if leaf is None or "ref" not in leaf.attributes:
            raise GraphError(f"%{value.name} is not a tensor of the module")
        old = self.graph.module.tensors[str(leaf.attributes["ref"])]
        alone = sum(value.users.values()) == 1 and not self.graph.is_output(value)
        if alone and old.shape == tensor.shape and old.dtype == tensor.dtype:
            self.write_tensor(value, tensor)  # keeps its name, the one in the model
            return value
        return self.leaf(leaf.op, tensor, ref=str(leaf.attributes["ref"]), before=before, like=like or leaf)

    def replace_input(self, node: Node, index: int, value: Value) -> None:
        """Make operand `index` of `node` read `value`."""
        old = node.inputs[index]
        if old is value:
            return
        node.inputs[index] = value
        self._forget_use(old, node)
        value.users[node] = value.users.get(node, 0) + 1

    def add_input(self, node: Node, value: Value) -> None:
        """Append an optional operand."""
        node.inputs.append(value)
        value.users[node] = value.users.get(node, 0) + 1

    def set_attributes(self, node: Node, **attributes: Attribute) -> None:
        """Change attributes of `node`. Result types are inferred anew by `refresh_types`."""
        node.attributes.update(node.definition.complete({**node.attributes, **attributes}, node.where))

    def refresh_types(self, node: Node) -> None:
        """Infer the result types of `node` anew. The node's own scale and zero point stay."""
        inferred = node.definition.infer([value.type for value in node.inputs], node.attributes)
        own_grid = node.definition.has(Trait.REQUANTIZES) or node.definition.has(Trait.LEAF)
        for value, type in zip(node.outputs, inferred, strict=True):
            old = value.type
            value.type = dataclasses.replace(type, quant=old.quant) if own_grid else type

    def replace_uses(self, old: Value, new: Value, only: Iterable[Node] | None = None) -> None:
        """Make users of `old` (or just those in `only`) and, without `only`, the graph's outputs read `new`."""
        for user in list(old.users) if only is None else list(only):
            if new.producer is user:
                continue
            for index, value in enumerate(user.inputs):
                if value is old:
                    self.replace_input(user, index, new)
        if only is None and self.graph.is_output(old):
            self.graph.set_outputs([new if value is old else value for value in self.graph.outputs])

    def erase(self, node: Node) -> None:
        """Remove a node without readers.

        Raises:
            GraphError: A result is still read.
        """
        for value in node.outputs:
            if value.users or self.graph.is_output(value):
                raise GraphError(f"%{value.name} is still used", where=node.where)
        for value in list(node.inputs):
            self._forget_use(value, node)
        self.graph._unlink(node)
        for value in node.outputs:
            self.graph.release_name(value.name)

    def move(self, node: Node, *, before: Node | None) -> None:
        """Move `node` before `before`, None for the end. The operands must be defined before that place."""
        self.graph._unlink(node)
        self.graph._link(node, before)

    def replace(self, node: Node, value: Value) -> None:
        """Replace the only result of `node` by `value`, and remove the node."""
        self.replace_uses(node.output, value)
        self.erase(node)

    def rename(self, value: Value, name: str) -> None:
        """Give `value` a name like `name`."""
        self.graph.release_name(value.name)
        value.name = self.graph.unique_name(name)

    def write_tensor(self, value: Value, tensor: Tensor) -> None:
        """Change the tensor that the leaf of `value` reads. The element type and the shape stay.

        Raises:
            GraphError: `value` is not a leaf, or the tensor has another type.
        """
        leaf = value.producer
        if leaf is None or "ref" not in leaf.attributes:
            raise GraphError(f"%{value.name} is not a tensor of the module")
        ref = str(leaf.attributes["ref"])
        old = self.graph.module.tensors[ref]
        if old.shape != tensor.shape or old.dtype != tensor.dtype:
            raise GraphError(
                f"{tensor.dtype} {list(tensor.shape)} was written to {ref!r}",
                where=leaf.where,
                expected=f"{old.dtype} {list(old.shape)}",
            )
        self.graph.module.tensors[ref] = row_major(tensor)

    def note(self, node: Node, message: Message | str) -> None:
        """Record that something was done to `node`.

        Args:
            node: The node.
            message: The edit; see `ir.events`. Plain text, a sentence without a full stop, has neither code nor data.
        """
        self._record("rewrite", node, message)

    def refuse(self, node: Node, reason: Message | str) -> None:
        """Record that `node` was left alone, and why."""
        self._record("refusal", node, reason)

    def _record(self, kind: str, node: Node, message: Message | str) -> None:
        self.record.events.append(Event(kind, node.name, node.origins, str(node.location), Message.of(message)))

    @staticmethod
    def _forget_use(value: Value, node: Node) -> None:
        value.users[node] -= 1
        if not value.users[node]:
            del value.users[node]

"""From a traced model to a graph at stage FLOAT.

The trace is run at two batch sizes. A size that follows the batch becomes an expression in `N`; what is no tensor, such
as a size read from a shape, folds to its value; a tensor that depends neither on the inputs nor on parameters becomes a
constant.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx

from qcompiler.errors import CaptureError, UnsupportedError
from qcompiler.frontends.builder import Builder, Observed
from qcompiler.frontends.examples import Binding
from qcompiler.frontends.rules import RULES, plain_name, unknown
from qcompiler.frontends.trace import Leaf, Recorder, Result, Trace, location, record
from qcompiler.ir import tree
from qcompiler.ir.dims import Dim, as_dim, symbol
from qcompiler.ir.graph import Graph, Module, Value
from qcompiler.ir.types import DType, Stage, TensorType

_map = cast("Callable[[object, Callable[[Any], object]], Any]", fx.node.map_aggregate)
"""torch's own knows the types that a graph may hold; here the parts are records of ours."""


BATCH = "N"
BATCH_BOUNDS = (1, 65536)


class BatchDependent:
    """Stands for a number other than an integer that changes with the batch size: nothing can use it."""


def build(trace: Trace, binding: Binding, batches: tuple[int, int] | None) -> tuple[Module, list[str]]:
    """Turn a traced model into a graph.

    Args:
        trace: The traced model.
        binding: The example call.
        batches: Two batch sizes, None for a model that runs at the size of the example only.

    Returns:
        The module, and one sentence per choice that the user may want to know of.

    Raises:
        CaptureError: The trace does not run at both sizes, or its shapes follow no law in the batch size.
        UnsupportedError: A call has no operator.
    """
    runs = [binding.tensors] if batches is None else [binding.resized(batch) for batch in batches]
    records = [record(trace, binding.nest([x.clone() for x in tensors])) for tensors in runs]
    return _Conversion(trace, binding, batches, runs, records).run()


class _Conversion:
    def __init__(
        self,
        trace: Trace,
        binding: Binding,
        batches: tuple[int, int] | None,
        runs: Sequence[Sequence[torch.Tensor]],
        records: Sequence[Recorder],
    ) -> None:
        self.trace, self.binding, self.batches, self.runs = trace, binding, batches, runs
        self.first, self.last = records[0], records[-1]
        self.module = Module()
        self.graph = self.module.add(Graph("main", Stage.FLOAT))
        self.builder = Builder(self.graph, trace.containers, binding.tensors[0].device)
        self.environment: dict[fx.Node, object] = {}
        self.replaced: dict[Value, Value] = {}
        self.named: set[fx.Node] = set()
        """Nodes that a parameter or a buffer takes part in."""
        self.diagnostics: list[str] = []

    def run(self) -> tuple[Module, list[str]]:
        bindings = self.trace.bind(self.binding.nest(self._inputs()))
        for node in self.trace.graph.nodes:
            match node.op:
                case "placeholder":
                    leaf = self.trace.leaves.get(node.name)
                    self.environment[node] = bindings[node.name] if leaf is None else leaf
                case "get_attr":
                    self.environment[node] = self.trace.attribute(str(node.target))
                case "output":
                    self._outputs(self.trace.nest(self._resolve(node.args[0])))
                case _:
                    self._call(node)
                    continue
            item = self.environment.get(node)
            if isinstance(item, Leaf) and item.kind != "constant":
                self.named.add(node)
        return self.module, self.diagnostics

    def _inputs(self) -> list[Value]:
        graph = self.graph
        if self.batches is not None:
            low, high = self.trace.bounds or BATCH_BOUNDS
            graph.bounds[BATCH] = (low, high or BATCH_BOUNDS[1])
            if graph.bounds[BATCH] != BATCH_BOUNDS:
                self.diagnostics.append(
                    f"The forward takes another branch outside of batch sizes {low} to {high or 'any'}: "
                    "the graph holds for these only."
                )
        graph.input_tree, graph.input_names = self.binding.tree, self.binding.names
        return [
            graph.add_input(name, TensorType(DType.of(x.dtype), self._shape(tuple(x.shape), tuple(y.shape), name)))
            for name, x, y in zip(self.binding.tensor_names(), self.runs[0], self.runs[-1], strict=True)
        ]

    def _shape(self, small: tuple[int, ...], large: tuple[int, ...], where: str) -> tuple[Dim, ...]:
        """The shape that is `small` at the first batch size and `large` at the second, linear in the batch."""
        if len(small) != len(large):
            raise CaptureError(
                f"the shape is {list(small)} at one batch size and {list(large)} at another",
                where=where,
                expected="one number of dimensions at every batch size",
                fix="Name the axis to squeeze: squeeze(dim).",
            )
        return tuple(self._dim(a, b, where) for a, b in zip(small, large, strict=True))

    def _dim(self, small: int, large: int, where: str) -> Dim:
        if small == large or self.batches is None:
            return small
        first, second = self.batches
        factor, rest = divmod(large - small, second - first)
        if rest:
            raise CaptureError(
                f"a size is {small} at batch {first} and {large} at batch {second}",
                where=where,
                expected="a size that is linear in the batch",
            )
        return as_dim(factor * symbol(BATCH) + (small - factor * first))

    def _merge(self, small: Any, large: Any, where: str) -> Any:
        """One record out of those at the two batch sizes."""
        match small, large:
            case Result(), Result():
                constant = small.constant
                if constant is not None and (large.constant is None or not _same(constant, large.constant)):
                    constant = None
                return Observed(self._shape(small.shape, large.shape, where), small.dtype, constant)
            case (list() | tuple(), list() | tuple()) if len(small) == len(large):
                return [self._merge(a, b, where) for a, b in zip(small, large, strict=True)]
            case bool(), bool():
                return small if small == large else BatchDependent()
            case int(), int():
                return self._dim(small, large, where)
        if isinstance(small, float) and isinstance(large, float) and small != large:
            return BatchDependent()
        return small

    def _call(self, node: fx.Node) -> None:
        place = location(node)
        where = str(place) or node.name
        observed = self._merge(self.first.results[node.name], self.last.results[node.name], where)
        if not _tensors(observed):
            self.environment[node] = observed
            return
        arguments, keywords = self._resolve(node.args), self._resolve(node.kwargs)
        if any(source in self.named for source in node.all_input_nodes):
            self.named.add(node)
        function = plain_name(node.target)
        if function == "getattr":
            function, arguments = str(arguments[1]), arguments[:1]
        if function == "getitem" and isinstance(arguments[0], list | tuple | dict):
            self.environment[node] = operator.getitem(arguments[0], arguments[1])
            return
        rule = RULES.get(function)
        if all(part.constant is not None for part in _tensors(observed)) and (rule is None or node not in self.named):
            self.environment[node] = _map(observed, self._constant)
            if node in self.named:
                self.diagnostics.append(
                    f"{function} of parameters became a constant (at {where}): training the graph does not change it."
                )
            return
        if rule is None or node.op == "call_module":
            raise unknown(function, where)
        result = self.builder.call(rule, function, arguments, keywords, place, observed)
        self.environment[node] = result
        self._note_write(node, result, where)

    def _note_write(self, node: fx.Node, result: object, where: str) -> None:
        """After an in-place call, the tensor it wrote to is the call's result."""
        position = self.first.written.get(node.name)
        if position is None:
            return
        target = self._resolve(node.all_input_nodes[position])
        if isinstance(target, Leaf):
            raise UnsupportedError(
                f"the forward writes to {target.ref or 'a constant'!r}",
                where=where,
                fix="Compute the new value in the forward and return it instead.",
            )
        if isinstance(target, Value) and isinstance(result, Value) and target is not result:
            self.replaced[target] = result

    def _constant(self, item: Any) -> Any:
        held = item.constant if isinstance(item, Observed) else None
        return item if held is None else Leaf("constant", "", held)

    def _resolve(self, item: Any) -> Any:
        """`item` with the nodes in it replaced by what they stand for."""
        return _map(
            item,
            lambda part: _map(self.environment[part], self._current) if isinstance(part, fx.Node) else part,
        )

    def _current(self, item: Any) -> Any:
        while isinstance(item, Value) and item in self.replaced:
            item = self.replaced[item]
        return item

    def _outputs(self, result: object) -> None:
        values: list[Value] = []

        def walk(item: object) -> tree.Tree:
            match item:
                case None:
                    return None
                case dict():
                    return ("dict", [(str(key), walk(part)) for key, part in item.items()])
                case list() | tuple():
                    return ("list" if isinstance(item, list) else "tuple", [walk(part) for part in item])
                case Value() | Leaf():
                    values.append(self.builder.value(item))
                    return len(values) - 1
            raise CaptureError(
                f"the model returns a {type(item).__name__}",
                expected="tensors in tuples, lists and dicts",
                fix="Return it apart.",
            )

        output_tree = walk(result)
        self.graph.set_outputs(values, output_tree)


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(left, right)


def _tensors(observed: object) -> list[Observed]:
    found: list[Observed] = []
    _map(observed, lambda part: found.append(part) if isinstance(part, Observed) else None)
    return found

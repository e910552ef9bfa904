"""Converts a traced model into a graph at stage FLOAT.

The trace is run at two batch sizes. A size that depends on the batch becomes an expression in `N`; a result other than
a tensor, such as a size read from a shape, folds to its value; a tensor that depends neither on the inputs nor on
parameters becomes a constant. A call without an operator is refused only if its result is read, since a forward may
compute results that it does not return.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast

import torch
from torch import fx

from qcompiler.errors import CaptureError, GraphError, Missing, QCompilerError, UnsupportedError
from qcompiler.frontends.assignment import assigned
from qcompiler.frontends.builder import Builder, Observed, Refusal
from qcompiler.frontends.custom import FIELDS, keep
from qcompiler.frontends.examples import Binding
from qcompiler.frontends.precision import plain_dtype
from qcompiler.frontends.rules import RULES
from qcompiler.frontends.samples import (
    REPEATS,
    common_sample,
    is_only_written,
    joins_other_axis,
    repeats_samples,
)
from qcompiler.frontends.table import UNINITIALIZED, plain_name, unknown
from qcompiler.frontends.trace import (
    Leaf,
    Overlap,
    Recorder,
    Result,
    Shares,
    Trace,
    location,
    record,
    sources_of_values,
)
from qcompiler.ir import tree
from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.ir.dims import Dim, as_dim, symbol
from qcompiler.ir.graph import Graph, Location, Module, Value
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import DType, Stage, TensorType

_map = cast("Callable[[object, Callable[[Any], object]], Any]", fx.node.map_aggregate)
"""torch's own type declares the values of an fx graph; here the parts are our records."""


BATCH = "N"
BATCH_BOUNDS = (1, 65536)


def build(
    trace: Trace, binding: Binding, batches: tuple[int, int] | None, bounds: tuple[int, int] = BATCH_BOUNDS
) -> tuple[Module, list[Diagnostic]]:
    """Turn a traced model into a graph.

    Args:
        trace: The traced model.
        binding: The example call.
        batches: Two batch sizes; None for a model that runs only at the batch size of the example.
        bounds: Smallest and largest batch size at which the model runs.

    Returns:
        The module, and one diagnostic per choice.

    Raises:
        CaptureError: The trace does not run at both sizes, or its shapes are not linear in the batch size.
        UnsupportedError: No operator implements a call.
    """
    runs = [binding.tensors] if batches is None else [binding.resized(batch) for batch in batches]
    records = [record(trace, binding.nest([x.clone() for x in tensors])) for tensors in runs]
    return _Conversion(trace, binding, batches, bounds, runs, records).run()


class _Conversion:
    def __init__(
        self,
        trace: Trace,
        binding: Binding,
        batches: tuple[int, int] | None,
        bounds: tuple[int, int],
        runs: Sequence[Sequence[torch.Tensor]],
        records: Sequence[Recorder],
    ) -> None:
        self.trace, self.binding, self.batches, self.bounds, self.runs = trace, binding, batches, bounds, runs
        self.first, self.last = records[0], records[-1]
        self.module = Module()
        self.graph = self.module.add(Graph("main", Stage.FLOAT))
        self.builder = Builder(self.graph, trace.containers, binding.tensors[0].device)
        self.environment: dict[fx.Node, object] = {}
        self.named: set[fx.Node] = set()
        """Nodes that are computed from a parameter or a buffer."""
        self.arbitrary: set[fx.Node] = set()
        """Nodes that are computed from memory that nothing has written."""
        self.written: dict[str, Refusal] = {}
        """Parameters and buffers to which a call has written; reading them afterwards is refused."""
        self.touched = {node for write in self.first.writes.values() for node in (write.target, *write.shares)}
        """Nodes whose tensors a later call writes to, or has written to."""
        self.diagnostics: list[Diagnostic] = []
        self.unwritten: list[tuple[str, str]] = []
        """Calls that give memory to which the forward writes, and their places."""

    def run(self) -> tuple[Module, list[Diagnostic]]:
        bindings = self.trace.bind(self.binding.nest(self._inputs()))
        for node in self.trace.graph.nodes:
            match node.op:
                case "placeholder":
                    leaf = self.trace.leaves.get(node.name)
                    self.environment[node] = bindings[node.name] if leaf is None else leaf
                case "get_attr":
                    self.environment[node] = self._attribute(node)
                case "output":
                    try:
                        self._outputs(self.trace.nest(self._resolve(node.args[0])))
                    except UnsupportedError as error:
                        raise error.with_others(self._also_refused(node, error)) from error.__cause__
                case _:
                    self._call(node)
                    continue
            item = self.environment.get(node)
            if isinstance(item, Leaf) and item.kind != "constant":
                self.named.add(node)
        self._check_written()
        return self.module, self.diagnostics

    def _also_refused(self, output: fx.Node, error: UnsupportedError) -> list[Missing]:
        """All other calls without an operator on whose results the output depends."""
        found: dict[int, QCompilerError] = {}
        waiting, seen = [output], {output}
        while waiting:
            node = waiting.pop()
            held = self.environment.get(node)
            if isinstance(held, Refusal) and held.error is not error:
                found[id(held.error)] = held.error
            fresh = [item for item in node.all_input_nodes if item not in seen]
            seen.update(fresh)
            waiting += fresh
        return [(item.found, item.where, _first_line(item.fix)) for item in reversed(found.values())]

    def _inputs(self) -> list[Value]:
        graph = self.graph
        if self.batches is not None:
            (low, high), traced = self.bounds, self.trace.bounds or BATCH_BOUNDS
            low, high = max(low, traced[0], BATCH_BOUNDS[0]), min(high, traced[1], BATCH_BOUNDS[1])
            graph.bounds[BATCH] = (low, high)
            if (low, high) != BATCH_BOUNDS:
                self.diagnostics.append(Diagnostic("batch-bounds", {"low": low, "high": high}))
        graph.input_tree, graph.input_names = self.binding.tree, self.binding.labels
        return [
            graph.add_input(name, TensorType(DType.of(x.dtype), self._shape(tuple(x.shape), tuple(y.shape), name)))
            for name, x, y in zip(self.binding.tensor_names(), self.runs[0], self.runs[-1], strict=True)
        ]

    def _shape(self, small: tuple[int, ...], large: tuple[int, ...], where: str) -> tuple[Dim, ...]:
        """The shape that is `small` at the first batch size and `large` at the second, linear in the batch."""
        if len(small) != len(large):
            raise CaptureError(
                f"the rank depends on the batch size: {list(small)} at one batch size, {list(large)} at another",
                where=where,
                expected="the same rank at every batch size",
                fix="If the model calls squeeze(), name the axis: squeeze(dim).",
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
                expected="sizes that are linear in the batch size",
            )
        return as_dim(factor * symbol(BATCH) + (small - factor * first))

    def _merge(self, small: Any, large: Any, where: str) -> Any:
        """Merge the records of the two batch sizes into one."""
        match small, large:
            case Result(), Result():
                constant, sample = small.constant, None
                if constant is not None and (large.constant is None or not _same(constant, large.constant)):
                    sample = common_sample(constant, large.constant)
                    constant = None
                return Observed(self._shape(small.shape, large.shape, where), small.dtype, constant, sample)
            case (list() | tuple(), list() | tuple()):
                if len(small) != len(large):
                    return self._refusal(
                        f"the call returns {len(small)} results at one batch size, {len(large)} at another", where
                    )
                return [self._merge(a, b, where) for a, b in zip(small, large, strict=True)]
            case (int(), int()) if not isinstance(small, bool):
                try:
                    return self._dim(small, large, where)
                except CaptureError as error:
                    return Refusal(error)
        if isinstance(small, bool | int | float) and small != large:
            return self._refusal(f"the number is {small} at one batch size, {large} at another", where)
        return small

    @staticmethod
    def _refusal(found: str, where: str) -> Refusal:
        return Refusal(
            CaptureError(
                found,
                where=where,
                expected="a forward in which only shapes depend on the batch size",
                fix="Compute it from other sizes, or for a fixed batch size.",
            )
        )

    def _attribute(self, node: fx.Node) -> object:
        try:
            leaf = self.trace.attribute(str(node.target))
        except CaptureError as error:
            return Refusal(error)
        return self.written.get(leaf.ref, leaf)

    def _call(self, node: fx.Node) -> None:
        place = location(node)
        where = str(place) or node.name
        try:
            result = self._converted(node, place, where)
            if isinstance(result, list) and isinstance(self.first.results[node.name], tuple):
                result = tuple(result)  # the model's result keeps its nesting
            self.environment[node] = result
        except (CaptureError, UnsupportedError) as error:
            if node.name in self.first.writes and not self._writes_to_model(node):
                raise
            self.environment[node] = Refusal(error)
            self._note_write(node, None, where)
        else:
            self._note_write(node, result, where)

    def _converted(self, node: fx.Node, place: Location, where: str) -> object:
        """The result of `node`: operands, numbers, and refusals for results that cannot be used."""
        function = plain_name(node.target)
        self._check_reads(node, function, where)
        if is_dataclass(node.target):
            return dict(self._resolve(node.kwargs))  # the class is taken from the model's own result: see `capture`
        observed = self._merge(self.first.results[node.name], self.last.results[node.name], where)
        _check_types(observed, f"{function} gives", where)
        if not _tensors(observed):
            return self._written_part(node, function, where) if node.name in self.first.writes else observed
        if any(source in self.named for source in sources_of_values(node)):
            self.named.add(node)
        if function in UNINITIALIZED or any(source in self.arbitrary for source in sources_of_values(node)):
            self.arbitrary.add(node)
        if function in ("getattr", "getitem") and isinstance(node.args[0], fx.Node):
            held, key = self.environment[node.args[0]], self._resolve(node.args[1])
            if isinstance(held, list | tuple | dict):  # another part of the container may be a refusal
                return _part(held, key, named=function == "getattr")
        try:
            arguments, keywords = self._resolve(node.args), self._resolve(node.kwargs)
        except QCompilerError:
            # No operator computes an operand, but the result may depend neither on inputs nor on the batch.
            known = None if node in self.arbitrary else self._known(node, function, place, observed)
            if known is None:
                raise
            return known
        return self._called(node, function, arguments, keywords, observed)

    def _called(
        self, node: fx.Node, function: str, arguments: list[Any], keywords: dict[str, Any], observed: object
    ) -> object:
        """The result of a call with these arguments."""
        place = location(node)
        where = str(place) or node.name
        if function == "getattr":
            function, arguments = str(arguments[1]), arguments[:1]
        if function == "getitem" and isinstance(arguments[0], list | tuple | dict):
            return operator.getitem(arguments[0], arguments[1])
        if isinstance(node.target, type) and issubclass(node.target, list | tuple | dict):
            return node.target(*arguments, **keywords)
        sample = self._one_sample(node, function, arguments, observed)
        if sample is not None:
            return sample
        rule = RULES.get(function)
        known = self._known(node, function, place, observed)
        if known is not None:
            return known
        try:
            if rule is None or node.op == "call_module":
                raise unknown(function, where)
            return self.builder.call(rule, function, arguments, keywords, place, observed, _parts_read(node))
        except UnsupportedError as error:
            if node.name in self.first.writes:
                raise
            self.builder.location = place
            return keep(self.builder, node, arguments, keywords, observed, error)

    def _is_constant(self, node: fx.Node, function: str, where: str, observed: object) -> bool:
        """Whether a call becomes its result, a constant; tells the user if it is a function of parameters."""
        parts = _tensors(observed)
        if function in UNINITIALIZED or not all(part.constant is not None for part in parts):
            return False
        # Training changes no indices and masks.
        if node not in self.named or not any(part.dtype.is_floating_point for part in parts):
            return True
        if function in RULES:
            return False
        self.diagnostics.append(Diagnostic("constant-parameters", {"function": function}, where))
        return True

    def _known(self, node: fx.Node, function: str, place: Location, observed: object) -> object:
        """A result that does not depend on the inputs; None for any other."""
        if self._is_constant(node, function, str(place) or node.name, observed):
            return _map(observed, self._constant)
        return self._repeated(node, function, place, observed)

    def _repeated(self, node: fx.Node, function: str, place: Location, observed: object) -> Value | Leaf | None:
        """A result that holds one constant sample for each sample of the batch; None for any other."""
        if not isinstance(observed, Observed) or observed.sample is None or function in UNINITIALIZED:
            return None
        if node in self.named or node in self.touched:
            return None
        self.builder.location, self.builder.function = place, function
        return self.builder.expanded(Leaf("constant", "", observed.sample), observed.shape)

    def _unwritten(self, observed: Observed, function: str, where: str) -> Leaf:
        """A sample of memory that the forward will write to: NaN, which may not be left in the end."""
        sizes = [1 if not isinstance(size, int) else size for size in observed.shape]
        if not observed.dtype.is_floating_point:
            raise unknown(function, where)
        self.unwritten.append((function, where))
        return Leaf("constant", "", torch.full(sizes, torch.nan, dtype=observed.dtype, device=self.builder.device))

    def _check_written(self) -> None:
        """Remove what remains of memory before it was written, and refuse a result that depends on it.

        Raises:
            UnsupportedError: There is such a result.
        """
        if not self.unwritten:
            return
        rewriter = Rewriter(self.graph)
        for node in self.graph.reversed_nodes:
            if not any(value.users or self.graph.is_output(value) for value in node.outputs):
                rewriter.erase(node)
                continue
            number = node.number("value", 0.0) if node.op == "pad" else 0.0
            tensor = self.module.tensors[node.text("ref")] if node.op == "constant" else torch.tensor(number)
            if tensor.is_floating_point() and bool(tensor.isnan().any()):
                function, where = self.unwritten[0]
                raise UnsupportedError(
                    f"{function} gives memory of which the forward reads a part that it has not written",
                    where=where,
                    fix="Use zeros, or write to all of it, by slices of constant bounds.",
                )

    def _check_reads(self, node: fx.Node, function: str, where: str) -> None:
        if node.name in self.first.reads and self.first.results[node.name] is not None:
            raise CaptureError(
                f"{function} reads a number from the values of the model's inputs",
                where=where,
                expected="a forward whose operations do not depend on the values of its inputs",
                fix="Keep it a tensor: remove item(), float() and similar calls.",
            )

    def _written_part(self, node: fx.Node, function: str, where: str) -> Leaf:
        """The tensor after a call that wrote to a part of it and returns nothing, such as `x[0] = 1`."""
        small, large = (run.writes[node.name].constant for run in (self.first, self.last))
        if small is None or large is None or not _same(small, large):
            raise UnsupportedError(
                f"{function} writes to a part of a tensor", where=where, fix="Build the tensor with torch.cat."
            )
        return Leaf("constant", "", small)

    def _is_broadcast(self, node: fx.Node) -> bool:
        """Whether all users are arithmetic with a tensor of the full shape, which broadcasts by itself."""

        def shape(item: fx.Node) -> object:
            result = self.first.results.get(item.name)
            return result.shape if isinstance(result, Result) else None

        return all(
            plain_name(user.target) in ("add", "sub", "mul", "div")
            and any(other is not node and shape(other) == shape(node) for other in user.all_input_nodes)
            for user in node.users
        )

    def _one_sample(
        self, node: fx.Node, function: str, arguments: Sequence[object], observed: object
    ) -> Value | Leaf | None:
        """The operand that stands for a repeated tensor: where it broadcasts, or one sample for the whole batch."""
        if not isinstance(observed, Observed):
            return None
        if function in UNINITIALIZED:
            return self._unwritten(observed, function, str(location(node))) if node in self.touched else None
        broadcasts, first = self._is_broadcast(node), arguments[0] if arguments else None
        broadcasts = broadcasts or is_only_written(node, first)
        if function in ("expand", "expand_as", "broadcast_to") and broadcasts and isinstance(first, Value | Leaf):
            return first
        if not broadcasts and not self._is_joined(node):
            return None
        if observed.sample is not None and node not in self.named:
            return Leaf("constant", "", observed.sample)
        if function in REPEATS and isinstance(first, Value | Leaf) and repeats_samples(first, observed):
            return first
        return None

    def _is_joined(self, node: fx.Node) -> bool:
        """Whether one sample can stand for all: users concatenate along other axes than the batch, or write to it."""
        found = self.first.results.get(node.name)
        rank = len(found.shape) if isinstance(found, Result) else 0
        return node in self.touched or (bool(node.users) and all(joins_other_axis(user, rank) for user in node.users))

    def _note_write(self, node: fx.Node, result: object, where: str) -> None:
        """After an in-place call, map the written tensor and its aliases to the call's result."""
        write = self.first.writes.get(node.name)
        if write is None:
            return
        if self._writes_to_model(node):
            held = self.environment[write.target]
            name = held.ref if isinstance(held, Leaf) else ""
            refusal = Refusal(
                UnsupportedError(
                    f"the forward writes to {name or 'a constant'!r} and reads the new value",
                    where=where,
                    expected="a forward that does not change the model, for example with batch norms in eval mode",
                    fix="Return the new value as an output.",
                )
            )
            self.written[name] = refusal
            self.environment |= dict.fromkeys([node, write.target, *write.shares], refusal)
            return
        view = Refusal(
            UnsupportedError(
                f"{plain_name(node.target)} writes in place to memory that another tensor shares",
                where=where,
                fix="Use the out-of-place function, or call it on a clone().",
            )
        )
        self.builder.location = location(node)
        for other, shares in write.shares.items():
            self.environment[other] = _rewritten(self.builder, self.environment[other], shares, result, view)

    def _writes_to_model(self, node: fx.Node) -> bool:
        """Whether a call writes to a parameter or buffer; after the first write, a `Refusal` stands for it."""
        target = self.first.writes[node.name].target
        return isinstance(self.environment[target], Leaf | Refusal) and (
            target.op == "get_attr" or target.name in self.trace.leaves
        )

    def _constant(self, item: Any) -> Any:
        held = item.constant if isinstance(item, Observed) else None
        return item if held is None else Leaf("constant", "", held)

    def _resolve(self, item: Any) -> Any:
        """`item` with its nodes replaced by their results.

        Raises:
            QCompilerError: The result of a node cannot be used.
        """

        def resolved(part: Any) -> Any:
            if isinstance(part, fx.Node):
                return _map(self.environment[part], _usable)
            return plain_dtype(part) if self.trace.is_float32 else part

        return _map(item, resolved)

    def _outputs(self, result: object) -> None:
        values: list[Value] = []

        def walk(item: object, path: str) -> tree.Tree:
            match item:
                case None:
                    return None
                case bool() | int() | float():
                    return ("value", item)
                case Mapping():
                    return ("dict", [(str(key), walk(part, f"{path}[{key!r}]")) for key, part in item.items()])
                case list() | tuple():
                    parts = [walk(part, f"{path}[{index}]") for index, part in enumerate(item)]
                    return ("list" if isinstance(item, list) else "tuple", parts)
                case Value() | Leaf():
                    if isinstance(item, Leaf):
                        _check_type(item.tensor.dtype, "the model returns", f"result{path}")
                    values.append(self.builder.value(item))
                    return len(values) - 1
            if is_dataclass(item) and not isinstance(item, type):
                return walk({part.name: getattr(item, part.name) for part in fields(item)}, path)
            kind = type(item).__name__ if not hasattr(item, "free_symbols") else "size that depends on the batch"
            raise CaptureError(
                f"the model returns a {kind}",
                where=f"result{path}",
                expected="tensors in tuples, lists, dicts, NamedTuples and dataclasses",
                fix="Remove it from the result of forward, or make it a tensor.",
            )

        output_tree = walk(result, "")
        self.graph.set_outputs(values, output_tree)


def _check_types(observed: object, what: str, where: str) -> None:
    """As `_check_type`, for what a call gave, less constants: what is computed from those may have another type."""
    for part in _tensors(observed):
        if part.constant is None:
            _check_type(part.dtype, what, where)


def _check_type(dtype: torch.dtype, what: str, where: str) -> None:
    """Refuse an element type that no graph has.

    Raises:
        UnsupportedError: It is one, such as complex numbers.
    """
    try:
        DType.of(dtype)
    except GraphError as error:
        fix = "Convert it to another type, or compute this part outside of the compiled model."
        if dtype.is_complex:
            fix = (
                "Use two tensors for the real and imaginary parts, or compute this part outside of the compiled model."
            )
        kind = "complex numbers" if dtype.is_complex else "numbers"
        raise UnsupportedError(f"{what} {kind} of {dtype}", where=where, expected=error.expected, fix=fix) from None


def _part(held: Any, key: Any, *, named: bool) -> object:
    """An item of a container, or one of its named fields."""
    if named and hasattr(held, "_fields"):
        return getattr(held, key)
    return operator.getitem(held, FIELDS.get(key, key) if named else key)


def _first_line(fix: str | None) -> str | None:
    """A remedy in a list: without the code that it suggests."""
    return None if fix is None else re.sub(r":?\n.*", ".", fix, flags=re.DOTALL)


def _usable(item: Any) -> Any:
    if isinstance(item, Refusal):
        raise item.error
    return item


def _rewritten(b: Builder, held: Any, shares: Any, result: object, refusal: Refusal) -> Any:
    """`held` after an in-place call, with the written parts replaced; `shares` has the same nesting."""
    match shares:
        case Shares.ALL:
            return result
        case Overlap() if isinstance(held, Value | Leaf) and isinstance(result, Value | Leaf):
            return assigned(b, held, result, shares) or refusal
        case Shares.SOME | Overlap():
            return refusal
        case dict() if isinstance(held, Mapping):
            return {key: _rewritten(b, held[key], part, result, refusal) for key, part in shares.items()}
        case list() | tuple() if isinstance(held, list | tuple):
            parts = [_rewritten(b, a, part, result, refusal) for a, part in zip(held, shares, strict=False)]
            return type(held)(*parts) if hasattr(held, "_fields") else type(held)(parts)
    return held


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(left, right)


def _tensors(observed: object) -> list[Observed]:
    found: list[Observed] = []
    _map(observed, lambda part: found.append(part) if isinstance(part, Observed) else None)
    return found


def _parts_read(node: fx.Node) -> frozenset[int] | None:
    """Positions of the parts that the users of a tuple read; None if one reads the whole."""
    parts = set()
    for user in node.users:
        if not user.users and user.op != "output":
            continue  # torch.export writes all parts, used or not
        function = plain_name(user.target) if user.op == "call_function" else ""
        key = user.args[1] if function in ("getitem", "getattr") else None
        position = FIELDS.get(key) if isinstance(key, str) else key
        if not isinstance(position, int) or position < 0:
            return None
        parts.add(position)
    return frozenset(parts)

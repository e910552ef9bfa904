"""A traced model from either tracer, and the results of its nodes at one batch size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from enum import StrEnum
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from qcompiler.errors import CaptureError
from qcompiler.frontends.precision import plain_dtype
from qcompiler.ir.graph import Location
from qcompiler.ir.types import DType, TensorType

PATH, SOURCE, PLACE = "qcompiler_path", "qcompiler_source", "qcompiler_place"
"""Keys of a node's `meta`: module path, source line, and place in an unrolled loop."""
GUARDS = "_guards_fn"
"""The module in which torch.export checks the inputs of a program."""


def checks_types(node: fx.Node) -> bool:
    """Whether a node of torch.export only compares the type of a tensor, which may be float32 in place of another."""
    return node.op == "call_function" and str(node.target).startswith("aten._assert_tensor_metadata")


@dataclass(eq=False)
class Leaf:
    """A tensor of the model.

    Args:
        kind: `parameter`, `state` or `constant`.
        ref: Name of the tensor in the model, empty for a constant without a name.
        tensor: The values.
    """

    kind: str
    ref: str
    tensor: Tensor

    @property
    def type(self) -> TensorType:
        """The element type and shape."""
        return TensorType(DType.of(self.tensor.dtype), tuple(self.tensor.shape))


@dataclass
class Trace:
    """A graph of torch calls.

    Args:
        root: Module in which `get_attr` nodes look up attributes.
        graph: The calls.
        containers: Paths of modules with children: a call directly in such a module is named after its operator.
        named: Parameters and buffers by the id of their tensor.
        leaves: Placeholders that stand for tensors of the model.
        bind: Function from the arguments of a call to the values of the other placeholders, by node name.
        nest: Function from the contents of the output node to the model's result.
        bounds: Smallest and largest batch size for which the trace is valid; None for any.
        constants: Tensors without a name in the model, by id.
        is_float32: Whether other floating-point types are replaced by float32 in runs; see `frontends.precision`.
    """

    root: nn.Module
    graph: fx.Graph
    containers: frozenset[str]
    named: dict[int, Leaf]
    leaves: Mapping[str, Leaf]
    bind: Callable[[inspect.BoundArguments], Mapping[str, object]]
    nest: Callable[[Any], object]
    bounds: tuple[int, int] | None = None
    constants: dict[int, Leaf] = field(default_factory=dict)
    is_float32: bool = False

    def as_float32(self) -> None:
        """Give the tensors of the trace the type float32 where they have another floating-point type."""
        for leaf in {id(x): x for x in (*self.named.values(), *self.leaves.values())}.values():
            leaf.tensor = leaf.tensor.to(plain_dtype(leaf.tensor.dtype))

    def leaf(self, tensor: Tensor) -> Leaf:
        """The leaf for a tensor of the model, the same one for all uses."""
        found = self.named.get(id(tensor))
        return found or self.constants.setdefault(id(tensor), Leaf("constant", "", tensor))

    def attribute(self, target: str) -> Leaf:
        """The leaf for the attribute of a `get_attr` node."""
        item: object = self.root
        for part in target.split("."):
            item = getattr(item, part)
        if not isinstance(item, Tensor):
            raise CaptureError(
                f"the graph reads the attribute {target!r}, a {type(item).__name__}",
                where=target,
                expected="a tensor",
                fix="Register it as a buffer.",
            )
        return self.leaf(item)


def location(node: fx.Node) -> Location:
    """The location of the call `node`."""
    path, source, place = (str(node.meta.get(key, "")) for key in (PATH, SOURCE, PLACE))
    return Location(path, source, place)


def named_leaves(model: nn.Module) -> dict[int, Leaf]:
    """The parameters and buffers of `model`, each under its first name."""
    leaves = {id(p): Leaf("parameter", name, p) for name, p in model.named_parameters()}
    return leaves | {id(b): Leaf("state", name, b) for name, b in model.named_buffers()}


def containers_of(model: nn.Module) -> frozenset[str]:
    """Paths of the modules with children, including the root."""
    return frozenset(
        {"", *(name for name, module in model.named_modules() if next(module.children(), None) is not None)}
    )


@dataclass(frozen=True)
class Result:
    """The record of a tensor.

    Args:
        shape: Sizes.
        dtype: Element type.
        constant: The tensor itself, if it depends on no tensor of the call's arguments.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    constant: Tensor | None


class Shares(StrEnum):
    """The overlap of a tensor with a tensor that is written to."""

    ALL = "all"
    """The same elements in the same order: the tensor is written to as well."""
    SOME = "some"
    NONE = "none"


@dataclass(frozen=True)
class Overlap:
    """A box of a tensor whose elements are a box of the written tensor, in the same order.

    Args:
        place: Indices of the box along each axis of the tensor, at equal distances.
        source: The same for the written tensor.
        shapes: Sizes of both tensors.
    """

    place: tuple[range, ...]
    source: tuple[range, ...]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass
class Write:
    """A call that writes to one of its arguments.

    Args:
        target: The node whose tensor is written to.
        shares: For each node that is read later, the overlap of its tensors with the target, nested like its result.
        constant: The target after the write, if it depends on no tensor of the call's arguments.
    """

    target: fx.Node
    shares: dict[fx.Node, object]
    constant: Tensor | None


class Recorder(fx.Interpreter):
    """Runs a trace and keeps, for each node, its result with the tensors replaced by `Result`."""

    def __init__(self, trace: Trace, call: inspect.BoundArguments) -> None:
        super().__init__(trace.root, graph=trace.graph)
        self.trace = trace
        self.bindings = trace.bind(call)
        self.results: dict[str, object] = {}
        self.writes: dict[str, Write] = {}
        """Records of the calls that write to an argument."""
        self.reads: set[str] = set()
        """Calls that return numbers read from the values of the model's inputs, such as `x.max().item()`."""
        self.independent: set[fx.Node] = set()
        self.current: fx.Node | None = None

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The argument or the tensor of the model for a placeholder."""
        assert self.current is not None
        leaf = self.trace.leaves.get(self.current.name)
        return self.bindings[self.current.name] if leaf is None else leaf.tensor

    def run_node(self, n: fx.Node) -> Any:
        """The result of a node, recorded before later calls can write to it."""
        self.current = n
        before = [_version(self.env[node]) for node in n.all_input_nodes]
        result = None if checks_types(n) else super().run_node(n)
        for node, version in zip(n.all_input_nodes, before, strict=True):
            if _version(self.env[node]) != version:
                self._note_write(n, node)
                break
        independent = n.op != "placeholder" or n.name in self.trace.leaves
        independent &= all(node in self.independent for node in sources_of_values(n))
        if not independent and not _tensors(result):
            independent = not self._reads_values(n)
            if not independent:
                self.reads.add(n.name)
        if independent:
            self.independent.add(n)
        if n.op != "output":
            keep = independent and n.op not in ("placeholder", "get_attr")
            self.results[n.name] = fx.node.map_aggregate(result, lambda item: _summary(item, keep))
        return result

    def _note_write(self, n: fx.Node, target: fx.Node) -> None:
        written = self.env[target]
        shares = {
            node: _nested(item, lambda part: _shares(part, written))
            for node, item in self.env.items()
            if any(_shares(part, written) is not Shares.NONE for part in _tensors(item))
        }
        constant = all(node in self.independent for node in n.all_input_nodes)
        if not constant:
            self.independent -= {*shares, target}
        self.writes[n.name] = Write(target, shares, written.detach().clone() if constant else None)

    def _reads_values(self, n: fx.Node) -> bool:
        """Whether the numbers from `n` depend on more than the shapes and types of tensors."""
        if is_dataclass(n.target):
            return False
        if any(node.name in self.reads for node in n.all_input_nodes):
            return True
        if n.op not in ("call_function", "call_method"):
            return False
        name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")
        if name == "getitem":
            return isinstance(self.env[n.all_input_nodes[0]], Tensor)
        # Attributes of a tensor other than tensors (shape, dtype) do not depend on its values.
        return name != "getattr" and name.partition(".")[0] not in _ASPECTS


def sources_of_values(n: fx.Node) -> list[fx.Node]:
    """The nodes whose values a call may read: not the tensor in whose shape `zeros_like` makes another."""
    name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")
    like = n.args[0] if n.args and n.op.startswith("call_") and name.partition(".")[0] in _LIKE else None
    return [node for node in n.all_input_nodes if node is not like]


_LIKE = frozenset({"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"})
"""Functions that make a tensor of numbers in the shape or type of another tensor."""

_ASPECTS = frozenset(
    {
        "can_cast",
        "dim",
        "element_size",
        "get_device",
        "is_complex",
        "is_contiguous",
        "is_floating_point",
        "is_signed",
        "is_tensor",
        "ndimension",
        "nelement",
        "numel",
        "result_type",
        "size",
        "stride",
        "sym_numel",
        "sym_size",
        "sym_stride",
        "type",
    }
)
"""Functions of a tensor that do not read its values."""


def _shares(item: Any, written: Tensor) -> Shares | Overlap:
    if not isinstance(item, Tensor) or item.untyped_storage()._cdata != written.untyped_storage()._cdata:
        return Shares.NONE
    if item.dtype != written.dtype:
        return Shares.SOME
    places = [(x.size(), x.stride(), int(x.storage_offset())) for x in (item, written)]
    if places[0] == places[1]:
        return Shares.ALL
    elements = torch.arange(written.untyped_storage().nbytes() // written.element_size())
    mine, theirs = (elements.as_strided(*place).contiguous() for place in places)
    inside = [torch.isin(mine, theirs), torch.isin(theirs, mine)]
    if not bool(inside[0].any()):
        return Shares.NONE
    place, source = (_box(mask) for mask in inside)
    if place is None or source is None:
        return Shares.SOME
    parts = [
        x[tuple(slice(p.start, p.stop, p.step) for p in box)].flatten() for x, box in ((mine, place), (theirs, source))
    ]
    if not torch.equal(*parts):
        return Shares.SOME
    return Overlap(place, source, (tuple(item.shape), tuple(written.shape)))


def _box(mask: Tensor) -> tuple[range, ...] | None:
    """The indices along each axis at which a mask is true; None if that is no box of equal distances."""
    places = []
    box = mask
    for axis in range(mask.dim()):
        others = [other for other in range(mask.dim()) if other != axis]
        found = (mask.any(dim=others) if others else mask).nonzero().flatten()
        step = int(found[1] - found[0]) if len(found) > 1 else 1
        place = range(int(found[0]), int(found[-1]) + 1, step)
        if list(place) != found.tolist():
            return None
        places.append(place)
        box = box.index_select(axis, found)
    return tuple(places) if bool(box.all()) else None


def _summary(item: Any, keep: bool) -> Any:
    if isinstance(item, Tensor):
        keep = keep and not torch._C._functorch.is_functorch_wrapped_tensor(item)  # cannot be read after torch.vmap
        return Result(tuple(item.shape), item.dtype, item.detach().clone() if keep else None)
    return item


def _version(item: object) -> int:
    return item._version if isinstance(item, Tensor) else 0


_nested: Callable[[Any, Callable[[Any], object]], object] = cast("Any", fx.node.map_aggregate)
"""torch's own type declares the values of an fx graph; here the parts are our records."""


def _tensors(item: Any) -> list[Tensor]:
    found: list[Tensor] = []
    fx.node.map_aggregate(item, lambda part: found.append(part) if isinstance(part, Tensor) else None)
    return found


def record(trace: Trace, call: inspect.BoundArguments) -> Recorder:
    """Run `trace` on the arguments of `call`.

    Raises:
        CaptureError: A node fails; the error names its module and line.
    """
    recorder = Recorder(trace, call)
    try:
        recorder.run()
    except Exception as error:
        node = recorder.current
        place = str(location(node)) or node.name if node is not None else None
        first = str(error).strip().splitlines()
        raise CaptureError(
            f"the traced model does not run on the inputs of the model: {first[0] if first else type(error).__name__}",
            where=place,
            expected="a forward whose trace is valid for every batch size",
            fix="Tracing fixed a size or a value: read sizes from x.shape, and do not keep values in Python.",
        ) from error
    return recorder

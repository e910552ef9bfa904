"""Builds the graph from calls of torch functions: one table from torch's names to ops.

Functions, methods and aten operators of one meaning share one entry under the plain name (`relu_`, `Tensor.relu`,
`aten.relu.default` and `torch.nn.functional.relu` are all `relu`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from qcompiler.errors import UnsupportedError
from qcompiler.ir.dims import Dim, as_dim
from qcompiler.ir.graph import Attribute, Graph, Location, Value
from qcompiler.ir.types import DType
from qcompiler.ops import UNARY

Argument: TypeAlias = Any
"""A Value, a Tensor, a number, or containers of them: whatever a torch function takes."""


class Builder:
    """Appends nodes to a graph, one torch call at a time.

    Args:
        graph: Where nodes go.
        tensors: Names of parameters and buffers, by identity.
        parameters: Which of those names are trained.
    """

    def __init__(self, graph: Graph, tensors: Mapping[int, str], parameters: frozenset[str]) -> None:
        self.graph = graph
        self.tensors = tensors
        self.parameters = parameters
        self.leaves: dict[int, Value] = {}
        self.keep: list[Tensor] = []
        self.location = Location()
        self.name = ""
        self.output_shape: tuple[Dim, ...] | None = None

    def call(
        self,
        function: str,
        arguments: Sequence[Argument],
        keywords: Mapping[str, Argument],
        *,
        name: str,
        location: Location,
        output_shape: tuple[Dim, ...] | None,
    ) -> Argument:
        """Append what `function` computes.

        Args:
            function: A torch name, see `plain_name`.
            arguments: Positional arguments.
            keywords: Keyword arguments.
            name: Wish for the name of the node.
            location: Where the call stands.
            output_shape: Shape of the result, symbolic in the batch, when it is one tensor.

        Returns:
            The result: a Value, or a list of them.

        Raises:
            UnsupportedError: The function is unknown, or an argument asks for what no op does.
        """
        self.name, self.location, self.output_shape = name, location, output_shape
        rule = _TABLE.get(function)
        if rule is None:
            raise UnsupportedError(
                f"the torch function {function!r} has no operator here",
                where=str(location) or name,
                fix="Replace it in the model, or register an operator and a front-end rule for it.",
            )
        try:
            inspect.signature(rule).bind(self, *arguments, **keywords)
        except TypeError as error:
            raise self.unsupported(f"{function} is called with arguments that are not understood: {error}") from None
        return rule(self, *arguments, **keywords)

    def unsupported(self, found: str, fix: str | None = None) -> UnsupportedError:
        """An error about the current call."""
        return UnsupportedError(found, where=str(self.location) or self.name, fix=fix)

    def node(self, op: str, inputs: Sequence[Argument], **attributes: Attribute) -> Value:
        """Append one node; tensors and numbers among `inputs` become leaves."""
        reference = next((item for item in inputs if isinstance(item, Value)), None)
        dtype = reference.type.dtype.torch if reference is not None else torch.float32
        values = [self.value(item, dtype) for item in inputs]
        return self.graph.append(op, values, attributes, name=self.name, location=self.location).output

    def value(self, item: Argument, dtype: torch.dtype = torch.float32) -> Value:
        """`item` as a value of the graph."""
        if isinstance(item, Value):
            return item
        if isinstance(item, bool | int | float):
            item = torch.tensor(item, dtype=dtype)
        if not isinstance(item, Tensor):
            raise self.unsupported(f"a {type(item).__name__} is used as a tensor")
        if id(item) not in self.leaves:
            ref = self.tensors.get(id(item))
            kind = "constant" if ref is None else "parameter" if ref in self.parameters else "state"
            module = self.graph.module
            ref = ref or module.unique_tensor_name(f"{self.name}.constant")
            tensor = item.detach()
            module.tensors[ref] = tensor
            self.keep.append(item)  # an id is only good while its tensor lives
            attributes = {"ref": ref, "dtype": str(DType.of(tensor.dtype)), "shape": tuple(tensor.shape)}
            leaf = self.graph.append(kind, [], attributes, name=ref, location=self.location)
            self.leaves[id(item)] = leaf.output
        return self.leaves[id(item)]


Rule: TypeAlias = "Callable[..., Argument]"
_TABLE: dict[str, Rule] = {}


def plain_name(target: object) -> str:
    """The table's name of a function, method name or aten overload.

    Examples:
        >>> plain_name(torch.nn.functional.relu), plain_name("add_"), plain_name(torch.ops.aten.relu.default)
        ('relu', 'add', 'relu')
    """
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.rpartition("::")[2]
    else:
        name = target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
    name = name.strip("_") if name.startswith("__") else name.rstrip("_")
    return _ALIASES.get(name, name)


_ALIASES = {
    "iadd": "add",
    "radd": "add",
    "imul": "mul",
    "rmul": "mul",
    "isub": "sub",
    "truediv": "div",
    "multiply": "mul",
    "concat": "cat",
    "concatenate": "cat",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "view": "reshape",
    "unsafe_view": "reshape",
    "clip": "clamp",
}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def enter(function: Rule) -> Rule:
        for name in names:
            _TABLE[name] = function
        return function

    return enter


def _tuple(value: Argument, rank: int) -> tuple[int, ...]:
    items = tuple(int(v) for v in value) if isinstance(value, Sequence) else (int(value),)
    return items * rank if len(items) == 1 else items


def _convolution(rank: int) -> Rule:
    def rule(
        b: Builder,
        input: Argument,
        weight: Argument,
        bias: Argument = None,
        stride: Argument = 1,
        padding: Argument = 0,
        dilation: Argument = 1,
        groups: int = 1,
    ) -> Value:
        dilations = _tuple(dilation, rank)
        if padding == "valid":
            padding = 0
        if padding == "same":
            totals = [d * (k - 1) for d, k in zip(dilations, _shape(weight)[2:], strict=True)]
            pads = (*(t // 2 for t in totals), *(t - t // 2 for t in totals))
        else:
            pads = _tuple(padding, rank) * 2
        inputs = [input, weight] if bias is None else [input, weight, bias]
        return b.node(
            f"conv{rank}d", inputs, stride=_tuple(stride, rank), padding=pads, dilation=dilations, groups=groups
        )

    return rule


def _transposed(rank: int) -> Rule:
    def rule(
        b: Builder,
        input: Argument,
        weight: Argument,
        bias: Argument = None,
        stride: Argument = 1,
        padding: Argument = 0,
        output_padding: Argument = 0,
        groups: int = 1,
        dilation: Argument = 1,
    ) -> Value:
        return b.node(
            f"conv_transpose{rank}d",
            [input, weight] if bias is None else [input, weight, bias],
            stride=_tuple(stride, rank),
            padding=_tuple(padding, rank),
            output_padding=_tuple(output_padding, rank),
            groups=groups,
            dilation=_tuple(dilation, rank),
        )

    return rule


for _rank in (1, 2, 3):
    _TABLE[f"conv{_rank}d"] = _convolution(_rank)
    _TABLE[f"conv_transpose{_rank}d"] = _transposed(_rank)


@_rule("linear")
def _linear(b: Builder, input: Argument, weight: Argument, bias: Argument = None) -> Value:
    return b.node("linear", [input, weight] if bias is None else [input, weight, bias])


@_rule("matmul", "bmm", "mm")
def _matmul(b: Builder, input: Argument, other: Argument) -> Value:
    return b.node("matmul", [input, other])


@_rule("batch_norm")
def _batch_norm(
    b: Builder,
    input: Value,
    running_mean: Argument,
    running_var: Argument,
    weight: Argument = None,
    bias: Argument = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:
    if running_mean is None or running_var is None:
        raise b.unsupported("a batch norm without running statistics", "Track them: track_running_stats=True.")
    channels = _shape(running_mean)
    weight = torch.ones(channels) if weight is None else weight
    bias = torch.zeros(channels) if bias is None else bias
    return b.node(
        "batch_norm",
        [input, weight, bias, running_mean, running_var],
        eps=float(eps),
        momentum=float(momentum),
        training=bool(training),
    )


@_rule("dropout", "dropout2d", "feature_dropout")
def _dropout(b: Builder, input: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:
    return b.node("dropout", [input], p=float(p), training=bool(training))


@_rule("contiguous", "detach", "clone", "identity", "stochastic_depth", "alias", "lift_fresh_copy")
def _identity(b: Builder, input: Value, *arguments: Argument, **keywords: Argument) -> Value:
    return input


@_rule("relu")
def _relu(b: Builder, input: Value, inplace: bool = False) -> Value:
    return b.node("relu", [input])


@_rule("relu6")
def _relu6(b: Builder, input: Value, inplace: bool = False) -> Value:
    return b.node("clamp", [input], min=0.0, max=6.0)


@_rule("hardtanh")
def _hardtanh(b: Builder, input: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Value:
    return b.node("clamp", [input], min=float(min_val), max=float(max_val))


@_rule("clamp")
def _clamp(b: Builder, input: Value, min: Argument = None, max: Argument = None) -> Value:
    if isinstance(min, Value | Tensor) or isinstance(max, Value | Tensor):
        raise b.unsupported("a clamp whose limits are tensors")
    low = -math.inf if min is None else float(min)
    return b.node("clamp", [input], min=low, max=math.inf if max is None else float(max))


def _unary(op: str) -> Rule:
    def rule(b: Builder, input: Value, *arguments: Argument, inplace: bool = False, **keywords: Argument) -> Value:
        names = list(UNARY[op].attributes)
        given = {**dict(zip(names, arguments, strict=False)), **keywords}
        return b.node(op, [input], **{name: given[name] for name in names if name in given})

    return rule


for _op in UNARY:
    _TABLE[_op] = _unary(_op)


def _binary(op: str) -> Rule:
    def rule(b: Builder, input: Argument, other: Argument, *, alpha: float = 1, inplace: bool = False) -> Argument:
        if alpha != 1:
            raise b.unsupported(f"{op} with alpha={alpha}", "Multiply the operand instead.")
        if not isinstance(input, Value) and not isinstance(other, Value):
            return {"add": input + other, "sub": input - other, "mul": input * other, "div": input / other}[op]
        return b.node(op, [input, other])

    return rule


for _op in ("add", "sub", "mul", "div"):
    _TABLE[_op] = _binary(_op)


@_rule("rsub")
def _rsub(b: Builder, input: Argument, other: Argument) -> Value:
    return b.node("sub", [other, input])


@_rule("max_pool2d")
def _max_pool2d(
    b: Builder,
    input: Value,
    kernel_size: Argument,
    stride: Argument = None,
    padding: Argument = 0,
    dilation: Argument = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    if return_indices:
        raise b.unsupported("max_pool2d with return_indices=True")
    kernel = _tuple(kernel_size, 2)
    return b.node(
        "max_pool2d",
        [input],
        kernel=kernel,
        stride=_tuple(stride, 2) if stride else kernel,
        padding=_tuple(padding, 2),
        dilation=_tuple(dilation, 2),
        ceil_mode=bool(ceil_mode),
    )


@_rule("avg_pool2d")
def _avg_pool2d(
    b: Builder,
    input: Value,
    kernel_size: Argument,
    stride: Argument = None,
    padding: Argument = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    kernel = _tuple(kernel_size, 2)
    return b.node(
        "avg_pool2d",
        [input],
        kernel=kernel,
        stride=_tuple(stride, 2) if stride else kernel,
        padding=_tuple(padding, 2),
        ceil_mode=bool(ceil_mode),
        count_include_pad=bool(count_include_pad),
        divisor_override=divisor_override,
    )


@_rule("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(b: Builder, input: Value, output_size: Argument) -> Value:
    sizes = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    sizes = [input.type.shape[2 + i] if size is None else size for i, size in enumerate(sizes)]
    return b.node("adaptive_avg_pool2d", [input], output_size=tuple(sizes))


@_rule("mean")
def _mean(b: Builder, input: Value, dim: Argument = None, keepdim: bool = False, dtype: object = None) -> Value:
    rank = input.type.rank
    axes = tuple(range(rank)) if dim is None else tuple(int(d) % rank for d in _tuple(dim, 1))
    return b.node("mean", [input], axes=tuple(sorted(axes)), keepdim=bool(keepdim))


@_rule("reshape", "flatten", "squeeze", "unsqueeze")
def _reshape(b: Builder, input: Value, *arguments: Argument, **keywords: Argument) -> Value:
    if b.output_shape is None:
        raise b.unsupported("a reshape whose result is not one tensor")
    return b.node("reshape", [input], shape=tuple(as_dim(dim) for dim in b.output_shape))


@_rule("permute")
def _permute(b: Builder, input: Value, *dims: Argument) -> Value:
    axes = dims[0] if len(dims) == 1 and isinstance(dims[0], Sequence) else dims
    return b.node("permute", [input], axes=tuple(int(axis) % input.type.rank for axis in axes))


@_rule("transpose", "swapaxes")
def _transpose(b: Builder, input: Value, dim0: int, dim1: int) -> Value:
    axes = list(range(input.type.rank))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return b.node("permute", [input], axes=tuple(axes))


@_rule("cat")
def _cat(b: Builder, tensors: Sequence[Argument], dim: int = 0) -> Value:
    first = b.value(tensors[0])
    return b.node("concat", list(tensors), axis=dim % first.type.rank)


@_rule("chunk", "split")
def _split(b: Builder, input: Value, size: Argument, dim: int = 0) -> list[Value]:
    axis = dim % input.type.rank
    total = input.type.shape[axis]
    if not isinstance(total, int):
        raise b.unsupported(f"axis {axis} of symbolic size is split")
    if isinstance(size, Sequence):
        sizes = [int(part) for part in size]
    else:
        step = size if b.name.rpartition(".")[2].startswith("split") else -(-total // int(size))
        sizes = [min(int(step), total - start) for start in range(0, total, int(step))]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [
        b.node("slice", [input], axis=axis, start=start, stop=start + part)
        for start, part in zip(starts, sizes, strict=True)
    ]


@_rule("getitem")
def _getitem(b: Builder, items: Sequence[Argument], index: Argument) -> Argument:
    if isinstance(items, Value):
        raise b.unsupported("a tensor is indexed", "Use split, chunk or narrow.")
    return items[index]


@_rule("pad")
def _pad(b: Builder, input: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Value:
    if mode != "constant":
        raise b.unsupported(f"padding of mode {mode!r}", "Only constant padding has an operator.")
    rank = input.type.rank
    begins, ends = [0] * rank, [0] * rank
    for index in range(len(pad) // 2):
        begins[rank - 1 - index], ends[rank - 1 - index] = int(pad[2 * index]), int(pad[2 * index + 1])
    return b.node("pad", [input], pad=(*begins, *ends), value=float(value or 0.0))


def _shape(item: Argument) -> tuple[int, ...]:
    shape = item.type.shape if isinstance(item, Value) else item.shape
    return tuple(int(size) for size in shape)

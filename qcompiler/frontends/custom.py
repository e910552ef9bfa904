"""Keeps torch functions without an operator by name, so that a target may run them in float."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from qcompiler.errors import GraphError, UnsupportedError
from qcompiler.frontends.builder import Builder, Observed
from qcompiler.frontends.table import RULES, plain_name
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.dims import format_dim, symbols_of
from qcompiler.ir.graph import Value
from qcompiler.ir.types import DType, TensorType
from qcompiler.ops.custom import DTYPE, NAMESPACES, OPERAND, SIZE, find_function, name_of

PLACEMENT = ("device", "layout", "pin_memory", "memory_format")
"""Arguments for the device and the layout of a result, which do not change its values."""

FIELDS: Mapping[str, int] = {"values": 0, "indices": 1, "min": 0, "max": 1}
"""Names of the results of functions such as `torch.max` along an axis, and of `torch.aminmax`."""


def keep(
    b: Builder,
    node: fx.Node,
    arguments: Sequence[object],
    keywords: Mapping[str, object],
    observed: object,
    reason: UnsupportedError,
) -> object:
    """Append the call of `node` as a custom op.

    Args:
        b: Builder that appends the node.
        node: The traced call.
        arguments: Positional arguments, operands for tensors.
        keywords: Keyword arguments.
        observed: Result of the call in the traced run: `Observed`, or several.
        reason: Error that explains why there is no operator.

    Returns:
        The results, nested as `observed`.

    Raises:
        UnsupportedError: `reason` itself: the function cannot be found by name, is random, or takes or returns objects
            other than tensors and plain values. Or the batch is the size of several axes of a result.
    """
    name = None if _is_random(plain_name(node.target), arguments, keywords) else _name(node)
    several = isinstance(observed, list | tuple)
    given = list(observed) if isinstance(observed, list | tuple) else [observed]
    parts = [part for part in given if isinstance(part, Observed)]
    if name is None or not parts or len(parts) < len(given):
        raise reason
    operands: list[Value] = []
    try:
        named = {key: item for key, item in keywords.items() if key not in PLACEMENT}
        text = json.dumps([_encoded(b, list(arguments), operands), _encoded(b, named, operands)])
        types = [TensorType(DType.of(part.dtype), part.shape) for part in parts]
    except (TypeError, GraphError):
        raise reason from None
    b.function = plain_name(node.target)
    for item in types:
        b.check_batch(item)
    _carry_sizes(b, text, operands)
    if not operands:
        raise reason
    known = plain_name(node.target) in RULES
    attributes: dict[str, Attribute] = {
        "function": name,
        "arguments": text,
        "results": tuple(map(str, types)),
        "reason": reason.found if known else "",
        "fix": reason.fix or "" if known else "",
    }
    values = b.custom(name.rpartition(".")[2] if "::" not in name else plain_name(node.target), operands, attributes)
    return values if several else values[0]


def _carry_sizes(b: Builder, text: str, operands: list[Value]) -> None:
    """Add a graph input as an operand if no operand carries the batch size: `zeros(N, 4)` has no operand."""
    symbols = {symbol.name for value in operands for dim in value.type.shape for symbol in symbols_of(dim)}
    for value in b.graph.inputs:
        own = {symbol.name for dim in value.type.shape for symbol in symbols_of(dim)}
        if f'"{SIZE}"' in text and own - symbols:
            operands.append(value)
            symbols |= own


def _name(node: fx.Node) -> str | None:
    name = f"torch.Tensor.{node.target}" if node.op == "call_method" else name_of(node.target)
    if name is None:
        return None
    space = name.rpartition(".")[0]
    try:
        find_function(name)
    except GraphError:
        return None
    return name if "::" in name or space in NAMESPACES else None


_DROPS: Mapping[str, tuple[str, int]] = {
    "scaled_dot_product_attention": ("dropout_p", 4),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), ("train", 6)),
}
"""Functions that are random only if this argument, given with its position, is not zero."""


def _is_random(plain: str, arguments: Sequence[object], keywords: Mapping[str, object]) -> bool:
    """Whether the aten operator named `plain` draws random numbers."""
    if plain in _DROPS:
        key, position = _DROPS[plain]
        return bool(arguments[position] if len(arguments) > position else keywords.get(key, 0.0))
    packet = getattr(torch.ops.aten, plain, None)
    overloads = [] if packet is None else packet.overloads()
    return any(torch.Tag.nondeterministic_seeded in getattr(packet, name).tags for name in overloads)


def _encoded(b: Builder, item: Any, operands: list[Value]) -> Any:
    """`item` as JSON; see `ops.custom`.

    Raises:
        TypeError: `item` cannot be written as JSON.
    """
    match item:
        case Value() | Leaf():
            operands.append(b.value(item))
            return {OPERAND: len(operands) - 1}
        case None | bool() | int() | float() | str():
            return item
        case torch.dtype():
            return {DTYPE: str(DType.of(item))}
        case list() | tuple():
            return [_encoded(b, part, operands) for part in item]
        case dict():
            return {str(key): _encoded(b, part, operands) for key, part in item.items()}
    if hasattr(item, "free_symbols"):
        return {SIZE: format_dim(item)}
    raise TypeError(type(item).__name__)

r"""Ops defined elsewhere: `custom`, a torch function named by a string, and `call`, another graph.

    %y = custom(%x) {function = "torch.cumsum", arguments = "[[{\"operand\": 0}, 1], {}]"}
    %y = call(%x) {graph = "island"}

A custom op runs and differentiates but is never quantized. The function is looked up by name alone, in torch and among
registered operators: reading a graph runs no other code.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes, text
from qcompiler.ir.dims import bind, evaluate_dim, parse_dim
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import REQUIRED, OpDef, register
from qcompiler.ir.text import parse_type
from qcompiler.ir.types import DType, Stage, TensorType
from qcompiler.ops.common import ANY_STAGE

NAMESPACES: dict[str, object] = {
    "torch": torch,
    "torch.nn.functional": torch.nn.functional,
    "torch.special": torch.special,
    "torch.linalg": torch.linalg,
    "torch.fft": torch.fft,
    "torch.Tensor": torch.Tensor,
    "operator": operator,
}
"""Namespaces in which a function is looked up, in this order, by the text before the last dot of its name."""

_OPERATORS = frozenset(
    {
        "abs",
        "add",
        "and_",
        "eq",
        "floordiv",
        "ge",
        "gt",
        "inv",
        "invert",
        "le",
        "lshift",
        "lt",
        "matmul",
        "mod",
        "mul",
        "ne",
        "neg",
        "or_",
        "pos",
        "pow",
        "rshift",
        "sub",
        "truediv",
        "xor",
    }
)
"""Python's own operators on tensors."""

CUSTOM = "custom"
"""Name of the op that calls a function of torch."""

OPERAND, SIZE, DTYPE = "operand", "size", "dtype"
"""Keys of the JSON objects that represent values without a JSON form: a tensor, a size, an element type."""


def find_function(name: str) -> Callable[..., object]:
    """The torch function named `name`: `torch.cumsum`, `torch.Tensor.cumsum`, `aten::cumsum.default`.

    Raises:
        GraphError: No such function exists.
    """
    space, colons, rest = name.partition("::")
    found: Any = None
    if colons:
        packet, _, overload = rest.partition(".")
        found = getattr(getattr(torch.ops, space), packet, None)
        found = found if found is None or not overload else getattr(found, overload, None)
    else:
        space, _, rest = name.rpartition(".")
        found = getattr(NAMESPACES.get(space), rest, None)
        found = found if _is_of_tensors(space, rest, found) else None
    if not callable(found):
        raise GraphError(
            f"there is no function {name!r}",
            expected="a function of torch, or an operator registered with torch.library",
            fix="Import the package that registers it.",
        )
    return cast("Callable[..., object]", found)


def name_of(function: object) -> str | None:
    """The name under which `find_function` finds `function`; None if the lookup cannot find `function`."""
    if isinstance(function, OpOverload | OpOverloadPacket):
        space, _, rest = str(function).partition(".")  # aten.cumsum.default
        return f"{space}::{rest}"
    name = str(getattr(function, "__name__", ""))
    for space, home in NAMESPACES.items():
        own = name.removeprefix(f"{space.rpartition('.')[2]}_")  # torch.linalg.norm has the name linalg_norm
        if getattr(home, own, None) is function and _is_of_tensors(space, own, function):
            return f"{space}.{own}"
    return None


def _is_of_tensors(space: str, name: str, function: object) -> bool:
    """Whether a function only computes with tensors; torch also has functions that read and write files."""
    return name in _OPERATORS if space == "operator" else function in _overridable()


@functools.lru_cache(maxsize=1)
def _overridable() -> frozenset[object]:
    """The functions that a tensor may override: the functions that compute with tensors."""
    return frozenset(item for group in torch.overrides.get_overridable_functions().values() for item in group)


def is_custom(node: Node) -> bool:
    """Whether `node` calls a function of torch that has no operator."""
    return node.op == CUSTOM


def function_name(node: Node) -> str:
    """The name of what `node` computes, in messages and in rules: the operator, or the function of a custom node.

    The name of `torch.cumsum` and of `aten::cumsum.default` is `cumsum`.
    """
    if not is_custom(node):
        return node.op
    name = node.text("function")
    if "::" not in name:
        return name.rpartition(".")[2].strip("_")
    return name.partition(".")[0].removeprefix("aten::")


def registration(function: str) -> str:
    """Python source that registers a rule for a torch function."""
    return (
        f'    @qcompiler.frontends.rule("{function}")\n'
        f"    def {function.replace('::', '_').replace('.', '_')}(b, input, *arguments, **keywords):\n"
        f'        return b.node("an_operator", [input])\n'
    )


def result_types(attributes: Attributes) -> tuple[TensorType, ...]:
    """The types that the attribute `results` lists."""
    results = attributes["results"]
    if not isinstance(results, tuple) or not results or not all(isinstance(item, str) for item in results):
        raise GraphError(f"the results are {results!r}", expected="types as text, such as f32[N, 8]")
    return tuple(parse_type(str(item)) for item in results)


def _infer(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    return result_types(attributes)


def _infer_custom(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    find_function(text(attributes, "function"))
    return result_types(attributes)


def _custom(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    sizes: dict[str, int] = {}
    arguments = node.text("arguments")
    if f'"{SIZE}"' in arguments:
        for value, tensor in zip(node.inputs, operands, strict=True):
            bind(value.type.shape, tensor.shape, sizes)
    function = find_function(node.text("function"))
    positional, keywords = _filled(json.loads(arguments), operands, sizes)
    result = function(*positional, **keywords)
    found = [result] if isinstance(result, Tensor) else list(cast("Sequence[object]", result))
    if not all(isinstance(item, Tensor) for item in found):
        raise GraphError("a custom function returned objects other than tensors", where=node.where)
    return tuple(cast("list[Tensor]", found))


def _filled(item: object, operands: Sequence[Tensor], sizes: dict[str, int]) -> Any:  # noqa: ANN401
    """Arguments with their placeholders replaced by operands, sizes and element types."""
    match item:
        case {"operand": int(index)}:
            return operands[index]
        case {"size": str(text)}:
            return evaluate_dim(parse_dim(text), sizes)
        case {"dtype": str(name)}:
            return DType(name).torch
        case dict():
            return {key: _filled(part, operands, sizes) for key, part in item.items()}
        case list():
            return [_filled(part, operands, sizes) for part in item]
    return item


def _call(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    raise GraphError("a call is evaluated by the interpreter", where=node.where)


register(
    OpDef(
        CUSTOM,
        ("operands*",),
        _infer_custom,
        _custom,
        frozenset({Stage.FLOAT, Stage.CANONICAL}),
        {"function": REQUIRED, "arguments": REQUIRED, "results": REQUIRED, "reason": "", "fix": ""},
        summary="A function of torch without an operator, by its name; `reason` gives the cause, `fix` the remedy.",
    )
)
register(
    OpDef(
        "call",
        ("operands*",),
        _infer,
        _call,
        ANY_STAGE,
        {"graph": REQUIRED, "results": REQUIRED},
        summary="A float island: another graph of the module, run on real numbers.",
    )
)

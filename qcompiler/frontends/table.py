"""The table of rules, which map each torch function to operators, under plain names.

Functions, methods, in-place forms and aten operators of one meaning share an entry: `relu_`, `Tensor.relu`,
`aten.relu.default` and `torch.nn.functional.relu` are all `relu`. Parameters have torch's names. A function from
another package has an entry under its full name: `package.module.function`, `namespace::operator`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import torch
from torch._ops import OpOverload, OpOverloadPacket

from qcompiler.errors import UnsupportedError
from qcompiler.frontends.builder import Operand, Rule
from qcompiler.frontends.named import Named
from qcompiler.ops.custom import registration

Ints: TypeAlias = "int | Sequence[int]"
Number: TypeAlias = "bool | int | float"
_R = TypeVar("_R", bound=Rule)
RULES: Named[Rule] = Named("rules for the torch function")

_ALIASES = {
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "itruediv": "div",
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "negative": "neg",
    "absolute": "abs",
    "arctan": "atan",
    "logsigmoid": "log_sigmoid",
    "special_erf": "erf",
    "special_expm1": "expm1",
    "special_log1p": "log1p",
    "ipow": "pow",
    "concat": "cat",
    "concatenate": "cat",
    "expit": "sigmoid",
    "special_expit": "sigmoid",
    "clip": "clamp",
    "split_with_sizes": "split",
    "unsafe_split": "split",
    "unsafe_chunk": "chunk",
    "moveaxis": "movedim",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "imatmul": "matmul",
    "bmm": "matmul",
    "constant_pad_nd": "pad",
}
UNINITIALIZED = ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")
"""Functions whose result is any memory: two runs may agree by chance, but the result is no constant."""

_OWNERS = ("", "_operator", "builtins", "math", "operator", "torch")
"""Modules whose functions have their own name as plain name; torch's builtins name no module."""


def plain_name(target: object) -> str:
    """The table's name of a function, a method's name or an aten overload.

    Examples:
        >>> plain_name(torch.nn.functional.relu), plain_name("add_"), plain_name(torch.ops.aten.relu.default)
        ('relu', 'add', 'relu')
    """
    if isinstance(target, OpOverload | OpOverloadPacket):
        qualified = target.name() if isinstance(target, OpOverload) else target._qualified_op_name
        namespace, _, rest = qualified.partition("::")
        name = rest.partition(".")[0]
        if namespace != "aten":
            return f"{namespace}::{name}"
    else:
        name = target if isinstance(target, str) else str(getattr(target, "__name__", type(target).__name__))
        module = "" if isinstance(target, str) else str(getattr(target, "__module__", None) or "")
        if module.partition(".")[0] not in _OWNERS:
            return f"{module}.{name}"
    aten = target in (torch.batch_norm, torch.instance_norm) or isinstance(target, OpOverload | OpOverloadPacket)
    if name in ("batch_norm", "instance_norm") and aten:
        return f"aten_{name}"  # the arguments stand in another order than in torch.nn.functional
    name = name.strip("_")
    return _ALIASES.get(name, name)


def rule(*names: str) -> Callable[[_R], _R]:
    """Enter a rule into the table.

    The rule takes a `Builder` and the arguments of the torch function, with operands for tensors; it returns operands.

    Args:
        names: See `plain_name`.

    Raises:
        PluginError: A name is taken.
    """

    def enter(function: _R) -> _R:
        RULES.add(function, *names)
        return function

    return enter


def unknown(function: str, where: str) -> UnsupportedError:
    """The error for a function without a rule."""
    near = RULES.near(function)
    hint = f" There are rules for {near}." if near else ""
    return UnsupportedError(
        f"the torch function {function!r} has no operator",
        where=where,
        fix=f"Replace it in the model, or register a rule for it:{hint}\n\n{registration(function)}",
    )


def as_tuple(value: Ints, rank: int) -> tuple[int, ...]:
    """One number for each of `rank` axes."""
    items = tuple(int(v) for v in value) if isinstance(value, Sequence) else (int(value),)
    return items * rank if len(items) == 1 else items


def known_sizes(operand: Operand) -> tuple[int, ...]:
    """The shape of one of the model's own tensors."""
    return operand.type.sizes


def axis_of(operand: Operand, dim: int) -> int:
    """`dim` as an index from 0.

    Raises:
        IndexError: The axis does not exist.
    """
    rank = operand.type.rank
    if not -rank <= dim < rank:
        raise IndexError(f"axis {dim} of {rank}")
    return dim % rank

"""Dimensions: integers, or integer expressions over named symbols such as the batch `N`.

sympy carries the expressions. It is imported only where a symbol is made or read from text, because its import alone
costs more than the rest of the package.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from qcompiler.errors import InputError, ParseError

if TYPE_CHECKING:
    import sympy

Dim: TypeAlias = "int | sympy.Expr"
Shape: TypeAlias = "tuple[Dim, ...]"


def symbol(name: str) -> sympy.Expr:
    """The positive integer symbol called `name`."""
    import sympy

    return sympy.Symbol(name, integer=True, positive=True)


def as_dim(value: Dim) -> Dim:
    """`value` with constant expressions turned into plain ints, so that equal dimensions compare equal."""
    if isinstance(value, int):
        return value
    return int(value) if value.is_Integer else value


def product(dims: Sequence[Dim]) -> Dim:
    """The product of `dims`, 1 for none."""
    result: Dim = 1
    for dim in dims:
        result = dim * result
    return as_dim(result)


def evaluate_dim(dim: Dim, bindings: Mapping[str, int]) -> int:
    """The integer that `dim` is when each symbol has the value in `bindings`.

    Raises:
        InputError: A symbol of `dim` has no value.
    """
    if isinstance(dim, int):
        return dim
    missing = [s.name for s in symbols_of(dim) if s.name not in bindings]
    if missing:
        raise InputError(f"the size {dim} cannot be computed: {', '.join(missing)} has no value")
    return int(dim.subs({s: bindings[s.name] for s in symbols_of(dim)}))


def symbols_of(dim: Dim) -> list[sympy.Symbol]:
    """The symbols in `dim`, ordered by name."""
    return [] if isinstance(dim, int) else sorted(dim.free_symbols, key=str)


def bind(shape: Shape, sizes: Sequence[int], bindings: dict[str, int]) -> str | None:
    """Match concrete `sizes` against `shape`, entering new symbols into `bindings`.

    Returns:
        None when they match, else one sentence that says how they differ.
    """
    if len(shape) != len(sizes):
        return f"it has {len(sizes)} dimensions, not {len(shape)}"
    for position, (dim, size) in enumerate(zip(shape, sizes, strict=True)):
        if not isinstance(dim, int) and dim.is_Symbol and str(dim) not in bindings:
            bindings[str(dim)] = size
        elif evaluate_dim(dim, bindings) != size:
            return f"dimension {position} is {size}, not {evaluate_dim(dim, bindings)}"
    return None


def format_dim(dim: Dim) -> str:
    """Text that `parse_dim` reads back."""
    return str(dim)


def parse_dim(text: str) -> Dim:
    """Read `64`, `N`, `4*N`, `floor(N/2) + 1`.

    Raises:
        ParseError: `text` is not an integer expression over names.
    """
    if text.lstrip("-").isdigit():
        return int(text)
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise ParseError(f"{text!r} is not a dimension", expected="an integer expression over names") from error
    return as_dim(_from_ast(tree.body, text))


def _from_ast(node: ast.expr, text: str) -> Dim:
    import sympy

    match node:
        case ast.Constant(value=int(value)):
            return sympy.Integer(value)
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_from_ast(operand, text)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _from_ast(left, text), _from_ast(right, text)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
                case ast.FloorDiv():
                    return a // b
                case ast.Pow():
                    return a**b
        case ast.Call(func=ast.Name(id="floor"), args=[argument]):
            return sympy.floor(_from_ast(argument, text))
    raise ParseError(f"{text!r} is not a dimension", expected="an integer expression over names")

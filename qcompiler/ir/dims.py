"""Dimensions: integers, or integer expressions over named symbols such as the batch `N`.

sympy represents the expressions. It is imported only to create a symbol or to read one from text, because its import
takes longer than that of the rest of the package.
"""

from __future__ import annotations

import ast
import keyword
import math
import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, TypeAlias, cast

from qcompiler.errors import InputError, ParseError

if TYPE_CHECKING:
    import sympy

Dim: TypeAlias = "int | sympy.Expr"
Shape: TypeAlias = "tuple[Dim, ...]"


LONGEST = 4000
"""Most characters of a size in text."""
LARGEST_POWER = 16
"""Largest exponent in a size, because the expanded power of a sum has that many terms."""
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def symbol(name: str) -> sympy.Expr:
    """The positive integer symbol called `name`.

    Raises:
        InputError: `name` could not be read back from a size in text.
    """
    if not _SYMBOL.fullmatch(name) or keyword.iskeyword(name) or name == "floor":
        raise InputError(f"a size has the name {name!r}", expected="letters, digits and underscores, but not a keyword")
    import sympy

    return sympy.Symbol(name, integer=True, positive=True)


def as_dim(value: Dim) -> Dim:
    """`value` as a plain int or as an expanded expression, so that equal dimensions compare equal.

    sympy keeps `-(H + N)*floor(N/2)` apart from `(-H - N)*floor(N/2)`, the form in which the text of the first is read.
    """
    if isinstance(value, Integral):
        return int(value)
    expanded: Dim = cast("sympy.Expr", value).expand()
    return int(expanded) if isinstance(expanded, Integral) else expanded


def product(dims: Sequence[Dim]) -> Dim:
    """The product of `dims`, 1 if empty."""
    result: Dim = 1
    for dim in dims:
        result = dim * result
    return as_dim(result)


def evaluate_dim(dim: Dim, bindings: Mapping[str, int]) -> int:
    """The value of `dim` with the symbol values in `bindings`.

    Raises:
        InputError: A symbol of `dim` has no value.
    """
    if isinstance(dim, int):
        return dim
    missing = [s.name for s in symbols_of(dim) if s.name not in bindings]
    if missing:
        raise InputError(f"the size {dim} cannot be computed: {', '.join(missing)} has no value")
    return _quotient(dim, bindings)


def _quotient(expression: sympy.Expr, bindings: Mapping[str, int]) -> int:
    """An expression rounded down, in the arithmetic of the bound sizes, which may be symbols of torch."""
    import sympy

    numerator, denominator = sympy.fraction(sympy.together(expression))
    divisor = _computed(denominator, bindings)
    whole = _computed(numerator, bindings)
    return whole if denominator.is_Integer and divisor == 1 else whole // divisor


def _computed(expression: sympy.Expr, bindings: Mapping[str, int]) -> int:
    if expression.is_Integer:
        return int(expression)
    if expression.is_Symbol:
        return bindings[expression.name]
    if expression.is_Pow:
        return int(math.prod([_computed(expression.base, bindings)] * int(expression.exp)))
    if not (expression.is_Add or expression.is_Mul):  # floor
        return _quotient(expression.args[0], bindings)
    terms = [_computed(part, bindings) for part in expression.args]
    return sum(terms) if expression.is_Add else math.prod(terms)


def symbols_of(dim: Dim) -> list[sympy.Symbol]:
    """The symbols in `dim`, ordered by name."""
    return [] if isinstance(dim, int) else sorted(dim.free_symbols, key=str)


def bind(shape: Shape, sizes: Sequence[int], bindings: dict[str, int]) -> str | None:
    """Match concrete `sizes` against `shape`, entering new symbols into `bindings`.

    Returns:
        None if they match, else one sentence about the difference.
    """
    if len(shape) != len(sizes):
        return f"the shape has {len(sizes)} dimensions, not {len(shape)}"
    for position, (dim, size) in enumerate(zip(shape, sizes, strict=True)):
        if not isinstance(dim, int) and dim.is_Symbol and str(dim) not in bindings:
            bindings[str(dim)] = size
            continue
        if not _solve(dim, size, bindings):
            return f"dimension {position} is {size}, which {dim} never is"
        if evaluate_dim(dim, bindings) != size:
            return f"dimension {position} is {size}, not {evaluate_dim(dim, bindings)}"
    return None


def _solve(dim: Dim, size: int, bindings: dict[str, int]) -> bool:
    """Enter the one unbound symbol of `dim`, if `dim` is linear in the symbol; False if no integer fits."""
    unknown = [s for s in symbols_of(dim) if s.name not in bindings]
    if isinstance(dim, int) or len(unknown) != 1:
        return True
    (unbound,) = unknown
    known = dim.subs({s: bindings[s.name] for s in symbols_of(dim) if s != unbound}).expand()
    slope = known.coeff(unbound)
    rest = known - slope * unbound
    if not (slope.is_Integer and rest.is_Integer) or slope == 0:
        return True
    bindings[unbound.name] = (size - int(rest)) // int(slope)
    return (size - int(rest)) % int(slope) == 0


def format_dim(dim: Dim) -> str:
    """Text that `parse_dim` reads back."""
    return str(dim)


def parse_dim(text: str) -> Dim:
    """Read `64`, `N`, `4*N`, `floor(N/2) + 1`.

    Raises:
        ParseError: `text` is not an integer expression over names.
    """
    try:
        if _INTEGER.fullmatch(text):
            return int(text)
        if len(text) > LONGEST:
            raise _no_dimension(text)
        found = as_dim(_from_ast(ast.parse(text.strip(), mode="eval").body, text))
    # ValueError: a number of thousands of digits or a zero byte; the other errors: thousands of brackets.
    except (SyntaxError, ValueError, RecursionError, MemoryError, InputError):
        raise _no_dimension(text) from None
    if isinstance(found, int) or found.is_integer:
        return found
    raise _no_dimension(text)


_INTEGER = re.compile(r"-?[0-9]+")


def _no_dimension(text: str) -> ParseError:
    shown = text if len(text) < 60 else f"{text[:60]}..."
    return ParseError(f"{shown!r} is not a dimension", expected="an integer expression over names")


def _from_ast(node: ast.expr, text: str) -> sympy.Expr:
    import sympy

    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
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
                case ast.Pow() if (
                    a.free_symbols and b.is_Integer and abs(b) <= LARGEST_POWER
                ):  # larger exponents may never finish
                    return a**b
        case ast.Call(func=ast.Name(id="floor"), args=[argument]):
            return sympy.floor(_from_ast(argument, text))
    raise _no_dimension(text)

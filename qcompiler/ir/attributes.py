"""Attributes of nodes: plain values, in one form, whether written by a pass or read by the parser."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, TypeAlias, cast

from qcompiler.errors import GraphError
from qcompiler.ir.dims import as_dim
from qcompiler.quant.spec import QuantSpec

if TYPE_CHECKING:
    from qcompiler.ir.dims import Dim

Scalar: TypeAlias = "int | float | bool | str | QuantSpec | None"
Attribute: TypeAlias = "Scalar | Dim | tuple[Scalar | Dim, ...]"
Attributes: TypeAlias = Mapping[str, "Attribute"]


def plain(value: object) -> Attribute:
    """`value` as an attribute: a number, text, None, a QuantSpec or a size, or a tuple of these.

    Enumerations become text, numbers of numpy and sympy become Python numbers, lists become tuples. Attributes thus
    have one form, whether written by a pass or read by the parser.

    Raises:
        GraphError: `value` is none of these.
    """
    return tuple(map(_scalar, value)) if isinstance(value, tuple | list) else _scalar(value)


def _scalar(value: object) -> Scalar | Dim:
    if value is None or isinstance(value, bool | QuantSpec):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # plain text, for enumerations, too
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if hasattr(value, "free_symbols"):  # a sympy expression; sympy is not imported for the check
        return as_dim(cast("Dim", value))
    raise GraphError(f"{value!r}", expected="a number, text, a bool, None, a QuantSpec, a size, or a tuple of these")

"""Attributes of nodes: plain values, of one form whether a pass wrote them or the parser read them."""

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

    Enumerations become their text, numpy's and sympy's numbers become Python's, and lists become tuples. So an
    attribute has one form, whether a pass wrote it or the parser read it.

    Raises:
        GraphError: It is nothing of the kind.
    """
    return tuple(map(_scalar, value)) if isinstance(value, tuple | list) else _scalar(value)


def _scalar(value: object) -> Scalar | Dim:
    if value is None or isinstance(value, bool | QuantSpec):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of an enumeration, too, the text alone
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if hasattr(value, "free_symbols"):  # sympy's, which is not imported for the question
        return as_dim(cast("Dim", value))
    raise GraphError(f"{value!r}", expected="a number, text, a bool, None, a QuantSpec, a size, or a tuple of these")

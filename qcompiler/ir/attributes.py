"""Attributes of nodes: plain values in one form, whether written by a pass or read by the parser, and typed access.

`integer`, `integers`, `number`, `flag`, `text` and `spec` read one attribute of a mapping, for type inference, which
has no node yet. `Attributed` gives nodes and instructions the same readers; their errors also name the place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from qcompiler.errors import GraphError
from qcompiler.ir.dims import as_dim
from qcompiler.quant.spec import QuantSpec

if TYPE_CHECKING:
    from qcompiler.ir.dims import Dim

Scalar: TypeAlias = "int | float | bool | str | QuantSpec | None"
Attribute: TypeAlias = "Scalar | Dim | tuple[Scalar | Dim, ...]"
Attributes: TypeAlias = Mapping[str, "Attribute"]

_T = TypeVar("_T")


def plain(value: object) -> Attribute:
    """`value` as an attribute: a number, text, None, a QuantSpec or a size, or a tuple of these.

    Enumerations become text, numbers of numpy and sympy become Python numbers, lists become tuples. Attributes thus
    have one form, whether written by a pass or read by the parser.

    Raises:
        GraphError: `value` is none of these.
    """
    return tuple(map(_scalar, value)) if isinstance(value, tuple | list) else _scalar(value)


def integer(attributes: Attributes, name: str) -> int:
    """The attribute `name`, an int.

    Raises:
        GraphError: The attribute is something else.
    """
    return _typed(attributes, name, int, "an integer")


def integers(attributes: Attributes, name: str) -> tuple[int, ...]:
    """The attribute `name`, a tuple of ints.

    Raises:
        GraphError: The attribute is something else.
    """
    return _tuple(attributes, name, lambda item: item if isinstance(item, int) else None, "integers")


def dims(attributes: Attributes, name: str) -> tuple[Dim, ...]:
    """The attribute `name`, a tuple of sizes, symbolic ones included.

    Raises:
        GraphError: The attribute is something else.
    """
    return _tuple(attributes, name, lambda item: None if isinstance(item, float | str | QuantSpec) else item, "sizes")


def number(attributes: Attributes, name: str) -> float:
    """The attribute `name`, a number, as a float.

    Raises:
        GraphError: The attribute is no number.
    """
    value = _present(attributes, name)
    if not isinstance(value, int | float):
        raise GraphError(f"{name} is {value!r}", expected="a number")
    return float(value)


def flag(attributes: Attributes, name: str) -> bool:
    """The attribute `name`, a bool; models also give 0 and 1.

    Raises:
        GraphError: The attribute is something else.
    """
    return bool(_typed(attributes, name, int, "true or false"))


def text(attributes: Attributes, name: str) -> str:
    """The attribute `name`, text.

    Raises:
        GraphError: The attribute is something else.
    """
    return _typed(attributes, name, str, "text")


def spec(attributes: Attributes, name: str) -> QuantSpec:
    """The attribute `name`, a description of a grid.

    Raises:
        GraphError: The attribute is something else.
    """
    return _typed(attributes, name, QuantSpec, "a QuantSpec")


def _typed(attributes: Attributes, name: str, kind: type[_T], expected: str) -> _T:
    value = _present(attributes, name)
    if not isinstance(value, kind):
        raise GraphError(f"{name} is {value!r}", expected=expected)
    return value


def _tuple(
    attributes: Attributes, name: str, read: Callable[[Scalar | Dim], _T | None], expected: str
) -> tuple[_T, ...]:
    """The attribute `name`, a tuple whose items `read` accepts; it returns None for other items."""
    value = _typed(attributes, name, tuple, expected)
    found = tuple(item for item in map(read, value) if item is not None)
    if len(found) != len(value):
        raise GraphError(f"{name} is {value!r}", expected=expected)
    return found


class Attributed:
    """Typed access to the attributes of an operation.

    Every reader raises GraphError with the place of the operation if the attribute is absent or of another type. A
    `default` is the result for an attribute that is absent or None.
    """

    __slots__ = ()
    if TYPE_CHECKING:  # of the subclasses; pydantic would count an annotation as the first field of an instruction
        attributes: Attributes

        @property
        def where(self) -> str:
            """The operation in messages."""

    def given(self, name: str) -> bool:
        """Whether the attribute `name` is present and not None."""
        return self.attributes.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """An int."""
        return self._read(integer, name) if default is None or self.given(name) else default

    def integers(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """A tuple of ints."""
        return self._read(integers, name) if default is None or self.given(name) else default

    def number(self, name: str, default: float | None = None) -> float:
        """A number as a float."""
        return self._read(number, name) if default is None or self.given(name) else default

    def flag(self, name: str) -> bool:
        """A bool."""
        return self._read(flag, name)

    def text(self, name: str, default: str | None = None) -> str:
        """Text."""
        return self._read(text, name) if default is None or self.given(name) else default

    @property
    def spec(self) -> QuantSpec:
        """The grid of a quantizer: its attribute `spec`."""
        return self._read(spec, "spec")

    def _read(self, read: Callable[[Attributes, str], _T], name: str) -> _T:
        try:
            return read(self.attributes, name)
        except GraphError as error:
            raise GraphError(error.found, where=self.where, expected=error.expected) from None


def _present(attributes: Attributes, name: str) -> Attribute:
    if name not in attributes:
        raise GraphError(f"there is no attribute {name!r}", expected="one of " + ", ".join(attributes))
    return attributes[name]


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
    raise GraphError(f"{value!r}", expected="a number, string, bool, None, QuantSpec or size, or a tuple of these")

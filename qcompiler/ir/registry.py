"""What an operator is: the `OpDef` protocol and the one table of all of them.

An entry says what the op *is*: its operands, attributes, result types, its meaning in torch, the stages at which it may
stand. What a back end does with it is that back end's own table.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from torch import Tensor

from qcompiler.errors import GraphError, PluginError
from qcompiler.ir.attributes import Attribute, Attributes, plain
from qcompiler.ir.types import Stage, TensorType

Infer: TypeAlias = Callable[[Sequence[TensorType], Attributes], tuple[TensorType, ...]]
Evaluate: TypeAlias = Callable[[Any, Sequence[Tensor]], tuple[Tensor, ...]]
"""Results from a `Node`, whose definition needs that of operators, and its operands."""


class Trait(StrEnum):
    """Facts about an op that passes ask for by name instead of listing ops."""

    LEAF = "leaf"
    """Takes no operands: reads a tensor of the module."""
    MOVEMENT = "movement"
    """Moves elements unchanged: the codes and the grid of the result are those of the input."""
    ACTIVATION = "activation"
    """Monotone clamp of its input between two numbers: `relu`, `clamp`."""
    MAC = "mac"
    """Sum of products of its first operand with its second, the weight."""
    PARAMETRIC = "parametric"
    """Its operands but the first are tensors of the model, which become constants of its integer form."""
    UNARY = "unary"
    """Applies one real function to each element."""
    REQUANTIZES = "requantizes"
    """An integer op whose result has a grid of its own, given on the result type."""


@dataclass(frozen=True)
class OpDef:
    """One operator.

    Args:
        name: As written in text and in descriptors.
        operands: Names in order; a trailing `?` marks an optional last operand, a single `name*` any number.
        attributes: Allowed attribute names and the default, or `REQUIRED`.
        infer: Result types from operand types and attributes; raises GraphError when they do not fit.
        evaluate: Results from operand tensors, in torch.
        stages: Where it is legal.
        traits: See `Trait`.
        summary: One line for the documentation.
    """

    name: str
    operands: tuple[str, ...]
    infer: Infer
    evaluate: Evaluate
    stages: frozenset[Stage]
    attributes: Mapping[str, object] = field(default_factory=dict)
    traits: frozenset[Trait] = frozenset()
    summary: str = ""

    def has(self, trait: Trait) -> bool:
        """Whether the op has `trait`."""
        return trait in self.traits

    def accepts(self, count: int) -> bool:
        """Whether `count` operands are a legal number."""
        if self.operands and self.operands[-1].endswith("*"):
            return count >= len(self.operands)
        required = sum(not name.endswith("?") for name in self.operands)
        return required <= count <= len(self.operands)

    def complete(self, given: Attributes, where: str | None = None) -> dict[str, Attribute]:
        """`given` with defaults filled in, in declaration order, as plain values; see `plain`.

        Raises:
            GraphError: An attribute is unknown, of no kind that a graph holds, or a required one is missing.
        """
        for name in given:
            if name not in self.attributes:
                raise GraphError(
                    f"{self.name} has no attribute {name!r}", where=where, expected=_names(self.attributes)
                )
        result: dict[str, Attribute] = {}
        for name, default in self.attributes.items():
            value = given.get(name, default)
            if value is REQUIRED:
                raise GraphError(f"{self.name} lacks the attribute {name!r}", where=where)
            try:
                result[name] = plain(value)
            except GraphError as error:
                raise GraphError(
                    f"{self.name} is given {name} = {error.found}", where=where, expected=error.expected
                ) from None
        return result


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()
"""Stands for the default of an attribute that has none."""

_OPS: dict[str, OpDef] = {}


def register(definition: OpDef) -> OpDef:
    """Add an op to the table.

    Raises:
        PluginError: The name is taken.
    """
    if definition.name in _OPS:
        raise PluginError(
            f"two operators are called {definition.name!r}",
            where=f"{_OPS[definition.name].evaluate.__module__} and {definition.evaluate.__module__}",
            fix="Rename one of them.",
        )
    _OPS[definition.name] = definition
    return definition


def op(name: str) -> OpDef:
    """The definition of `name`.

    Raises:
        GraphError: There is none; the nearest names are given.
    """
    try:
        return _OPS[name]
    except KeyError:
        near = difflib.get_close_matches(name, _OPS, n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise GraphError(f"there is no operator called {name!r}", fix=f"Register it first.{hint}") from None


def known_ops() -> dict[str, OpDef]:
    """All definitions by name, in order of registration."""
    return dict(_OPS)


def _names(items: Mapping[str, object]) -> str:
    return "one of " + ", ".join(items) if items else "no attributes"

"""Definitions of operators: the `OpDef` protocol and the one table of all operators.

An entry defines the op: operands, attributes, result types, evaluation in torch, legal stages. Each back end has its
own table of its handling of ops.
"""

from __future__ import annotations

import difflib
import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from torch import Tensor

from qcompiler.errors import GraphError, PluginError
from qcompiler.ir.attributes import Attribute, Attributes, plain
from qcompiler.ir.types import Stage, TensorType
from qcompiler.plugins import load_entries

Infer: TypeAlias = Callable[[Sequence[TensorType], Attributes], tuple[TensorType, ...]]
Evaluate: TypeAlias = Callable[[Any, Sequence[Tensor]], tuple[Tensor, ...]]
"""Function from a `Node` and its operands to its results; `Any`, because `Node` depends on this module."""
Update: TypeAlias = Callable[[Any, Sequence[Tensor]], Mapping[int, Tensor]]
"""Function from a `Node` and its operands to the new values of operands that are states, by position."""


class Trait(StrEnum):
    """Facts about an op, queried by passes in place of lists of op names."""

    LEAF = "leaf"
    """Takes no operands: reads a tensor of the module."""
    MOVEMENT = "movement"
    """Gives elements of its operands unchanged, so that all are on one grid: `reshape`, `concat`. With `ELEMENTWISE`,
    the values decide which of two: `maximum`."""
    GUIDED = "guided"
    """A movement of its first operand alone: the others are indices, masks or sizes. `embedding`."""
    EXACT = "exact"
    """Computes integers or booleans without a grid, the same at every stage: ids, positions, masks."""
    VIEW = "view"
    """A movement that shows elements of its operand in another shape or order: `reshape`, `permute`, `slice`."""
    MAC = "mac"
    """Sum of products of its first operand with its second: a layer or a contraction."""
    WEIGHTED = "weighted"
    """A layer: its second operand is the weight, its third, if present, the bias."""
    CONVOLUTION = "convolution"
    """A layer that slides a window over an image, with its channels along axis 1; other layers have them last."""
    TRANSPOSED = "transposed"
    """A convolution that spreads each element of its input over a window of its result."""
    CONTRACTION = "contraction"
    """Sum of products of two activations, neither of which is a weight: `matmul`."""
    PARAMETRIC = "parametric"
    """All operands but the first are tensors of the model, which become constants of the integer form."""
    NORMALIZATION = "normalization"
    """The mean and deviation of the result are parameters and do not depend on the operand."""
    AVERAGE = "average"
    """Each result is a mean of elements and therefore in the range of the operand."""
    SPATIAL = "spatial"
    """Mixes pixels of an image within each channel: pooling and resizing."""
    ELEMENTWISE = "elementwise"
    """A function of the elements of two operands at the same place, with broadcasting."""
    UNARY = "unary"
    """Applies one real function to each element."""
    CLAMP = "clamp"
    """Monotone clamp of its input between two numbers, for all elements or per channel."""
    ACTIVATION = "activation"
    """A clamp with one interval for all elements: `relu`, `clamp`."""
    RECTIFIER = "rectifier"
    """The identity above 0, a slope times the element below: `relu`, `leaky_relu`, `prelu`."""
    NOT_NEGATIVE = "not-negative"
    """Every result is at least 0."""
    KEEPS_SIGN = "keeps-sign"
    """The result is at least 0 if all operands are; a border of `pad` has a value of its own."""
    COMMUTES_WITH_SCALE = "commutes-with-scale"
    """f(s x) = s f(x) for a positive s; a border of `pad` has a value of its own."""
    QUANTIZER = "quantizer"
    """Puts its first operand on the grid of its attribute `spec` and of the scale and zero point that follow."""
    BIAS_QUANTIZER = "bias-quantizer"
    """Puts a bias on the grid of the sums of its layer."""
    REQUANTIZES = "requantizes"
    """An integer op with its own output scale and zero point, given in the result type."""


@dataclass(frozen=True)
class OpDef:
    """One operator.

    Args:
        name: Name in text and in descriptors.
        operands: Names of the operands in order; a trailing `?` marks an optional last operand, `name*` any number.
        attributes: Allowed attribute names with the default, or `REQUIRED`.
        infer: Result types from operand types and attributes; raises GraphError if they do not fit.
        evaluate: Results from operand tensors, in torch.
        stages: Stages at which the op is legal.
        traits: Facts about the op; see `Trait`.
        summary: One line for the documentation.
        kind: Kind of the integer form as named in descriptors; empty: the traits decide, see `ops.kinds`.
        update: New values of states that the op reads as operands, by position, from operand tensors; None: the op
            updates no state.
    """

    name: str
    operands: tuple[str, ...]
    infer: Infer
    evaluate: Evaluate
    stages: frozenset[Stage]
    attributes: Mapping[str, object] = field(default_factory=dict)
    traits: frozenset[Trait] = frozenset()
    summary: str = ""
    kind: str = ""
    update: Update | None = None

    def has(self, *traits: Trait) -> bool:
        """Whether the op has one of `traits`."""
        return not self.traits.isdisjoint(traits)

    def accepts(self, count: int) -> bool:
        """Whether `count` operands are a legal number."""
        if self.operands and self.operands[-1].endswith("*"):
            return count >= len(self.operands)
        required = sum(not name.endswith("?") for name in self.operands)
        return required <= count <= len(self.operands)

    def complete(self, given: Attributes, where: str | None = None) -> dict[str, Attribute]:
        """`given` with defaults filled in, in declaration order, as plain values; see `plain`.

        Raises:
            GraphError: An attribute is unknown, of an unsupported kind, or a required one is missing.
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
                    f"{self.name} has the attribute {name} = {error.found}", where=where, expected=error.expected
                ) from None
        return result


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()
"""Marker of an attribute without a default."""

ENTRY_POINT_GROUP = "qcompiler.ops"

_OPS: dict[str, OpDef] = {}
_FILLING = threading.RLock()
_FILLED = threading.Event()


def register(definition: OpDef) -> OpDef:
    """Add an op to the table.

    Raises:
        PluginError: The name is taken.
    """
    if definition.name in _OPS:
        raise PluginError(
            f"two operators have the name {definition.name!r}",
            where=f"{_OPS[definition.name].evaluate.__module__} and {definition.evaluate.__module__}",
            fix="Rename one of them.",
        )
    _OPS[definition.name] = definition
    return definition


def op(name: str) -> OpDef:
    """The definition of `name`.

    Raises:
        GraphError: No such op exists; the nearest names are given.
        PluginError: See `known_ops`.
    """
    ops = _filled()
    try:
        return ops[name]
    except KeyError:
        near = difflib.get_close_matches(name, ops, n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise GraphError(f"there is no operator {name!r}", fix=f"Register it first.{hint}") from None


def known_ops() -> dict[str, OpDef]:
    """All definitions by name: those of this package, of plugins and of callers, in order of registration.

    Raises:
        PluginError: A plugin's operator cannot be loaded, is not an `OpDef` of its entry's name, or has a name in use.
    """
    return dict(_filled())


def _filled() -> dict[str, OpDef]:
    """The table, which the first question fills."""
    if not _FILLED.is_set():
        with _FILLING:
            # By name, because definitions are in a room that imports this one.
            importlib.import_module("qcompiler.ops")
            if not _FILLED.is_set():
                _register_plugins()
                _FILLED.set()
    return _OPS


def _register_plugins() -> None:
    owners = {name: definition.evaluate.__module__ for name, definition in _OPS.items()}
    entries = load_entries(ENTRY_POINT_GROUP, owners)
    definitions = [_checked(name, item) for name, item in entries.items()]
    for definition in definitions:
        register(definition)


def _checked(name: str, item: object) -> OpDef:
    if isinstance(item, OpDef) and item.name == name:
        return item
    raise PluginError(
        f"the entry point {name!r} of {ENTRY_POINT_GROUP} is {item!r}", expected=f"an OpDef with the name {name!r}"
    )


def _names(items: Mapping[str, object]) -> str:
    return "one of " + ", ".join(items) if items else "no attributes"

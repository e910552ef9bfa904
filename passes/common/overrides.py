"""The user's bit widths for single nodes, matched by pattern."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from qcompiler.errors import InputError
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.registry import Trait
from qcompiler.passes.base import Override

WEIGHT_BITS_LIMIT = 8
"""Largest width of weights; a larger plain number applies only to activations."""


Gradient: TypeAlias = 'int | Literal["float"] | None'
"""Requested width of a gradient; "float": it is not quantized; None: the default of the target."""


@dataclass(frozen=True)
class Bits:
    """Requested widths; None for the default of the target."""

    activation: int | None = None
    weight: int | None = None
    is_float: bool = False
    gradient: Gradient = None


@dataclass(frozen=True)
class Overrides:
    """Widths by node name.

    A pattern is the name of a node, a module path, which matches all nodes of the module, a glob for either, or an op.
    Later patterns override earlier ones. `float` selects a float island, which the target must allow. A number n
    selects n-bit results and weights of min(n, 8) bits; a mapping `{"activation_bits": 16, "weight_bits": 4}` selects
    both. In quantized training `{"gradient_bits": 16}` or `{"gradient_bits": "float"}` selects the width of the
    gradient of a layer's result.
    """

    bits: Mapping[str, Bits]

    @classmethod
    def resolve(cls, overrides: Mapping[str, Override], graph: Graph) -> Overrides:
        """Match patterns against the nodes of `graph`, and of the float graphs that it calls.

        Raises:
            InputError: A pattern matches no node, or its value is not valid.
        """
        every = (node for each in graph.module.graphs.values() for node in each.nodes)
        nodes = [node for node in every if not node.definition.has(Trait.LEAF)]
        result: dict[str, Bits] = {}
        for pattern, override in overrides.items():
            bits = _bits(pattern, override)
            matched = [node for node in nodes if _matches(pattern, node)]
            if not matched:
                names = sorted({name for node in nodes for name in _names(node)})
                near = difflib.get_close_matches(pattern, names, n=3)
                raise InputError(
                    f"the override {pattern!r} matches no node",
                    expected="a node name, a module path, a glob over them, or an op",
                    fix=f"Did you mean {', '.join(near)}?" if near else None,
                )
            result.update({node.name: bits for node in matched})
        return cls(result)

    def activation_bits(self, node: Node) -> int | None:
        """Requested width of the result of `node`."""
        return self.bits.get(node.name, Bits()).activation

    def wants_float(self, node: Node) -> bool:
        """Whether an override selects float for `node`."""
        return self.bits.get(node.name, Bits()).is_float

    def weight_bits(self, node: Node) -> int | None:
        """Requested width of the weight of `node`."""
        return self.bits.get(node.name, Bits()).weight

    def gradient_bits(self, node: Node) -> Gradient:
        """Requested width of the gradient of the result of `node`."""
        return self.bits.get(node.name, Bits()).gradient


def _names(node: Node) -> tuple[str, ...]:
    return (node.name, *node.origins, node.location.path, node.op)


def _matches(pattern: str, node: Node) -> bool:
    inside = node.location.path.startswith(f"{pattern}.")
    return inside or any(fnmatch.fnmatchcase(name, pattern) for name in _names(node) if name)


def _bits(pattern: str, override: Override) -> Bits:
    where = f"overrides[{pattern!r}]"
    if override == "float":
        return Bits(is_float=True)
    if isinstance(override, bool) or not isinstance(override, int | Mapping):
        raise InputError(
            f"an override has the value {override!r}",
            where=where,
            expected='a number of bits, "float", or {"activation_bits": ..., "weight_bits": ...}',
        )
    if isinstance(override, int):
        return Bits(override, min(override, WEIGHT_BITS_LIMIT))
    unknown = [key for key in override if key not in _KEYS]
    if unknown:
        raise InputError(
            f"an override has the key {unknown[0]!r}", where=where, expected=f"{', '.join(_KEYS[:-1])} or {_KEYS[-1]}"
        )
    activation, weight, gradient = (override.get(key) for key in _KEYS)
    for key, value in (("activation_bits", activation), ("weight_bits", weight)):
        if isinstance(value, str):
            fix = 'Use "float" in place of the whole mapping.' if value == "float" else None
            raise InputError(f"{key} is {value!r}", where=where, expected="a number of bits", fix=fix)
    if isinstance(gradient, str) and gradient != "float":
        raise InputError(f"gradient_bits is {gradient!r}", where=where, expected='a number of bits or "float"')
    return Bits(_number(activation), _number(weight), gradient=_number(gradient) if gradient != "float" else "float")


_KEYS = ("activation_bits", "weight_bits", "gradient_bits")


def _number(value: int | str | None) -> int | None:
    return None if isinstance(value, str) else value

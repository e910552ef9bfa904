"""Diagnostics for parts of concats that the grid of the whole cannot represent, with remedies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from qcompiler.errors import TargetError
from qcompiler.ir.diagnostics import Diagnostic, decibels
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import Layer
from qcompiler.quant.affine import qparams_from_range
from qcompiler.targets import Target
from qcompiler.validation.joined_parts import Part, leads_out, weak_parts

__all__ = ["weak_part_diagnostics"]

GOOD_DB = 20.0
"""Signal-to-noise ratio in dB that a remedy has to give a part."""


def weak_part_diagnostics(
    canonical: Graph, quantized: Graph, samples: Sequence[Tensor], target: Target
) -> Iterator[Diagnostic]:
    """One diagnostic for each concat with weak parts; the weakest is named.

    Args:
        canonical: Graph before quantizers were inserted.
        quantized: The calibrated graph.
        samples: Flat inputs.
        target: Hardware target.
    """
    by_join: dict[Node, list[Part]] = {}
    for part in weak_parts(canonical, quantized, samples):
        by_join.setdefault(part.join, []).append(part)
    for join, parts in by_join.items():
        parts.sort(key=lambda part: part.sqnr)
        worst = parts[0]
        data = {
            "concat": join.name,
            "part": worst.name,
            "db": decibels(worst.sqnr),
            "own_db": decibels(worst.own),
            "low": float(f"{worst.reach[0]:.6g}"),
            "high": float(f"{worst.reach[1]:.6g}"),
            "others": [part.name for part in parts[1:]],
            "fix": _remedy(parts, target),
        }
        yield Diagnostic("weak-part", data, join.where)


def _remedy(parts: Sequence[Part], target: Target) -> str:
    join = parts[0].join
    remedies = []
    bits = _width(parts, target)
    if bits is not None:
        remedies.append(f"try overrides={{{join.name!r}: {bits}}}")
    if leads_out(join):
        remedies.append("return its parts separately from the model")
    if not remedies:
        remedies.append("give each part a layer of its own and add the results, in place of one layer after the concat")
    text = ", or ".join(remedies)
    return f"{text[0].upper()}{text[1:]}."


def _width(parts: Sequence[Part], target: Target) -> int | None:
    """The smallest width with which the concat can represent its parts, and which its readers take."""
    numbers = target.descriptor
    names = (numbers.defaults.activation, *numbers.defaults.other_activations)
    now = parts[0].quantizer.spec.bits
    for bits in sorted({width for name in names for width in numbers.dtypes[name].widths if width > now}):
        if all(_fits(part, bits, target) for part in parts) and _is_read(parts[0].join, bits, target):
            return bits
    return None


def _fits(part: Part, bits: int, target: Target) -> bool:
    try:
        spec = target.activation_spec(bits=bits)
    except TargetError:
        return False
    low = 0.0 if spec.symmetric and not spec.signed else part.reach[0]
    step = float(qparams_from_range(min(low, 0.0), max(part.reach[1], 0.0), spec)[0])
    return 10.0 * math.log10(part.power / (step**2 / 12.0)) > GOOD_DB


def _is_read(node: Node, bits: int, target: Target) -> bool:
    """Whether the layers that read `node` multiply activations of this width."""
    for user in (user for value in node.outputs for user in value.users):
        if user.definition.has(Trait.MOVEMENT) and not _is_read(user, bits, target):
            return False
        if user.definition.has(Trait.WEIGHTED):
            width = target.weight_spec(user.op, Layer(user).weight_axis).bits
            if target.unmultiplied(user.op, bits, width):
                return False
    return True

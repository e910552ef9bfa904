"""The operators that an integer core may have, and the kind of each as named in descriptors."""

from __future__ import annotations

from qcompiler.ir.registry import OpDef, Trait, known_ops
from qcompiler.ir.types import Stage

_BY_TRAIT = {
    Trait.WEIGHTED: "mac",
    Trait.CONTRACTION: "product",
    Trait.ELEMENTWISE: "elementwise",
    Trait.ACTIVATION: "elementwise",
    Trait.AVERAGE: "average",
    Trait.UNARY: "table",
    Trait.MOVEMENT: "movement",
}


def integer_kinds() -> dict[str, str]:
    """Kind of each operator by name, sorted by name."""
    kinds = {name: _kind(item) for name, item in sorted(known_ops().items()) if Stage.CANONICAL in item.stages}
    return {name: kind for name, kind in kinds.items() if kind}


def _kind(item: OpDef) -> str:
    return item.kind or next((kind for trait, kind in _BY_TRAIT.items() if item.has(trait)), "")

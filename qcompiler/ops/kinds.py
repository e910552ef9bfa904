"""The operators that an integer core may have, and the kind of each as named in descriptors."""

from __future__ import annotations

from qcompiler.ir.registry import OpDef, Trait, known_ops
from qcompiler.ir.types import Stage

_NAMED = {
    "add": "elementwise",
    "sub": "elementwise",
    "mul": "elementwise",
    "mean": "average",
    "avg_pool2d": "average",
    "adaptive_avg_pool2d": "average",
    "resize": "average",
    "layer_norm": "normalization",
    "prelu": "table",
}
_BY_TRAIT = {
    Trait.MAC: "mac",
    Trait.ACTIVATION: "elementwise",
    Trait.UNARY: "table",
    Trait.MOVEMENT: "movement",
}
_WITHOUT_INTEGER_FORM = ("matmul",)


def integer_kinds() -> dict[str, str]:
    """Kind of each operator by name, sorted by name."""
    kinds = {name: _kind(item) for name, item in sorted(known_ops().items()) if Stage.CANONICAL in item.stages}
    return {name: kind for name, kind in kinds.items() if kind and name not in _WITHOUT_INTEGER_FORM}


def _kind(item: OpDef) -> str:
    named = _NAMED.get(item.name, "")
    return named or next((kind for trait, kind in _BY_TRAIT.items() if item.has(trait)), "")

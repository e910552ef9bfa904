"""The sizes of a node that targets set limits to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from qcompiler.ir.dims import Dim
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import Trait
from qcompiler.targets.limits import Geometry


def geometry_of(node: Node) -> Geometry:
    """Window, groups and length of the sums of a node; of most ops there is nothing to say."""
    if node.op == "mean":
        shape = node.inputs[0].type.shape
        return Geometry(terms=_product([shape[axis] for axis in _ints(node, "axes")]))
    if not node.definition.has(Trait.MAC):
        kernel = _ints(node, "kernel")
        terms = math.prod(kernel) if kernel else None
        return Geometry(kernel, _ints(node, "stride"), _ints(node, "dilation"), terms=terms)
    weight = node.inputs[1].type.shape
    if not node.op.startswith("conv"):
        return Geometry(terms=_product(weight[1:]))
    groups, kernel = cast("int", node.attributes["groups"]), tuple(cast("int", size) for size in weight[2:])
    transposed = node.op.startswith("conv_transpose")
    channels = cast("int", weight[0] if transposed else cast("int", weight[1]) * groups)
    return Geometry(
        kernel,
        _ints(node, "stride"),
        _ints(node, "dilation"),
        groups=groups,
        channels=channels,
        terms=channels // groups * math.prod(kernel),
    )


def _ints(node: Node, name: str) -> tuple[int, ...]:
    value = node.attributes.get(name)
    return cast("tuple[int, ...]", value) if isinstance(value, tuple) else ()


def _product(sizes: Sequence[Dim]) -> int | None:
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None

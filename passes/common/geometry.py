"""The sizes of a node for which targets have limits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qcompiler.ir.dims import Dim
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.targets.limits import Geometry


def geometry_of(node: Node) -> Geometry:
    """Window, groups and length of the sums of a node; most ops have none of these."""
    if node.definition.has(Trait.AVERAGE) and node.given("axes"):
        shape = node.inputs[0].type.shape
        return Geometry(terms=_product([shape[axis] for axis in node.integers("axes")]))
    if not node.definition.has(Trait.MAC):
        kernel, stride, dilation = (node.integers(key, ()) for key in ("kernel", "stride", "dilation"))
        return Geometry(kernel, stride, dilation, terms=math.prod(kernel) if kernel else None)
    if not is_weighted(node):
        return Geometry(terms=_product(node.inputs[0].type.shape[-1:]))
    layer = Layer(node)
    if layer.is_linear:
        return Geometry(terms=layer.terms)
    return Geometry(
        layer.kernel, layer.stride, layer.dilation, groups=layer.groups, channels=layer.inputs, terms=layer.terms
    )


def _product(sizes: Sequence[Dim]) -> int | None:
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None

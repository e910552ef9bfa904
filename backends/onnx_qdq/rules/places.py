"""Places of the largest and smallest elements in ONNX."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.backends.onnx_qdq.emitter import Emitter, Rule
from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table

emits: Table[Rule] = Table()


@emits("top_places")
def top_places(emitter: Emitter, node: Node) -> None:
    """ArgMax, ArgMin or TopK, all of which take the first of equal elements."""
    x, axis, largest = emitter.real(node, 0), node.integer("axis"), node.flag("largest")
    if node.integer("count") == 1:
        emitter.result(node, "ArgMax" if largest else "ArgMin", [x], axis=axis, keepdims=1)
        return
    count = emitter.constant(f"{node.name}.count", np.asarray([node.integer("count")], np.int64))
    values = emitter.compute(node, "TopK", [x, count], axis=axis, largest=int(largest), sorted=1)
    places = gs.Variable(node.output.name)
    values.inputs[0].outputs.append(places)
    emitter.codes[node.output] = places


@emits("take_along")
def take_along(emitter: Emitter, node: Node) -> None:
    """GatherElements, at places clamped to the axis."""
    places, axis = node.inputs[1], node.integer("axis")
    ends = [
        emitter.constant(f"{node.name}.{end}", np.asarray(place, places.type.dtype.numpy))
        for end, place in (("first", 0), ("last", node.inputs[0].type.size(axis) - 1))
    ]
    clamped = emitter.compute(node, "Clip", [emitter.real_numbers(places), *ends])
    emitter.result(node, "GatherElements", [emitter.real(node, 0), clamped], axis=axis)

"""Float islands in ONNX."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from qcompiler.backends.onnx_qdq.emitter import Emitter, Rule
from qcompiler.backends.onnx_qdq.islands import keep_apart
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.table import Table

emits: Table[Rule] = Table()


@emits("call")
def call(emitter: Emitter, node: Node) -> None:
    """A float island, as operators written by torch's exporter."""
    island = emitter.islands[node]
    for position, value in enumerate(node.outputs):
        keep_apart(island, island.outputs[position], [user.output for user in value.users if user.op == "quantize"])
    given = dict(zip(map(id, island.inputs), (emitter.real_numbers(value) for value in node.inputs), strict=True))
    wanted: dict[int, Value] = {}
    for tensor, value in zip(island.outputs, node.outputs, strict=True):
        if isinstance(tensor, gs.Constant):
            tensor.name = emitter.unused(f"{value.name}.value")
        if id(tensor) in given or id(tensor) in wanted or isinstance(tensor, gs.Constant):
            source = given.get(id(tensor), tensor)
            emitter.codes[value] = emitter.add("Identity", [source], value.name)
        else:
            wanted[id(tensor)] = value
    for tensor in island.tensors().values():
        if isinstance(tensor, gs.Variable):
            tensor.shape = None  # symbols are local to one export: the same name elsewhere can be another size
        if id(tensor) in wanted:
            emitter.codes[wanted[id(tensor)]] = tensor
            tensor.name = wanted[id(tensor)].name
    named = {*given, *wanted}
    # Places within the island make names: those of torch's exporter depend on the other islands.
    for position, item in enumerate(island.nodes):
        item.name = emitter.unused(f"{node.name}/{position}/{item.op}")
        for kind, tensors in (("in", item.inputs), ("out", item.outputs)):
            for index, tensor in enumerate(tensors):
                if not tensor.is_empty() and id(tensor) not in named:
                    named.add(id(tensor))
                    tensor.name = emitter.unused(f"{node.name}/{position}/{kind}.{index}")
        item.inputs = [given.get(id(tensor), tensor) for tensor in item.inputs]
        emitter.nodes.append(item)

"""Write an INTEGER graph as a program."""

from __future__ import annotations

import contextlib
from typing import Literal, cast

import numpy as np

from qcompiler.backends.integer.memory import ALIGNMENT, plan_program
from qcompiler.errors import UnsupportedError
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import LEAVES
from qcompiler.ir.text import print_graph
from qcompiler.ir.types import Stage
from qcompiler.program.check import RESTORED
from qcompiler.program.constants import constants_of
from qcompiler.program.files import ProgramFiles
from qcompiler.program.program import ISLAND_TENSOR, Array, Instruction, Program, Scalar, Tensor


def emit(
    graph: Graph,
    layout: Literal["NHWC", "NCHW"] = "NHWC",
    weight_layout: Literal["OHWI", "OIHW"] = "OHWI",
    alignment: int = ALIGNMENT,
    packing: Literal["none", "low_nibble_first", "high_nibble_first"] = "none",
) -> ProgramFiles:
    """The program of `graph`, in the order that needs the least memory, with a plan of its memory for one image.

    Args:
        graph: At stage INTEGER.
        layout: Physical order of images.
        weight_layout: Physical order of convolution weights.
        alignment: Alignment of every tensor in memory, bytes.
        packing: How files hold constants of four bits.

    Raises:
        UnsupportedError: The graph is not integer, or has two symbolic sizes in one shape.
    """
    if graph.stage is not Stage.INTEGER:
        raise UnsupportedError(
            f"a graph at stage {graph.stage} is not an integer program", fix="Lower the graph first."
        )
    values = [v for v in graph.values() if v.producer is None or v.producer.op != "expand_blocks"]
    tensors = {value.name: _tensor(value) for value in values}
    constants: dict[str, Array] = {}
    islands: dict[str, str] = {}
    instructions: list[Instruction] = []
    for node in graph.nodes:
        if node.op in LEAVES:
            constants[node.name] = node.graph.module.tensors[node.text("ref")].detach().cpu().numpy()
            continue
        if node.op == "expand_blocks":
            continue  # an instruction reads codes and factors apart
        if node.op == "call":
            island = graph.module.graphs[node.text("graph")]
            islands[island.name] = print_graph(island)
            for leaf in island.nodes:
                if leaf.op in LEAVES:
                    name = f"{island.name}{ISLAND_TENSOR}{leaf.attributes['ref']}"
                    tensors[name] = _tensor(leaf.output)
                    constants[name] = graph.module.tensors[leaf.text("ref")].detach().cpu().numpy()
        attributes = {key: value for key, value in node.attributes.items() if value is not None and key not in RESTORED}
        inputs = [value.name for value in node.inputs]
        expand = node.inputs[1].producer if len(node.inputs) > 1 else None
        if expand is not None and expand.op == "expand_blocks":
            codes, factors = expand.inputs
            inputs = [inputs[0], codes.name, *inputs[2:], factors.name]
            attributes["block"] = expand.attributes["block"]
        instructions.append(
            Instruction(
                op=node.op,
                inputs=tuple(inputs),
                outputs=tuple(value.name for value in node.outputs),
                attributes=cast("dict[str, Scalar | tuple[int, ...]]", attributes),
            )
        )
    stored = constants_of(constants, tensors, instructions, weight_layout)
    program = Program(
        layout=layout,
        packing=packing,
        inputs=tuple(value.name for value in graph.inputs),
        outputs=tuple(value.name for value in graph.outputs),
        tensors=tensors,
        constants=stored,
        islands=islands,
        instructions=tuple(instructions),
    )
    with contextlib.suppress(UnsupportedError):  # a model that takes no single image has no plan for one
        program = plan_program(program, alignment=alignment)
    # Not `ascontiguousarray`, which gives a tensor without axes one.
    arrays = {name: array.transpose(stored[name].order) for name, array in constants.items()}
    return ProgramFiles(program, {name: np.asarray(array, order="C") for name, array in arrays.items()})


def _tensor(value: Value) -> Tensor:
    type = value.type
    shape = tuple(size if isinstance(size, int) else -1 for size in type.shape)
    if shape.count(-1) > 1:
        raise UnsupportedError(f"%{value.name} is {type}", expected="at most one symbolic size, the batch")
    if type.quant is None:
        return Tensor(dtype=str(type.dtype), shape=shape)
    return Tensor(
        dtype=str(type.dtype),
        shape=shape,
        scale=type.quant.scale,
        zero_point=type.quant.zero_point,
        axis=type.quant.axis,
    )

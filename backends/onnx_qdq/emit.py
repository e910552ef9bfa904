"""Write an INTEGER graph as ONNX with QuantizeLinear and DequantizeLinear around each operator.

The file holds the integers of the graph itself: int8 weights, and int32 biases at exactly the float32 product of input
and weight scale, because ONNX Runtime's fused kernels assume that product and ignore the bias' own scale.

    int_conv2d(x, W, b) : q(s, z)   becomes   Q(s, z)(Conv(DQ(x), DQ(W), DQ(b)))

Code limits inside the range of the element type become a Clip: of codes after Q for operators that ONNX Runtime
multiplies in integers, otherwise of real numbers before Q. Limits per channel become a Max and a Min in place of the
Clip.

Signed 8-bit activations are written as unsigned codes, with codes and zero points 128 higher, which represent the same
real numbers: ONNX Runtime on x86 fuses convolutions of signed activations only with a session option
(`session.qdqisint8allowed`), and otherwise runs them in float.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import onnx
import onnx_graphsurgeon as gs

from qcompiler.backends.onnx_qdq.emitter import Emitter, OnnxOptions, numpy_type, shape_of
from qcompiler.backends.onnx_qdq.external import with_codes
from qcompiler.backends.onnx_qdq.islands import LEAST_OPSET
from qcompiler.backends.onnx_qdq.leaves import leaf_array
from qcompiler.backends.onnx_qdq.rules import RULES
from qcompiler.errors import UnsupportedError
from qcompiler.ir.graph import Graph
from qcompiler.ir.interpret import LEAVES
from qcompiler.ir.types import DType, Stage

WIDE_OPSET, WIDE_IR_VERSION = 21, 10
"""The first opsets in which QuantizeLinear accepts 16-bit types, and DequantizeLinear accepts scales per block."""


def emit(graph: Graph, options: OnnxOptions | None = None, *, io: Literal["float", "uint8", "int8"] = "float") -> bytes:
    """The ONNX file of `graph`.

    Args:
        graph: A graph at stage INTEGER.
        options: Variant of the file.
        io: Type of inputs and outputs; other types than `float` are codes of the graph's inputs and outputs.

    Returns:
        The serialized model, checked by onnx. The same graph gives the same bytes.

    Raises:
        UnsupportedError: The graph is not integer, or ONNX cannot express an operator at that opset.
    """
    options = _raised(options or OnnxOptions(), graph)
    if graph.stage is not Stage.INTEGER:
        raise UnsupportedError(f"a graph at stage {graph.stage} has no ONNX form", fix="Lower the graph first.")
    model = _model(Emitter(graph, options))
    if io != "float":
        model = with_codes(model, io)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _raised(options: OnnxOptions, graph: Graph) -> OnnxOptions:
    """`options` with the opset that the element types and the islands of `graph` need."""
    opset, ir_version = options.opset, options.ir_version
    results = (value for value in graph.values() if value.producer is None or value.producer.op not in LEAVES)
    if any(value.type.dtype in (DType.I16, DType.U16) for value in results):
        opset, ir_version = max(opset, WIDE_OPSET), max(ir_version, WIDE_IR_VERSION)
    if any(node.op == "expand_blocks" for node in graph.nodes):
        opset, ir_version = max(opset, WIDE_OPSET), max(ir_version, WIDE_IR_VERSION)
    if any(node.op == "call" for node in graph.nodes):
        opset = max(opset, LEAST_OPSET)
    return dataclasses.replace(options, opset=opset, ir_version=ir_version)


def _model(emitter: Emitter) -> onnx.ModelProto:
    inputs = []
    for value in emitter.graph.inputs:
        tensor = gs.Variable(value.name, numpy_type(value), shape_of(value))
        emitter.codes[value] = tensor
        inputs.append(tensor)
    for node in emitter.graph.nodes:
        if node.op in (*LEAVES, "expand_blocks"):
            continue
        rule = RULES.get(node.op)
        if rule is None:
            raise UnsupportedError(f"{node.op} has no ONNX form", where=node.where)
        rule(emitter, node)
    outputs: list[gs.Tensor] = []
    for value in emitter.graph.outputs:
        tensor = emitter.codes.get(value)
        if tensor is None or value in emitter.graph.inputs or any(tensor is other for other in outputs):
            # A file has a separate node for each output; inputs, constants and repeated outputs get an Identity.
            source = emitter.constant(f"{value.name}.value", leaf_array(value)) if tensor is None else tensor
            tensor = emitter.add("Identity", [source], emitter.unused(f"{value.name}.output"))
        tensor.dtype, tensor.shape = numpy_type(value), shape_of(value)
        outputs.append(tensor)
    surgeon = gs.Graph(
        nodes=emitter.nodes, inputs=inputs, outputs=outputs, name=emitter.graph.name, opset=emitter.options.opset
    )
    model: onnx.ModelProto = gs.export_onnx(surgeon, do_type_check=True)
    model.ir_version = emitter.options.ir_version
    model.producer_name = "qcompiler"
    return model

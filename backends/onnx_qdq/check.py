"""Checks an ONNX file from disk: only files in the form of `emit` are run."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from qcompiler.errors import ArtifactError


def check_file(data: bytes, where: str) -> None:
    """Refuse a file that could not have been written by `emit`.

    Args:
        data: The serialized file.
        where: Name of the file, for messages.

    Raises:
        ArtifactError: The file is not ONNX, reads other files, has a graph inside a node, reads a tensor before it is
            written, writes a tensor twice, or has a quantizer without a constant zero point.
    """
    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # noqa: BLE001  # protobuf's error classes; protobuf is not our dependency
        raise ArtifactError(f"the file is not ONNX: {error}", where=where) from None
    graph = model.graph
    constants = {item.name for item in graph.initializer}
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ArtifactError(
                f"the tensor {tensor.name!r} is stored in another file",
                where=where,
                expected="all tensors in this file",
            )
    known = {"", *constants, *(item.name for item in graph.input)}
    for node in graph.node:
        place = f"{where}, node {node.name or node.op_type}"
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise ArtifactError(f"{node.op_type} contains a graph", where=place, expected="one graph in the file")
        unknown = next((name for name in node.input if name not in known), None)
        if unknown is not None:
            raise ArtifactError(f"{unknown!r} is read before it is written", where=place)
        taken = next((name for name in node.output if name and name in known), None)
        if taken is not None or not any(node.output):
            raise ArtifactError(
                "the node has no results" if taken is None else f"{taken!r} is written twice", where=place
            )
        if node.op_type == "QuantizeLinear" and (len(node.input) < 3 or node.input[2] not in constants):
            raise ArtifactError("its zero point is not a constant", where=place)
        if node.op_type in ("Clip", "Max", "Min", "Cast") and not node.input:
            raise ArtifactError(f"{node.op_type} reads nothing", where=place)
        known.update(node.output)


def _tensors(model: onnx.ModelProto) -> Iterable[onnx.TensorProto]:
    yield from model.graph.initializer
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors

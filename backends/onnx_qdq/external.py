"""Inputs and outputs of an ONNX file: real numbers, or codes.

    x ─► Q(s, z) ─► c ─► ...        becomes        x (codes) ─► ...
    ... ─► c ─► DQ(s, z) ─► y       becomes        ... ─► y (codes)

If the file stores codes in another type than the caller wants, the quantizers stay, and an input begins with a
DequantizeLinear, an output ends with a QuantizeLinear. Scale and zero point of each end are metadata of the file, so
that `with_real_ends` gives a file with real numbers again, in which all codes have their names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qcompiler.errors import ArtifactError, UnsupportedError

KEY = "qcompiler.external"
"""Key of the metadata."""
EDGE = "external/"
"""Prefix of the names of quantizers at the ends, whose codes no value of the graph has."""
UNSIGNED_SHIFT = 128
"""Distance of the unsigned and signed code of one number."""

_TYPES = {"uint8": onnx.TensorProto.UINT8, "int8": onnx.TensorProto.INT8}


@dataclass(frozen=True)
class End:
    """An input or output that holds codes.

    Args:
        name: Name of the input or output.
        codes: Name of the codes within the file of real numbers; empty if quantizers stay in the file.
        scale: Scale.
        zero_point: Zero point of the external codes.
        type: `uint8` or `int8`.
    """

    name: str
    codes: str
    scale: float
    zero_point: int
    type: Literal["uint8", "int8"]


def with_codes(model: onnx.ModelProto, io: Literal["uint8", "int8"]) -> onnx.ModelProto:
    """The file with codes of the type `io` at the inputs and outputs that are real numbers.

    Args:
        model: A file of `emit` with real numbers at its ends.
        io: Type of the codes.

    Raises:
        UnsupportedError: An input or output is not quantized with one scale.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    ends = [_input(result, item, io) for item in list(result.graph.input) if _is_real(item)]
    outputs = [_output(result, item, io) for item in list(result.graph.output) if _is_real(item)]
    _drop_unused_constants(result)
    found = {"inputs": [asdict(end) for end in ends], "outputs": [asdict(end) for end in outputs]}
    helper.set_model_props(result, {KEY: json.dumps(found)})
    return result


def with_real_ends(data: bytes) -> bytes:
    """The file with real numbers at its ends; a file that has them is returned as it is.

    Raises:
        ArtifactError: The metadata do not describe the file.
    """
    model = onnx.load_from_string(data)
    text = next((item.value for item in model.metadata_props if item.key == KEY), None)
    if text is None:
        return data
    try:
        found = json.loads(text)
        ends = {kind: [End(**item) for item in found[kind]] for kind in ("inputs", "outputs")}
        for end in ends["inputs"]:
            _reopen_input(model, end)
        for end in ends["outputs"]:
            _reopen_output(model, end)
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise ArtifactError(f"its metadata {KEY!r} do not describe its ends: {error}", where="model.onnx") from None
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _is_real(item: onnx.ValueInfoProto) -> bool:
    return bool(item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)


def _input(model: onnx.ModelProto, item: onnx.ValueInfoProto, io: Literal["uint8", "int8"]) -> End:
    name, graph = item.name, model.graph
    readers = [node for node in graph.node if name in node.input]
    if [node.op_type for node in readers] != ["QuantizeLinear"] or any(out.name == name for out in graph.output):
        if not readers and all(out.name != name for out in graph.output):
            item.type.tensor_type.elem_type = _TYPES[io]
            return End(name, "", 1.0, 0, io)
        raise UnsupportedError(f"the input {name!r} is read in float", fix='Use io="float".')
    quantizer = readers[0]
    scale, zero_point, stored = _grid(graph, quantizer)
    item.type.tensor_type.elem_type = _TYPES[io]
    if stored == io:
        codes = quantizer.output[0]
        graph.node.remove(quantizer)
        _rename(graph, codes, name)
        return End(name, codes, scale, zero_point, io)
    zero_point += UNSIGNED_SHIFT if io == "uint8" else -UNSIGNED_SHIFT
    grid = _constants(graph, name, scale, zero_point, io)
    real = f"{name}.external.real"
    quantizer.input[0] = real
    graph.node.insert(0, helper.make_node("DequantizeLinear", [name, *grid], [real], f"{EDGE}{name}"))
    return End(name, "", scale, zero_point, io)


def _output(model: onnx.ModelProto, item: onnx.ValueInfoProto, io: Literal["uint8", "int8"]) -> End:
    name, graph = item.name, model.graph
    maker = next((node for node in graph.node if name in node.output), None)
    if maker is None or maker.op_type != "DequantizeLinear":
        raise UnsupportedError(f"the output {name!r} is computed in float", fix='Use io="float".')
    scale, zero_point, stored = _grid(graph, maker)
    codes = maker.input[0]
    item.type.tensor_type.elem_type = _TYPES[io]
    inner = any(node is not maker and name in node.input for node in graph.node)
    if stored == io and not inner and _is_made_here(graph, codes):
        graph.node.remove(maker)
        _rename(graph, codes, name)
        return End(name, codes, scale, zero_point, io)
    if stored != io:
        zero_point += UNSIGNED_SHIFT if io == "uint8" else -UNSIGNED_SHIFT
    real = f"{name}.external.real"
    _rename(graph, name, real)
    grid = _constants(graph, name, scale, zero_point, io)
    graph.node.append(helper.make_node("QuantizeLinear", [real, *grid], [name], f"{EDGE}{name}"))
    return End(name, "", scale, zero_point, io)


def _is_made_here(graph: onnx.GraphProto, codes: str) -> bool:
    """Whether a node makes the codes, and no output has their name already."""
    return any(codes in node.output for node in graph.node) and all(item.name != codes for item in graph.output)


def _reopen_input(model: onnx.ModelProto, end: End) -> None:
    graph = model.graph
    item = next(item for item in graph.input if item.name == end.name)
    item.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    if not any(end.name in node.input for node in graph.node):
        return
    codes = end.codes or f"{end.name}.external"
    _rename(graph, end.name, codes, outputs=False)
    grid = _constants(graph, f"{end.name}.reopened", end.scale, end.zero_point, end.type)
    # Codes of a value of the graph are observed under its name; others belong to the edge.
    node = helper.make_node(
        "QuantizeLinear", [end.name, *grid], [codes], f"{codes}/Q" if end.codes else f"{EDGE}{end.name}/Q"
    )
    graph.node.insert(0, node)


def _reopen_output(model: onnx.ModelProto, end: End) -> None:
    graph = model.graph
    item = next(item for item in graph.output if item.name == end.name)
    item.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    codes = end.codes or f"{end.name}.external"
    _rename(graph, end.name, codes)
    grid = _constants(graph, f"{end.name}.reopened", end.scale, end.zero_point, end.type)
    graph.node.append(helper.make_node("DequantizeLinear", [codes, *grid], [end.name], f"{end.name}/DQ"))


def _rename(graph: onnx.GraphProto, old: str, new: str, *, outputs: bool = True) -> None:
    """Rename a tensor in all nodes; names of inputs and outputs of the file stay."""
    for node in graph.node:
        for names in (node.input, node.output) if outputs else (node.input,):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new


def _grid(graph: onnx.GraphProto, node: onnx.NodeProto) -> tuple[float, int, str]:
    """Scale, zero point and type of the codes of a quantizer."""
    constants = {item.name: item for item in graph.initializer}
    scale, zero_point = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    if scale.size != 1 or zero_point.dtype.name not in _TYPES:
        raise UnsupportedError(
            f"{node.name} has codes of {zero_point.dtype} with {scale.size} scales", fix='Use io="float".'
        )
    return float(scale), int(zero_point), zero_point.dtype.name


def _constants(graph: onnx.GraphProto, name: str, scale: float, zero_point: int, io: str) -> Sequence[str]:
    arrays: dict[str, Any] = {
        f"{name}.external.scale": np.asarray(scale, np.float32),
        f"{name}.external.zero_point": np.asarray(zero_point, io),
    }
    for key, array in arrays.items():
        graph.initializer.append(numpy_helper.from_array(array, key))
    return list(arrays)


def _drop_unused_constants(model: onnx.ModelProto) -> None:
    read = {name for node in model.graph.node for name in node.input}
    for item in [item for item in model.graph.initializer if item.name not in read]:
        model.graph.initializer.remove(item)

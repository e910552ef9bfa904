"""Runs in the environment of `ai-edge-litert`: builds a .tflite model from a description and runs it.

    python litert.py FOLDER

`FOLDER/request.json` holds `{"models": [...]}`. A model has the keys

    tensors    name -> type ("INT8"), shape, scale, zero_point, axis of the scales; data: the name of an array, of a
               constant
    operators  code ("CONV_2D"), version, inputs and outputs by name; options: a class of the schema, and its fields
    inputs     names of tensors
    outputs    names of tensors
    resolver   BUILTIN_REF, BUILTIN_WITHOUT_DEFAULT_DELEGATES or AUTO
    feeds      name of an input -> name of an array

Arrays are in `FOLDER/request.npz`; output j of model i goes to the array `i.j` of `FOLDER/answer.npz`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

Json = dict[str, Any]


def _tensor(name: str, description: Json, buffer: int) -> Any:
    tensor = schema.TensorT()
    tensor.name = name.encode()
    tensor.type = getattr(schema.TensorType, description["type"])
    tensor.shape = description["shape"]
    tensor.buffer = buffer
    if description.get("scale"):
        grid = schema.QuantizationParametersT()
        grid.scale = description["scale"]
        grid.zeroPoint = description["zero_point"]
        grid.quantizedDimension = description.get("axis", 0)
        tensor.quantization = grid
    return tensor


def _operator(description: Json, codes: list[Any], places: dict[str, int]) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, description["code"])
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = description.get("version", 1)
    codes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex = len(codes) - 1
    operator.inputs = [places[name] for name in description["inputs"]]
    operator.outputs = [places[name] for name in description["outputs"]]
    if "options" in description:
        kind = description["options"]["class"]
        options = getattr(schema, f"{kind}T")()
        for field, value in description["options"]["fields"].items():
            if not hasattr(options, field):
                raise AttributeError(f"{kind} has no field {field}")
            setattr(options, field, value)
        operator.builtinOptions = options
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
    return operator


def build(description: Json, arrays: dict[str, Any]) -> bytes:
    """A serialized model."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version = 3
    model.buffers = [schema.BufferT()]
    model.operatorCodes = []
    graph.tensors, places = [], {}
    for name, tensor in description["tensors"].items():
        buffer = 0
        if "data" in tensor:
            held = schema.BufferT()
            held.data = np.frombuffer(np.asarray(arrays[tensor["data"]], order="C").tobytes(), np.uint8)
            model.buffers.append(held)
            buffer = len(model.buffers) - 1
        places[name] = len(graph.tensors)
        graph.tensors.append(_tensor(name, tensor, buffer))
    graph.operators = [_operator(item, model.operatorCodes, places) for item in description["operators"]]
    graph.inputs = [places[name] for name in description["inputs"]]
    graph.outputs = [places[name] for name in description["outputs"]]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def run(description: Json, arrays: dict[str, Any]) -> list[Any]:
    """The outputs of a model, in order."""
    resolver = getattr(OpResolverType, description["resolver"])
    interpreter = Interpreter(
        model_content=build(description, arrays), experimental_op_resolver_type=resolver, num_threads=1
    )
    interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    for name, item in zip(description["inputs"], inputs, strict=True):
        interpreter.set_tensor(item["index"], arrays[description["feeds"][name]])
    interpreter.invoke()
    return [interpreter.get_tensor(item["index"]) for item in outputs]


def main() -> None:
    """Answer one request."""
    folder = Path(sys.argv[1])
    with np.load(folder / "request.npz") as file:
        arrays = {name: file[name] for name in file.files}
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    answers = {}
    for index, description in enumerate(request["models"]):
        for place, array in enumerate(run(description, arrays)):
            answers[f"{index}.{place}"] = array
    np.savez(folder / "answer.npz", **answers)


if __name__ == "__main__":
    main()

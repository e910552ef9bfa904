"""Two kinds of bad inputs: ONNX files of real numbers, and ONNX files that are quantized already.

A bad file is a good one with a few fields changed: names, operators, attributes, shapes, types, tensors, opsets, links to
other files, subgraphs and functions; or with changed bytes. A refusal must not take memory for what a file only claims.
"""

from __future__ import annotations

import contextlib
import io
import random
import resource
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import qcompiler
from tests.support.bad_inputs import Kind, images, net
from tests.support.damage import changed_bytes, special_file

NUMBERS = [0, 1, -1, 2, 3, 7, 10**6, 10**9, 2**31, 2**40, 2**62, -(2**63)]
FLOATS = [0.0, -1.0, 1e-38, 1e38, float("nan"), float("inf"), float("-inf")]
TEXTS = ["", "x", "y", "../../etc/passwd", "/etc/passwd", "/dev/zero", "é☃", "N" * 3000, "a\nb"]
OPERATORS = [
    "Conv", "Gemm", "Relu", "Add", "Expand", "Tile", "Reshape", "Loop", "If", "Scan", "LSTM", "Resize", "Gather", "Einsum",
    "ConstantOfShape", "Range", "Pad", "EyeLike", "OneHot", "QuantizeLinear", "DequantizeLinear", "QLinearConv", "QGemm",
    "QLinearConcat", "DynamicQuantizeLinear", "NoSuchOperator", "", "Identity", "Split", "Concat", "Upsample", "MaxPool",
]  # fmt: skip
MOST_MEMORY = 3 * 2**30
"""Growth of the memory of the process during one input, in bytes: the limit of a tensor, twice, and its kin."""


def float_files() -> Kind:
    """Files of real numbers."""
    bases = {f"opset {opset}": exported(opset) for opset in (11, 17)}
    bases["loop"] = loop().SerializeToString()
    return Kind("ONNX files", bases, draw, use)


def quantized_files() -> Kind:
    """Files with quantizers, by this package and by ONNX Runtime."""
    first = qcompiler.compile(net(), "ort_cpu", calibration_data=[images()], verify="off", effort="fast")
    bases = {"ours": first.artifact.files()["model.onnx"]}
    bases |= {form: quantized(form) for form in ("QDQ", "QOperator")}
    return Kind("quantized ONNX files", bases, draw, use)


def exported(opset: int) -> bytes:
    """The network as a file."""
    stream: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net(), (images(),), stream, dynamo=False, opset_version=opset, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        )  # fmt: skip
    found: bytes = stream.getvalue()
    return found


def loop() -> ModelProto:
    """A loop of known length, a function, a branch, and a constant of a shape."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["a", "one"], ["b"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, None),
        ],
    )
    function = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["one"]),
        helper.make_node("Loop", ["steps", "", "x"], ["l"], body=body),
        helper.make_node("Expand", ["l", "shape"], ["e"]),
        helper.make_node("Twice", ["e"], ["y"], domain="own"),
    ]
    tensors = {"shape": np.array([1, 3, 8, 8]), "steps": np.array(3)}
    graph = helper.make_graph(
        nodes,
        "loop",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9)


def quantized(form: str) -> bytes:
    """The network, quantized by ONNX Runtime."""
    import tempfile

    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([{"x": images().numpy()}])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as work:
        source, target = Path(work) / "a.onnx", Path(work) / "b.onnx"
        source.write_bytes(exported(17))
        quantize_static(source, target, Reader(), quant_format=QuantFormat[form])
        return target.read_bytes()


def use(path: Path) -> None:
    """Compile a file, and look at the memory that it takes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        qcompiler.compile(path, calibration_data=[images()], verify="off", effort="fast", unmatched_encodings="ignore")
    finally:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < MOST_MEMORY, f"it took {grown / 2**30:.1f} GiB"


def draw(base: bytes, source: random.Random, folder: Path) -> Path:
    """A changed file in a folder."""
    path, data = folder / "model.onnx", base
    if source.random() < 0.1:
        data = changed_bytes(base, source)
    else:
        model = onnx.load_model_from_string(base)
        for _ in range(source.choice([1, 1, 1, 2, 3])):
            with contextlib.suppress(ValueError, TypeError, IndexError, onnx.checker.ValidationError):
                source.choice(CHANGES)(model, source)  # a field may not hold such a value
        data = model.SerializeToString()
    path.write_bytes(data)
    if source.random() < 0.03:
        special_file(path, source)
    return path


def _node(model: ModelProto, source: random.Random) -> NodeProto:
    nodes: list[NodeProto] = list(model.graph.node)
    return source.choice(nodes)


def _tensor(model: ModelProto, source: random.Random) -> TensorProto:
    tensors: list[TensorProto] = list(model.graph.initializer)
    return source.choice(tensors)


def _names(model: ModelProto) -> list[str]:
    made = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return [*made, *TEXTS]


def operator(model: ModelProto, source: random.Random) -> None:
    """Another operator or domain."""
    node = _node(model, source)
    if source.random() < 0.2:
        node.domain = source.choice([*TEXTS, "com.microsoft", "ai.onnx.ml", "own"])
    else:
        node.op_type = source.choice(OPERATORS)


def wiring(model: ModelProto, source: random.Random) -> None:
    """An operand or a result of another name, one more or one less; circles are among them."""
    node = _node(model, source)
    names = node.input if source.random() < 0.7 else node.output
    match source.randrange(3):
        case 0:
            names[source.randrange(len(names))] = source.choice(_names(model))
        case 1:
            names.append(source.choice(_names(model)))
        case _:
            del names[source.randrange(len(names))]


def order(model: ModelProto, source: random.Random) -> None:
    """A node is removed, repeated or moved."""
    nodes = list(model.graph.node)
    at = source.randrange(len(nodes))
    node = nodes.pop(at)
    for _ in range(source.choice([0, 1, 2])):
        nodes.insert(source.randrange(len(nodes) + 1), node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def attribute(model: ModelProto, source: random.Random) -> None:
    """An attribute of another value, type or name, or one more."""
    node = source.choice([node for node in model.graph.node if node.attribute] or list(model.graph.node))
    if not node.attribute or source.random() < 0.2:
        name = source.choice(
            ["axis", "axes", "perm", "to", "group", "pads", "block_size", "kernel_shape", "transB", "x"]
        )
        value: Any = source.choice([*NUMBERS, FLOATS[4], "x", [1, 2], [-1], [2**40] * 4])
        node.attribute.append(helper.make_attribute(name, value))
        return
    item = source.choice(list(node.attribute))
    match source.randrange(5):
        case 0:
            item.type = source.randrange(16)
        case 1:
            item.name = source.choice(["axis", "value", "", "to"])
        case 2 if item.ints:
            item.ints[source.randrange(len(item.ints))] = source.choice(NUMBERS)
        case 3 if item.ints:
            item.ints.extend([1, 1])
        case _:
            item.i, item.f = source.choice(NUMBERS), source.choice(FLOATS)


def shape(model: ModelProto, source: random.Random) -> None:
    """An absurd or another shape of an input, output or tensor."""
    if source.random() < 0.5:
        item = source.choice([*model.graph.input, *model.graph.output])
        dims = item.type.tensor_type.shape.dim
        dims[source.randrange(len(dims))].dim_value = source.choice(NUMBERS)
    else:
        tensor = _tensor(model, source)
        if tensor.dims and source.random() < 0.7:
            tensor.dims[source.randrange(len(tensor.dims))] = source.choice(NUMBERS)
        else:
            tensor.dims.append(source.choice(NUMBERS))


def kind(model: ModelProto, source: random.Random) -> None:
    """Another element type."""
    number = source.randrange(28)
    if source.random() < 0.5:
        source.choice([*model.graph.input, *model.graph.output]).type.tensor_type.elem_type = number
    else:
        _tensor(model, source).data_type = number


def values(model: ModelProto, source: random.Random) -> None:
    """Other values of a tensor: sizes out of range, scales that are none, or too few bytes."""
    tensor = _tensor(model, source)
    array = numpy_helper.to_array(tensor).copy()
    if source.random() < 0.2:
        tensor.raw_data = tensor.raw_data[: source.randrange(len(tensor.raw_data) + 1)]
        return
    flat = array.reshape(-1)
    chosen: Any = source.choice(NUMBERS if array.dtype.kind in "iu" else FLOATS)
    with np.errstate(all="ignore"):
        flat[source.randrange(flat.size)] = np.asarray(chosen).astype(array.dtype)
    tensor.CopyFrom(numpy_helper.from_array(flat.reshape(array.shape), tensor.name))


def elsewhere(model: ModelProto, source: random.Random) -> None:
    """A tensor in another file, which may be any file of the machine."""
    tensor = _tensor(model, source)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", source.choice(TEXTS)), ("offset", "0"), ("length", str(source.choice(NUMBERS)))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def removal(model: ModelProto, source: random.Random) -> None:
    """A tensor, input or output less."""
    part = source.choice([model.graph.initializer, model.graph.input, model.graph.output])
    del part[source.randrange(len(part))]


def version(model: ModelProto, source: random.Random) -> None:
    """Another version of the operators, of the file, or a domain more."""
    match source.randrange(3):
        case 0:
            model.opset_import[0].version = source.choice([*NUMBERS, 9, 13, 21, 24])
        case 1:
            model.ir_version = source.choice([-1, 0, 3, 99])
        case _:
            model.opset_import.append(helper.make_opsetid(source.choice(TEXTS), 1))


def growth(model: ModelProto, source: random.Random) -> None:
    """An operator that makes a large tensor of a small one."""
    node = _node(model, source)
    if not node.input:
        return
    sizes = source.choice([[2**20, 2**12], [10**6, 1, 1, 1], [2**40], [2**16] * 4, [1, 10**5, 10**5]])
    model.graph.initializer.append(numpy_helper.from_array(np.array(sizes), "large"))
    op, inputs = source.choice(
        [("Expand", [node.input[0], "large"]), ("ConstantOfShape", ["large"]), ("Tile", [node.input[0], "large"])]
    )
    nodes = list(model.graph.node)
    nodes.insert(nodes.index(node), helper.make_node(op, inputs, ["grown"]))
    node.input[0] = "grown"
    place = next(index for index, item in enumerate(nodes) if item.output[:] == ["grown"])
    nodes[place + 1] = node
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def functions(model: ModelProto, source: random.Random) -> None:
    """A function that calls itself, or one of a name that is taken."""
    call = helper.make_node("Own", ["a"], ["b"], domain="own")
    other = helper.make_node(source.choice(["Relu", "Identity"]), ["a"], ["b"])
    body = [source.choice([call, other])]
    name = source.choice(["Own", "Conv"])
    model.functions.append(helper.make_function("own", name, ["a"], ["b"], body, [helper.make_opsetid("own", 1)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    node = _node(model, source)
    node.op_type, node.domain = "Own", "own"


CHANGES: list[Callable[[ModelProto, random.Random], None]] = [
    operator, wiring, order, attribute, attribute, attribute, shape, kind, values, values, values, values, elsewhere,
    removal, version, growth, growth, functions,
]  # fmt: skip

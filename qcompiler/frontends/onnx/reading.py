"""Reading of ONNX files: checked, with local functions inlined, and with every tensor as a tensor of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from qcompiler.errors import InputError, QCompilerError
from qcompiler.frontends.onnx.separation import separate
from qcompiler.frontends.running import first_line
from qcompiler.quant.encoding import Encodings
from qcompiler.storage.reading import read_file

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

__all__ = ["OLDEST_OPSET", "Declared", "OnnxFile", "Subject", "needed_names", "read", "to_tensor"]

Subject: TypeAlias = "str | Path | bytes | ModelProto"
"""An ONNX model: a path, the bytes of a file, or the message."""
OLDEST_OPSET = 9
"""Oldest set of operators that is read."""
NO_SHAPE = "Field 'shape' of 'type' is required"
"""Words of the checker of onnx."""
DOMAINS = ("", "ai.onnx")
"""Names of the domain of ONNX's own operators."""


@dataclass(frozen=True)
class Declared:
    """An input or output as the file declares it.

    Args:
        name: Name.
        dtype: Element type.
        shape: Sizes; a name or None for one that the file leaves open. None without a shape.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class OnnxFile:
    """A model that was read.

    Args:
        model: The message, with local functions inlined.
        name: Name for messages.
        opsets: Version of each domain of operators.
        inputs: Inputs without initializers.
        outputs: Outputs.
        initializers: Tensors of the model by name.
        encodings: Grids of the tensors of a quantized file; None for another one.
    """

    model: ModelProto
    name: str
    opsets: Mapping[str, int]
    inputs: tuple[Declared, ...]
    outputs: tuple[Declared, ...]
    initializers: Mapping[str, Tensor]
    encodings: Encodings | None = None


def read(subject: Subject, fixed_inputs: Mapping[str, object], *, separates: bool = True) -> OnnxFile:
    """Read a model.

    Args:
        subject: A path, the bytes of a file, or a message. External data is looked for beside the path.
        fixed_inputs: Values of inputs that become tensors of the model, by name.
        separates: Whether the quantizers of a quantized file become encodings; see `separate`.

    Raises:
        UnsupportedError: The quantizers have no encodings.
        InputError: There is no such file, it is damaged, its operators are too old or too new, a tensor of it has an
            element type that torch lacks, or a fixed input does not fit.
    """
    import onnx
    from onnx import inliner

    name = Path(subject).stem if isinstance(subject, str | Path) else "model"
    try:
        if isinstance(subject, onnx.ModelProto):
            model = onnx.ModelProto()
            model.CopyFrom(subject)
        elif isinstance(subject, bytes):
            model = onnx.load_model_from_string(subject)
        else:
            model = onnx.load_model_from_string(read_file(subject, InputError))
            onnx.load_external_data_for_model(model, str(Path(subject).parent))
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"there is no file {error.filename}", where=name) from None
    except Exception as error:  # protobuf, onnx and the file system document no common base
        raise _damaged(name, error) from error
    opsets = {entry.domain if entry.domain not in DOMAINS else "": entry.version for entry in model.opset_import}
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opsets.get("", OLDEST_OPSET) <= newest:
        raise InputError(
            f"the file has operators of opset {opsets['']}",
            where=name,
            expected=f"opset {OLDEST_OPSET} to {newest}",
            fix="Convert it with onnx.version_converter, or export it again.",
        )
    try:
        _check(model)
        _fix(model, fixed_inputs, name)
        model = inliner.inline_local_functions(model) if model.functions else model
        encodings = None
        if separates:
            model, encodings = separate(model, name)
        _remove_unneeded(model.graph)
        graph = model.graph
        initializers = {item.name: to_tensor(item, name) for item in graph.initializer}
        inputs = tuple(_declared(item, name) for item in graph.input if item.name not in initializers)
        outputs = tuple(_declared(item, name) for item in graph.output)
        if not outputs:
            raise InputError("the graph has no outputs", where=name, expected="at least one output")
    except QCompilerError:
        raise
    except Exception as error:  # as above
        raise _damaged(name, error) from error
    if graph.sparse_initializer:
        raise InputError("the file has sparse tensors", where=name, expected="dense tensors")
    return OnnxFile(model, model.graph.name or name, opsets, inputs, outputs, initializers, encodings)


def _check(model: ModelProto) -> None:
    """Check a message by the rules of ONNX, except that outputs may lack a shape, as many files have them."""
    import onnx

    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        if NO_SHAPE not in str(error):
            raise


def _fix(model: ModelProto, fixed: Mapping[str, object], where: str) -> None:
    """Turn inputs into tensors of the model."""
    from onnx import numpy_helper

    declared = {item.name: item for item in model.graph.input}
    for name, value in fixed.items():
        if name not in declared:
            raise InputError(
                f"there is no input {name!r} to fix", where=where, expected=", ".join(declared) or "a model with inputs"
            )
        tensor = _fixed(_declared(declared[name], where), value, where)
        stale = [item for item in model.graph.initializer if item.name == name]
        for item in stale:
            model.graph.initializer.remove(item)
        model.graph.initializer.append(numpy_helper.from_array(tensor.numpy(), name))


def _fixed(declared: Declared, value: object, where: str) -> Tensor:
    """The value of a fixed input; one number fills the sizes that the file declares.

    Raises:
        InputError: It is not a number or an array, or has another shape, or changes in the element type of the input.
    """
    try:
        given = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the fixed input {declared.name!r} is {value!r:.60}: {first_line(error)}",
            where=where,
            expected="a number or an array",
        ) from None
    tensor, shape = given.to(declared.dtype), declared.shape
    if given.dtype != declared.dtype and not torch.equal(tensor.to(torch.float64), given.to(torch.float64)):
        is_rounding = declared.dtype.is_floating_point and given.dtype.is_floating_point
        if not is_rounding:
            raise InputError(
                f"the fixed input {declared.name!r} is {value!r:.60}", where=where, expected=f"{declared.dtype} values"
            )
    sizes = [size for size in shape or () if isinstance(size, int)]
    if shape is None or (tensor.dim() and _fits(tuple(tensor.shape), shape)) or (not tensor.dim() and not shape):
        return tensor
    if tensor.dim() == 0 and len(sizes) == len(shape):
        return tensor.expand(sizes).contiguous()
    raise InputError(
        f"the fixed input {declared.name!r} has the shape {list(tensor.shape)}",
        where=where,
        expected=f"[{', '.join(map(str, shape))}]",
    )


def _fits(sizes: tuple[int, ...], declared: tuple[int | str | None, ...]) -> bool:
    """Whether sizes are those that a file declares; an open size may be any."""
    pairs = zip(sizes, declared, strict=False)
    return len(sizes) == len(declared) and all(not isinstance(size, int) or size == own for own, size in pairs)


def to_tensor(item: TensorProto, where: str) -> Tensor:
    """A tensor of a file.

    Raises:
        InputError: torch has no such element type.
    """
    from onnx import numpy_helper

    array = numpy_helper.to_array(item)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    try:
        return torch.from_numpy(array.copy())
    except TypeError:
        raise InputError(
            f"the tensor {item.name!r} has the element type {array.dtype}", where=where, expected="numbers or booleans"
        ) from None


def _damaged(name: str, error: Exception) -> InputError:
    return InputError(f"the file cannot be read: {first_line(error)}", where=name, expected="an ONNX model")


def _declared(item: ValueInfoProto, where: str) -> Declared:
    kind = item.type.WhichOneof("value")
    if kind != "tensor_type":
        words = "nothing" if kind is None else kind.removesuffix("_type").replace("_", " ")
        raise InputError(f"{item.name!r} is declared as {words}", where=where, expected="tensors as inputs and outputs")
    held = item.type.tensor_type
    shape = None
    if held.HasField("shape"):
        shape = tuple(_size(dim) for dim in held.shape.dim)
    return Declared(item.name, dtype_of(held.elem_type, item.name, where), shape)


def _size(dim: object) -> int | str | None:
    value = getattr(dim, "dim_value", 0)
    return int(value) if value > 0 else str(getattr(dim, "dim_param", "")) or None


def dtype_of(element: int, name: str, where: str) -> torch.dtype:
    """The torch type of an element type of ONNX.

    Raises:
        InputError: torch has none.
    """
    import onnx

    word = onnx.TensorProto.DataType.Name(element).lower()
    found = getattr(torch, {"float": "float32", "double": "float64"}.get(word, word), None)
    if not isinstance(found, torch.dtype):
        raise InputError(f"{name!r} has the element type {word}", where=where, expected="numbers or booleans")
    return found


def needed_names(graph: GraphProto) -> set[str]:
    """Names on which the outputs of a graph depend."""
    needed = {item.name for item in graph.output}
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            needed.update(node.input)
            for item in node.attribute:
                if item.HasField("g"):
                    needed |= _read_inside(item.g)
    return needed


def _read_inside(graph: GraphProto) -> set[str]:
    """Names that a subgraph reads."""
    found: set[str] = set()
    for node in graph.node:
        found.update(node.input)
        for item in node.attribute:
            if item.HasField("g"):
                found |= _read_inside(item.g)
    return found | {item.name for item in graph.output}


def _remove_unneeded(graph: GraphProto) -> None:
    """Remove the nodes on which no output depends: the runtime would compute them, of any size."""
    needed = needed_names(graph)
    kept = [node for node in graph.node if any(name in needed for name in node.output)]
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)

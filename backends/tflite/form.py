"""The back end TensorFlow Lite: `model.tflite`, run in LiteRT where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from qcompiler.backends.base import Array, Backend, Files, Lowered, Results, Way
from qcompiler.backends.tflite.emit import emit
from qcompiler.backends.tflite.writer import NCHW, NHWC
from qcompiler.errors import ArtifactError
from qcompiler.program.files import ProgramFiles
from qcompiler.targets import Target

__all__ = ["TFLite"]

FILE = "model.tflite"


class TFLite(Backend):
    """Operators of 8 bits for TensorFlow Lite, LiteRT and what reads their files."""

    name = "TFLite"
    on_request: ClassVar[bool] = True

    def emit(self, model: Lowered, target: Target) -> Files:
        """The file."""
        del target
        return {FILE: emit(model.program, model.name, model.io)}

    def available(self) -> str | None:
        """LiteRT is an extra."""
        if importlib.util.find_spec("ai_edge_litert") is None:
            return "needs LiteRT: pip install 'qcompiler[tflite]'"
        return None

    def run(self, files: Files, inputs: Sequence[Array]) -> list[Array]:
        """Run the reference kernels of LiteRT."""
        return list(_observed(files[FILE], inputs, frozenset()).outputs)

    def ways(self, files: Files, program: ProgramFiles, target: Target, samples: int) -> Generator[Way, None, None]:
        """The reference kernels of LiteRT, which show every tensor of the program."""
        del target, samples
        names = frozenset(name for item in program.program.instructions for name in item.outputs)
        yield Way("TFLite", lambda inputs: _observed(files[FILE], inputs, names))

    def check(self, files: Files) -> None:
        """Refuse files that `emit` cannot have written."""
        if set(files) != {FILE} or files[FILE][4:8] != b"TFL3":
            raise ArtifactError(f"the form {self.name} has the files {', '.join(files)}", expected=FILE)


def _given(item: Mapping[str, Any], array: Array) -> Array:
    """Real numbers as the input takes them; an input without a grid takes them as they are."""
    scale, zero = item["quantization"]
    if not scale:
        return np.asarray(array, item["dtype"], order="C")
    limits = np.iinfo(item["dtype"])
    steps = np.asarray(array, np.float32) / np.float32(scale)
    codes = np.trunc(steps + np.copysign(np.float32(0.5), steps)) + zero
    found: Array = np.asarray(np.clip(codes, limits.min, limits.max), item["dtype"], order="C")
    return found


def _taken(item: Mapping[str, Any], array: Array) -> Array:
    """An output as real numbers; one without a grid is the numbers themselves."""
    scale, zero = item["quantization"]
    if not scale:
        return array
    found: Array = (array.astype(np.float32) - np.float32(zero)) * np.float32(scale)
    return found


def _observed(model: bytes, inputs: Sequence[Array], names: Collection[str]) -> Results:
    """The outputs, and the codes of tensors by name, all in logical order."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=model,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=bool(names),
        num_threads=1,
    )
    for item, array in zip(interpreter.get_input_details(), inputs, strict=True):
        shape = [array.shape[axis] for axis in NHWC] if array.ndim == 4 else list(array.shape)
        interpreter.resize_tensor_input(item["index"], shape)
    interpreter.allocate_tensors()
    for item, array in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(item["index"], _given(item, array.transpose(NHWC) if array.ndim == 4 else array))
    interpreter.invoke()

    def logical(index: int) -> Array:
        array: Array = interpreter.get_tensor(index)
        return array.transpose(NCHW) if array.ndim == 4 else array

    outputs = [_taken(item, logical(item["index"])) for item in interpreter.get_output_details()]
    shown = [item for item in interpreter.get_tensor_details() if item["name"] in names] if names else []
    codes = {item["name"]: logical(item["index"]) for item in shown if item["dtype"] is not np.float32}
    return Results(outputs, codes)

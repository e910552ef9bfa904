"""Both of our implementations of softmax against the kernels that they reproduce, over scales and row lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

from conformance.environments import ask
from conformance.lines import Line, Tally
from qcompiler.program.kernels import KERNELS, Call
from qcompiler.program.program import Instruction, Tensor
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.modes import SoftmaxMode
from qcompiler.quant.softmax import SoftmaxParameters, softmax_codes, softmax_parameters

__all__ = ["lines"]

Array = npt.NDArray[Any]

LENGTHS = (2, 3, 10, 49, 64, 197, 500)
"""Elements of a row. LiteRT's kernel for 8 bits ends the process where the sum of exponentials reaches 512."""
ROWS = 64
SCALES = 12
"""Scales of the input for each length, from 2^-10 to 2^0 in 8 bits."""


@dataclass(frozen=True)
class Case:
    """Rows of codes and the grids of input and result.

    Args:
        codes: [rows, length].
        scale: Scale of the input, float32.
        out_scale: Scale of the result.
        out_zero_point: Zero point of the result.
    """

    codes: Array
    scale: float
    out_scale: float
    out_zero_point: int


def _cases(mode: SoftmaxMode) -> Iterator[Case]:
    """Codes over the whole range, and around one code, where neither one element nor all are equal."""
    generator = np.random.default_rng(0)
    wide = mode is SoftmaxMode.LUT16
    limits = np.iinfo(np.int16 if wide else np.int8)
    grid = (1 / 32768, 0) if wide else (1 / 256, -128)
    for length in LENGTHS:
        for index in range(SCALES):
            scale = float(np.float32(2.0 ** generator.uniform(-16 if wide else -10, -6 if wide else 0)))
            codes = generator.integers(limits.min, limits.max + 1, (ROWS, length))
            if index % 2:
                spread = min(2.0 / scale, limits.max / 2)
                codes = np.clip(np.rint(generator.normal(0, spread, (ROWS, length))), limits.min, limits.max)
            yield Case(codes.astype(limits.dtype), scale, *grid)


def _by_torch(case: Case, p: SoftmaxParameters) -> Array:
    limits = np.iinfo(case.codes.dtype)
    codes = torch.from_numpy(case.codes.astype(np.int64))
    found = softmax_codes(
        codes, 1, p, None, out_zero_point=case.out_zero_point, qmin=int(limits.min), qmax=int(limits.max)
    )
    result: Array = found.numpy().astype(case.codes.dtype)
    return result


def _by_numpy(case: Case, p: SoftmaxParameters) -> Array:
    dtype, shape = f"i{8 * case.codes.itemsize}", case.codes.shape
    types = [
        Tensor(dtype=dtype, shape=shape, scale=(scale,), zero_point=(zero,))
        for scale, zero in ((case.scale, 0), (case.out_scale, case.out_zero_point))
    ]
    attributes: dict[str, Any] = {"axis": 1, "mode": str(p.mode), "numerator": p.numerator, "shift": p.shift}
    item = Instruction(op="int_softmax", inputs=("x", "table"), outputs=("y",), attributes=attributes)
    call = Call(item, (types[0], Tensor(dtype="i32", shape=tuple(p.table.shape))), types[1])
    return KERNELS["int_softmax"](call, [case.codes, p.table.numpy()]).astype(case.codes.dtype)


def _constants(case: Case, mode: SoftmaxMode) -> SoftmaxParameters:
    source, target = (
        AffineParams(torch.tensor(scale), torch.tensor(zero, dtype=torch.int32))
        for scale, zero in ((case.scale, 0), (case.out_scale, case.out_zero_point))
    )
    limits = np.iinfo(case.codes.dtype)
    distance, bits = int(limits.max) - int(limits.min), 8 * case.codes.itemsize
    return softmax_parameters(source, target, mode, count=case.codes.shape[1], distance=distance, bits=bits)


def _check(mode: SoftmaxMode, oracle: Callable[[list[Case]], list[Array]]) -> Tally:
    cases, tally = list(_cases(mode)), Tally()
    for case, expected in zip(cases, oracle(cases), strict=True):
        p = _constants(case, mode)
        for name, result in (("torch", _by_torch(case, p)), ("numpy", _by_numpy(case, p))):
            tally.compare(f"{name}, rows of {case.codes.shape[1]}, scale {case.scale:.4g}", result, expected)
    return tally


def _litert(cases: list[Case]) -> list[Array]:
    """LiteRT's reference kernel."""
    models, arrays = [], {}
    for index, case in enumerate(cases):
        kind, shape = f"INT{8 * case.codes.itemsize}", list(case.codes.shape)
        tensors = {
            name: {"type": kind, "shape": shape, "scale": [scale], "zero_point": [zero]}
            for name, scale, zero in (("x", case.scale, 0), ("y", case.out_scale, case.out_zero_point))
        }
        options = {"class": "SoftmaxOptions", "fields": {"beta": 1.0}}
        operator = {"code": "SOFTMAX", "version": 3, "inputs": ["x"], "outputs": ["y"], "options": options}
        models.append(
            {
                "tensors": tensors,
                "operators": [operator],
                "inputs": ["x"],
                "outputs": ["y"],
                "feeds": {"x": f"{index}.x"},
                "resolver": "BUILTIN_REF",
            }
        )
        arrays[f"{index}.x"] = case.codes
    answers = ask("litert", {"models": models}, arrays)
    return [answers[f"{index}.0"] for index in range(len(cases))]


def _onnxruntime(cases: list[Case]) -> list[Array]:
    """QLinearSoftmax of ONNX Runtime, on signed codes."""
    results = []
    for case in cases:
        constants: list[tuple[str, Any]] = [
            ("x_scale", np.float32(case.scale)),
            ("x_zero", np.int8(0)),
            ("y_scale", np.float32(case.out_scale)),
            ("y_zero", np.int8(case.out_zero_point)),
        ]
        nodes = [
            helper.make_node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["a"]),
            helper.make_node("Softmax", ["a"], ["b"], axis=-1),
            helper.make_node("QuantizeLinear", ["b", "y_scale", "y_zero"], ["y"]),
        ]
        given, wanted = ([helper.make_tensor_value_info(name, TensorProto.INT8, case.codes.shape)] for name in "xy")
        initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants]
        graph = helper.make_graph(nodes, "softmax", given, wanted, initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model)
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        results.append(session.run(None, {"x": case.codes})[0])
    return results


def lines() -> list[Line]:
    """One line for each mode with an oracle."""
    litert = [
        Line(f"softmax/{mode}/litert", partial(_check, mode, _litert), ("litert",))
        for mode in (SoftmaxMode.GEMMLOWP, SoftmaxMode.LUT16)
    ]
    return [*litert, Line("softmax/f32/onnxruntime", partial(_check, SoftmaxMode.FLOAT32, _onnxruntime))]

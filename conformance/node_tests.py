"""onnx's own tests of its quantized operators: the data that ships with the package against our arithmetic."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, numpy_helper

from conformance.lines import Line, Tally
from conformance.one_operator import Operand, run
from qcompiler.ir.attributes import Attribute
from qcompiler.quant.affine import dequantize, qparams_from_range, quantize
from qcompiler.quant.requant import RequantMode, prepare_requantization, real_multiplier
from qcompiler.quant.spec import QuantSpec

__all__ = ["NOT_OURS", "WRONG_DATA", "lines", "load"]

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]

OPERATORS = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
)
WRONG_DATA = {
    f"test_qlinearmatmul_{rank}_int8_{scale}": "codes below -128 are stored modulo 256, where the operator saturates"
    for rank in ("2D", "3D")
    for scale in ("float16", "float32")
}
"""Tests whose expected data are wrong in onnx 1.21. Later versions have them right, and then they count."""
_FLOAT_CODES = "8-bit and 4-bit floating point codes"
_BLOCKS = "scales by block: quantize and dequantize have them per tensor and per channel"
NOT_OURS = {
    "test_quantizelinear_e4m3fn": _FLOAT_CODES,
    "test_quantizelinear_e5m2": _FLOAT_CODES,
    "test_quantizelinear_float4e2m1": _FLOAT_CODES,
    "test_dequantizelinear_e4m3fn": _FLOAT_CODES,
    "test_dequantizelinear_e4m3fn_float16": _FLOAT_CODES,
    "test_dequantizelinear_e4m3fn_zero_point": _FLOAT_CODES,
    "test_dequantizelinear_e5m2": _FLOAT_CODES,
    "test_dequantizelinear_float4e2m1": _FLOAT_CODES,
    "test_quantizelinear_blocked_asymmetric": _BLOCKS,
    "test_quantizelinear_blocked_symmetric": _BLOCKS,
    "test_dequantizelinear_blocked": _BLOCKS,
    **{
        f"test_dynamicquantizelinear{kind}_expanded": "the same data, written out in float operators"
        for kind in ("", "_max_adjusted", "_min_adjusted")
    },
}
"""Tests of what we do not have."""

_NARROW: dict[int, tuple[int, bool]] = {
    TensorProto.INT4: (4, True),
    TensorProto.UINT4: (4, False),
    TensorProto.INT2: (2, True),
    TensorProto.UINT2: (2, False),
}


def load() -> dict[str, Any]:
    """onnx's test cases of `OPERATORS`, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # generators of test data overflow on purpose
        package = importlib.import_module("onnx.backend.test.case.node")
        for operator in OPERATORS:
            importlib.import_module(f"onnx.backend.test.case.node.{operator.lower()}")
    cases = {case.name: case for case in package._NodeTestCases}  # noqa: SLF001  # collect_testcases would run them all
    names = tuple(f"test_{operator.lower()}" for operator in OPERATORS)
    return {name: cases[name] for name in sorted(cases) if name.startswith(names)}


def _array(value: Any) -> Array:
    """An array of codes in a type of NumPy's own, or of real numbers."""
    if isinstance(value, TensorProto):
        array = numpy_helper.to_array(value)
        return array.astype(np.int8) if value.data_type in _NARROW else array
    result: Array = np.asarray(value)
    return result


def _spec(value: Any, axis: int | None) -> QuantSpec:
    """The grid of codes like `value`."""
    if isinstance(value, TensorProto) and value.data_type in _NARROW:
        bits, signed = _NARROW[value.data_type]
    else:
        dtype = _array(value).dtype
        bits, signed = 8 * dtype.itemsize, dtype.kind == "i"
    return QuantSpec(bits=bits, signed=signed, axis=axis)


def _code(spec: QuantSpec) -> str:
    return spec.dtype


def _axis(scale: Array, attributes: Attributes, rank: int) -> int | None:
    return int(attributes.get("axis", 1)) % rank if scale.ndim else None


def _channels(array: Array, axis: int | None) -> list[Array]:
    """Slices along an axis: what a program quantizes per tensor."""
    return [array] if axis is None else [np.take(array, [i], axis) for i in range(array.shape[axis])]


def _joined(arrays: Sequence[Array], axis: int | None) -> Array:
    return arrays[0] if axis is None else np.concatenate(arrays, axis)


def _quantize_linear(inputs: Sequence[Any], attributes: Attributes) -> dict[str, list[Array]]:
    x, scale = _array(inputs[0]), _array(inputs[1])
    axis = _axis(scale, attributes, x.ndim)
    spec = _spec(inputs[2], axis)
    zero_point = _array(inputs[2]).astype(np.int32).reshape(scale.shape)
    found = quantize(torch.from_numpy(x), torch.from_numpy(scale), torch.from_numpy(zero_point), spec)
    parts = [
        run("quantize", [Operand(part)], {"rounding": "rne", "qmin": spec.qmin, "qmax": spec.qmax}, s, z, _code(spec))
        for part, s, z in zip(_channels(x, axis), _each(scale), _each(zero_point), strict=True)
    ]
    both = {name: _joined([part[name] for part in parts], axis) for name in parts[0]}
    return {"quant": [found.numpy()], "torch": [both["torch"]], "numpy": [both["numpy"]]}


def _each(values: Array) -> list[Any]:
    result: list[Any] = values.reshape(-1).tolist()
    return result


def _dequantize_linear(inputs: Sequence[Any], attributes: Attributes) -> dict[str, list[Array]]:
    codes, scale = _array(inputs[0]), _array(inputs[1])
    axis = _axis(scale, attributes, codes.ndim)
    zero_point = np.zeros(scale.shape, np.int32)
    if len(inputs) > 2:
        zero_point = _array(inputs[2]).astype(np.int32).reshape(scale.shape)
    q, s, z = (torch.from_numpy(array) for array in (codes.astype(np.int32), scale, zero_point))
    by_quant = dequantize(q, s, z, axis).numpy()
    dtype = _code(_spec(inputs[0], None))
    parts = [
        run("dequantize", [Operand(part, (step,), (zero,), dtype=dtype)], {}, 0.0, 0, "f32")
        for part, step, zero in zip(_channels(codes, axis), _each(scale), _each(zero_point), strict=True)
    ]
    both = {name: _joined([part[name] for part in parts], axis) for name in parts[0]}
    return {"quant": [by_quant], "torch": [both["torch"]], "numpy": [both["numpy"]]}


def _dynamic_quantize_linear(inputs: Sequence[Any], attributes: Attributes) -> dict[str, list[Array]]:
    x, spec = _array(inputs[0]), QuantSpec(bits=8, signed=False)
    scale, zero_point = qparams_from_range(float(x.min()), float(x.max()), spec)
    found = quantize(torch.from_numpy(x), scale, zero_point, spec)
    return {"quant": [found.numpy(), scale.numpy(), zero_point.numpy()]}


def _weight(inputs: Sequence[Any], place: int, weight: Array) -> Operand:
    scale, zero_point = _each(_array(inputs[place + 1])), _each(_array(inputs[place + 2]))
    axis = 0 if len(scale) > 1 else None
    return Operand(weight, [float(np.float32(s)) for s in scale], zero_point, axis, constant=True)


def _multiplier(x_scale: Any, w_scale: Any, y_scale: Any) -> list[Operand]:
    x, w, y = (torch.from_numpy(_array(s).astype(np.float32).reshape(-1)) for s in (x_scale, w_scale, y_scale))
    item = prepare_requantization(real_multiplier(x, w, y, RequantMode.FLOAT32_RNE), RequantMode.FLOAT32_RNE)
    return [Operand(part.numpy(), constant=True) for part in item.parts]


def _geometry(attributes: Attributes) -> dict[str, Attribute]:
    return {
        "stride": tuple(attributes.get("strides", (1, 1))),
        "padding": tuple(attributes.get("pads", (0, 0, 0, 0))),
        "dilation": tuple(attributes.get("dilations", (1, 1))),
        "groups": int(attributes.get("group", 1)),
    }


def _activation(inputs: Sequence[Any], place: int, array: Array) -> Operand:
    scale, zero_point = _each(_array(inputs[place + 1])), _each(_array(inputs[place + 2]))
    return Operand(array, (float(np.float32(scale[0])),), zero_point)


def _qlinear_conv(inputs: Sequence[Any], attributes: Attributes) -> dict[str, list[Array]]:
    x, weight, y_zero = _array(inputs[0]), _array(inputs[3]), _array(inputs[7])
    bias = _array(inputs[8]) if len(inputs) > 8 else np.zeros(len(weight), np.int32)
    operands = [_activation(inputs, 0, x), _weight(inputs, 3, weight), Operand(bias, constant=True)]
    operands += _multiplier(inputs[1], inputs[4], inputs[6])
    kind = _code(_spec(inputs[7], None))
    scale, zero_point = float(_array(inputs[6])), int(y_zero)
    both = run("int_conv2d", operands, {**_geometry(attributes), "mode": "f32_rne"}, scale, zero_point, kind)
    return {name: [array] for name, array in both.items()}


def _matrices(a: Array, b: Array, multiply: Callable[[Array, Array], dict[str, Array]]) -> dict[str, list[Array]]:
    """A product of matrices as products of a matrix with a constant one, for each of the outer axes."""
    outer = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    lefts = np.broadcast_to(a, (*outer, *a.shape[-2:])).reshape(-1, *a.shape[-2:])
    rights = np.broadcast_to(b, (*outer, *b.shape[-2:])).reshape(-1, *b.shape[-2:])
    found = [multiply(left, right.T) for left, right in zip(lefts, rights, strict=True)]
    shape = (*outer, a.shape[-2], b.shape[-1])
    return {name: [np.stack([item[name] for item in found]).reshape(shape)] for name in found[0]}


def _qlinear_matmul(inputs: Sequence[Any], attributes: Attributes) -> dict[str, list[Array]]:
    kind, zero_point = _code(_spec(inputs[7], None)), int(_array(inputs[7]).reshape(-1)[0])
    scale = float(_array(inputs[6]).reshape(-1)[0])

    def multiply(left: Array, weight: Array) -> dict[str, Array]:
        operands = [_activation(inputs, 0, left), _weight(inputs, 3, weight)]
        operands.append(Operand(np.zeros(len(weight), np.int32), constant=True))
        operands += _multiplier(inputs[1], inputs[4], inputs[6])
        return run("int_linear", operands, {"mode": "f32_rne"}, scale, zero_point, kind)

    return _matrices(_array(inputs[0]), _array(inputs[3]), multiply)


# 2^30 * 2^(1 - 31) = 1: `single` leaves accumulators as they are.
_ONE = (
    Operand(np.array([1 << 30], np.int32), constant=True),
    Operand(np.array([1], np.int8), constant=True),
)


def _accumulated(inputs: Sequence[Any], left: Array, weight: Array) -> list[Operand]:
    """Operands of a sum of products whose result is the accumulator itself."""
    zeros = [_each(_array(inputs[place])) if len(inputs) > place else [0] for place in (2, 3)]
    axis = 0 if len(zeros[1]) > 1 else None
    x, w = Operand(left, (1.0,), zeros[0]), Operand(weight, [1.0] * len(zeros[1]), zeros[1], axis, constant=True)
    return [x, w, Operand(np.zeros(len(weight), np.int32), constant=True), *_ONE]


def _conv_integer(inputs: Sequence[Any], attributes: Attributes) -> dict[str, list[Array]]:
    operands = _accumulated(inputs, _array(inputs[0]), _array(inputs[1]))
    both = run("int_conv2d", operands, {**_geometry(attributes), "mode": "single"}, 1.0, 0, "i32")
    return {name: [array] for name, array in both.items()}


def _matmul_integer(inputs: Sequence[Any], attributes: Attributes) -> dict[str, list[Array]]:
    def multiply(left: Array, weight: Array) -> dict[str, Array]:
        return run("int_linear", _accumulated(inputs, left, weight), {"mode": "single"}, 1.0, 0, "i32")

    return _matrices(_array(inputs[0]), _array(inputs[1]), multiply)


_OURS: dict[str, Callable[[Sequence[Any], Attributes], dict[str, list[Array]]]] = {
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "DynamicQuantizeLinear": _dynamic_quantize_linear,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "ConvInteger": _conv_integer,
    "MatMulInteger": _matmul_integer,
}


def _check(operator: str) -> Tally:
    tally = Tally()
    for name, case in load().items():
        if case.model.graph.node[0].op_type != operator and not name.startswith(f"test_{operator.lower()}"):
            continue
        if name in NOT_OURS:
            tally.notes.append(f"{name}: not run: {NOT_OURS[name]}")
            continue
        (node,) = case.model.graph.node
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        for inputs, outputs in case.data_sets:
            expected = [_array(output) for output in outputs]
            for implementation, found in _OURS[operator](inputs, attributes).items():
                if name in WRONG_DATA and _is_wrapped(found[0], expected[0]):
                    tally.notes.append(f"{name}, {implementation}: not compared: {WRONG_DATA[name]}")
                    continue
                for ours, theirs in zip(found, expected, strict=True):
                    tally.compare(f"{name}, {implementation}", ours, theirs)
    return tally


def _is_wrapped(found: Array, expected: Array) -> bool:
    """Whether the data differ from ours, and only where ours saturate."""
    different = found != expected
    return bool(different.any() and (found[different] == -128).all())


def lines() -> list[Line]:
    """One line for each operator."""
    return [Line(f"onnx/{name}", lambda name=name: _check(name)) for name in OPERATORS]  # type: ignore[misc]

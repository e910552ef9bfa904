"""Operators on codes as operators on real numbers between quantizers.

QLinearConv(x, s, z, w, t, 0, u, v, b)        becomes

QuantizeLinear(Conv(DequantizeLinear(x, s, z), DequantizeLinear(w, t, 0), DequantizeLinear(b, s * t)), u, v)

The operators of ONNX and those of the domain `com.microsoft`, which `onnxruntime.quantization` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from qcompiler.errors import UnsupportedError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["DOMAINS_OF_CODES", "QUANTIZING", "REFUSED", "expand", "is_quantized", "place_of"]

DYNAMIC = "its ranges are found anew for each input, which takes real numbers at run time"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "DynamicQuantizeLinear",
            "MatMulInteger",
            "ConvInteger",
            "DynamicQuantizeMatMul",
            "DynamicQuantizeLSTM",
            "MatMulIntegerToFloat",
        ),
        DYNAMIC,
    ),
    **dict.fromkeys(("QAttention", "QEmbedLayerNormalization", "QLinearReduceMean"), "it has no form in operators"),
    **dict.fromkeys(
        ("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QMoE"),
        "its activations stay real numbers, and its weights are packed in blocks",
    ),
}
"""Operators of quantized files that are refused, with the reason."""
QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear"})
DOMAINS_OF_CODES = ("com.microsoft",)
"""Domains of other operators that are read here."""

_Form: TypeAlias = "tuple[str, Sequence[tuple[int, int, int]], tuple[int, int] | None]"
_UNARY: Sequence[tuple[int, int, int]] = ((0, 1, 2),)
_BINARY: Sequence[tuple[int, int, int]] = ((0, 1, 2), (3, 4, 5))
FORMS: Mapping[str, _Form] = {
    "QLinearConv": ("Conv", _BINARY, (6, 7)),
    "QLinearMatMul": ("MatMul", _BINARY, (6, 7)),
    "QGemm": ("Gemm", _BINARY, (7, 8)),
    "QLinearAdd": ("Add", _BINARY, (6, 7)),
    "QLinearMul": ("Mul", _BINARY, (6, 7)),
    "QLinearSigmoid": ("Sigmoid", _UNARY, (3, 4)),
    "QLinearLeakyRelu": ("LeakyRelu", _UNARY, (3, 4)),
    "QLinearSoftmax": ("Softmax", _UNARY, (3, 4)),
    "QLinearAveragePool": ("AveragePool", _UNARY, (3, 4)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", _UNARY, (3, 4)),
}
"""Operator on real numbers, positions of (codes, scale, zero point) of its operands, and of the result's grid."""
BIAS = {"QLinearConv": 8, "QGemm": 6}
"""Position of the bias, whose scale is the product of the scales of both operands."""


def expand(model: ModelProto, constant: Callable[[str], np.ndarray | None]) -> list[NodeProto]:
    """The nodes of a model with operators on codes in the form above; new constants are added to the model.

    Args:
        model: The model.
        constant: A constant of the file by name; None for other names.

    Raises:
        UnsupportedError: An operator is quantized at run time, or has an option that has no other form.
    """
    found: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type in REFUSED:
            raise UnsupportedError(
                f"the operator {node.op_type} cannot be compiled: {REFUSED[node.op_type]}",
                where=place_of(node),
                expected="quantizers with constant scales and zero points",
                fix="Quantize the file statically (onnxruntime.quantization.quantize_static), or pass the float file.",
            )
        found += _Expansion(model, node, constant).run()
    return found


def is_quantized(model: ModelProto) -> bool:
    """Whether a model has quantizers or operators on codes."""
    known = {*QUANTIZING, *REFUSED, *FORMS, "QLinearConcat"}
    return any(node.op_type in known for node in model.graph.node)


def place_of(node: NodeProto) -> str:
    """Name and operator of a node."""
    return f"{node.name or next(filter(None, node.output), '')} ({node.op_type})"


class _Expansion:
    def __init__(self, model: ModelProto, node: NodeProto, constant: Callable[[str], np.ndarray | None]) -> None:
        self.model, self.node, self.constant = model, node, constant
        self.before: list[NodeProto] = []

    def run(self) -> Iterator[NodeProto]:
        node = self.node
        if node.op_type == "QLinearConcat":
            triples = [(i, i + 1, i + 2) for i in range(2, len(node.input) - 2, 3)]
            yield from self._nodes("Concat", triples, (0, 1))
        elif node.op_type in FORMS:
            yield from self._nodes(*FORMS[node.op_type])
        else:
            yield node

    def _nodes(
        self, op: str, operands: Sequence[tuple[int, int, int]], result: tuple[int, int] | None
    ) -> Iterator[NodeProto]:
        from onnx import helper

        node, stem = self.node, self.node.name or self.node.output[0]
        axis = self._weight_axis(op)
        reals = [self._real(codes, scale, zero, axis if codes else None) for codes, scale, zero in operands]
        bias = BIAS.get(node.op_type)
        if bias is not None and self._has(bias):
            reals.append(self._bias(bias, operands))
        is_real = result is None or not self._has(result[0])
        real = node.output[0] if is_real else f"{stem}.real"
        made = helper.make_node(op, reals, [real], name=stem)
        made.attribute.extend(item for item in node.attribute if item.name not in ("channels_last", "opset"))
        options = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if options.get("channels_last"):
            raise UnsupportedError(
                f"{node.op_type} with channels last", where=place_of(node), fix="Export it with channels first."
            )
        yield from self.before
        yield made
        if not is_real and result is not None:
            grid = [node.input[position] for position in result if self._has(position)]
            yield helper.make_node("QuantizeLinear", [real, *grid], list(node.output), name=f"{stem}.quantize")

    def _has(self, position: int) -> bool:
        return position < len(self.node.input) and bool(self.node.input[position])

    def _weight_axis(self, op: str) -> int:
        """The axis of scales per channel of the second operand."""
        if op == "Gemm":
            return next((0 if item.i else 1 for item in self.node.attribute if item.name == "transB"), 1)
        return 0 if op == "Conv" else -1

    def _real(self, codes: int, scale: int, zero: int, axis: int | None) -> str:
        from onnx import helper

        name = f"{self.node.name or self.node.output[0]}.operand{codes}"
        inputs = [self.node.input[position] for position in (codes, scale, zero) if self._has(position)]
        options: dict[str, Any] = {} if axis is None else {"axis": axis}
        self.before.append(helper.make_node("DequantizeLinear", inputs, [name], name=name, **options))
        return name

    def _bias(self, bias: int, operands: Sequence[tuple[int, int, int]]) -> str:
        from onnx import helper, numpy_helper

        name = f"{self.node.name or self.node.output[0]}.bias"
        scales = [self.constant(self.node.input[scale]) for _, scale, _ in operands]
        if scales[0] is None or scales[1] is None:
            raise UnsupportedError("a scale depends on the inputs", where=place_of(self.node))
        product = np.asarray(scales[0].astype(np.float32) * scales[1].astype(np.float32)).reshape(-1)
        held = numpy_helper.from_array(product if product.size > 1 else product.reshape(()), f"{name}.scale")
        self.model.graph.initializer.append(held)
        inputs = [self.node.input[bias], f"{name}.scale"]
        self.before.append(helper.make_node("DequantizeLinear", inputs, [name], name=name, axis=0))
        return name

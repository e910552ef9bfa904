"""The ONNX graph of an integer graph while it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from qcompiler.backends.onnx_qdq import blocks
from qcompiler.backends.onnx_qdq.islands import export
from qcompiler.backends.onnx_qdq.leaves import leaf_array
from qcompiler.errors import UnsupportedError
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.types import DType, QuantParams

Array = npt.NDArray[np.generic]

UNSIGNED_SHIFT = 128
"""Offset that is added to the codes of signed 8-bit activations in the file."""

CLIP_TOLERANCE = 2.0**-20
"""Margin for a rule of ONNX Runtime: it drops a Clip before a quantizer if the ends of the grid are within an absolute
2^-23 of the limits, which holds for every grid of numbers around 1e-12."""

AXES_AS_INPUT = 18
"""The first opset in which ReduceMean reads its axes from an input."""

_FUSED = ("int_conv1d", "int_conv2d", "int_conv3d", "int_linear", "int_matmul")
"""Layers with an integer kernel in ONNX Runtime, which is used only if the quantizer directly follows the layer."""

WEIGHT_CODES = ".codes"
"""Suffix of the initializer of a weight."""


@dataclass(frozen=True)
class OnnxOptions:
    """Variant of the file.

    Args:
        opset: Version of the operator set.
        ir_version: Version of the file format; newer ones are refused by older runtimes.
        activations: Signed 8-bit activations as unsigned codes, or unchanged.
        bias: Biases as integers before a DequantizeLinear, or as real numbers.
    """

    opset: int = 13
    ir_version: int = 8
    activations: Literal["unsigned", "as_is"] = "unsigned"
    bias: Literal["int32", "float"] = "int32"


class Emitter:
    """The ONNX graph of an integer graph while it is written, and the helpers of its rules.

    Args:
        graph: A graph at stage INTEGER.
        options: Variant of the file.
    """

    def __init__(self, graph: Graph, options: OnnxOptions) -> None:
        self.graph = graph
        self.options = options
        self.nodes: list[gs.Node] = []
        self.codes: dict[Value, gs.Tensor] = {}
        """The integer tensor that holds each value."""
        self.weights: dict[Value, gs.Constant] = {}
        """The initializer of each weight and bias, shared by all its users."""
        self._numbers: dict[tuple[str, tuple[int, ...], bytes], gs.Constant] = {}
        self.islands = export([node for node in graph.nodes if node.op == "call"], options.opset)
        """The float island of each call."""
        self.names = {value.name for value in graph.values()}
        """Names in use. Values of the graph keep their names, so that graph and file can be compared tensor by
        tensor."""

    def add(self, op: str, inputs: Sequence[gs.Tensor], name: str, **attributes: object) -> gs.Tensor:
        """An ONNX node with one result `name`, which is the name of a value of the graph or a new name."""
        output = gs.Variable(name)
        self.nodes.append(gs.Node(op, name=f"{name}/{op}", attrs=attributes, inputs=list(inputs), outputs=[output]))
        return output

    def compute(self, node: Node, op: str, inputs: Sequence[gs.Tensor], **attributes: object) -> gs.Tensor:
        """An intermediate ONNX node for the result of `node`, in real numbers."""
        return self.add(op, inputs, self.unused(f"{node.name}.real"), **attributes)

    def constant(self, name: str, array: npt.ArrayLike) -> gs.Constant:
        """An initializer."""
        return gs.Constant(self.unused(name), np.asarray(array, order="C"))

    def number(self, name: str, array: npt.ArrayLike) -> gs.Constant:
        """An initializer of one element, shared by all operators that read the same one.

        A runtime needs as long for an initializer as for an operator, and grids of movements are mostly equal.

        Args:
            name: Name of the initializer, unless an equal one has a name already.
            array: The element, with or without axes.
        """
        element = np.asarray(array)
        key = (element.dtype.str, element.shape, element.tobytes())
        found = self._numbers.get(key)
        if found is None:
            found = self._numbers[key] = self.constant(name, element)
        return found

    def unused(self, name: str) -> str:
        """Reserve `name`, with a suffix if it is taken."""
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def activation_grid(self, name: str, quant: QuantParams, dtype: DType) -> list[gs.Constant]:
        """Scale and zero point of an activation; signed codes of up to eight bits become unsigned."""
        if DType.of(dtype.torch) is DType.I8 and self.options.activations == "unsigned":
            quant = QuantParams(quant.scale, tuple(zero + UNSIGNED_SHIFT for zero in quant.zero_point), quant.axis)
            dtype = DType.U8
        return self.grid(name, quant, dtype, shared=True)

    def grid(
        self, name: str, quant: QuantParams, dtype: DType, *, with_zero: bool = True, shared: bool = False
    ) -> list[gs.Constant]:
        """Scale and zero point.

        Args:
            name: Name of the quantized tensor.
            quant: Grid of the tensor.
            dtype: Type of the stored codes.
            with_zero: Whether the zero point is written.
            shared: Whether equal grids share initializers. Weights keep their own, because ONNX Runtime makes signed
                weights unsigned on some processors, and fails at the second one with the same zero point.
        """
        per_tensor = quant.axis is None
        initializer = self.number if per_tensor and shared else self.constant
        scale = np.asarray(quant.scale[0] if per_tensor else quant.scale, np.float32)
        result = [initializer(f"{name}.scale", scale)]
        if with_zero:
            zero = np.asarray(quant.zero_point[0] if per_tensor else quant.zero_point, dtype.numpy)
            result.append(initializer(f"{name}.zero_point", zero))
        return result

    def real(self, node: Node, index: int, *, factor: float = 1.0) -> gs.Tensor:
        """Operand `index`, times a factor, after its own DequantizeLinear, so that each consumer can fuse it."""
        value = node.inputs[index]
        quant = value.type.quant
        if quant is None:
            return self.real_numbers(value)
        if factor != 1.0:
            scales = tuple(float(np.float32(scale) * np.float32(factor)) for scale in quant.scale)
            quant = QuantParams(scales, quant.zero_point, quant.axis)
        name = f"{node.name}/{index}"
        source = self.codes.get(value)
        wide = value.type.dtype is DType.I64 or (value.type.dtype is DType.I32 and self.options.bias == "float")
        if source is None and wide:
            return self.real_bias(value, quant)
        if value.producer is not None and value.producer.op == "expand_blocks":
            return self.weight_in_blocks(node, index, value.producer, quant)
        if source is None:
            source = self.weights.get(value) or self.constant(value.name + WEIGHT_CODES, leaf_array(value))
            self.weights[value] = source
            grid = self.grid(name, quant, value.type.dtype, with_zero=value.type.dtype is not DType.I32)
        else:
            grid = self.activation_grid(name, quant, value.type.dtype)
        axis = {} if quant.axis is None else {"axis": quant.axis}
        return self.add("DequantizeLinear", [source, *grid], self.unused(f"{name}.real"), **axis)

    def weight_in_blocks(self, node: Node, index: int, expand: Node, quant: QuantParams) -> gs.Tensor:
        """A weight with one scale per block: the scale of the channel times the factor of the block."""
        codes, factors = expand.inputs
        name = f"{node.name}/{index}"
        array, inputs = leaf_array(factors), 1 - expand.integer("axis")
        products = blocks.products(expand)
        if blocks.seem_channels(node, quant, array) and np.abs(products).max() <= blocks.INT8_MOST:
            if codes not in self.weights:
                self.weights[codes] = self.constant(codes.name, products.astype(np.int8))
            grid = self.grid(name, quant, DType.I8, with_zero=True)
            real = self.unused(f"{name}.real")
            return self.add("DequantizeLinear", [self.weights[codes], *grid], real, axis=1 - inputs)
        if codes not in self.weights:
            self.weights[codes] = self.constant(codes.name, leaf_array(codes))
        scale = blocks.scales(quant, array, inputs, tuple(int(cast("int", size)) for size in codes.type.shape))
        attributes = {"axis": inputs, "block_size": expand.integer("block")}
        operands = [self.weights[codes], self.constant(f"{name}.scale", scale)]
        return self.add("DequantizeLinear", operands, self.unused(f"{name}.real"), **attributes)

    def real_bias(self, value: Value, quant: QuantParams) -> gs.Constant:
        """A bias as real numbers, for biases of more than 32 bits, which DequantizeLinear does not accept."""
        if value not in self.weights:
            real = leaf_array(value).astype(np.float64) * np.asarray(quant.scale, np.float64)
            self.weights[value] = self.constant(value.name, real.astype(np.float32))
        return self.weights[value]

    def biased(self, node: Node, op: str, operands: Sequence[gs.Tensor], inner: int, **attributes: object) -> gs.Tensor:
        """A layer with its bias, the third of `operands`; `inner` axes of its result follow the axis of the channels.

        ONNX Runtime quantizes a float constant bias to 32 bits in steps of s_x * s_w, and wraps beyond that. A larger
        bias is added separately, by an operator that no optimization merges into the layer: Add after Gemm, Sum after a
        convolution.
        """
        value = node.inputs[2]
        if value.type.dtype is not DType.I64 or int(np.abs(leaf_array(value)).max(initial=0)) < 2**31:
            return self.compute(node, op, operands, **attributes)
        real = operands[2].values.reshape(-1, *[1] * inner)
        bias = self.constant(f"{value.name}.apart", real)
        layer = self.compute(node, op, operands[:2], **attributes)
        return self.compute(node, "Add" if op == "Gemm" else "Sum", [layer, bias])

    def numbers(self, node: Node, index: int) -> gs.Constant:
        """Operand `index`, a tensor of the module, as real numbers."""
        value = node.inputs[index]
        quant = value.type.quant
        if quant is None or quant.axis is not None:
            raise UnsupportedError(f"%{value.name} has no grid of its own", where=node.where)
        real = (leaf_array(value).astype(np.float64) - quant.zero_point[0]) * quant.scale[0]
        return self.constant(f"{node.name}/{index}", real.astype(np.float32))

    def quantized(self, node: Node, real: gs.Tensor) -> None:
        """Quantize `real` to the grid and the code limits of `node`'s result.

        ONNX Runtime replaces the two pairs of Q -> DQ -> Q -> DQ by one pair with a third grid. A Sum of one operand
        separates them, because no optimization removes it.
        """
        value = node.output
        if any(maker.op == "DequantizeLinear" for maker in real.inputs):
            real = self.compute(node, "Sum", [real])
        # Four-bit codes are stored one per byte, so the range of their quantizer is wider than the range of the codes.
        quant, dtype = value.type.quant, DType.of(value.type.dtype.torch)
        if quant is None:
            raise UnsupportedError("the result has no grid", where=node.where)
        lowest, highest = self.limits(node)
        grid = self.activation_grid(node.name, quant, dtype)
        if (lowest.min(), highest.max()) == dtype.limits and lowest.size == highest.size == 1:
            self.codes[value] = self.add("QuantizeLinear", [real, *grid], value.name)
            return
        if node.op in _FUSED and dtype.bits == 8:
            # A Clip between a layer and its quantizer would prevent the integer kernel of ONNX Runtime.
            whole = self.add("QuantizeLinear", [real, *grid], self.unused(f"{node.name}.whole"))
            shift, stored = self.stored(dtype)
            codes = [
                self.constant(f"{node.name}.{end}", (code + shift).astype(stored))
                for end, code in (("least", lowest), ("most", highest))
            ]
            self.codes[value] = self.clipped(whole, codes, value.name, self.unused(f"{node.name}.raised"))
            return
        limits = [
            self.constant(
                f"{node.name}.{end}", (code - quant.zero_point[0]).astype(np.float32) * np.float32(quant.scale[0])
            )
            for end, code in (("min", lowest), ("max", highest))
        ]
        names = [self.unused(f"{node.name}.{part}") for part in ("real", "raised")]
        cut = [int(abs(code - end).max()) for code, end in zip((lowest, highest), dtype.limits, strict=True)]
        near = min((size for size in cut if size), default=0) * quant.scale[0] <= CLIP_TOLERANCE
        clipped = self.clipped(real, limits, *names, apart=near)
        self.codes[value] = self.add("QuantizeLinear", [clipped, *grid], value.name)

    def result(self, node: Node, op: str, inputs: Sequence[gs.Tensor], **attributes: object) -> None:
        """An ONNX node that gives the result of `node`: real numbers to quantize, or exact integers and booleans."""
        if node.output.type.quant is None:
            self.codes[node.output] = self.add(op, inputs, node.output.name, **attributes)
        else:
            self.quantized(node, self.compute(node, op, inputs, **attributes))

    def stored(self, dtype: DType) -> tuple[int, np.dtype[np.generic]]:
        """Offset of the codes of an activation in the file, and their type."""
        if dtype is DType.I8 and self.options.activations == "unsigned":
            return UNSIGNED_SHIFT, np.dtype(np.uint8)
        return 0, dtype.numpy

    def limits(self, node: Node) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Lowest and highest codes of the result: numbers, or arrays that broadcast with it, one entry per channel."""
        found = []
        rank = node.output.type.rank
        axis = rank - 1 if node.op == "int_linear" else node.integer("axis", 1)
        for name, default in zip(("qmin", "qmax"), node.output.type.dtype.limits, strict=True):
            codes = np.asarray(default if node.attributes.get(name) is None else node.attributes[name], np.int64)
            found.append(codes.reshape(-1, *[1] * (rank - axis - 1)) if codes.ndim else codes)
        return found[0], found[1]

    def clipped(
        self, tensor: gs.Tensor, limits: Sequence[gs.Constant], name: str, between: str, *, apart: bool = False
    ) -> gs.Tensor:
        """Clamp `tensor` to limits: Clip for two numbers, Max and Min for limits that broadcast.

        With `apart`, always Max and Min, which no optimization merges into a quantizer.
        """
        if not apart and not any(limit.values.ndim for limit in limits):
            return self.add("Clip", [tensor, *limits], name)
        return self.add("Min", [self.add("Max", [tensor, limits[0]], between), limits[1]], name)

    def ints(self, node: Node, name: str) -> list[int]:
        """An attribute that is a tuple of integers."""
        return list(node.integers(name))

    def real_numbers(self, value: Value) -> gs.Tensor:
        """A value without codes: an input of the file, a result of a node, or a constant tensor of the module."""
        found = self.codes.get(value)
        return self.constant(f"{value.name}.value", leaf_array(value)) if found is None else found

    def mean_over(self, node: Node, x: gs.Tensor, axes: Sequence[int], keepdim: bool) -> gs.Tensor:
        """ReduceMean; in newer opsets the axes are an input."""
        if self.options.opset >= AXES_AS_INPUT:
            operands = [x, self.constant(f"{node.name}.axes", np.asarray(axes, np.int64))]
            return self.compute(node, "ReduceMean", operands, keepdims=int(keepdim))
        return self.compute(node, "ReduceMean", [x], axes=list(axes), keepdims=int(keepdim))

    def sizes(self, node: Node) -> gs.Constant:
        """The shape of the result, for a Reshape."""
        sizes = [size if isinstance(size, int) else -1 for size in node.output.type.shape]
        if sizes.count(-1) > 1:
            raise UnsupportedError("a reshape to two symbolic sizes", where=node.where)
        return self.constant(f"{node.name}.shape", np.asarray(sizes, np.int64))


Rule: TypeAlias = Callable[[Emitter, Node], None]
"""Function that writes the ONNX operators of an integer op."""


def numpy_type(value: Value) -> np.dtype[np.generic]:
    """NumPy element type of a value."""
    return value.type.dtype.numpy


def onnx_type(dtype: np.dtype[np.generic]) -> int:
    """ONNX number of an element type."""
    return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))


def shape_of(value: Value) -> list[int | str]:
    """Sizes of a value, symbols as text."""
    return [size if isinstance(size, int) else str(size) for size in value.type.shape]

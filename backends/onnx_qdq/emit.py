"""Write an INTEGER graph as ONNX with QuantizeLinear and DequantizeLinear around each operator.

The file holds the integers of the graph itself: int8 weights, and int32 biases at exactly the float32 product of input
and weight scale, because ONNX Runtime's fused kernels assume that product and ignore the bias' own scale.

    int_conv2d(x, W, b) : q(s, z)   becomes   Q(s, z)(Conv(DQ(x), DQ(W), DQ(b)))

Code limits that the element type does not give already become a Clip: of codes, behind Q, for what ONNX Runtime
multiplies in integers; else of real numbers, in front of it. Limits per channel become a Max and a Min in its place.

Signed 8-bit activations are written unsigned, codes and zero points 128 higher, which stands for the same real numbers:
ONNX Runtime on x86 fuses convolutions of signed activations only behind a session option (`session.qdqisint8allowed`),
and runs them as float otherwise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from qcompiler.backends.onnx_qdq import blocks, pooling
from qcompiler.backends.onnx_qdq.functions import FUNCTIONS
from qcompiler.backends.onnx_qdq.islands import LEAST_OPSET, export, keep_apart
from qcompiler.backends.onnx_qdq.leaves import leaf_array
from qcompiler.errors import UnsupportedError
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import LEAVES
from qcompiler.ir.types import DType, QuantParams, Stage
from qcompiler.quant.arithmetic import ELEMENTWISE_FLOAT32

Array = npt.NDArray[np.generic]

UNSIGNED_SHIFT = 128
"""How much higher the codes of signed 8-bit activations are in the file."""

WIDE_OPSET, WIDE_IR_VERSION = 21, 10
"""The first versions in which QuantizeLinear takes 16-bit types, and DequantizeLinear scales of blocks."""
CLIP_TOLERANCE = 2.0**-20
"""ONNX Runtime drops a Clip in front of a quantizer whose grid ends within 2^-23, relative to nothing, of the limits,
and so do all grids for numbers of 1e-12. There is some room to that."""

AXES_AS_INPUT = 18
"""The first opset in which ReduceMean takes its axes as an input."""

LEAST_EPS = float(np.finfo(np.float32).tiny)
"""Smallest epsilon, which keeps a normalization of equal elements from dividing by zero."""

_FUSED = ("int_conv1d", "int_conv2d", "int_conv3d", "int_linear")
"""Layers for which ONNX Runtime has an integer kernel; it takes one in only with its quantizer right behind it."""

WEIGHT_CODES = ".codes"
"""Follows the name of a weight in the name of its initializer."""


@dataclass(frozen=True)
class OnnxOptions:
    """Flavour of the file.

    Args:
        opset: Version of the operator set.
        ir_version: Version of the file format; newer ones are refused by older runtimes.
        activations: Signed 8-bit activations as unsigned ones, or as they are.
        bias: Biases as integers behind a DequantizeLinear, or as real numbers.
    """

    opset: int = 13
    ir_version: int = 8
    activations: Literal["unsigned", "as_is"] = "unsigned"
    bias: Literal["int32", "float"] = "int32"


def emit(graph: Graph, options: OnnxOptions | None = None) -> bytes:
    """The ONNX file of `graph`.

    Args:
        graph: At stage INTEGER. Its float inputs and outputs are those of the file.
        options: Flavour.

    Returns:
        The serialized model, checked by onnx. The same graph gives the same bytes.

    Raises:
        UnsupportedError: The graph is not integer, or holds what ONNX at that opset cannot say.
    """
    options = _raised(options or OnnxOptions(), graph)
    if graph.stage is not Stage.INTEGER:
        raise UnsupportedError(f"a graph at stage {graph.stage} has no ONNX form", fix="Lower it first.")
    model = _Emitter(graph, options).model()
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _raised(options: OnnxOptions, graph: Graph) -> OnnxOptions:
    """`options` with the opset that the element types and the islands of `graph` need."""
    opset, ir_version = options.opset, options.ir_version
    results = (value for value in graph.values() if value.producer is None or value.producer.op not in LEAVES)
    if any(value.type.dtype in (DType.I16, DType.U16) for value in results):
        opset, ir_version = max(opset, WIDE_OPSET), max(ir_version, WIDE_IR_VERSION)
    if any(node.op == "expand_blocks" for node in graph.nodes):
        opset, ir_version = max(opset, WIDE_OPSET), max(ir_version, WIDE_IR_VERSION)
    if any(node.op == "call" for node in graph.nodes):
        opset = max(opset, LEAST_OPSET)
    return dataclasses.replace(options, opset=opset, ir_version=ir_version)


class _Emitter:
    def __init__(self, graph: Graph, options: OnnxOptions) -> None:
        self.graph = graph
        self.options = options
        self.nodes: list[gs.Node] = []
        self.codes: dict[Value, gs.Tensor] = {}
        """The integer tensor that holds each value."""
        self.weights: dict[Value, gs.Constant] = {}
        """The initializer of each weight and bias, one for all that read it."""
        self.names = {value.name for value in graph.values()}
        """Names in use: those of the graph keep theirs, so that both can be compared tensor by tensor."""

    def model(self) -> onnx.ModelProto:
        inputs = []
        for value in self.graph.inputs:
            tensor = gs.Variable(value.name, _numpy(value), _shape(value))
            self.codes[value] = tensor
            inputs.append(tensor)
        for node in self.graph.nodes:
            if node.op in (*LEAVES, "expand_blocks"):
                continue
            rule = _RULES.get(node.op)
            if rule is None:
                raise UnsupportedError(f"{node.op} has no ONNX form", where=node.where)
            rule(self, node)
        outputs: list[gs.Tensor] = []
        for value in self.graph.outputs:
            tensor = self.codes.get(value)
            if tensor is None or value in self.graph.inputs or any(tensor is other for other in outputs):
                # A file has a node of its own behind each output: inputs, constants and doubles are passed on.
                source = self.constant(f"{value.name}.value", leaf_array(value)) if tensor is None else tensor
                tensor = self.add("Identity", [source], self.unused(f"{value.name}.output"))
            tensor.dtype, tensor.shape = _numpy(value), _shape(value)
            outputs.append(tensor)
        surgeon = gs.Graph(
            nodes=self.nodes, inputs=inputs, outputs=outputs, name=self.graph.name, opset=self.options.opset
        )
        model: onnx.ModelProto = gs.export_onnx(surgeon, do_type_check=True)
        model.ir_version = self.options.ir_version
        model.producer_name = "qcompiler"
        return model

    def add(self, op: str, inputs: Sequence[gs.Tensor], name: str, **attributes: object) -> gs.Tensor:
        """One ONNX node with one result called `name`, which is a value of the graph or made to differ from all."""
        output = gs.Variable(name)
        self.nodes.append(gs.Node(op, name=f"{name}/{op}", attrs=attributes, inputs=list(inputs), outputs=[output]))
        return output

    def compute(self, node: Node, op: str, inputs: Sequence[gs.Tensor], **attributes: object) -> gs.Tensor:
        """One ONNX node on the way to the result of `node`, in real numbers."""
        return self.add(op, inputs, self.unused(f"{node.name}.real"), **attributes)

    def constant(self, name: str, array: npt.ArrayLike) -> gs.Constant:
        """An initializer."""
        return gs.Constant(self.unused(name), np.asarray(array, order="C"))

    def unused(self, name: str) -> str:
        """`name`, made longer while it is taken; reserved from now on."""
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def activation_grid(self, name: str, quant: QuantParams, dtype: DType) -> list[gs.Constant]:
        """Scale and zero point of an activation; signed codes of up to eight bits move up to unsigned ones."""
        if DType.of(dtype.torch) is DType.I8 and self.options.activations == "unsigned":
            quant = QuantParams(quant.scale, tuple(zero + UNSIGNED_SHIFT for zero in quant.zero_point), quant.axis)
            dtype = DType.U8
        return self.grid(name, quant, dtype)

    def grid(self, name: str, quant: QuantParams, dtype: DType, *, with_zero: bool = True) -> list[gs.Constant]:
        """Scale and zero point."""
        per_tensor = quant.axis is None
        scale = np.asarray(quant.scale[0] if per_tensor else quant.scale, np.float32)
        result = [self.constant(f"{name}.scale", scale)]
        if with_zero:
            zero = np.asarray(quant.zero_point[0] if per_tensor else quant.zero_point, dtype.numpy)
            result.append(self.constant(f"{name}.zero_point", zero))
        return result

    def real(self, node: Node, index: int) -> gs.Tensor:
        """Operand `index` dequantized, by a DequantizeLinear of its own so that each consumer can fuse it."""
        value = node.inputs[index]
        quant = value.type.quant
        if quant is None:
            return self.codes[value]
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
        """A weight with a scale for each block: the scale of its channel times the factor of the block."""
        codes, factors = expand.inputs
        name = f"{node.name}/{index}"
        array, inputs = leaf_array(factors), 1 - int(cast("int", expand.attributes["axis"]))
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
        attributes = {"axis": inputs, "block_size": int(cast("int", expand.attributes["block"]))}
        operands = [self.weights[codes], self.constant(f"{name}.scale", scale)]
        return self.add("DequantizeLinear", operands, self.unused(f"{name}.real"), **attributes)

    def real_bias(self, value: Value, quant: QuantParams) -> gs.Constant:
        """A bias as the real numbers that it stands for: of more than 32 bits, which no DequantizeLinear takes."""
        if value not in self.weights:
            real = leaf_array(value).astype(np.float64) * np.asarray(quant.scale, np.float64)
            self.weights[value] = self.constant(value.name, real.astype(np.float32))
        return self.weights[value]

    def biased(self, node: Node, op: str, operands: Sequence[gs.Tensor], inner: int, **attributes: object) -> gs.Tensor:
        """A layer with its bias, the third of `operands`; `inner` axes of its result follow the axis of the channels.

        ONNX Runtime quantizes a bias that is a float constant to 32 bits in steps of s_x * s_w, beyond which it wraps.
        A larger bias is added apart, by the operator that no optimization takes into the layer: Add after Gemm, Sum
        after a convolution.
        """
        value = node.inputs[2]
        if value.type.dtype is not DType.I64 or int(np.abs(leaf_array(value)).max(initial=0)) < 2**31:
            return self.compute(node, op, operands, **attributes)
        real = operands[2].values.reshape(-1, *[1] * inner)
        bias = self.constant(f"{value.name}.apart", real)
        layer = self.compute(node, op, operands[:2], **attributes)
        return self.compute(node, "Add" if op == "Gemm" else "Sum", [layer, bias])

    def numbers(self, node: Node, index: int) -> gs.Constant:
        """Operand `index`, a tensor of the module, as the real numbers that its codes stand for."""
        value = node.inputs[index]
        quant = value.type.quant
        if quant is None or quant.axis is not None:
            raise UnsupportedError(f"%{value.name} has no grid of its own", where=node.where)
        real = (leaf_array(value).astype(np.float64) - quant.zero_point[0]) * quant.scale[0]
        return self.constant(f"{node.name}/{index}", real.astype(np.float32))

    def quantized(self, node: Node, real: gs.Tensor) -> None:
        """Quantize `real` to the grid and the code limits of `node`'s result."""
        value = node.output
        # Codes of four bits are held one per byte here too, so that their quantizer does not end where they do.
        quant, dtype = value.type.quant, DType.of(value.type.dtype.torch)
        if quant is None:
            raise UnsupportedError("the result has no grid", where=node.where)
        lowest, highest = self.limits(node)
        grid = self.activation_grid(node.name, quant, dtype)
        if (lowest.min(), highest.max()) == dtype.limits and lowest.size == highest.size == 1:
            self.codes[value] = self.add("QuantizeLinear", [real, *grid], value.name)
            return
        if node.op in _FUSED and dtype.bits == 8:
            # Between a layer and its quantizer a Clip would keep ONNX Runtime from multiplying integers.
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

    def stored(self, dtype: DType) -> tuple[int, np.dtype[np.generic]]:
        """How much higher the codes of an activation are in the file, and the type that holds them."""
        if dtype is DType.I8 and self.options.activations == "unsigned":
            return UNSIGNED_SHIFT, np.dtype(np.uint8)
        return 0, dtype.numpy

    def limits(self, node: Node) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Lowest and highest codes of the result: numbers, or arrays that broadcast with it, one entry per channel."""
        found = []
        rank = node.output.type.rank
        axis = rank - 1 if node.op == "int_linear" else int(cast("int", node.attributes.get("axis") or 1))
        for name, default in zip(("qmin", "qmax"), node.output.type.dtype.limits, strict=True):
            codes = np.asarray(default if node.attributes.get(name) is None else node.attributes[name], np.int64)
            found.append(codes.reshape(-1, *[1] * (rank - axis - 1)) if codes.ndim else codes)
        return found[0], found[1]

    def clipped(
        self, tensor: gs.Tensor, limits: Sequence[gs.Constant], name: str, between: str, *, apart: bool = False
    ) -> gs.Tensor:
        """`tensor` between two limits. Clip takes a pair of numbers only, Max and Min broadcast.

        With `apart` it is Max and Min in any case, which no optimization takes into a quantizer.
        """
        if not apart and not any(limit.values.ndim for limit in limits):
            return self.add("Clip", [tensor, *limits], name)
        return self.add("Min", [self.add("Max", [tensor, limits[0]], between), limits[1]], name)

    def ints(self, node: Node, name: str) -> list[int]:
        return [int(item) for item in node.attributes[name]]  # type: ignore[union-attr,arg-type]

    def quantize(self, node: Node) -> None:
        self.quantized(node, self.codes[node.inputs[0]])

    def dequantize(self, node: Node) -> None:
        quant = node.inputs[0].type.quant
        if quant is None:
            raise UnsupportedError("the operand has no grid", where=node.where)
        grid = self.activation_grid(node.name, quant, node.inputs[0].type.dtype)
        self.codes[node.output] = self.add("DequantizeLinear", [self.codes[node.inputs[0]], *grid], node.name)

    def call(self, node: Node) -> None:
        """A float island: the operators that torch's exporter writes for it."""
        graph = node.graph.module.graphs[str(node.attributes["graph"])]
        island = export(graph, self.options.opset, node.where)
        for position, value in enumerate(node.outputs):
            keep_apart(island, island.outputs[position], [user.output for user in value.users if user.op == "quantize"])
        given = dict(zip(map(id, island.inputs), (self.real_numbers(value) for value in node.inputs), strict=True))
        wanted: dict[int, Value] = {}
        for tensor, value in zip(island.outputs, node.outputs, strict=True):
            if id(tensor) in given or id(tensor) in wanted or isinstance(tensor, gs.Constant):
                source = given.get(id(tensor), tensor)
                self.codes[value] = self.add("Identity", [source], value.name)
            else:
                wanted[id(tensor)] = value
        for tensor in island.tensors().values():
            if isinstance(tensor, gs.Variable):
                tensor.shape = None  # its symbols are those of one export: the same name elsewhere is another size
            if id(tensor) in wanted:
                self.codes[wanted[id(tensor)]] = tensor
                tensor.name = wanted[id(tensor)].name
            elif id(tensor) not in given:
                tensor.name = self.unused(f"{node.name}/{tensor.name}")
        for position, item in enumerate(island.nodes):
            item.name = self.unused(f"{node.name}/{position}/{item.op}")
            item.inputs = [given.get(id(tensor), tensor) for tensor in item.inputs]
            self.nodes.append(item)

    def real_numbers(self, value: Value) -> gs.Tensor:
        """A value without codes: an input of the file, or what a node computed; a tensor of the module as constant."""
        found = self.codes.get(value)
        return self.constant(f"{value.name}.value", leaf_array(value)) if found is None else found

    def conv(self, node: Node) -> None:
        operands = [self.real(node, index) for index in range(3)]
        padding = self.ints(node, "padding")
        attributes = {
            "strides": self.ints(node, "stride"),
            "pads": padding,
            "dilations": self.ints(node, "dilation"),
            "group": int(node.attributes["groups"]),  # type: ignore[arg-type]
            "kernel_shape": [int(size) for size in node.inputs[1].type.shape[2:]],
        }
        rank = len(node.inputs[1].type.shape) - 2
        self.quantized(node, self.biased(node, "Conv", operands, rank, **attributes))

    def conv_transpose(self, node: Node) -> None:
        operands = [self.real(node, index) for index in range(3)]
        stride, padding, extra = (self.ints(node, key) for key in ("stride", "padding", "output_padding"))
        # What the output gains at its end, less padding there gives as well; ONNX Runtime takes no more than a stride.
        ends = [max(pad - more, 0) for pad, more in zip(padding, extra, strict=True)]
        rest = [max(more - pad, 0) for pad, more in zip(padding, extra, strict=True)]
        if any(more >= step for more, step in zip(rest, stride, strict=True)):
            raise UnsupportedError(
                f"a transposed convolution with stride {stride}, padding {padding} and output_padding {extra}",
                where=node.where,
                expected="output_padding less than stride + padding",
            )
        attributes = {
            "strides": stride,
            "pads": padding + ends,
            "output_padding": rest,
            "dilations": self.ints(node, "dilation"),
            "group": int(node.attributes["groups"]),  # type: ignore[arg-type]
            "kernel_shape": [int(size) for size in node.inputs[1].type.shape[2:]],
        }
        rank = len(node.inputs[1].type.shape) - 2
        self.quantized(node, self.biased(node, "ConvTranspose", operands, rank, **attributes))

    def linear(self, node: Node) -> None:
        x, weight, bias = (self.real(node, index) for index in range(3))
        if node.inputs[0].type.rank == 2:
            self.quantized(node, self.biased(node, "Gemm", [x, weight, bias], 0, transB=1))
            return
        # Gemm takes matrices. ONNX Runtime moves the reshapes out of the way and multiplies integers all the same.
        rows = self.constant(f"{node.name}.rows", np.asarray([-1, node.inputs[0].type.shape[-1]], np.int64))
        matrix = self.compute(node, "Reshape", [x, rows])
        product = self.biased(node, "Gemm", [matrix, weight, bias], 0, transB=1)
        self.quantized(node, self.compute(node, "Reshape", [product, self.sizes(node)]))

    def binary(self, node: Node) -> None:
        op = "Mul" if node.op == "int_mul" else "Sub" if node.attributes["subtract"] else "Add"
        operands = [self.real(node, 0), self.real(node, 1)]
        if node.attributes["mode"] != ELEMENTWISE_FLOAT32 or op == "Sub":
            self.quantized(node, self.compute(node, op, operands))
        elif op == "Add":
            # ONNX Runtime takes an Add between quantizers, and a Mul, into kernels of other arithmetic. It has none for
            # Sub, nor for Sum.
            self.quantized(node, self.compute(node, "Sum", operands))
        else:
            self.quantized(node, self.compute(node, "Sum", [self.compute(node, op, operands)]))

    def mean(self, node: Node) -> None:
        axes = self.ints(node, "axes")
        x = self.real(node, 0)
        if axes == [2, 3] and node.inputs[0].type.rank == 4 and node.attributes["keepdim"]:
            self.quantized(node, self.compute(node, "GlobalAveragePool", [x]))
            return
        self.quantized(node, self.mean_over(node, x, axes, bool(node.attributes["keepdim"])))

    def mean_over(self, node: Node, x: gs.Tensor, axes: Sequence[int], keepdim: bool) -> gs.Tensor:
        """ReduceMean, whose axes are an input in newer opsets."""
        if self.options.opset >= AXES_AS_INPUT:
            operands = [x, self.constant(f"{node.name}.axes", np.asarray(axes, np.int64))]
            return self.compute(node, "ReduceMean", operands, keepdims=int(keepdim))
        return self.compute(node, "ReduceMean", [x], axes=list(axes), keepdims=int(keepdim))

    def layer_norm(self, node: Node) -> None:
        """In operators of opset 13, with the weight and the bias that the integers stand for."""
        x, weight, bias = self.real(node, 0), self.numbers(node, 1), self.numbers(node, 2)
        rank = node.inputs[0].type.rank
        axes = list(range(rank - node.inputs[1].type.rank, rank))
        quant, count = node.inputs[0].type.quant, math.prod(cast("tuple[int, ...]", node.inputs[1].type.shape))
        if quant is None:
            raise UnsupportedError("the operand has no grid", where=node.where)
        eps = float(cast("int", node.attributes["epsilon"])) * quant.scale[0] ** 2 / count**2
        distance = self.compute(node, "Sub", [x, self.mean_over(node, x, axes, keepdim=True)])
        square = self.compute(node, "Mul", [distance, distance])
        variance = self.mean_over(node, square, axes, keepdim=True)
        # The smallest normal number stands for no eps at all, where equal elements would give 0 / 0.
        guarded = self.compute(
            node, "Add", [variance, self.constant(f"{node.name}.eps", np.float32(max(eps, LEAST_EPS)))]
        )
        normalized = self.compute(node, "Div", [distance, self.compute(node, "Sqrt", [guarded])])
        scaled = self.compute(node, "Mul", [normalized, weight])
        self.quantized(node, self.compute(node, "Add", [scaled, bias]))

    def lookup(self, node: Node) -> None:
        function = str(node.attributes["function"])
        if function == "prelu":
            slopes = np.asarray(node.attributes["parameters"], np.float32)
            if node.attributes["axis"] is not None:
                slopes = slopes.reshape(-1, *[1] * (node.inputs[0].type.rank - 2))
            operands = [self.real(node, 0), self.constant(f"{node.name}.slopes", slopes)]
            self.quantized(node, self.compute(node, "PRelu", operands))
            return
        rule = FUNCTIONS.get(function)
        if rule is None:
            raise UnsupportedError(f"the function {function} has no ONNX form", where=node.where)
        parameters = cast("tuple[float | str, ...]", node.attributes["parameters"])

        def compute(op: str, *operands: gs.Tensor | float, **attributes: float) -> gs.Tensor:
            inputs = [
                self.constant(f"{node.name}.number", np.float32(item)) if isinstance(item, float) else item
                for item in operands
            ]
            return self.compute(node, op, inputs, **attributes)

        x, scales = self.real(node, 0), np.asarray(node.attributes["scales"], np.float32)
        if not scales.size:
            self.quantized(node, rule(compute, x, *parameters))
            return
        behind = node.inputs[0].type.rank - 1 - int(cast("int", node.attributes["axis"]))
        scale = self.constant(f"{node.name}.scales", scales.reshape(-1, *[1] * behind))
        result = rule(compute, self.compute(node, "Mul", [x, scale]), *parameters)
        self.quantized(node, self.compute(node, "Div", [result, scale]))

    def rescale(self, node: Node) -> None:
        self.quantized(node, self.real(node, 0))

    def clamp(self, node: Node) -> None:
        """On codes as they are, so that they have one quantizer: that of the operand, behind which this stands."""
        dtype = DType.of(node.output.type.dtype.torch)  # as in `quantized`
        shift, stored = self.stored(dtype)
        # ONNX Runtime has Max and Min of 8 and of 32 bits.
        computed = stored if dtype.bits == 8 else np.dtype(np.int32)
        source = self.codes[node.inputs[0]]
        if computed != stored:
            source = self.add("Cast", [source], self.unused(f"{node.name}.wide"), to=_onnx_type(computed))
        ends = [
            self.constant(f"{node.name}.{end}", (codes + shift).astype(computed))
            for end, codes in zip(("least", "most"), self.limits(node), strict=True)
        ]
        raised = self.unused(f"{node.name}.raised")
        if computed == stored:
            self.codes[node.output] = self.clipped(source, ends, node.output.name, raised)
            return
        clipped = self.clipped(source, ends, self.unused(f"{node.name}.clipped"), raised)
        self.codes[node.output] = self.add("Cast", [clipped], node.output.name, to=_onnx_type(stored))

    def reshape(self, node: Node) -> None:
        self.quantized(node, self.compute(node, "Reshape", [self.real(node, 0), self.sizes(node)]))

    def sizes(self, node: Node) -> gs.Constant:
        """The shape of the result, for a Reshape."""
        sizes = [size if isinstance(size, int) else -1 for size in node.output.type.shape]
        if sizes.count(-1) > 1:
            raise UnsupportedError("a reshape to two symbolic sizes", where=node.where)
        return self.constant(f"{node.name}.shape", np.asarray(sizes, np.int64))

    def permute(self, node: Node) -> None:
        x = self.real(node, 0)
        self.quantized(node, self.compute(node, "Transpose", [x], perm=self.ints(node, "axes")))

    def concat(self, node: Node) -> None:
        parts = [self.real(node, index) for index in range(len(node.inputs))]
        axis = int(node.attributes["axis"])  # type: ignore[arg-type]
        self.quantized(node, self.compute(node, "Concat", parts, axis=axis))

    def slice(self, node: Node) -> None:
        bounds = [
            self.constant(f"{node.name}.{key}", np.asarray([node.attributes[key]], np.int64))
            for key in ("start", "stop", "axis", "step")
        ]
        self.quantized(node, self.compute(node, "Slice", [self.real(node, 0), *bounds]))

    def pad(self, node: Node) -> None:
        quant = node.output.type.quant
        if quant is None:
            raise UnsupportedError("the result has no grid", where=node.where)
        code = float(node.attributes["value"])  # type: ignore[arg-type]
        amounts = self.constant(f"{node.name}.pads", np.asarray(self.ints(node, "pad"), np.int64))
        value = self.constant(
            f"{node.name}.value", np.float32((code - quant.zero_point[0]) * np.float32(quant.scale[0]))
        )
        self.quantized(node, self.compute(node, "Pad", [self.real(node, 0), amounts, value]))


_RULES: dict[str, Callable[[_Emitter, Node], None]] = {
    "quantize": _Emitter.quantize,
    "dequantize": _Emitter.dequantize,
    "call": _Emitter.call,
    "int_conv1d": _Emitter.conv,
    "int_conv2d": _Emitter.conv,
    "int_conv3d": _Emitter.conv,
    "int_conv_transpose1d": _Emitter.conv_transpose,
    "int_conv_transpose2d": _Emitter.conv_transpose,
    "int_conv_transpose3d": _Emitter.conv_transpose,
    "int_linear": _Emitter.linear,
    "int_add": _Emitter.binary,
    "int_mul": _Emitter.binary,
    "int_mean": _Emitter.mean,
    "int_layer_norm": _Emitter.layer_norm,
    "int_avg_pool2d": pooling.avg_pool2d,
    "int_resample2d": pooling.resample2d,
    "lookup": _Emitter.lookup,
    "rescale": _Emitter.rescale,
    "int_clamp": _Emitter.clamp,
    "max_pool2d": pooling.max_pool2d,
    "reshape": _Emitter.reshape,
    "permute": _Emitter.permute,
    "concat": _Emitter.concat,
    "slice": _Emitter.slice,
    "pad": _Emitter.pad,
}


def _numpy(value: Value) -> np.dtype[np.generic]:
    return value.type.dtype.numpy


def _onnx_type(dtype: np.dtype[np.generic]) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))


def _shape(value: Value) -> list[int | str]:
    return [size if isinstance(size, int) else str(size) for size in value.type.shape]

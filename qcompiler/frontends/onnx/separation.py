"""Separates a quantized file into a file of real numbers and the grids of its tensors.

    x ─► Q(s, z) ─► DQ(s, z) ─┐                              x ─┐
    W: int8 ──────► DQ(t) ────┴► Conv ─► Q(u, v) ─►    ->    W: float ─┴► Conv ─►    and grids of x, W and the result

A pair of QuantizeLinear and DequantizeLinear is the grid of the tensor that it reads, and a constant of codes is the
tensor of real numbers that it stands for. Grids of layers' weights are named by the layer; those of results by the node
that computes them. An operand that is rounded to a second grid has the name `NODE.inputI.q`, as in the encodings of
this package.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.errors import UnsupportedError
from qcompiler.frontends.onnx.codes import DOMAINS_OF_CODES, QUANTIZING, expand, is_quantized, place_of
from qcompiler.quant.encoding import Encoding, Encodings

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["separate"]

MOVES = frozenset(
    {
        "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Identity",
        "Expand", "Tile", "DepthToSpace", "SpaceToDepth",
    }
)  # fmt: skip
"""Operators whose result has the codes of their first operand."""
LIMITS = ("Max", "Min")
"""Operators that commute with rounding to codes."""
LAYERS = {"Conv": 0, "ConvTranspose": 1, "Gemm": None, "MatMul": -1}
"""Axis of the output channels of a layer's weight; that of a Gemm depends on an attribute."""
SUFFIXES = ("_quantized", ".q.codes", ".codes", "_q")
"""Ends of the names of codes, which the tensor of real numbers does not need."""
HARD_SWISH = 14
"""First opset with HardSwish; files of the one before it mean the same in it."""
NEAR = 1e-7
"""Largest difference of a slope in float32 from 1/6."""
SMALLEST, LARGEST = -128, 127
"""Codes of symmetric 8-bit weights."""


@dataclass(frozen=True)
class _Grid:
    """Scale and zero point: numbers, or one per index of `axis`; and the type of codes."""

    scale: np.ndarray
    zero: np.ndarray
    dtype: np.dtype[Any]
    axis: int = 0

    @property
    def bits(self) -> int:
        """Width of the codes."""
        return int("".join(filter(str.isdigit, self.dtype.name)))

    def same(self, other: _Grid) -> bool:
        """Whether both have the same codes for the same numbers."""
        alike = self.dtype == other.dtype and np.array_equal(self.scale, other.scale)
        return alike and np.array_equal(self.zero, other.zero) and (self.scale.size == 1 or self.axis == other.axis)

    def shaped(self, parameter: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """A parameter in a shape that broadcasts with a tensor."""
        if parameter.size == 1:
            return parameter.reshape(())
        if shape[self.axis] != parameter.size:
            raise ValueError(f"{parameter.size} scales along an axis of {shape[self.axis]} elements")
        return parameter.reshape([-1 if axis == self.axis % len(shape) else 1 for axis in range(len(shape))])

    def real(self, codes: np.ndarray) -> np.ndarray:
        """The numbers of codes, in float32."""
        steps = codes.astype(np.float64) - self.shaped(self.zero, codes.shape).astype(np.float64)
        found: np.ndarray = (steps.astype(np.float32) * self.shaped(self.scale, codes.shape)).astype(np.float32)
        return found

    def codes(self, numbers: np.ndarray) -> np.ndarray:
        """The codes of numbers, halves to even."""
        limits = np.iinfo(self.dtype)
        steps = np.rint(numbers.astype(np.float32) / self.shaped(self.scale, numbers.shape).astype(np.float32))
        found = np.clip(steps + self.shaped(self.zero, numbers.shape), limits.min, limits.max)
        codes: np.ndarray = found.astype(self.dtype)
        return codes


@dataclass(frozen=True)
class _Codes:
    """A value of codes: the tensor of numbers and the grid; for a constant the codes as well."""

    real: str
    grid: _Grid
    constant: np.ndarray | None = None


def separate(model: ModelProto, where: str) -> tuple[ModelProto, Encodings | None]:
    """A model of real numbers, and the grids of its tensors; a file without quantizers as it is.

    Args:
        model: The message; it is not changed.
        where: Name of the file, for messages.

    Raises:
        UnsupportedError: A quantizer finds its range at run time, has an element type other than 8 or 16 bits for
            activations or 4 or 8 for weights, stands within a subgraph, or has scales in blocks; or the codes of a
            weight less their zero point do not fit into 8 signed bits.
    """
    if not is_quantized(model):
        return model, None
    separation = _Separation(model, where)
    separation.run()
    return separation.model, Encodings(tuple(separation.encodings.values()), "2.0.0", own=True)


class _Separation:
    def __init__(self, model: ModelProto, where: str) -> None:
        import onnx

        self.model, self.where = onnx.ModelProto(), where
        self.model.CopyFrom(model)
        self.constants = _constants(self.model)
        self.inputs = {item.name: item for item in self.model.graph.input}
        self.codes: dict[str, _Codes] = {}
        self.reals: dict[str, _Codes] = {}
        """The tensor and grid that each result of DequantizeLinear stands for."""
        self.grids: dict[str, _Grid] = {}
        """The grid of each tensor of real numbers."""
        self.weights: dict[str, tuple[np.ndarray, _Grid]] = {}
        """Codes and grid of constants of real numbers."""
        self.same: dict[str, str] = {}
        """Tensors that stand for others."""
        self.producers: dict[str, NodeProto] = {}
        self.encodings: dict[str, Encoding] = {}
        self.nodes: list[NodeProto] = []
        self.added: dict[str, np.ndarray] = {}
        self.taken: set[str] = set()

    def run(self) -> None:
        """Rewrite the graph."""
        from onnx import helper, numpy_helper

        graph = self.model.graph
        nodes = expand(self.model, self.constants.get)
        self.constants = _constants(self.model)
        _name(nodes)
        self.taken = {*self.constants, *self.inputs, *(name for node in nodes for name in node.output)}
        for node in nodes:
            self._node(node)
        for item in graph.output:
            held = self.codes.get(item.name) or self.reals.get(item.name)
            if held is None:
                continue  # the name of a tensor of real numbers
            item.type.tensor_type.elem_type = 1
            if held.real != item.name:
                self.nodes.append(helper.make_node("Identity", [held.real], [item.name], name=f"{item.name}.output"))
        self._write_hard_swish()
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input} | {item.name for item in graph.output}
        kept = [item for item in graph.initializer if item.name in used and item.name not in self.added]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in self.added.items())
        del graph.value_info[:]
        del graph.quantization_annotation[:]
        # A file of an older form lists its tensors among the inputs.
        inputs = [item for item in graph.input if item.name in used or item.name not in self.constants]
        del graph.input[:]
        graph.input.extend(item for item in inputs if item.name not in self.added)
        opsets = [item for item in self.model.opset_import if item.domain not in DOMAINS_OF_CODES or not item.domain]
        del self.model.opset_import[:]
        self.model.opset_import.extend(opsets)

    def _write_hard_swish(self) -> None:
        """x * HardSigmoid(x) without a quantizer between them is one operator, of opset 14."""
        version = next((item for item in self.model.opset_import if not item.domain), None)
        reads = Counter(name for node in self.nodes for name in node.input)
        reads.update(item.name for item in self.model.graph.output)
        if version is None or version.version < HARD_SWISH - 1:
            return
        for node in [node for node in self.nodes if node.op_type == "Mul"]:
            for x, name in (node.input, node.input[::-1]):
                gate = self.producers.get(name)
                if gate is None or gate.op_type != "HardSigmoid" or name in self.grids or reads[name] != 1:
                    continue
                options = _options(gate)
                is_own = abs(options.get("alpha", 0.2) - 1 / 6) < NEAR and options.get("beta", 0.5) == 0.5
                if gate.input[0] == x and is_own:
                    self.nodes.remove(gate)
                    node.op_type = "HardSwish"
                    del node.input[:]
                    node.input.append(x)
                    version.version = max(version.version, HARD_SWISH)
                    break

    def _node(self, node: NodeProto) -> None:
        if node.op_type == "QuantizeLinear":
            self._quantize(node)
        elif node.op_type == "DequantizeLinear":
            self._dequantize(node)
        else:
            self._operator(node)

    def _refusal(self, node: NodeProto, found: str, expected: str | None = None, fix: str | None = None) -> Exception:
        return UnsupportedError(found, where=f"{self.where}, {place_of(node)}", expected=expected, fix=fix)

    def _constant(self, node: NodeProto, position: int) -> np.ndarray:
        found = self.constants.get(node.input[position])
        if found is None:
            raise self._refusal(
                node,
                f"the {'scale' if position == 1 else 'zero point'} {node.input[position]!r} is not a constant",
                fix="Quantize the file statically, or fold its constants (onnxsim, or ONNX Runtime's basic level).",
            )
        return found

    def _grid(self, node: NodeProto, dtype: np.dtype[Any]) -> _Grid:
        """The grid of a quantizer or of its inverse."""
        options = _options(node)
        scale = self._constant(node, 1).astype(np.float32)
        has_zero = len(node.input) > 2 and bool(node.input[2])
        zero = self._constant(node, 2) if has_zero else np.zeros(scale.shape, dtype)
        name = (zero.dtype if has_zero else dtype).name
        if scale.ndim > 1 or options.get("block_size", 0):
            raise self._refusal(node, "the scales are in blocks", "one scale, or one for each channel")
        if name not in ("int8", "uint8", "int16", "uint16", "int32", "int4", "uint4", "int2", "uint2"):
            raise self._refusal(node, f"the codes have the type {name}", "codes of 8 or 16 bits, or weights of 4 or 8")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise self._refusal(node, f"a scale is {scale.reshape(-1)[0]}", "positive numbers")
        if scale.size != zero.size:
            raise self._refusal(node, f"{scale.size} scales and {zero.size} zero points", "equal numbers of both")
        if scale.ndim == 1 and scale.size == 1:
            scale, zero = scale.reshape(()), zero.reshape(())
        return _Grid(scale, zero.astype(np.int64), np.dtype(name), options.get("axis", 1))

    def _quantize(self, node: NodeProto) -> None:
        options, kind = _options(node), np.dtype(np.uint8)
        has_zero = len(node.input) > 2 and bool(node.input[2])
        if options.get("output_dtype") and not has_zero:
            kind = _dtype(options["output_dtype"])
        grid = self._grid(node, kind)
        source, out = self.same.get(node.input[0], node.input[0]), node.output[0]
        held = self.reals.get(source)
        array = self.constants.get(source) if held is None else None
        if array is not None:
            self.codes[out] = _Codes(source, grid, grid.codes(array))
            return
        if held is not None and held.constant is not None:
            self.codes[out] = _Codes(held.real, grid, grid.codes(held.grid.real(held.constant)))
            return
        if grid.dtype.name not in ("int8", "uint8", "int16", "uint16"):
            raise self._refusal(node, f"activations of {grid.dtype}", "8 or 16 bits")
        if grid.scale.size > 1:
            raise self._refusal(node, "an activation has one scale per channel", "one scale")
        real = source if held is None else held.real
        if held is None:
            self._mark(real, grid)
        self.codes[out] = _Codes(real, grid)

    def _dequantize(self, node: NodeProto) -> None:
        source, out = node.input[0], node.output[0]
        held, array = self.codes.get(source), self.constants.get(source)
        if held is None and array is not None:
            grid = self._grid(node, array.dtype)
            held = _Codes(self._stem(source, out), grid, array.astype(np.int64))
        elif held is None:
            if source not in self.inputs:
                raise self._refusal(node, f"{source!r} holds codes of an operator that is not read on codes")
            declared = self.inputs[source].type.tensor_type
            grid = self._grid(node, _dtype(declared.elem_type))
            declared.elem_type = 1
            held = self.codes[source] = _Codes(source, grid)
            self._mark(source, grid)
        else:
            grid = self._grid(node, held.grid.dtype)
            if held.constant is None and not grid.same(held.grid):
                raise self._refusal(
                    node, "codes are read on another grid than the one they were written on", "equal grids"
                )
            held = replace(held, grid=grid)
        if held.constant is not None:
            self._hold(out, held)
            return
        self.reals[out] = held

    def _stem(self, source: str, out: str) -> str:
        """A name for the numbers of a constant of codes."""
        for suffix in SUFFIXES:
            stem = source.removesuffix(suffix)
            if stem and stem != source and stem not in self.taken:
                self.taken.add(stem)
                return stem
        return out

    def _hold(self, out: str, held: _Codes) -> None:
        """A tensor of numbers in place of a constant of codes."""
        assert held.constant is not None, "constants only"
        numbers = held.grid.real(held.constant)
        name = held.real
        if name in self.added and not np.array_equal(self.added[name], numbers):
            name = out
        self.added[name] = self.constants[name] = numbers
        self.weights[name] = (held.constant, held.grid)
        self.reals[out] = replace(held, real=name)

    def _mark(self, real: str, grid: _Grid) -> None:
        """Give a tensor its grid: the first one that is met."""
        if real in self.grids:
            return
        self.grids[real] = grid
        producer = self.producers.get(real)
        name = real if producer is None else producer.name
        if producer is not None and (len(producer.output) > 1 or self._keeps(producer, grid)):
            return
        self._encode(name, grid, is_parameter=False)

    def _keeps(self, producer: NodeProto, grid: _Grid) -> bool:
        """Whether a result has its grid from its operand."""
        source = self.grids.get(producer.input[0])
        return producer.op_type in MOVES and source is not None and source.same(grid)

    def _encode(self, name: str, grid: _Grid, *, is_parameter: bool) -> None:
        bits = grid.bits
        signed = grid.dtype.name.startswith("i")
        zero = [int(item) + (1 << (bits - 1) if signed else 0) for item in grid.zero.reshape(-1)]
        scale = tuple(float(item) for item in grid.scale.reshape(-1))
        symmetric = signed and not grid.zero.any()
        many = grid.scale.size > 1
        self.encodings[name] = Encoding(
            name, bits, scale, tuple(zero), symmetric=symmetric, signed=signed, per_channel=many,
            is_parameter=is_parameter,
        )  # fmt: skip

    def _operator(self, node: NodeProto) -> None:
        _check_inside(node, self.where)
        if self._is_same(node):
            return
        if node.op_type in MOVES and node.input[0] in self.codes:
            self._move(node)
            return
        if node.op_type in LIMITS and len(node.input) == 2 and node.input[0] in self.codes:
            self._limit(node)
            return
        for index, name in enumerate(node.input):
            node.input[index] = name = self.same.get(name, name)
            if name in self.codes:
                raise self._refusal(
                    node, f"{node.op_type} computes with the codes {name!r}", "an operator on real numbers"
                )
            held = self.reals.get(name)
            if held is not None:
                node.input[index] = held.real
                main = self.grids.get(held.real)
                if held.constant is None and main is not None and not main.same(held.grid):
                    self._encode(f"{node.name}.input{index}.q", held.grid, is_parameter=False)
        if node.op_type in ("Transpose", "Identity") and node.input[0] in self.weights:
            self._move_weight(node)
            return
        if node.op_type in LAYERS:
            self._layer(node)
        else:
            for name in node.input:
                if name in self.weights and node.op_type not in MOVES:
                    self._encode(name, self.weights[name][1], is_parameter=True)
        self._keep(node)

    def _is_same(self, node: NodeProto) -> bool:
        """Whether a result is the operand, for which the operand then stands."""
        if node.op_type not in ("Identity", "Sum") or len(node.input) != 1:
            return False
        source, out = node.input[0], node.output[0]
        if source in self.codes:
            self.codes[out] = self.codes[source]
        elif source in self.reals:
            self.reals[out] = self.reals[source]
        elif source in self.constants or any(item.name == out for item in self.model.graph.output):
            return False
        else:
            self.same[out] = self.same.get(source, source)
        return True

    def _keep(self, node: NodeProto) -> None:
        self.nodes.append(node)
        self.producers.update((name, node) for name in node.output if name)

    def _move(self, node: NodeProto) -> None:
        """An operator that moves codes moves the numbers instead."""
        held = self.codes[node.input[0]]
        if held.constant is not None:
            raise self._refusal(node, "a constant of codes is moved", "DequantizeLinear next to the constant")
        node.input[0] = held.real
        for name in node.output:
            self.codes[name] = _Codes(name, held.grid)
            self.grids[name] = held.grid
        self._keep(node)

    def _limit(self, node: NodeProto) -> None:
        """A limit of codes limits the numbers instead."""
        held, limit = self.codes[node.input[0]], self.constants.get(node.input[1])
        if limit is None or held.constant is not None:
            raise self._refusal(node, f"{node.op_type} of two values of codes", "a constant as the second one")
        node.input[0] = held.real
        # Named by the node: one limit of codes is another number on another grid.
        node.input[1] = f"{node.name}.limit"
        self.added[node.input[1]] = held.grid.real(limit)
        self.codes[node.output[0]] = _Codes(node.output[0], held.grid)
        self.grids[node.output[0]] = held.grid
        self._keep(node)
        self._encode(node.name, held.grid, is_parameter=False)

    def _move_weight(self, node: NodeProto) -> None:
        """A weight in another order."""
        codes, grid = self.weights[node.input[0]]
        if node.op_type == "Transpose":
            order = list(_options(node).get("perm", range(codes.ndim)[::-1]))
            grid = replace(grid, axis=order.index(grid.axis % codes.ndim)) if grid.scale.size > 1 else grid
            codes = codes.transpose(order)
        name = node.output[0]
        self.added[name] = self.constants[name] = grid.real(codes)
        self.weights[name] = (codes, grid)

    def _layer(self, node: NodeProto) -> None:
        """Give a layer's weight its grid; biases have the product of two scales."""
        found = self.weights.get(node.input[1])
        if found is None:
            return
        codes, grid = found
        axis = LAYERS[node.op_type]
        if axis is None:
            axis = 0 if _options(node).get("transB", 0) else 1
        if grid.scale.size > 1 and grid.axis % codes.ndim != axis % codes.ndim:
            raise self._refusal(
                node,
                f"the weight {node.input[1]!r} has scales along axis {grid.axis % codes.ndim}",
                f"axis {axis % codes.ndim}, the axis of the output channels",
            )
        steps = codes - grid.shaped(grid.zero, codes.shape)
        bits = grid.bits
        low, high = (SMALLEST, LARGEST) if bits == 8 else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        if grid.zero.any():
            if steps.min() < low or steps.max() > high:
                raise self._refusal(
                    node,
                    f"the weight {node.input[1]!r} is asymmetric: its codes less their zero point are "
                    f"{int(steps.min())} to {int(steps.max())}",
                    f"{low} to {high}, the codes of symmetric weights",
                    "Quantize the file with symmetric weights (extra_options={'WeightSymmetric': True}), or pass the "
                    "float file.",
                )
            grid = replace(grid, zero=np.zeros_like(grid.zero), dtype=np.dtype(f"int{bits}"))
        elif not grid.dtype.name.startswith("i"):
            if steps.max() > high:
                raise self._refusal(node, f"the weight {node.input[1]!r} has unsigned codes up to {int(steps.max())}")
            grid = replace(grid, dtype=np.dtype(f"int{bits}"))
        self._encode(f"{node.name}.weight", grid, is_parameter=True)


def _options(node: NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _dtype(element: int) -> np.dtype[Any]:
    """NumPy's type of an element type."""
    from onnx import helper

    return np.dtype(helper.tensor_dtype_to_np_dtype(element))


def _constants(model: ModelProto) -> dict[str, np.ndarray]:
    """Initializers and results of Constant by name."""
    from onnx import numpy_helper

    found = {item.name: np.asarray(numpy_helper.to_array(item)) for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for item in node.attribute:
                if item.name == "value":
                    found[node.output[0]] = np.asarray(numpy_helper.to_array(item.t))
                elif item.name == "value_float":
                    found[node.output[0]] = np.asarray(item.f, np.float32)
                elif item.name == "value_int":
                    found[node.output[0]] = np.asarray(item.i, np.int64)
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _name(nodes: Sequence[NodeProto]) -> None:
    """Give each node a name of its own."""
    seen: set[str] = set()
    for node in nodes:
        if not node.name or node.name in seen:
            node.name = next(filter(None, node.output), node.op_type)
        while node.name in seen:
            node.name += "_"
        seen.add(node.name)


def _check_inside(node: NodeProto, where: str) -> None:
    """Refuse quantizers in a subgraph."""
    for item in node.attribute:
        if item.HasField("g") and any(part.op_type in QUANTIZING for part in item.g.node):
            raise UnsupportedError(
                "a subgraph holds quantizers", where=f"{where}, {place_of(node)}", expected="quantizers outside of it"
            )

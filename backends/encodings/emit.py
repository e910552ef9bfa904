"""Write the scales and zero points of a graph: one encoding for each tensor of codes.

Tensors have the names and stored types of the ONNX file of the same graph: unsigned codes for signed activations of up
to eight bits, signed codes for weights. The constants of a layer normalization are real numbers in that file and have
no encoding.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from qcompiler.backends.encodings.write import write
from qcompiler.errors import UnsupportedError
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import LEAVES
from qcompiler.ir.registry import Trait
from qcompiler.ir.types import DType, QuantParams, Stage
from qcompiler.ops.quantizers import grid, is_leaf, leaf_tensor, quantizer_after, quantizer_of
from qcompiler.quant.encoding import Encoding, Encodings
from qcompiler.quant.spec import QuantSpec

CODES = ".codes"
"""Suffix of the initializer of a weight or bias in the ONNX file."""

AVERAGES = ("avg_pool2d", "adaptive_avg_pool2d", "resize")
"""Ops whose integer form has the grid of its input."""


@dataclass(frozen=True)
class About:
    """Contents of a file in addition to the encodings.

    Args:
        pipeline: The passes that led to the encodings, as text; empty if unknown.
        factors: By layer, log2 of the factors of its channels in sixteenths, with commas in between: the rescaling to
            which the encodings belong.
        quantizer_args: Default widths and symmetry.
    """

    pipeline: str = ""
    factors: Mapping[str, str] = field(default_factory=dict)
    quantizer_args: Mapping[str, object] = field(default_factory=dict)


def emit(graph: Graph, version: str = "1.0.0", *, calibrated: Graph | None = None, about: About | None = None) -> str:
    """The encodings of `graph` as text.

    Args:
        graph: See `collect`.
        version: `0.6.1`, `1.0.0` or `2.0.0`.
        calibrated: See `collect`.
        about: See `collect`.

    Raises:
        EncodingsError: There is no such version.
        UnsupportedError: See `collect`.
    """
    return write(collect(graph, calibrated=calibrated, about=about), version)


def collect(graph: Graph, *, calibrated: Graph | None = None, about: About | None = None) -> Encodings:
    """The encodings of `graph`.

    Args:
        graph: A graph at stage INTEGER, with an encoding for each tensor of codes; or a calibrated QUANTIZED graph,
            with an encoding for each quantizer and each value that is moved after a quantizer.
        calibrated: The QUANTIZED graph from which an INTEGER graph was lowered. It has the symmetry of grids, and
            widths other than those of element types; without it a six-bit grid is written with eight bits.
        about: Additional contents of the file.

    Raises:
        UnsupportedError: The graph is at an earlier stage.
        CalibrationError: A quantizer has no range yet.
    """
    if graph.stage not in (Stage.QUANTIZED, Stage.INTEGER):
        raise UnsupportedError(f"a graph at stage {graph.stage} has no encodings", expected="quantized or integer")
    found = list(_quantized(graph) if graph.stage is Stage.QUANTIZED else _integer(graph, calibrated))
    found.sort(key=lambda item: bool(item.is_parameter))  # files below version 2 have two sections
    about = about or About()
    producer = {"package": "qcompiler"}
    if about.pipeline:
        producer["pipeline"] = about.pipeline
        if about.factors:
            producer["factors"] = json.dumps(about.factors, sort_keys=True)
    return Encodings(tuple(found), "1.0.0", _excluded(graph), about.quantizer_args, producer)


def _integer(graph: Graph, calibrated: Graph | None) -> Iterator[Encoding]:
    specs = {} if calibrated is None else _specs(calibrated)
    taken = {value.name for value in graph.values()}
    for value in graph.values():
        quant = value.type.quant
        if quant is None or _is_normalization(value):
            continue
        if value.producer is not None and value.producer.op == "expand_blocks":
            continue  # no tensor of the program or of the ONNX file: its codes and factors are
        expand = _expansion(value)
        if expand is not None:
            factors = leaf_tensor(expand.inputs[1])
            spec = specs.get(value.name.removesuffix(CODES))
            item = _encoding(value.name, quant, value.type.dtype, spec, is_parameter=True)
            yield _in_blocks(item, factors, expand.integer("block"))
            continue
        spec = specs.get(value.name) or _spec_of_limited(value, specs)
        if value.producer is not None and value.producer.op in LEAVES:
            yield _encoding(_initializer(value.name, taken), quant, value.type.dtype, spec, is_parameter=True)
        else:
            yield _encoding(value.name, quant, value.type.dtype, spec, is_parameter=False)


def _quantized(graph: Graph) -> Iterator[Encoding]:
    taken = {value.name for value in graph.values()}
    for node in graph.nodes:
        if node.op == "fake_quantize":
            params, spec = grid(node)
            quant = QuantParams.of(params.scale, params.zero_point, params.axis)
            is_parameter = is_leaf(node.inputs[0])
            name = _initializer(node.name, taken) if is_parameter else node.name
            item = _encoding(name, quant, DType(spec.dtype), spec, is_parameter=is_parameter)
            yield _in_blocks(item, leaf_tensor(node.inputs[3]), spec.block) if spec.block else item
        elif node.definition.has(Trait.MOVEMENT):
            source = quantizer_of(node.output)
            if source is not None:
                params, spec = grid(source)
                quant = QuantParams.of(params.scale, params.zero_point, params.axis)
                yield _encoding(node.name, quant, DType(spec.dtype), spec, is_parameter=False)
        elif node.definition.has(Trait.MAC) and len(node.inputs) > 2:
            following, weight, source = quantizer_after(node), node.inputs[1].producer, quantizer_of(node.inputs[0])
            if following is not None and weight is not None and source is not None:
                scale = leaf_tensor(source.inputs[1]) * leaf_tensor(weight.inputs[1])
                quant = QuantParams.of(scale, scale.new_zeros(scale.shape), 0 if scale.dim() else None)
                yield _encoding(
                    _initializer(f"{following.name}.bias", taken), quant, DType.I32, None, is_parameter=True
                )


def _expansion(value: Value) -> Node | None:
    """The node that multiplies the codes `value` of a weight by the factors of their blocks."""
    found = (user for user in value.users if user.op == "expand_blocks" and user.inputs[0] is value)
    return next(found, None)


def _in_blocks(item: Encoding, factors: Tensor, block: int) -> Encoding:
    return dataclasses.replace(item, block=block, factors=tuple(int(factor) for factor in factors.flatten()))


def _encoding(name: str, quant: QuantParams, dtype: DType, spec: QuantSpec | None, *, is_parameter: bool) -> Encoding:
    bits = dtype.bits if spec is None else spec.bits
    half = 1 << (bits - 1) if dtype.limits[0] < 0 else 0
    constant = is_parameter and not any(quant.zero_point)
    found = Encoding(
        name,
        bits,
        quant.scale,
        tuple(zero + half for zero in quant.zero_point),
        symmetric=constant if spec is None else spec.symmetric,
        per_channel=quant.axis is not None,
        is_parameter=is_parameter,
    )
    return stored_as(found, dtype, quant.axis)


def stored_as(item: Encoding, dtype: DType, axis: int | None) -> Encoding:
    """The encoding of the codes as the ONNX file stores them.

    Args:
        item: The encoding.
        dtype: The element type of the tensor in the integer graph.
        axis: Channel axis of the tensor.
    """
    moved_up = not item.is_parameter and DType.of(dtype.torch) is DType.I8
    return dataclasses.replace(item, signed=dtype.limits[0] < 0 and not moved_up, axis=axis)


def _specs(graph: Graph) -> dict[str, QuantSpec]:
    """The grids of a QUANTIZED graph by the names of the values in the INTEGER graph."""
    found: dict[str, QuantSpec] = {}
    for node in graph.nodes:
        if node.op == "fake_quantize":
            found[node.name] = node.spec
        elif node.definition.has(Trait.MOVEMENT) or node.op in AVERAGES:
            source = quantizer_of(node.inputs[0])
            if source is not None:
                found[node.name] = source.spec
    return found


def _spec_of_limited(value: Value, specs: Mapping[str, QuantSpec]) -> QuantSpec | None:
    """The grid before limits per channel, which is the grid of the result."""
    users = [user for user in value.users if user.op == "int_clamp"]
    return specs.get(users[0].name) if users else None


def _is_normalization(value: Value) -> bool:
    """Whether `value` is a constant of layer normalizations."""
    is_constant = value.producer is not None and value.producer.op in LEAVES
    return is_constant and bool(value.users) and all(user.op == "int_layer_norm" for user in value.users)


def _initializer(name: str, taken: set[str]) -> str:
    name += CODES
    while name in taken:  # as the emitter of ONNX files avoids the names of values
        name += "_"
    return name


def _excluded(graph: Graph) -> tuple[str, ...]:
    """The nodes of float islands."""
    names: list[str] = []
    for node in graph.nodes:
        if node.op == "call":
            island = graph.module.graphs[node.text("graph")]
            names += [inner.name for inner in island.nodes if inner.op not in LEAVES]
    return tuple(names)

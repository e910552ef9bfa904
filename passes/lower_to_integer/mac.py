"""Lower sums of products."""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.errors import InputError, UnsupportedError
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.interpret import evaluate_node
from qcompiler.ir.registry import Trait
from qcompiler.ir.table import Table
from qcompiler.ir.types import DType, QuantParams, TensorType
from qcompiler.ops.layers import Layer
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes.lower_to_integer.lowering import Lower, Lowering, Output
from qcompiler.quant.affine import along_axis, quantize_bias
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.quant.requant import factored_scale, real_multiplier

lowers: Table[Lower] = Table()


@lowers(Trait.WEIGHTED)
def mac(lowering: Lowering, node: Node, out: Output) -> Value:
    """A layer: codes of the weight, the bias in steps of the products, and the multiplier."""
    x, weight = lowering.lowered[node.inputs[0]], lowering.lowered[node.inputs[1]]
    scales = lowering.params(weight)
    codes = _weight(weight).to(torch.int64)
    codes = codes - along_axis(scales.zero_point, codes.dim(), scales.axis)
    x_scale = lowering.params(x)
    codes = Layer(node).rows(codes).flatten(2).flatten(0, 1)  # one row per output channel
    channels = codes.shape[0]
    proofs = lowering.proofs(node)
    bias = torch.zeros(channels, dtype=torch.int64)
    if len(node.inputs) > 2:
        bias = _bias(lowering, node, x_scale.scale * scales.scale, proofs.arithmetic)
    requantization = proofs.prepared(
        real_multiplier(x_scale.scale, scales.scale, out.params.scale, proofs.arithmetic.requant)
    )
    proofs.layer(codes, bias, lowering.steps(x), int(x_scale.zero_point), requantization)
    bias_params = QuantParams.of(
        x_scale.scale * scales.scale, torch.zeros_like(scales.zero_point), 0 if scales.scale.dim() else None
    )
    dtype = DType.I32 if proofs.arithmetic.bias_bits <= 32 else DType.I64
    bias_type = TensorType(dtype, (channels,), bias_params)
    bias_value = lowering.leaf(bias.to(dtype.torch), f"{out.quantizer.name}.bias", out.quantizer, bias_type)
    geometry = {key: value for key, value in node.attributes.items() if key in _GEOMETRY}
    attributes = {**geometry, "mode": str(requantization.mode)}
    operands = [x, weight, bias_value, *lowering.multiplier(requantization, out)]
    return lowering.insert(f"int_{node.op}", operands, attributes, out, node)


@lowers(Trait.CONTRACTION)
def contraction(lowering: Lowering, node: Node, out: Output) -> Value:
    """A product of two activations: the multiplier, and the proof of its sums from the limits of both operands."""
    a, b = (lowering.lowered[value] for value in node.inputs)
    proofs = lowering.proofs(node)
    factor = node.number("factor")
    scale = factored_scale(lowering.params(a).scale, factor)
    real = real_multiplier(scale, lowering.params(b).scale, out.params.scale, proofs.arithmetic.requant)
    requantization = proofs.prepared(real)
    # The steps of both operands include 0, so that these bounds hold for unfinished sums, too.
    products = torch.outer(*(torch.tensor(lowering.steps(value)) for value in (a, b)))
    terms = a.type.size(a.type.rank - 1)
    proofs.sums(products.min() * terms, products.max() * terms, requantization)
    operands = [a, b, *lowering.multiplier(requantization, out)]
    attributes = {"factor": factor, "mode": str(requantization.mode)}
    return lowering.insert("int_matmul", operands, attributes, out, node)


def _bias(lowering: Lowering, node: Node, scale: Tensor, arithmetic: Arithmetic) -> Tensor:
    fake = node.inputs[2].producer
    source = fake.inputs[0] if fake is not None and fake.op == "fake_quantize_bias" else node.inputs[2]
    try:
        return quantize_bias(leaf_tensor(source), scale, arithmetic.bias_rounding, arithmetic.bias_bits)
    except InputError as error:
        fix = "Increase the weights of the channel, or the input range of the layer."
        raise UnsupportedError(error.found, where=node.where, expected=error.expected, fix=fix) from None


_GEOMETRY = ("stride", "padding", "output_padding", "dilation", "groups")


def _weight(value: Value) -> Tensor:
    """The integers of a weight: of a leaf, or of a leaf times its block factors."""
    node = value.producer
    if node is None or node.op != "expand_blocks":
        return leaf_tensor(value)
    return evaluate_node(node, [leaf_tensor(item) for item in node.inputs])[0]

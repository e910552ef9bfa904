"""Lower quantized tensors of the module to constants."""

from __future__ import annotations

from torch import Tensor

from qcompiler.ir.graph import Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.table import Table
from qcompiler.ir.types import DType, QuantParams, TensorType
from qcompiler.ops.quantization import spread_factors
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes.lower_to_integer.lowering import Lower, Lowering, Output
from qcompiler.quant.affine import quantize

lowers: Table[Lower] = Table()


@lowers(Trait.LEAF)
def constant(lowering: Lowering, node: Node, out: Output) -> Value:
    """The codes of a tensor of the module, as a constant."""
    tensor, spec = leaf_tensor(node.output), out.spec
    factors = [leaf_tensor(value) for value in out.quantizer.inputs[3:]]
    spread = spread_factors(spec, tensor, factors)
    codes = quantize(tensor, out.params.scale, out.params.zero_point, spec, out.qmin, out.qmax, spread)
    dtype = DType(out.spec.dtype)
    params = QuantParams.of(out.params.scale, out.params.zero_point, out.params.axis)
    type = TensorType(dtype, tuple(tensor.shape), params)
    value = lowering.leaf(codes.to(dtype.torch), f"{out.quantizer.name}.codes", out.quantizer, type)
    lowering.limits[value] = (out.qmin, out.qmax)
    return value if spread is None else _expanded(lowering, value, factors[0], out)


def _expanded(lowering: Lowering, codes: Value, factors: Tensor, out: Output) -> Value:
    """Codes times the factors of their blocks."""
    quantizer = out.quantizer
    node = lowering.rewriter.insert(
        "expand_blocks",
        [codes, lowering.leaf(factors, f"{quantizer.name}.factors", quantizer)],
        {"axis": out.spec.axis, "block": out.spec.block},
        before=quantizer,
        like=quantizer,
        name=f"{quantizer.name}.int",
        types=[TensorType(DType.I16, codes.type.shape, codes.type.quant)],
    )
    most = int(factors.max())
    lowering.limits[node.output] = (out.qmin * most, out.qmax * most)
    return node.output

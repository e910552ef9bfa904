"""Lower functions of one number to lookup tables."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qcompiler.errors import UnsupportedError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.table import Table
from qcompiler.ir.types import DType, TensorType
from qcompiler.ops import SCALED, UNARY, prelu_function, unary_of
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes.lower_to_integer.lowering import Lower, Lowering, Output
from qcompiler.quant.arithmetic import RealFunction, lookup_table

lowers: Table[Lower] = Table()


@lowers(Trait.UNARY)
def table(lowering: Lowering, node: Node, out: Output) -> Value:
    """One table."""
    function = UNARY[node.op]
    table = _tabulated(lowering, node, out, function.table(node))
    return _lookup(lowering, node, out, table, {"parameters": function.parameters(node)})


@lowers(SCALED)
def scaled_unary(lowering: Lowering, node: Node, out: Output) -> Value:
    """A table for each different scale of a channel."""
    function = unary_of(node)
    scales = leaf_tensor(node.inputs[1]).to(torch.float64)
    different, rows = scales.unique(return_inverse=True)
    tables = torch.stack([_tabulated(lowering, node, out, function.table(node, scale)) for scale in different.tolist()])
    attributes: dict[str, Attribute] = {
        "function": node.attributes["function"],
        "parameters": function.parameters(node),
        "scales": tuple(scales.tolist()),
        "axis": node.attributes["axis"],
    }
    return _lookup(lowering, node, out, tables, attributes, rows)


@lowers("prelu")
def prelu(lowering: Lowering, node: Node, out: Output) -> Value:
    """A table for each slope."""
    slopes = leaf_tensor(node.inputs[1]).to(torch.float64).tolist()
    tables = torch.stack([_tabulated(lowering, node, out, prelu_function(slope)) for slope in slopes])
    if len(slopes) == 1:
        return _lookup(lowering, node, out, tables[0], {"parameters": tuple(slopes)})
    return _lookup(lowering, node, out, tables, {"parameters": tuple(slopes), "axis": 1})


def _tabulated(lowering: Lowering, node: Node, out: Output, function: RealFunction) -> Tensor:
    """A lookup table with an entry for each code of the operand."""
    x = lowering.lowered[node.inputs[0]]
    low, high = lowering.limits[x]
    most = lowering.target.table.max_entries
    if high - low >= most:
        raise UnsupportedError(
            f"a table of {high - low + 1} entries",
            where=node.where,
            expected=f"at most {most} on {lowering.target.name}",
            fix="Use fewer bits for its input, or run it in float.",
        )
    return lookup_table(
        function,
        lowering.params(x),
        out.params,
        lowering.proofs(node).arithmetic,
        in_qmin=low,
        in_qmax=high,
        out_qmin=out.qmin,
        out_qmax=out.qmax,
    )


def _lookup(
    lowering: Lowering,
    node: Node,
    out: Output,
    table: Tensor,
    attributes: Mapping[str, Attribute],
    rows: Tensor | None = None,
) -> Value:
    x = lowering.lowered[node.inputs[0]]
    dtype = DType(out.spec.dtype)
    size, most = table.numel() * dtype.torch.itemsize, lowering.target.table.max_bytes
    if most is not None and size > most:
        raise UnsupportedError(
            f"tables of {size} bytes",
            where=node.where,
            expected=f"at most {most} on {lowering.target.name}",
            fix="Use fewer bits, or equalize less: each factor of a channel needs its own table.",
        )
    type = TensorType(dtype, tuple(table.shape))
    value = lowering.leaf(table.to(dtype.torch), f"{out.quantizer.name}.table", out.quantizer, type)
    operands = [x, value]
    if rows is not None:
        operands.append(lowering.leaf(rows.to(torch.int32), f"{out.quantizer.name}.rows", out.quantizer))
    attributes = {"offset": lowering.limits[x][0], "function": node.op, **attributes}
    return lowering.insert("lookup", operands, attributes, out, node)

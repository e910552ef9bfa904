"""Gives the result of a node that only moves elements, or the copy that a node reads, its own scale and zero point."""

from __future__ import annotations

import torch

from qcompiler.ir.graph import Node, Value
from qcompiler.ir.rewrite import Rewriter
from qcompiler.quant.spec import QuantSpec


def put_quantizer_after(node: Node, spec: QuantSpec, rewriter: Rewriter) -> Node:
    """A quantizer without a range between `node` and all its users; it lowers to a rescale."""
    value, users, following = node.output, list(node.output.users), node.following
    quantizer = _quantizer(value, spec, node.name, following, node, rewriter)
    rewriter.replace_uses(value, quantizer.output, only=users)
    graph = node.graph
    if graph.is_output(value):
        graph.set_outputs([quantizer.output if out is value else out for out in graph.outputs])
    return quantizer


def name_of_copy(node: Node, index: int) -> str:
    """The name of the quantizer that only operand `index` of `node` reads."""
    return f"{node.name}.input{index}.q"


def put_quantizer_before(node: Node, index: int, spec: QuantSpec, rewriter: Rewriter) -> Node:
    """A quantizer without a range that only operand `index` of `node` reads; it lowers to a rescale."""
    stem = name_of_copy(node, index).removesuffix(".q")
    quantizer = _quantizer(node.inputs[index], spec, stem, node, node, rewriter)
    rewriter.replace_input(node, index, quantizer.output)
    return quantizer


def _quantizer(value: Value, spec: QuantSpec, stem: str, before: Node | None, like: Node, rewriter: Rewriter) -> Node:
    grid = [
        rewriter.leaf(kind, tensor, ref=f"{stem}.{part}", before=before)
        for kind, tensor, part in (
            ("parameter", torch.tensor(torch.nan), "scale"),
            ("state", torch.tensor(0, dtype=torch.int32), "zero_point"),
        )
    ]
    return rewriter.insert("fake_quantize", [value, *grid], {"spec": spec}, before=before, like=like, name=f"{stem}.q")

"""Gives the result of a node that only moves elements its own scale and zero point."""

from __future__ import annotations

import torch

from qcompiler.ir.graph import Node
from qcompiler.ir.rewrite import Rewriter
from qcompiler.quant.spec import QuantSpec


def put_quantizer_after(node: Node, spec: QuantSpec, rewriter: Rewriter) -> Node:
    """A quantizer without a range between `node` and all its users; it lowers to a rescale."""
    value, users, following = node.output, list(node.output.users), node.following
    grid = [
        rewriter.leaf(kind, tensor, ref=f"{node.name}.{part}", before=following)
        for kind, tensor, part in (
            ("parameter", torch.tensor(torch.nan), "scale"),
            ("state", torch.tensor(0, dtype=torch.int32), "zero_point"),
        )
    ]
    quantizer = rewriter.insert(
        "fake_quantize", [value, *grid], {"spec": spec}, before=following, like=node, name=f"{node.name}.q"
    )
    rewriter.replace_uses(value, quantizer.output, only=users)
    graph = node.graph
    if graph.is_output(value):
        graph.set_outputs([quantizer.output if out is value else out for out in graph.outputs])
    return quantizer

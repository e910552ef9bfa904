"""Unary functions between scales per channel, which preserve silu(x) when channel i of x is divided by s_i.

    silu(x)     becomes     scaled_unary(x, s) = silu(x s_i) / s_i        a table for each channel

Scales that are all 1 become the function itself again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.ir.graph import Node
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ops import SCALED, UNARY, unary_of
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes.common.channel_limits import replaced


def function_of(node: Node) -> str:
    """The function of a node, with or without scales, if scales can be useful; otherwise empty."""
    name = node.text("function") if node.op == SCALED else node.op
    return name if name in UNARY and UNARY[name].straight else ""


def scales_of(node: Node, channels: int) -> Tensor:
    """The scales of a function: float64 [channels]."""
    if node.op == SCALED:
        return leaf_tensor(node.inputs[1]).to(torch.float64)
    return torch.ones(channels, dtype=torch.float64)


def set_scales(node: Node, scales: Tensor, axis: int, rewriter: Rewriter) -> Node:
    """Change the scales of a function; if necessary, replace it with another operator of the same name.

    Args:
        node: A unary function, or a `scaled_unary`.
        scales: Scales of the channels along `axis`, [C], positive.
        axis: Channel axis.
        rewriter: Rewriter of the graph.

    Returns:
        The resulting function.
    """
    scales = scales.to(node.output.type.dtype.torch)
    if bool((scales == 1).all()):
        return _plain(node, rewriter)
    if node.op == SCALED:
        rewriter.replace_input(node, 1, rewriter.set_tensor(node.inputs[1], scales, before=node))
        return node
    leaf = rewriter.leaf("constant", scales, ref=f"{node.name}.scales", before=node, like=node)
    parameters = UNARY[node.op].parameters(node)
    return replaced(node, SCALED, [leaf], {"function": node.op, "parameters": parameters, "axis": axis}, rewriter)


def _plain(node: Node, rewriter: Rewriter) -> Node:
    if node.op != SCALED:
        return node
    function = unary_of(node)
    attributes = dict(zip(function.attributes, function.parameters(node), strict=True))
    return replaced(node, node.text("function"), [], attributes, rewriter)

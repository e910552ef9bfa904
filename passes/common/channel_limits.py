"""Clamp limits per channel: `relu`, `clamp` and `clamp_channels` in one form.

    clamp(x, 0, 6)   with channel i of x divided by s_i        becomes        clamp_channels(x, 0, 6 / s_i)

Equal limits in all channels become `clamp` or `relu` again.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1 (equivariance of piecewise linear functions).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qcompiler.ir.attributes import Attribute
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ops.quantizers import activation_bounds, channel_bounds, clamps_channels
from qcompiler.passes.base import PassContext


def keeps_caps(context: PassContext) -> bool:
    """Whether the target, if any, clamps each channel to its own limits."""
    return context.target is not None and context.target.per_channel_clamp


def limits_of(node: Node, channels: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest result of a clamp, float64 [channels] each."""
    if clamps_channels(node):
        low, high = (limit.to(torch.float64) for limit in channel_bounds(node))
        return low, high
    low, high = (torch.full((channels,), limit, dtype=torch.float64) for limit in activation_bounds(node))
    return low, high


def composed(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The limits of a clamp to `first` followed by a clamp to `second`, which need not overlap."""
    (a, b), (c, d) = first, second
    return a.clamp(c, d), b.clamp(c, d)


def set_limits(node: Node, low: Tensor, high: Tensor, axis: int, rewriter: Rewriter) -> Node:
    """Change the limits of a clamp; if necessary, replace it with another operator of the same name.

    Args:
        node: The activation.
        low: Lower limits of the channels along `axis`, [C].
        high: Upper limits, [C].
        axis: Channel axis.
        rewriter: Rewriter of the graph.

    Returns:
        The resulting activation.
    """
    for dtype in (torch.float64, node.output.type.dtype.torch):
        low, high = low.to(dtype), high.to(dtype)
        if bool((low == low[0]).all() & (high == high[0]).all()):
            return _uniform(node, float(low[0]), float(high[0]), rewriter)
    if clamps_channels(node):
        for index, limit in ((1, low), (2, high)):
            rewriter.replace_input(node, index, rewriter.set_tensor(node.inputs[index], limit, before=node))
        return node
    leaves = [
        rewriter.leaf("constant", limit, ref=f"{node.name}.{end}", before=node, like=node)
        for end, limit in (("low", low), ("high", high))
    ]
    return replaced(node, "clamp_channels", leaves, {"axis": axis}, rewriter)


def _uniform(node: Node, low: float, high: float, rewriter: Rewriter) -> Node:
    if (low, high) == (0.0, math.inf):
        return node if node.op == "relu" else replaced(node, "relu", [], {}, rewriter)
    if node.op != "clamp":
        return replaced(node, "clamp", [], {"min": low, "max": high}, rewriter)
    rewriter.set_attributes(node, min=low, max=high)
    return node


def replaced(
    node: Node, op: str, leaves: Sequence[Value], attributes: Mapping[str, Attribute], rewriter: Rewriter
) -> Node:
    """Replace `node` with another activation of the same name and input, and remove its leaves."""
    new = rewriter.insert(op, [node.inputs[0], *leaves], attributes, before=node, like=node)
    name, old = node.output.name, [value.producer for value in node.inputs[1:]]
    rewriter.replace(node, new.output)
    rewriter.rename(new.output, name)
    for leaf in dict.fromkeys(old):
        if leaf is not None and not leaf.output.users and not leaf.graph.is_output(leaf.output):
            rewriter.erase(leaf)
    return new

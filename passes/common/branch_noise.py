"""Expected noise of parallel layers, as they are and merged into one; `merge-branches` has the formula."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.passes.common.branches import Branch, Merged
from qcompiler.quant.affine import qparams_from_range
from qcompiler.quant.spec import QuantSpec
from qcompiler.targets import Target

DEVIATIONS = 4.0
"""Standard deviations from the mean to the end of the range of a result."""


def noise_merged(merged: Merged, op: str, target: Target) -> float:
    """Expected noise of the weights of the merged layer, the sum over the outputs."""
    return _of_weights(merged.kernel, target.weight_spec(op, 0))


def noise_apart(branches: Sequence[Branch], op: str, target: Target) -> float:
    """Expected noise of the weights, the results and the partial sums of the branches, the sum over the outputs."""
    weights, activations = target.weight_spec(op, 0), target.activation_spec()
    total, count = 0.0, 0
    power, bias = torch.zeros(()), torch.zeros(())
    for branch in branches:
        own = branch.kernel.square().flatten(2).sum(2).reshape(-1)
        if branch.node is not None:
            total += _of_weights(branch.kernel, weights) + _of_result(own, branch.bias, activations)
        power, bias, count = power + own, bias + branch.bias, count + 1
        if 1 < count < len(branches):  # a partial sum; the last one is the result of the merged layer, too
            total += _of_result(power, bias, activations)
    return total


def _of_weights(kernel: Tensor, spec: QuantSpec) -> float:
    rows = kernel.flatten(2).flatten(0, 1).abs()
    largest = rows.amax(1) if spec.axis is not None else rows.max().expand(len(rows))
    counts = (rows > 0.0).sum(1)
    return float(((largest / spec.qmax).square() * counts).sum()) / 12.0


def _of_result(power: Tensor, bias: Tensor, spec: QuantSpec) -> float:
    reach = float((DEVIATIONS * power.sqrt() + bias.abs()).max())
    low = 0.0 if spec.symmetric and not spec.signed else -reach
    step = float(qparams_from_range(low, reach, spec)[0])
    return len(power) * step**2 / 12.0

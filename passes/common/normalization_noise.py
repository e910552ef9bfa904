"""Expected noise of a normalization in front of a layer, computed by itself and folded into the layer.

With y = gain x + shift, weights w, and steps of weights and activations, per element of the layer's result:

    apart     sum over the results of gain and shift of step^2 / 12 * (later gain)^2 |w|^2
              + sum over the weights of step_w^2 / 12 * E[y^2]
    folded    sum over the weights of gain w of step_w'^2 / 12 * E[(x - c)^2],      c = -shift / gain

The noise of the weights counts values around c, because the bias makes up for their error at c (`correct-bias`). If the
shift stays an operator, its result x - c has a step, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.ops.layers import Layer
from qcompiler.passes.common.normalizations import Normalization, moved
from qcompiler.quant.affine import channel_rows, qparams_from_range
from qcompiler.targets import Target


def noise_apart(found: Normalization, x: Tensor, target: Target) -> float:
    """Expected noise if every step of the normalization is rounded.

    Args:
        found: The normalization.
        x: Samples of what it reads.
        target: The hardware.
    """
    steps = {step.node: step for step in found.steps}
    values = x.to(torch.float64)
    rounded: list[tuple[float, Tensor]] = []  # steps of results, and the gain up to there
    gain = torch.ones((1,) * x.dim(), dtype=torch.float64)
    for node in found.path:
        if node in steps:
            step = steps[node]
            values, gain = values * step.gain + step.shift, gain * step.gain
            rounded.append((_step(values, target), gain))
        else:
            values, gain = moved(node, values), moved(node, gain)
            rounded = [(size, moved(node, before)) for size, before in rounded]
    weights, layer = _channels(found.layer), found.layer
    noise = _of_weights(layer, layer.rows(), _power(values, layer, torch.zeros(())), target)
    for size, before in rounded:
        later = found.gain / before.reshape(-1)
        noise += size**2 / 12.0 * float((later.square() * weights).sum())
    return noise


def noise_folded(found: Normalization, x: Tensor, target: Target, *, shift_stays: bool) -> float:
    """Expected noise if the layer reads x itself, or x - c where the shift stays an operator."""
    layer = found.layer
    values = x.to(torch.float64)
    for node in found.moves:
        values = moved(node, values)
    gain = found.gain.reshape(layer.groups, 1, -1, 1)
    noise = _of_weights(layer, layer.rows() * gain, _power(values, layer, found.center), target)
    if shift_stays:
        size = _step(values - _along(found.center, layer, values.dim()), target)
        noise += size**2 / 12.0 * float((found.gain.square() * _channels(layer)).sum())
    return noise


def _step(values: Tensor, target: Target) -> float:
    spec = target.activation_spec()
    low = 0.0 if spec.symmetric and not spec.signed else float(values.min())
    return float(qparams_from_range(min(low, float(values.max())), values.max(), spec)[0])


def _along(channels: Tensor, layer: Layer, rank: int) -> Tensor:
    return channels.reshape([-1 if axis == layer.input_axis else 1 for axis in range(rank)])


def _power(values: Tensor, layer: Layer, center: Tensor) -> Tensor:
    """E[(x - center)^2] of each channel of the layer's input, [channels]."""
    far = values - (_along(center, layer, values.dim()) if center.dim() else center)
    return channel_rows(far.square(), layer.input_axis).mean(1)


def _channels(layer: Layer) -> Tensor:
    """The sum of squares of the weights of each input channel, [channels]."""
    return layer.rows().to(torch.float64).square().sum((1, 3)).reshape(-1)


def _of_weights(layer: Layer, rows: Tensor, power: Tensor, target: Target) -> float:
    rows = rows.to(torch.float64)
    spec = target.weight_spec(layer.node.op, layer.weight_axis)
    low, high = rows.flatten(2).amin(2).reshape(-1), rows.flatten(2).amax(2).reshape(-1)
    if spec.axis is None:
        low, high = low.min().expand_as(low), high.max().expand_as(high)
    step = qparams_from_range(low, high, spec)[0].to(torch.float64).reshape(layer.groups, -1)
    taps = rows.shape[3]
    return float((step.square().sum(1) * power.reshape(layer.groups, -1).sum(1)).sum()) * taps / 12.0

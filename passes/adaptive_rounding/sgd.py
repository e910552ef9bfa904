"""Adaptive rounding of one layer as in the paper: by stochastic gradient descent on images.

    W~ = s clamp(floor(W / s) + h(V), n, p)          h(V) = clamp(sigmoid(V) (zeta - gamma) + gamma, 0, 1)

    minimise  || f(W x) - f(W~ x^) ||^2  +  lambda sum(1 - |2 h(V) - 1|^beta)        x^: input quantized so far

f is the activation after the layer; V starts where h(V) is the fraction that rounding down removes. The
regularizer pulls each h to 0 or 1, weakly at first: beta falls from 20 to 2 along a cosine, and the first fifth of the
steps has no regularizer. At the end weights with V >= 0 are rounded up, all others down.

Source: Nagel et al. 2020, arXiv:2004.10568, sections 3.2 and 3.3, equations 21 to 25.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.ir.graph import Node
from qcompiler.ir.interpret import evaluate_node
from qcompiler.ops.layers import Layer, leaf_of
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes.adaptive_rounding.activation import activation_after
from qcompiler.passes.common.two_models import LayerInputs

ZETA, GAMMA = 1.1, -0.1
"""Ends of the stretched sigmoid, slightly beyond 0 and 1, so that h reaches 0 and 1."""
BETA = (20.0, 2.0)


@dataclass(frozen=True)
class Descent:
    """Options of the descent.

    Args:
        iterations: Steps per layer.
        batch_size: Images per step.
        learning_rate: Learning rate of Adam.
        regularization: Weight lambda of the regularizer.
        warm_start: Share of the steps without the regularizer.
    """

    iterations: int = 10_000
    batch_size: int = 32
    learning_rate: float = 1e-3
    regularization: float = 0.01
    warm_start: float = 0.2

    def beta(self, step: int) -> float:
        """Exponent of the regularizer after the warm start."""
        begun = self.warm_start * self.iterations
        share = (step - begun) / max(1.0, self.iterations - begun)
        return BETA[1] + 0.5 * (BETA[0] - BETA[1]) * (1 + math.cos(math.pi * share))


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V), in 0..1."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def descend(
    node: Node, inputs: LayerInputs, scale: Tensor, limits: tuple[int, int], options: Descent, seed: int
) -> tuple[Tensor, float]:
    """Round the weight of a layer.

    Args:
        node: The layer.
        inputs: Inputs of the layer: all images, in memory.
        scale: Step of each weight, float32, broadcasts with the weight.
        limits: Lowest and highest code.
        options: Settings of the descent.
        seed: Seed for the choice of images.

    Returns:
        Codes in the shape of the weight, float32, and their squared error after the activation relative to rounding to
        nearest.
    """
    weight = leaf_tensor(leaf_of(node.inputs[1])).to(torch.float32)
    rest = [leaf_tensor(leaf_of(value)) for value in node.inputs[2:]]
    activation, generator = activation_after(node) or (lambda x, axis: x), torch.Generator().manual_seed(seed)
    channels = Layer(node).output_axis
    # Targets: results of the float layer on float inputs. The rounded layer reads the inputs of the quantized model.
    wanted_parts, quantized_parts = [], []
    for index in range(inputs.count):
        pair = inputs.anywhere(index)
        wanted_parts.append(activation(evaluate_node(node, [pair.real, inputs.parameters().real, *rest])[0], channels))
        quantized_parts.append(pair.quantized)
    wanted, quantized = torch.cat(wanted_parts), torch.cat(quantized_parts)

    # v of equation 23 at which h(v) is the fraction of the weight, so that the descent starts at the float weight.
    below = torch.floor(weight / scale)
    fraction = weight / scale - below
    v = -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1.0)

    def results(codes: Tensor, chosen: Tensor) -> Tensor:
        return activation(evaluate_node(node, [quantized[chosen], codes.clamp(*limits) * scale, *rest])[0], channels)

    def loss(found: Tensor, chosen: Tensor) -> Tensor:
        return (found - wanted[chosen]).square().sum(channels).mean()

    with torch.enable_grad():
        v.requires_grad_()
        optimizer = torch.optim.Adam([v], options.learning_rate)
        for step in range(options.iterations):
            chosen = torch.randperm(len(quantized), generator=generator)[: options.batch_size]
            h = rectified_sigmoid(v)
            total = loss(results(below + h, chosen), chosen)
            if step >= options.warm_start * options.iterations:
                penalty = (1.0 - (2.0 * h - 1.0).abs().pow(options.beta(step))).sum()
                total = total + options.regularization * penalty
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    # h is 1/2 at v = 0. Compare with rounding to nearest on all images.
    codes = (below + (v.detach() >= 0.0)).clamp(*limits)
    nearest = torch.floor(weight / scale + 0.5).clamp(*limits)
    ours, theirs = (
        sum(float(loss(results(found, part), part)) * len(part) for part in torch.arange(len(quantized)).split(64))
        for found in (codes, nearest)
    )
    return codes, ours / theirs if theirs > 0 else 1.0

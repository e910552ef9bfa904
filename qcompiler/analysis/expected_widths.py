"""Layers whose tensors cause most of the expected noise of a quantized model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.analysis.parts import Group, groups_of, owner_of
from qcompiler.analysis.remedies import widest
from qcompiler.ir.graph import Node
from qcompiler.ir.interpret import Tensors, interpret
from qcompiler.ops.quantizers import quantizes_parameter
from qcompiler.session.session import Session
from qcompiler.validation.own_losses import expected_noise
from qcompiler.validation.partial import PartialRuns, float_run, fused_activations, quantized_operand

__all__ = ["owners_of", "quantizer_noise", "without_quantizers", "worst_layers"]

REMAINS = 0.1
"""Share of the expected noise that may remain after the chosen layers get more bits."""


def without_quantizers(session: Session) -> tuple[PartialRuns, Tensors]:
    """Runs of the quantized graph on the samples of a session, and tensors that give the outputs of the float model."""
    graph, canonical, captured = (
        state.module.main for state in (session.quantized, session.canonical, session.captured)
    )
    runs = PartialRuns(graph, session.samples, fused_activations(canonical, graph))
    with torch.no_grad():
        wanted, _ = interpret(captured, session.samples, captured.module.tensors)
        tensors, _ = float_run(runs, graph.module.tensors, canonical.module.tensors, wanted)
    return runs, tensors


def quantizer_noise(session: Session, inputs: Sequence[Tensor] | None = None) -> dict[Node, float]:
    """Expected noise of each quantizer by itself, as a share of the power of the outputs.

    The sensitivity is that on the samples of the session, which are few.

    Args:
        session: A session.
        inputs: Flat inputs whose errors count instead of those of the samples: rare values that are clipped.

    Raises:
        RuntimeError: A function of a float island has no derivative.
    """
    runs, tensors = without_quantizers(session)
    with torch.no_grad():
        noise = expected_noise(runs, tensors, runs.graph.module.tensors)
        if inputs is None:
            return noise
        few = _mean_errors(runs, tensors)
        every = _mean_errors(PartialRuns(runs.graph, inputs, runs.fused), tensors)
    return {node: value * (every[node] / few[node] if few.get(node) else 1.0) for node, value in noise.items()}


def _mean_errors(runs: PartialRuns, tensors: Tensors) -> dict[Node, float]:
    """Mean squared error of the elements of each activation's quantizer in the float model."""
    own = runs.graph.module.tensors
    found: dict[Node, float] = {}

    def look(node: Node, real: Tensor) -> Tensor:
        if not quantizes_parameter(node) and real.is_floating_point():
            error = (quantized_operand(node, real, own) - real).square_()
            found[node] = float(error.nan_to_num_(0.0, 0.0, 0.0).double().mean())
        return real

    runs(tensors, look)
    return found


def owners_of(group: Group) -> list[Node]:
    """The operators whose widths decide about the width of a group; empty for inputs of the model."""
    return list(dict.fromkeys(node for item in group.quantizers if (node := owner_of(item)) is not None))


def worst_layers(session: Session) -> dict[str, dict[str, int]]:
    """Widest numbers for the groups that cause nine tenths of the expected noise, by layer.

    Args:
        session: A session on its target; groups that have the widest numbers already are left out.

    Returns:
        `activation_bits` and `weight_bits` by name of a layer; empty if no group can be wider, or if all would be.
    """
    try:
        each = quantizer_noise(session)
    except RuntimeError:
        return {}
    noise = {
        group: sum(each.get(node, 0.0) for node in group.quantizers)
        for group in groups_of(session.quantized.module.main)
    }
    most = {weight: widest(session.target, "weight" if weight else "activation") for weight in (False, True)}
    able = [
        group
        for group in sorted(noise, key=noise.__getitem__, reverse=True)
        if owners_of(group) and group.quantizers[0].spec.bits < most[group.is_weight]
    ]
    left, found = sum(noise.values()), dict[str, dict[str, int]]()
    enough, chosen = REMAINS * left, 0
    for group in able:
        if left <= enough:
            break
        left -= noise[group]
        chosen += 1
        role = "weight_bits" if group.is_weight else "activation_bits"
        for owner in owners_of(group):
            found.setdefault(owner.name, {})[role] = most[group.is_weight]
    return {} if chosen == len(able) else found

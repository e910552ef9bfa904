"""Quantized training: `prepare_quantized_training` makes a module whose forward and backward read low-bit operands."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from qcompiler.calibration.store import DEFAULT_MEMORY
from qcompiler.errors import InputError
from qcompiler.ir.graph import Module
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.settings import own_defaults
from qcompiler.ops.gradients import ROUNDINGS
from qcompiler.ops.quantizers import is_quantizer, quantizes_parameter
from qcompiler.passes.base import Override
from qcompiler.passes.insert_gradient_quantizers import InsertGradientQuantizers
from qcompiler.session.batches import Forward
from qcompiler.session.options import Options
from qcompiler.session.pipeline import quantized_training_passes
from qcompiler.session.preparation import prepared_module
from qcompiler.session.source import Model
from qcompiler.targets import Target, load_target
from qcompiler.training.batch_norm import Style
from qcompiler.training.freezing import Freezing, Tracking
from qcompiler.training.gradients import Gradients
from qcompiler.training.methods import Methods
from qcompiler.training.module import OPERANDS, QATModule, Recipe
from qcompiler.training.products import Arithmetic
from qcompiler.training.range_estimators import RangeChoice, RangeEstimator, range_estimator
from qcompiler.training.regularizers import Weighted

__all__ = ["prepare_quantized_training"]


@own_defaults()
def prepare_quantized_training(
    model: Model,
    target: str | Path | Target = "int8_dsp",
    *,
    example_inputs: object = None,
    fixed_inputs: Mapping[str, object] | None = None,
    calibration_data: Iterable[object] | None = None,
    forward: Forward | None = None,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    gradient_bits: int | None = 8,
    estimator: RangeChoice | Mapping[str, RangeChoice] = "in_hindsight",
    momentum: float = 0.9,
    rounding: Literal["stochastic", "nearest"] | None = "stochastic",
    arithmetic: Arithmetic = "float",
    operands: Collection[str] = OPERANDS,
    overrides: Mapping[str, Override] | None = None,
    method: Methods = "recomputed",
    batch_norm: Style | None = None,
    regularizers: Sequence[Weighted] = (),
    freezing: Freezing | None = None,
    tracking: Tracking | None = None,
    total_steps: int | None = None,
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
    device: torch.device | str | None = None,
) -> QATModule:
    """Prepare a model for training with quantized weights, activations and gradients.

    All three products of each layer, forward, for the gradient of its input and for the gradient of its weight, read
    quantized operands. The optimizer's update stays in float. Training may start from any weights: nothing is rescaled
    before, and batch norms learn. In eval mode the module is the exact integer program, and `compile` accepts it.

    Args:
        model: Model; see `compile`. A module may be in train mode.
        target: Target; see `compile`. Its descriptor gives the grids of all three operands.
        example_inputs: Example inputs; see `compile`.
        fixed_inputs: Inputs of an ONNX file that become constants; see `compile`.
        calibration_data: Batches from which the ranges of activations start; None: the first batch gives them.
        forward: Function that calls the model for a batch; see `compile`.
        weight_bits: Bits of weights; None: as in the descriptor. A number is `target.override(weight_bits=)`.
        activation_bits: Bits of activations; likewise.
        gradient_bits: Bits of gradients; likewise.
        estimator: Estimator of ranges, a name of `training.range_estimators.ESTIMATORS` or an object, or a mapping of
            `activations` and `gradients` to one each.
        momentum: Weight of the past in estimators given by name.
        rounding: Rounding of gradients; None: as in the descriptor. Weights and activations are rounded to nearest.
        arithmetic: `float`: products of real values of codes, in float32; `integer`: products of codes, each sum
            multiplied once by the scales; `reference`: the same in float64.
        operands: Operands to quantize, for studies; without weights or activations there is no integer program.
        overrides: Bit widths; see `compile`. `{"gradient_bits": "float"}` leaves the gradients of a layer in float.
        method: Training methods of weights; `recomputed`: their range is that of their values at each step.
        batch_norm: Treatment of batch norms after layers: `keep` or `fold`. None: `keep` where the target has a
            multiplier per channel, into which batch norms are folded after training, else `fold`.
        regularizers: Penalties on weights, for `regularization()`.
        freezing: Settings for freezing oscillating codes; None: no freezing.
        tracking: Settings for tracking oscillations without freezing; None: no tracking.
        total_steps: Total number of optimizer steps, for schedules.
        seed: Seed of the noise of stochastic rounding, and for all random number generators.
        memory: Mebibytes of activations kept in memory; see `compile`.
        device: Device of calibration and of the module; None: the device of the model.

    Returns:
        The module, in train mode. Call `step()` after each step of the optimizer; without such calls each forward in
        train mode begins a step.

    Raises:
        QCompilerError: The preparation failed; there is one subclass per kind of cause.

    Source: Fournarakis and Nagel 2021, arXiv:2105.04246.
    """
    hardware = _with_widths(load_target(target), weight_bits, activation_bits, gradient_bits)
    chosen = _operands(operands)
    activations, gradients = _estimators(estimator, momentum)
    if rounding is not None and rounding not in ROUNDINGS:
        raise InputError(f"rounding is {rounding!r}", expected="one of " + ", ".join(ROUNDINGS))
    if arithmetic != "float" and chosen != OPERANDS:
        raise InputError(
            f"arithmetic={arithmetic!r} with operands={chosen}",
            expected="all operands quantized, because products on codes need codes",
            fix="Use arithmetic='float'.",
        )
    # The first batch gives the ranges, except of grids that several tensors share: these start from the example.
    data = calibration_data
    if data is None and example_inputs is not None and forward is None:
        data = [example_inputs]
    options = Options(
        example_inputs=example_inputs,
        fixed_inputs=fixed_inputs,
        calibration_data=data,
        forward=forward,
        overrides=overrides or {},
        seed=seed,
        memory=memory,
        device=device,
    )
    passes = quantized_training_passes(hardware)
    if "gradients" in chosen:
        passes = (*passes, InsertGradientQuantizers(rounding=rounding))
    recipe = Recipe(
        method,
        _style(batch_norm, hardware),
        tuple(regularizers),
        freezing,
        tracking,
        total_steps,
        activations,
        calibration_data is not None,
        Gradients(gradients, arithmetic, seed) if "gradients" in chosen else None,
        widens=True,
        operands=chosen,
    )
    return prepared_module(model, hardware, options, passes, recipe, lambda module: _strip(module, chosen))


def _with_widths(target: Target, weights: int | None, activations: int | None, gradients: int | None) -> Target:
    """The target with the widths that are given and differ from its own."""
    own = {
        "weight_bits": (weights, target.weight_bits),
        "activation_bits": (activations, target.activation_bits),
        "gradient_bits": (gradients, target.descriptor.gradient.bits),
    }
    changes: dict[str, object] = {key: bits for key, (bits, before) in own.items() if bits not in (None, before)}
    return target.override(**changes) if changes else target


def _operands(operands: Collection[str]) -> tuple[str, ...]:
    unknown = [name for name in operands if name not in OPERANDS]
    if isinstance(operands, str) or unknown or not operands:
        raise InputError(f"operands is {operands!r}", expected="some of " + ", ".join(OPERANDS))
    return tuple(name for name in OPERANDS if name in operands)


def _estimators(
    choice: RangeChoice | Mapping[str, RangeChoice], momentum: float
) -> tuple[RangeEstimator, RangeEstimator]:
    """The estimators of activations and of gradients."""
    if not isinstance(choice, Mapping):
        found = range_estimator(choice, momentum)
        return found, found
    unknown = [key for key in choice if key not in ("activations", "gradients")]
    if unknown:
        raise InputError(f"estimator has the key {unknown[0]!r}", expected="activations, gradients")
    names = [choice.get(key, "in_hindsight") for key in ("activations", "gradients")]
    activations, gradients = (range_estimator(name, momentum) for name in names)
    return activations, gradients


def _style(given: Style | None, target: Target) -> Style:
    if given == "double":
        raise InputError(
            "batch_norm='double' has a second forward, in float",
            expected="'keep' or 'fold'",
            fix="Use batch_norm='keep'; for a target without a multiplier per channel use 'fold'.",
        )
    if given is not None:
        return given
    return "keep" if target.simulation is not None or target.multiplies_channels("conv2d") else "fold"


def _strip(module: Module, operands: tuple[str, ...]) -> None:
    """Remove the quantizers of operands that stay in float."""
    kept = {"weights" in operands, "activations" in operands}
    if kept == {True}:
        return
    graph = module.main
    rewriter = Rewriter(graph)
    for node in list(graph.nodes):
        role = "weights" if quantizes_parameter(node) else "activations"
        is_bias = node.definition.has(Trait.BIAS_QUANTIZER)
        if is_bias or (is_quantizer(node) and role not in operands):
            rewriter.replace(node, node.inputs[0])
    for node in reversed(list(graph.nodes)):
        if node.op == "scale_product" and not node.output.users:
            rewriter.erase(node)

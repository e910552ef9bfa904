"""Quantization-aware training: `prepare_qat` makes a trainable module, which `compile` accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from qcompiler.calibration.store import DEFAULT_MEMORY
from qcompiler.errors import InputError
from qcompiler.ir.settings import own_defaults
from qcompiler.passes import Pass
from qcompiler.passes.base import Override
from qcompiler.session.batches import Forward
from qcompiler.session.options import Options
from qcompiler.session.preparation import prepared_module
from qcompiler.session.source import Model, prepared
from qcompiler.targets import Target, load_target
from qcompiler.training.batch_norm import Divergences, Style, reestimate, statistics_divergence
from qcompiler.training.freezing import Freezing, Tracking
from qcompiler.training.methods import Methods
from qcompiler.training.module import QATModule, Recipe
from qcompiler.training.range_estimators import RangeChoice, range_estimator
from qcompiler.training.regularizers import Weighted

__all__ = ["QATModule", "batch_norm_divergence", "prepare_qat", "reestimate_batch_norm"]


@own_defaults()
def prepare_qat(
    model: Model,
    target: str | Path | Target = "int8_dsp",
    *,
    example_inputs: object = None,
    fixed_inputs: Mapping[str, object] | None = None,
    calibration_data: Iterable[object] | None = None,
    forward: Forward | None = None,
    method: Methods = "lsq",
    ranges: RangeChoice | None = None,
    batch_norm: Style | None = None,
    regularizers: Sequence[Weighted] = (),
    freezing: Freezing | None = None,
    tracking: Tracking | None = None,
    total_steps: int | None = None,
    effort: Literal["fast", "default", "best"] = "default",
    overrides: Mapping[str, Override] | None = None,
    passes: Sequence[Pass] | None = None,
    pipeline: str | None = None,
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
    device: torch.device | str | None = None,
) -> QATModule:
    """Prepare a model for quantization-aware training.

    Training starts from the result of post-training quantization. The model, its mode, the random state and torch's
    settings are not changed.

    Args:
        model: Model; see `compile`. A module may be in train mode. A `Source` decides itself how it is called.
        target: Target; see `compile`.
        example_inputs: Example inputs; see `compile`.
        fixed_inputs: Inputs of an ONNX file that become constants; see `compile`.
        calibration_data: Batches; see `compile`. None: ranges are derived from batch norms.
        forward: Function that calls the model for a batch; see `compile`.
        method: Training method of the quantizers: `ste`, `lsq`, `lsq_unscaled`, `lsq+`, `min_max`, `recomputed`,
            `pact`, `ewgs`, `psg`, `dsq`, `stacked_sigmoid`, `stochastic`, or a `training.methods.Method`; or a mapping
            by `weights`, `activations`, node name, module path or glob.
        ranges: Estimator of the ranges of activations, which then follow statistics in place of the method: a name such
            as `in_hindsight`, or an object of `training.range_estimators`; None: the method decides. A method that a
            name selects prevails.
        batch_norm: Treatment of batch norms after layers: `fold` (static folding), `double` (batch statistics from a
            float forward), `keep` (folded only after training; needs a scale per channel). None: `fold`, or `keep` for
            a simulation target.
        regularizers: Penalties on weights, for `regularization()`.
        freezing: Settings for freezing oscillating codes; None: no freezing.
        tracking: Settings for tracking oscillations without freezing; None: no tracking.
        total_steps: Total number of optimizer steps, for schedules.
        effort: Effort before training; see `compile`. All efforts except `fast` use least-error ranges for weights.
        overrides: Bit widths; see `compile`.
        passes: Passes before training that replace the default ones; passes from lowering on are ignored.
        pipeline: Pipeline text that replaces the default passes before training.
        seed: Seed for all random number generators.
        memory: Mebibytes of activations kept in memory; see `compile`.
        device: Device of calibration and of the module; None: the device of the model.

    Returns:
        The module, in train mode.

    Raises:
        QCompilerError: The preparation failed; there is one subclass per kind of cause.
    """
    hardware = load_target(target)
    options = Options(
        example_inputs=example_inputs,
        fixed_inputs=fixed_inputs,
        calibration_data=calibration_data,
        forward=forward,
        effort=effort,
        overrides=overrides or {},
        passes=passes,
        pipeline=pipeline,
        seed=seed,
        memory=memory,
        device=device,
    )
    style: Style = batch_norm or ("fold" if hardware.simulation is None else "keep")
    estimator = None if ranges is None else range_estimator(ranges)
    recipe = Recipe(method, style, tuple(regularizers), freezing, tracking, total_steps, estimator)
    return prepared_module(model, hardware, options, options.passes_before_training(hardware), recipe)


def reestimate_batch_norm(
    module: nn.Module,
    batches: Iterable[object],
    *,
    forward: Callable[[nn.Module, object], object] | None = None,
    limit: int | None = 50,
) -> int:
    """Set the running statistics of batch norms to the mean over batches of the statistics of each.

    In a distributed run, call it in every process with different batches; all processes get the same statistics.

    To re-estimate before every evaluation: `module.before_evaluation(lambda: reestimate_batch_norm(module, batches))`.

    Args:
        module: Module of `prepare_qat` with `batch_norm="keep"` or `"double"`.
        batches: Training data: tensors, tuples or dicts that bind to the model's arguments; a model with one input
            takes the first element of a tuple batch.
        forward: Function that calls the module for a batch; None: batches bind to the model's arguments.
        limit: Maximum number of batches per process; None: all.

    Returns:
        The number of batches read, by all processes.

    Raises:
        InputError: The module has no batch norms that learn.
        CalibrationError: There is no batch.

    Source: Nagel et al. 2022, arXiv:2203.11086, section 3.1 and its code (50 batches); AIMET (100).
    """
    with _in_float(module) as subject:
        return reestimate(subject, batches, forward or _called, limit)


def batch_norm_divergence(
    module: nn.Module,
    batches: Iterable[object],
    *,
    forward: Callable[[nn.Module, object], object] | None = None,
    limit: int | None = 50,
) -> Divergences:
    """KL divergence of the running statistics from the statistics of data, nats, by the name of the batch norm.

    A large value means that the running statistics do not fit the current weights, because weights oscillate or there
    were too few steps. Nothing is changed. `print` shows a table, largest first. Arguments: see
    `reestimate_batch_norm`.

    Raises:
        InputError: The module has no batch norms that learn.
        CalibrationError: There is no batch.
    """
    with _in_float(module) as subject:
        return statistics_divergence(subject, batches, forward or _called, limit)


@contextmanager
def _in_float(module: nn.Module) -> Iterator[QATModule]:
    """The module of `prepare_qat` in float evaluation, because on integer codes batch norms are folded."""
    subject = prepared(module)
    if subject is None:
        raise InputError(f"the module is a {type(module).__name__}", expected="a module of prepare_qat")
    if subject.recipe.batch_norm == "fold":
        raise InputError(
            "the batch norms of this module are folded into its weights",
            fix='Use batch_norm="keep" or "double" in prepare_qat.',
        )
    with subject.in_float():
        yield subject


def _called(module: nn.Module, batch: object) -> object:
    """Run `module` on a batch that binds to its arguments."""
    assert isinstance(module, QATModule)
    place = module.steps.device
    if isinstance(batch, Mapping):
        return module(**{key: _moved(item, place) for key, item in batch.items()})
    if isinstance(batch, tuple | list):
        single = module.arguments == 1
        return module(*(_moved(item, place) for item in (batch[:1] if single else batch)))
    return module(_moved(batch, place))


def _moved(item: object, device: torch.device) -> object:
    return item.to(device) if isinstance(item, Tensor) else item

"""Quantization-aware training: `prepare_qat` makes a trainable module, which `compile` accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from qcompiler.calibration.processes import processes
from qcompiler.calibration.store import DEFAULT_MEMORY
from qcompiler.errors import InputError
from qcompiler.frontends import Source, Subject
from qcompiler.frontends.given import check_kind
from qcompiler.frontends.running import copy_model
from qcompiler.frontends.wrappers import unwrap
from qcompiler.ir.graph import Graph, Module
from qcompiler.ir.settings import own_defaults
from qcompiler.ops.quantizers import is_quantizer
from qcompiler.passes import Pass
from qcompiler.passes.base import Override
from qcompiler.passes.common.fixed_grids import is_dictated
from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from qcompiler.session.batches import Forward
from qcompiler.session.options import Options
from qcompiler.session.pipeline import print_pipeline
from qcompiler.session.progress import steps
from qcompiler.session.session import Session
from qcompiler.session.source import Model, check_forward, load_model, prepared
from qcompiler.targets import Target, load_target
from qcompiler.training.batch_norm import Divergences, Style, reestimate, statistics_divergence
from qcompiler.training.freezing import Freezing, Tracking
from qcompiler.training.methods import Methods
from qcompiler.training.module import Preparation, QATModule, Recipe
from qcompiler.training.regularizers import Weighted
from qcompiler.training.unfold import FoldedNorm, norms_after_layers

__all__ = ["QATModule", "batch_norm_divergence", "prepare_qat", "reestimate_batch_norm"]


@own_defaults()
def prepare_qat(
    model: Model,
    target: str | Path | Target = "int8_dsp",
    *,
    example_inputs: object = None,
    calibration_data: Iterable[object] | None = None,
    forward: Forward | None = None,
    method: Methods = "lsq",
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
        calibration_data: Batches; see `compile`. None: ranges are derived from batch norms.
        forward: Function that calls the model for a batch; see `compile`.
        method: Training method of the quantizers: `ste`, `lsq`, `lsq_unscaled`, `lsq+`, `min_max`, `recomputed`,
            `pact`, `ewgs`, `psg`, `dsq`, `stacked_sigmoid`, `stochastic`, or a `training.methods.Method`; or a mapping
            by `weights`, `activations`, node name, module path or glob.
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
    unwrapped, notes = unwrap(load_model(model))
    source = _in_eval_mode(unwrapped if isinstance(unwrapped, Source) else check_kind(unwrapped))
    options = Options(
        example_inputs=example_inputs,
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
    check_forward(source, options)
    chosen = options.passes_before_training(hardware)
    style: Style = batch_norm or ("fold" if hardware.simulation is None else "keep")
    recipe = Recipe(method, style, tuple(regularizers), freezing, tracking, total_steps)
    norms: list[FoldedNorm] = []

    def between(_: Pass | None, module: Module, after: Pass | None) -> None:
        if isinstance(after, FoldBatchNorm):
            norms[:] = norms_after_layers(module.main)

    with processes() as group, steps(len(chosen) + 1, show=group.rank == 0) as progress:
        session = Session(source, hardware, options, chosen, group=group, progress=progress, between=between)
        quantized = session.quantized
    still = [name for name, item in _parameters(source) if not item.requires_grad]
    preparation = Preparation(
        quantized.records,
        print_pipeline(chosen),
        tuple(sample.detach().cpu() for sample in session.context.samples[0]),
        (*notes, *session.captured.diagnostics),
        session.captured.name,
    )
    dictated = _dictated(quantized.module.main, hardware)
    trained = QATModule(
        quantized.module, hardware, recipe, norms, dictated=dictated, still=still, preparation=preparation
    )
    trained.train()
    return trained


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


def _in_eval_mode(model: Subject) -> Subject:
    """`model`, or a copy of it in eval mode."""
    if not isinstance(model, nn.Module) or not any(item.training for item in model.modules()):
        return model
    return copy_model(model).eval()


def _parameters(model: object) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters()) if isinstance(model, nn.Module) else []


def _dictated(graph: Graph, target: Target) -> list[str]:
    """Names of the quantizers whose scale and zero point the hardware fixes."""
    return [node.name for node in graph.nodes if is_quantizer(node) and is_dictated(node, target)]

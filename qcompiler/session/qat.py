"""Quantization-aware training: from a model to a module that learns, and from there to what `compile` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from qcompiler.calibration.processes import processes
from qcompiler.calibration.store import DEFAULT_MEMORY
from qcompiler.errors import InputError
from qcompiler.frontends.capture import copy_model
from qcompiler.frontends.given import check_kind
from qcompiler.frontends.wrappers import unwrap
from qcompiler.ir.graph import Graph, Module
from qcompiler.ir.rewrite import Record
from qcompiler.ir.settings import own_defaults
from qcompiler.passes import Pass, PassContext
from qcompiler.passes.base import Override
from qcompiler.passes.fit_biases import FitBiases
from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from qcompiler.quant.spec import QuantSpec
from qcompiler.session.batches import Forward
from qcompiler.session.options import Options
from qcompiler.session.pipeline import LEARNED_FACTS, print_pipeline
from qcompiler.session.progress import steps
from qcompiler.session.session import Session
from qcompiler.session.source import Model, Prepared, check_forward, load_model, prepared
from qcompiler.session.stages import Captured
from qcompiler.storage.tensors import row_major
from qcompiler.targets import Target, load_target
from qcompiler.training.batch_norm import Divergences, Style, reestimate, statistics_divergence
from qcompiler.training.freezing import Freezing, Tracking
from qcompiler.training.methods import Methods
from qcompiler.training.module import Recipe, TrainingModule
from qcompiler.training.regularizers import Weighted
from qcompiler.training.unfold import FoldedNorm, norms_behind_layers

__all__ = ["QATModule", "batch_norm_divergence", "prepare_qat", "qat_module", "reestimate_batch_norm"]

TRAINING = "quantization-aware-training"
"""What the record of a compile calls the training."""


class QATModule(TrainingModule, Prepared):
    """A model that learns for a target; made by `prepare_qat`, taken by `compile`.

    See `TrainingModule` for what it does.

    Attributes:
        target: What it is for.
        diagnostics: Sentences on what you may want to know.
        records: What each pass did to the graph before it learned.
    """

    def __init__(
        self,
        module: Module,
        target: Target,
        recipe: Recipe,
        norms: Sequence[FoldedNorm],
        *,
        still: Sequence[str],
        records: Sequence[Record],
        pipeline: str,
        samples: Sequence[Tensor],
        diagnostics: Sequence[str],
        name: str = "model",
    ) -> None:
        super().__init__(
            module,
            target.arithmetic,
            recipe,
            norms,
            dictated=_dictated(module.main, target),
            still=still,
            simulation=None if target.simulation is None else target.simulation.reason,
        )
        self.target = target
        self.diagnostics = tuple(diagnostics)
        self.records = tuple(records)
        self._pipeline, self._name = pipeline, name
        self._samples = [sample.detach().cpu() for sample in samples]

    def captured(self, context: PassContext) -> Captured:
        """The quantized graph with what was learned so far, as `compile` takes it.

        Raises:
            UnsupportedError: The target is for simulation only.
        """
        module = self.quantized()
        module.tensors = {name: row_major(tensor.cpu()) for name, tensor in module.tensors.items()}
        context.samples = [list(self._samples)]
        done = Record(TRAINING, metrics={"steps": int(self.steps), "batch_norm": self.recipe.batch_norm})
        pipeline = f"{self._pipeline}, {TRAINING}"
        return Captured(module, self.diagnostics, LEARNED_FACTS, (*self.records, done), pipeline, self._name)

    def finish(self, module: Module) -> None:
        """Make room for biases, as every compile does."""
        FitBiases().run(module.main, PassContext(self.target))


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
    """Make a module that learns with quantization in its forward.

    It starts as post-training quantization leaves the model. The model, its mode, the random state and torch's settings
    stay as they are.

    Args:
        model: As for `compile`; a module may be in train mode, too.
        target: As for `compile`.
        example_inputs: As for `compile`.
        calibration_data: As for `compile`. None: ranges follow from batch norms.
        forward: As for `compile`.
        method: How quantizers learn: `ste`, `lsq`, `lsq_unscaled`, `lsq+`, `min_max`, `recomputed`, `pact`,
            `ewgs`, `psg`, `dsq`, `stacked_sigmoid`, `stochastic`, or a `training.methods.Method`; or a mapping of these
            by `weights`, by `activations`, and by name of a node, module path or glob.
        batch_norm: Of layers: `fold` (static), `double` (batch statistics from a float forward), `keep` (out of the
            weights until the end; a scale per channel). None: `fold`, and `keep` on a target for simulation.
        regularizers: Penalties on weights, for `regularization()`.
        freezing: Freeze codes that oscillate.
        tracking: Follow oscillations without freezing.
        total_steps: Optimizer steps in all, for schedules.
        effort: Of what comes before training, as for `compile`; ranges of weights have the least error but for `fast`.
        overrides: As for `compile`.
        passes: Before training, instead of the default ones; what lowers to integers is left out.
        pipeline: The same as text.
        seed: As for `compile`.
        memory: As for `compile`.
        device: Where calibration runs, and where the module is.

    Returns:
        The module, in train mode.

    Raises:
        QCompilerError: One subclass per kind of cause.
    """
    hardware = load_target(target)
    unwrapped, notes = unwrap(load_model(model))
    source = _in_eval_mode(check_kind(unwrapped))
    options = Options(
        example_inputs,
        calibration_data,
        forward,
        effort,
        overrides or {},
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
            norms[:] = norms_behind_layers(module.main)

    with processes() as group, steps(len(chosen) + 1, show=group.rank == 0) as progress:
        session = Session(source, hardware, options, chosen, group=group, progress=progress, between=between)
        quantized = session.quantized
    still = [name for name, item in _parameters(source) if not item.requires_grad]
    trained = QATModule(
        quantized.module,
        hardware,
        recipe,
        norms,
        still=still,
        records=quantized.records,
        pipeline=print_pipeline(chosen),
        samples=session.context.samples[0],
        diagnostics=[*notes, *session.captured.diagnostics],
        name=session.captured.name,
    )
    trained.train()
    return trained


def qat_module(model: object) -> QATModule | None:
    """The module of `prepare_qat` that `model` is or wraps: DistributedDataParallel, torch.compile; else None."""
    found = prepared(model)
    return found if isinstance(found, QATModule) else None


def reestimate_batch_norm(
    module: nn.Module,
    batches: Iterable[object],
    *,
    forward: Callable[[nn.Module, object], object] | None = None,
    limit: int | None = 50,
) -> int:
    """Set the running statistics of batch norms to the mean over batches of the statistics of each.

    Every process of a distributed run calls it, each with batches of its own: all end with the same statistics.

    Before every evaluation: `module.before_evaluation(lambda: reestimate_batch_norm(module, batches))`.

    Args:
        module: Of `prepare_qat`, with `batch_norm="keep"` or `"double"`.
        batches: Training data: tensors, tuples or dicts that bind to the model's arguments; of a tuple batch, a model
            of one input takes the first element.
        forward: How the module is called for a batch, where batches do not bind themselves.
        limit: Batches that each process reads at most.

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
    """How far the running statistics are from those of data: KL divergence, nats, by the name of the batch norm.

    A large number says that oscillating weights, or too few steps, left running statistics that belong to other
    weights. Nothing is changed. `print` shows a table, the worst first. The arguments are those of
    `reestimate_batch_norm`.

    Raises:
        InputError: The module has no batch norms that learn.
        CalibrationError: There is no batch.
    """
    with _in_float(module) as subject:
        return statistics_divergence(subject, batches, forward or _called, limit)


@contextmanager
def _in_float(module: nn.Module) -> Iterator[QATModule]:
    """The module of `prepare_qat`, whose batch norms see data: on integer codes they are part of the weights."""
    subject = qat_module(module)
    if subject is None:
        raise InputError(f"the module is a {type(module).__name__}", expected="a module of prepare_qat")
    if subject.recipe.batch_norm == "fold":
        raise InputError(
            "the batch norms of this module are part of its weights",
            fix='Prepare it with batch_norm="keep" or "double".',
        )
    exact = subject.exact
    try:
        subject.exact = False
        yield subject
    finally:
        subject.exact = exact


def _called(module: nn.Module, batch: object) -> object:
    """Run `module` on a batch that binds itself."""
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


def _in_eval_mode(model: nn.Module | ExportedProgram) -> nn.Module | ExportedProgram:
    """`model`, or a copy of it in eval mode."""
    if not isinstance(model, nn.Module) or not any(item.training for item in model.modules()):
        return model
    return copy_model(model).eval()


def _parameters(model: object) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters()) if isinstance(model, nn.Module) else []


def _dictated(graph: Graph, target: Target) -> list[str]:
    """Quantizers whose grid the hardware fixes."""
    found = []
    for node in graph.nodes:
        source = node.inputs[0].producer if node.op == "fake_quantize" else None
        rule = target.op_rule(source.op) if source is not None else None
        if rule is None or rule.out_fixed is None:
            continue
        if cast("QuantSpec", node.attributes["spec"]).bits == rule.out_fixed.bits:
            found.append(node.name)
    return found

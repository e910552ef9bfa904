"""From a model to a module that learns: the work that all kinds of training share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from qcompiler.calibration.processes import processes
from qcompiler.errors import UnsupportedError
from qcompiler.frontends import Source, Subject
from qcompiler.frontends.given import check_kind
from qcompiler.frontends.running import copy_model
from qcompiler.frontends.wrappers import unwrap
from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.ir.graph import Graph, Module
from qcompiler.ir.types import Stage
from qcompiler.ops.quantizers import is_quantizer
from qcompiler.passes import Pass
from qcompiler.passes.common.fixed_grids import is_dictated
from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from qcompiler.session.options import Options
from qcompiler.session.pipeline import print_pipeline
from qcompiler.session.progress import steps
from qcompiler.session.refused_overrides import refused_overrides
from qcompiler.session.session import Session
from qcompiler.session.source import Model, check_forward, load_model, quantized_module
from qcompiler.session.stages import State
from qcompiler.targets import Target
from qcompiler.training.module import Preparation, QATModule, Recipe
from qcompiler.training.unfold import FoldedNorm, norms_after_layers

__all__ = ["prepared_module"]


def prepared_module(
    model: Model,
    target: Target,
    options: Options,
    passes: Sequence[Pass],
    recipe: Recipe,
    edit: Callable[[Module], None] = lambda module: None,
) -> QATModule:
    """Run the passes before training and build the module.

    Args:
        model: Model; a module may be in train mode.
        target: Target.
        options: Options of the session.
        passes: Passes from a captured graph to a calibrated QUANTIZED one.
        recipe: Training settings.
        edit: Last change of the quantized module before training.

    Returns:
        The module, in train mode.

    Raises:
        UnsupportedError: The model is one of this function, or of `Compiled.module`.
    """
    if quantized_module(model) is not None:
        raise UnsupportedError(
            "the model is quantized already",
            expected="the float model",
            fix="A module of prepare_qat goes on training as it is, and resumes from its state_dict.",
        )
    unwrapped, notes = unwrap(load_model(model, options.fixed_inputs))
    source = _in_eval_mode(unwrapped if isinstance(unwrapped, Source) else check_kind(unwrapped))
    check_forward(source, options)
    norms: list[FoldedNorm] = []

    def between(_: Pass | None, module: Module, after: Pass | None) -> None:
        if isinstance(after, FoldBatchNorm):
            norms[:] = norms_after_layers(module.main)

    with processes() as group, steps(len(passes) + 1, show=group.rank == 0) as progress:
        session = Session(source, target, options, passes, group=group, progress=progress, between=between)
        quantized = session.quantized
    still = [name for name, item in _parameters(source) if not item.requires_grad]
    preparation = Preparation(
        quantized.records,
        print_pipeline(passes),
        tuple(sample.detach().cpu() for sample in session.context.samples[0]),
        (*notes, *session.captured.diagnostics, *_refused(session, options, quantized, target)),
        session.captured.name,
    )
    module = quantized.module.clone()
    edit(module)
    dictated = _dictated(module.main, target)
    trained = QATModule(module, target, recipe, norms, dictated=dictated, still=still, preparation=preparation)
    trained.train()
    return trained


def _refused(session: Session, options: Options, quantized: State, target: Target) -> list[Diagnostic]:
    """The overrides that the module does not follow, as `compile` tells them."""
    canonical = session.canonical.module.main
    if canonical.stage is not Stage.CANONICAL:
        return []
    return refused_overrides(options.overrides, canonical, quantized.module.main, target)


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

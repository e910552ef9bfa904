"""The one call: `compile` turns a model into a verified integer deployment."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from qcompiler.artifact import Artifact
from qcompiler.backends import integer
from qcompiler.batches import Batches, Forward
from qcompiler.calibration.journal import Journal
from qcompiler.calibration.processes import processes
from qcompiler.calibration.spool import reiterable
from qcompiler.calibration.store import DEFAULT_MEMORY
from qcompiler.csource import write_c
from qcompiler.errors import InputError, NotSupportedYetError, PipelineError, QCompilerError, VerificationError
from qcompiler.frontends import capture
from qcompiler.ir import tree
from qcompiler.ir.graph import Graph, Module
from qcompiler.ir.interpret import check_inputs
from qcompiler.ir.rewrite import Record
from qcompiler.ir.types import Stage
from qcompiler.module import QuantizedModule
from qcompiler.passes import Pass, PassContext, PassManager
from qcompiler.passes.base import Override
from qcompiler.pipeline import default_pipeline, parse_pipeline, print_pipeline
from qcompiler.progress import Steps, steps
from qcompiler.report import write_report
from qcompiler.targets import Target, load_target
from qcompiler.validation.exact import Codes, simulate
from qcompiler.validation.layers import layer_sqnr
from qcompiler.verify import Forms, Report
from qcompiler.verify import verify as verify_forms
from qcompiler.workfolder import WorkFolder

__all__ = ["Compiled", "compile"]

Model: TypeAlias = nn.Module | ExportedProgram | str | Path
Effort: TypeAlias = Literal["fast", "default", "best"]
OnFailure: TypeAlias = Literal["error", "warn", "off"]

SAMPLES = 4
"""Samples on which the contracts of passes are validated and the forms are compared."""


@dataclass(frozen=True)
class Compiled:
    """A compiled model.

    Args:
        target: The hardware.
        quantized: The calibrated graph before lowering: what `simulate` evaluates.
        integer: The lowered graph.
        artifact: The files.
        records: What each pass did.
        inputs: The flat inputs on which the forms were compared.
        verification: What was found when the model was compiled, None when it was told not to look.
        diagnostics: Sentences on what you may want to know.
        seconds: How long each step took; not part of the artifact.
    """

    target: Target
    quantized: Module
    integer: Module
    artifact: Artifact
    records: tuple[Record, ...]
    inputs: tuple[Tensor, ...]
    verification: Report | None
    diagnostics: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def simulate(self, *inputs: object) -> object:
        """Exact evaluation on integer codes: what the device will compute, in the model's own output tree.

        Args:
            inputs: The model's arguments, float.

        Raises:
            InputError: They do not fit the model.
        """
        graph = self.quantized.main
        with torch.no_grad():
            results = simulate(graph, tree.match(graph.input_tree, inputs), self.target.arithmetic)
        return tree.unflatten(graph.output_tree, [item.real() if isinstance(item, Codes) else item for item in results])

    def run(self, *inputs: object) -> object:
        """The integer program in its executor, outputs dequantized, in the model's own output tree."""
        return self.artifact.run(*inputs)

    def run_integer(self, *codes: Tensor) -> list[Tensor]:
        """The integer program from codes to codes; see `Artifact.run_integer`."""
        return self.artifact.run_integer(*codes)

    def module(self) -> nn.Module:
        """The quantized model as a module: differentiable in train mode, exact in eval mode.

        In eval mode its outputs equal those of the integer program bit for bit.
        """
        return QuantizedModule(self.quantized, self.target.arithmetic).eval()

    def verify(self, *inputs: object, seed: int = 0) -> Report:
        """Compare the forms on `inputs`, or on those of the compile.

        Args:
            inputs: The model's arguments, float.
            seed: Of the random codes.
        """
        graph = self.quantized.main
        given = tree.match(graph.input_tree, inputs) if inputs else list(self.inputs)
        check_inputs(graph, given)
        return verify_forms(_forms(self.artifact, self.quantized, self.integer), given, self.target, seed=seed)

    def explain(self, name: str) -> str:
        """What each pass did to the captured node or module `name`, and why.

        Raises:
            InputError: No pass touched a node of that name.
        """
        return self.artifact.explain(name)

    def report(self, path: str | Path) -> Path:
        """Write a page for the browser: forms compared, what each pass did and refused, the range of each tensor."""
        return write_report(self.artifact, path)

    def save(self, output: str | Path) -> Path:
        """Write the artifact folder; see `Artifact.save`."""
        return self.artifact.save(output)


def compile(  # the field's word for it
    model: Model,
    target: str | Path | Target = "int8_dsp",
    *,
    example_inputs: object = None,
    calibration_data: Iterable[object] | None = None,
    forward: Forward | None = None,
    effort: Effort = "default",
    overrides: Mapping[str, Override] | None = None,
    passes: Sequence[Pass] | None = None,
    pipeline: str | None = None,
    verify: OnFailure = "error",
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
    device: torch.device | str | None = None,
    output: str | Path | None = None,
) -> Compiled:
    """Compile `model` for `target`.

    The model, its mode, the random state and torch's settings stay as they are.

    Under torchrun the processes share the work on the calibration data, and all get the same result, which is that of
    one process with as many threads; the first one writes.

    Args:
        model: A module in eval mode, a GraphModule, an ExportedProgram, or the path of a saved one (`.pt2`).
        target: Name, path of a TOML file, or a target.
        example_inputs: A tensor, tuple or dict; looked for in the calibration data and in the model when absent.
        calibration_data: Batches that bind to the forward signature; of a tuple batch, a model of one input takes the
            first element. None: ranges follow from batch norms.
        forward: How the model is called for a batch, `lambda model, batch: model(batch["image"])`, where batches do
            not bind themselves.
        effort: `fast`: ranges are the smallest and largest value seen. `default`: the default pipeline. `best`: weights
            are equalized where they have one scale per tensor, their ranges have the least error, and they are rounded
            to data; activations of fewer than six bits have their ranges by then, so that weights make up for those
            too. Needs `calibration_data`.
        overrides: Widths by node name, module path, glob or op: `{"features.0": 16}`.
        passes: Instead of the default pipeline.
        pipeline: The same as text, such as `"canonicalize, fold-batch-norm, ..."`.
        verify: What a failed verification does. `off` skips it.
        seed: Of all random numbers.
        memory: Mebibytes of activations that adaptive rounding and bias correction keep in memory; more goes to disk.
        device: Where calibration runs; where the model is when None.
        output: Folder for the artifact; it appears by one rename after verification. What long steps finish is kept
            beside it, in `<output>.work`: the same call goes on from there when it was ended before.

    Raises:
        QCompilerError: One subclass per kind of cause; nothing is written then.
    """
    if verify not in ("error", "warn", "off"):
        raise InputError(f"verify is {verify!r}", expected='"error", "warn" or "off"')
    hardware = load_target(target)
    chosen = _passes(effort, passes, pipeline, hardware, has_data=calibration_data is not None)
    if memory < 0:
        raise InputError(f"memory={memory}", expected="mebibytes, 0 or more")
    if output is not None:
        Artifact.check_destination(output)
    work = None if output is None else WorkFolder(output)
    model = load_model(model)
    if forward is not None and (calibration_data is None or not isinstance(model, nn.Module)):
        raise InputError("forward= is given without calibration data and a module to call", fix="Leave it out.")
    with processes() as group, steps(len(chosen) + 3, show=group.rank == 0) as progress:
        context = PassContext(
            hardware,
            overrides=overrides or {},
            seed=seed,
            memory=memory,
            processes=group,
            journal=Journal(None if work is None else work.finished, group),
            progress=progress.within,
        )
        try:
            request = _Request(model, example_inputs, calibration_data, forward, device)
            compiled = _compiled(request, chosen, context, verify, progress)
            if output is not None and group.rank == 0:
                compiled.save(output)
            group.gather(None)  # the files are there for all
        except QCompilerError:
            # What was finished serves nobody who has to change the call first.
            if work is not None and group.rank == 0:
                work.remove()
            raise
    return compiled


@dataclass(frozen=True)
class _Request:
    """Arguments of `compile` that say what the model is and what it gets."""

    model: nn.Module | ExportedProgram
    example_inputs: object
    calibration_data: Iterable[object] | None
    forward: Forward | None
    device: torch.device | str | None


def _compiled(
    request: _Request, chosen: Sequence[Pass], context: PassContext, verify: OnFailure, progress: Steps
) -> Compiled:
    """Capture, run the passes, emit, verify."""
    hardware = context.require_target("compile")
    module, captured = _captured(request, context)
    progress.finished("capture")

    quantized: list[Module] = []
    canonical: list[Module] = []
    following = iter([*chosen[1:], None])

    def between(item: Pass, module: Module, _: Record) -> None:
        if module.main.stage is Stage.QUANTIZED:
            quantized[:] = [module.clone()]
        coming = next(following)
        if coming is not None and coming.becomes is Stage.QUANTIZED:
            canonical[:] = [module.clone()]
        progress.finished(item.name)

    records = PassManager(chosen, between=between).run(module, context)
    if module.main.stage is not Stage.INTEGER or not quantized:
        raise PipelineError(f"the pipeline ends at stage {module.main.stage}", fix="End it with lower-to-integer.")
    samples = [x.cpu() for x in context.samples[0]]
    name = "model" if isinstance(request.model, ExportedProgram) else type(request.model).__name__
    ratios = layer_sqnr(canonical[0].main, quantized[0].main, samples, hardware.arithmetic) if canonical else {}
    artifact = _emit(module, hardware, records, print_pipeline(chosen), captured)
    files, reason = write_c(artifact.program, name, [x.numpy() for x in samples], context.seed)
    artifact = dataclasses.replace(artifact, c=files, without_c=reason)
    artifact = dataclasses.replace(artifact, sqnr={name: float(f"{ratio:.2f}") for name, ratio in ratios.items()})
    diagnostics = (*artifact.diagnostics, *_island_summary(artifact))
    artifact = dataclasses.replace(artifact, diagnostics=diagnostics)
    progress.finished("emit")

    verification = None
    if verify != "off":
        verification = verify_forms(_forms(artifact, quantized[0], module), samples, hardware, seed=context.seed)
        artifact = dataclasses.replace(artifact, verification=verification.to_dict())
    progress.finished("verify")
    if verification is not None and not verification.passed:
        message = f"the forms of the model disagree:\n{verification}"
        if verify == "error":
            raise VerificationError(message, fix="Nothing was written. The first tensor named is where to look.")
        warnings.warn(message, stacklevel=2)
    return Compiled(
        hardware,
        quantized[0],
        module,
        artifact,
        tuple(records),
        tuple(samples),
        verification,
        artifact.diagnostics,
        progress.seconds,
    )


def _captured(request: _Request, context: PassContext) -> tuple[Module, Sequence[str]]:
    """The model as a module, with what the capture has to say; the data goes into the context."""
    first, source, example_inputs = None, None, request.example_inputs
    if request.calibration_data is not None:
        source = Batches(request.model, request.calibration_data, request.forward, request.device)
        once = iter(request.calibration_data) is request.calibration_data
        context.calibration = reiterable(source, once=once)
        first = next(iter(context.calibration))
        if example_inputs is None:
            example_inputs = source.example
    captured = capture(request.model, example_inputs, device=request.device)
    graph = captured.module.main
    if source is not None:
        source.graph = graph
        check_inputs(graph, first or [])
    inputs = captured.inputs if first is None else first
    context.samples = [_samples(graph, inputs, first is None, context.seed)]
    return captured.module, captured.diagnostics


def _passes(
    effort: Effort, passes: Sequence[Pass] | None, pipeline: str | None, hardware: Target, *, has_data: bool
) -> tuple[Pass, ...]:
    if effort not in ("fast", "default", "best"):
        raise InputError(f"effort is {effort!r}", expected='"fast", "default" or "best"')
    if passes is not None and pipeline is not None:
        raise InputError("both passes= and pipeline= are given", fix="Give one of them.")
    if pipeline is not None:
        return parse_pipeline(pipeline)
    if passes is not None:
        return tuple(passes)
    if effort == "best" and not has_data:
        raise InputError("effort='best' is asked for without calibration_data", fix="Give some, or effort='default'.")
    return default_pipeline(effort, per_channel=hardware.per_channel, activation_bits=hardware.activation_bits)


def load_model(model: Model) -> nn.Module | ExportedProgram:
    """The model itself, read from disk where a path is given.

    Raises:
        InputError: The path leads to no exported program.
    """
    if not isinstance(model, str | Path):
        return model
    path = Path(model)
    if path.suffix == ".onnx":
        raise NotSupportedYetError("a model from an ONNX file", where=str(model), fix="Give the PyTorch model.")
    if path.suffix != ".pt2":
        raise InputError(
            f"the model is the path {str(model)!r}",
            expected="a module, an ExportedProgram, or the path of a .pt2 file that torch.export.save wrote",
        )
    if not path.is_file():
        raise InputError(f"there is no file {str(model)!r}", expected="an exported program")
    try:
        return torch.export.load(path)
    except Exception as error:  # whatever the archive reader raises
        raise InputError(
            f"the file {str(model)!r} is no exported program: {error}", fix="Write it with torch.export.save."
        ) from error


def _samples(graph: Graph, tensors: list[Tensor], synthesize: bool, seed: int) -> list[Tensor]:
    """A small batch; normal numbers where there is no data."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for value, tensor in zip(graph.inputs, tensors, strict=True):
        free = bool(value.type.shape) and not isinstance(value.type.shape[0], int)
        if synthesize and tensor.is_floating_point():
            shape = (SAMPLES, *tensor.shape[1:]) if free else tuple(tensor.shape)
            tensor = torch.randn(shape, generator=generator).to(tensor)
        result.append(tensor[:SAMPLES] if free else tensor)
    return result


def _emit(
    module: Module, hardware: Target, records: list[Record], pipeline: str, diagnostics: Sequence[str]
) -> Artifact:
    from qcompiler.backends import onnx_qdq  # onnx and onnxruntime take a while to import

    graph = module.main
    layout = hardware.layout
    return Artifact(
        target=hardware,
        program=integer.emit(graph, layout.activations, layout.weights, layout.alignment),
        onnx=onnx_qdq.emit(graph, onnx_qdq.OnnxOptions(hardware.onnx.opset, hardware.onnx.ir_version)),
        input_tree=graph.input_tree,
        output_tree=graph.output_tree,
        pipeline=pipeline,
        passes=tuple(dataclasses.asdict(record) for record in records),
        diagnostics=tuple(diagnostics),
    )


def _island_summary(artifact: Artifact) -> list[str]:
    islands = artifact.islands
    if not islands:
        return []
    macs, elements = (100 * sum(item[key] for item in islands) for key in ("macs", "elements"))
    what = "One float island does" if len(islands) == 1 else f"{len(islands)} float islands do"
    names = ", ".join(f"@{item['name']}" for item in islands[:4]) + (", ..." if len(islands) > 4 else "")
    return [f"{what} {macs:.2f} % of the multiply-accumulates and {elements:.2f} % of the elements: {names}."]


def _forms(artifact: Artifact, quantized: Module, lowered: Module) -> Forms:
    return Forms(
        artifact.program, artifact.onnx, quantized.main, lowered.main, c=artifact.c, without_c=artifact.without_c
    )

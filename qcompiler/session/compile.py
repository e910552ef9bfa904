"""`compile`: turns a model into a verified integer program."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from qcompiler.artifact.artifact import Artifact
from qcompiler.artifact.histograms import histograms
from qcompiler.artifact.report import report_html, summary_html
from qcompiler.backends import encodings as grids
from qcompiler.calibration.journal import Journal
from qcompiler.calibration.processes import Processes, processes
from qcompiler.calibration.store import DEFAULT_MEMORY
from qcompiler.errors import (
    ArtifactError,
    InputError,
    QCompilerError,
    VerificationError,
)
from qcompiler.ir import calls
from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Module
from qcompiler.ir.interpret import check_inputs
from qcompiler.ir.settings import own_defaults
from qcompiler.passes import Pass
from qcompiler.passes.base import Override
from qcompiler.quant.encoding import Encodings
from qcompiler.session.batches import Forward
from qcompiler.session.options import Effort, Options, Unmatched
from qcompiler.session.pipeline import Io, lowering_passes, with_external_types
from qcompiler.session.progress import steps
from qcompiler.session.session import Session
from qcompiler.session.source import Model, check_forward, load_model, prepared, with_own_quantizers
from qcompiler.storage.destination import Destination
from qcompiler.storage.writing import write_file
from qcompiler.targets import Target, load_target
from qcompiler.targets.loader import load_hardware
from qcompiler.training.module import QATModule
from qcompiler.validation.exact import Codes, simulate
from qcompiler.verification.deployed import Trial
from qcompiler.verification.forms import Forms
from qcompiler.verification.forms import verify as verify_forms
from qcompiler.verification.layer_outputs import LayerOutputs, collect
from qcompiler.verification.report import Report

__all__ = ["Compiled", "compile", "compile_session"]

OnFailure: TypeAlias = Literal["error", "warn", "off"]


@dataclass(frozen=True, repr=False)
class Compiled:
    """A compiled model.

    Args:
        target: Hardware target.
        quantized: Calibrated graph before lowering, which `simulate` evaluates.
        integer: Lowered graph.
        artifact: Files of all forms.
        records: Records of the passes.
        inputs: Flat inputs on which the forms were compared.
        verification: Report of the verification; None with `verify="off"`.
        diagnostics: Summary of the quality, problems with place and remedy, and notes; `str` gives the sentence.
        seconds: Wall-clock time by step, seconds; not part of the artifact.
        floating: Graph before quantizers were inserted; the quantized graph after training with quantization.
    """

    target: Target
    quantized: Module
    integer: Module
    artifact: Artifact
    records: tuple[Record, ...]
    inputs: tuple[Tensor, ...]
    verification: Report | None
    diagnostics: tuple[Diagnostic, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    floating: Module | None = None

    def __repr__(self) -> str:
        return self.artifact.summary("Compiled")

    @own_defaults()
    def simulate(self, *inputs: object, **named: object) -> object:
        """Evaluate exactly on integer codes, as the device computes, and return the model's own output tree.

        Args:
            inputs: The model's float arguments by position: tensors or NumPy arrays.
            named: The model's arguments by name.

        Returns:
            The outputs: tensors where tensors were given, arrays where arrays were.

        Raises:
            InputError: The inputs do not fit the model, mix tensors and arrays, or hold an empty batch.
        """
        graph = self.quantized.main
        call = calls.bind(graph.input_tree, graph.input_names, inputs, named)
        with torch.no_grad():
            results, _ = simulate(graph, call.tensors, self.quantized.tensors, self.target.arithmetic)
        return call.results(graph.output_tree, [item.real() if isinstance(item, Codes) else item for item in results])

    def run(self, *inputs: object, **named: object) -> object:
        """Run the integer program and return dequantized outputs in the model's own output tree.

        Arguments: see `simulate`.
        """
        return self.artifact.run(*inputs, **named)

    @own_defaults()
    def layer_outputs(self, *inputs: object, **named: object) -> LayerOutputs:
        """The result of every layer: of the float model, of the exact simulation, and of the integer program.

        `save("expected.npz")` writes the file that a device is compared with; see `qcompiler compare`.

        Args:
            inputs: The model's float arguments by position: tensors or NumPy arrays.
            named: The model's arguments by name.

        Returns:
            Tensors by name, in the order of the program.

        Raises:
            InputError: The inputs do not fit the model.
        """
        graph = self.quantized.main
        call = calls.bind(graph.input_tree, graph.input_names, inputs, named)
        check_inputs(graph, call.tensors)
        floating = self.quantized if self.floating is None else self.floating
        arithmetic, files = self.target.arithmetic, self.artifact.files()
        return collect(self.artifact.program, graph, floating.main, call.tensors, arithmetic, files)

    def run_integer(self, *codes: Tensor) -> list[Tensor]:
        """Run the integer program from codes to codes; see `Artifact.run_integer`."""
        return self.artifact.run_integer(*codes)

    def module(self) -> QATModule:
        """The quantized model as a module: differentiable in train mode, exact in eval mode.

        In eval mode its outputs equal those of the integer program bit for bit.
        """
        return QATModule(self.quantized, self.target, None).eval()

    @own_defaults()
    def verify(self, *inputs: object, seed: int = 0) -> Report:
        """Compare the forms on `inputs`, or on the inputs of the compile if none are given.

        Args:
            inputs: The model's float arguments.
            seed: Seed for the random codes.
        """
        graph = self.quantized.main
        given = list(self.inputs)
        if inputs:
            given = calls.bind(graph.input_tree, graph.input_names, inputs, {}).tensors
        check_inputs(graph, given)
        return verify_forms(_forms(self.artifact, self.quantized, self.integer), given, self.target, seed=seed)

    def explain(self, name: str) -> str:
        """List what each pass did to the captured node or module `name`, and why.

        Raises:
            InputError: No pass touched a node of that name.
        """
        return self.artifact.explain(name)

    @own_defaults()
    def report(self, path: str | Path) -> Path:
        """Write an HTML report whose tables sort, with histograms of the tensors that are the worst.

        The page is that of the artifact, `report.html`, with a script and, if matplotlib (`qcompiler[plots]`) is
        installed, the histograms: the numbers of the float model on the inputs of the compile, and the limits of the
        grids. It needs no network.

        Args:
            path: File to write.

        Returns:
            The path.
        """
        page = self.artifact.page
        floating = (self.floating or self.quantized).main
        plots = histograms(page, floating, self.inputs)
        return write_file(path, report_html(page, plots, sorts=True).encode())

    def _repr_html_(self) -> str:
        """Verdict and quality, for notebooks."""
        return summary_html(self.artifact.page)

    def encodings(self, version: str = "1.0.0") -> str:
        """Scale and zero point of each tensor as JSON; see `Artifact.encodings`."""
        return self.artifact.encodings(version)

    def save(self, output: str | Path) -> Path:
        """Write the artifact folder; see `Artifact.save`."""
        return self.artifact.save(output)


@own_defaults()
def compile(  # shadows the builtin: `compile` is the established name
    model: Model,
    target: str | Path | Target | None = None,
    *,
    example_inputs: object = None,
    fixed_inputs: Mapping[str, object] | None = None,
    calibration_data: Iterable[object] | None = None,
    forward: Forward | None = None,
    effort: Effort = "default",
    overrides: Mapping[str, Override] | None = None,
    encodings: str | Path | Encodings | None = None,
    unmatched_encodings: Unmatched = "error",
    passes: Sequence[Pass] | None = None,
    pipeline: str | None = None,
    io: Io = "float",
    verify: OnFailure = "error",
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
    device: torch.device | str | None = None,
    output: str | Path | None = None,
) -> Compiled:
    """Compile `model` for `target`.

    The model, its mode, the random state and torch's settings are not changed.

    Under torchrun the processes share the work on the calibration data. All processes get the result that one process
    with as many threads gets; the first process writes the output.

    Args:
        model: A module in eval mode, a GraphModule, an ExportedProgram, or the path of a saved program (`.pt2`). A
            module of `prepare_qat` is compiled as it computes in eval mode, with its own target, ranges and widths.
        target: Name, path of a TOML file, or a target; `int8_dsp` by default.
        example_inputs: A tensor, tuple or dict. By default taken from `calibration_data` or from an attribute of the
            model.
        fixed_inputs: Values of inputs of an ONNX file by name, which become constants of the model.
        calibration_data: Batches that bind to the forward signature. A model with one input takes the first element of
            a tuple batch. None: ranges follow from batch norms.
        forward: Function that calls the model on a batch that does not bind to the forward signature, such as
            `lambda model, batch: model(batch["image"])`.
        effort: `fast`: ranges are the smallest and largest values seen. `default`: channels are equalized, and weights
            below eight bits get least-error ranges and corrected biases. `best`: weights are rounded adaptively to
            `calibration_data`, which is required; steps of `default` are kept if they bring the outputs closer to the
            float model. With `default` and `best`, activations below six bits get least-error ranges.
        overrides: Widths by node name, module path, glob or op: `{"features.0": 16}`.
        encodings: File of encodings (version 0.6.1, 1.0.0 or 2.0.0), or its content. Its scales and zero points
            replace calibration; missing encodings are calibrated. A file of this package lists the passes that led to
            it, and they run again for any `effort`. With other files the model is not equalized, because the encodings
            belong to the original tensors.
        unmatched_encodings: Action for encodings that match no tensor: `error` or `ignore`.
        passes: Passes in place of the default pipeline.
        pipeline: The passes as text, such as `"canonicalize, fold-batch-norm, ..."`.
        io: Type at inputs and outputs of the C and the ONNX file, and of `run_integer`: `float`, or 8-bit codes of the
            type `uint8` or `int8`. With `uint8`, codes of an input are the bytes of a camera if all of its calibration
            samples are pixels: multiples of 1/255 from 0 to 1, or whole numbers from 0 to 255. Any normalization
            belongs into the model.
        verify: Action after a failed verification; `off` skips the verification.
        seed: Seed for all random number generators.
        memory: Memory for the activations of adaptive rounding and bias correction in MiB; the rest is stored on disk.
        device: Device for calibration; by default the device of the model.
        output: Folder for the artifact. After verification, the folder appears or replaces an older artifact in one
            step. Any other content there is refused before the first pass runs. Long steps save their progress in
            `<output>.work`; after an interruption, the same call resumes from there.

    Raises:
        QCompilerError: The compile failed; there is one subclass per kind of cause, and nothing is written.
    """
    if verify not in ("error", "warn", "off"):
        raise InputError(f"verify is {verify!r}", expected='"error", "warn" or "off"')
    given = grids.load(encodings) if isinstance(encodings, str | Path) else encodings
    options = Options(
        example_inputs=example_inputs,
        fixed_inputs=fixed_inputs,
        calibration_data=calibration_data,
        forward=forward,
        effort=effort,
        overrides=overrides or {},
        encodings=given,
        unmatched_encodings=unmatched_encodings,
        passes=passes,
        pipeline=pipeline,
        io=io,
        seed=seed,
        memory=memory,
        device=device,
    )
    learned = prepared(model)
    if learned is not None:
        _check_learned(
            learned,
            target,
            (example_inputs, calibration_data, forward, overrides, given, passes, pipeline, fixed_inputs),
        )
    wanted = "int8_dsp" if target is None else target
    hardware = load_hardware(wanted if learned is None else learned.target)
    source = load_model(model, options.fixed_inputs) if learned is None else learned
    options = with_own_quantizers(source, options)
    chosen = options.deployment_passes(hardware) if learned is None else with_external_types(lowering_passes(), io)
    destination = None if output is None else Artifact.destination(output)
    check_forward(source, options)
    with (
        processes() as group,
        _held(destination, group),
        steps(len(chosen) + 3, show=group.rank == 0) as progress,
    ):
        journal = Journal(None if destination is None else destination.finished, group)
        session = Session(source, hardware, options, chosen, group=group, journal=journal, progress=progress)
        try:
            compiled = compile_session(session, verify)
        except ArtifactError:
            raise  # A disk problem: repeating the same call resumes from the saved progress.
        except QCompilerError:
            # The caller must change the arguments, so the saved progress is useless.
            if destination is not None and group.rank == 0:
                destination.discard_finished()
            raise
        if destination is not None:
            _in_first(group, functools.partial(_write, destination, compiled.artifact))
    return compiled


def compile_session(session: Session, verify: OnFailure = "error") -> Compiled:
    """The artifact of a session, its forms compared; nothing is written.

    Args:
        session: Session whose passes end at an INTEGER graph.
        verify: See `compile`.

    Raises:
        VerificationError: A form differs, and `verify` is "error".
    """
    unverified, samples = session.artifact(), session.samples
    quantized, integer = session.quantized.module, session.integer.module
    verification = None
    if verify != "off":
        forms = _forms(unverified, quantized, integer, session.trial)
        verification = verify_forms(forms, samples, session.target, seed=session.options.seed)
    session.progress.finished("verify")
    if verification is not None and not verification.passed:
        message = f"the forms of the compiled model disagree:\n{verification}"
        if verify == "error":
            raise VerificationError(message, fix="Nothing was written. Start with the first tensor that differs.")
        warnings.warn(message, stacklevel=2)
    artifact = unverified if verification is None else session.artifact(verification)
    return Compiled(
        session.target,
        quantized,
        integer,
        artifact,
        session.integer.records,
        tuple(samples),
        verification,
        artifact.diagnostics,
        session.progress.seconds,
        session.canonical.module,
    )


@contextlib.contextmanager
def _held(destination: Destination | None, group: Processes) -> Iterator[None]:
    """Check and lock the output in the first process while the block runs; an error is raised in all processes."""
    with contextlib.ExitStack() as stack:
        if destination is not None:
            _in_first(group, functools.partial(stack.enter_context, destination))
        yield


def _in_first(group: Processes, action: Callable[[], object]) -> None:
    """Run `action` in the first process; its error is raised in all processes, so that none blocks."""
    errors: list[QCompilerError] = []
    if group.rank == 0:
        try:
            action()
        except QCompilerError as error:
            errors.append(error)
    told = group.gather(errors)[0]
    if told:
        raise (errors or told)[0]


def _write(destination: Destination, artifact: Artifact) -> None:
    destination.replace(artifact.files())
    destination.discard_finished()


def _check_learned(model: QATModule, target: str | Path | Target | None, others: tuple[object, ...]) -> None:
    """Refuse arguments that `prepare_qat` has already fixed."""
    if any(item is not None for item in others):
        raise InputError(
            "a module of prepare_qat already has these arguments",
            expected="no example_inputs, fixed_inputs, calibration_data, forward, overrides, encodings, passes or "
            "pipeline",
            fix="Pass them to prepare_qat.",
        )
    if target is not None and load_target(target).digest() != model.target.digest():
        raise InputError(
            f"the module was trained for {model.target.name}, but target is {load_target(target).name}",
            fix="Omit target=, or prepare the model for the other target.",
        )


def _forms(artifact: Artifact, quantized: Module, lowered: Module, trial: Trial | None = None) -> Forms:
    return Forms(artifact.program, artifact.forms, quantized.main, lowered.main, artifact.read_back, trial)

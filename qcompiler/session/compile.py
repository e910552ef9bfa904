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
from qcompiler.backends import encodings as grids
from qcompiler.calibration.journal import Journal
from qcompiler.calibration.processes import Processes, processes
from qcompiler.calibration.store import DEFAULT_MEMORY
from qcompiler.errors import (
    ArtifactError,
    InputError,
    QCompilerError,
    UnsupportedError,
    VerificationError,
)
from qcompiler.ir import calls
from qcompiler.ir.graph import Module
from qcompiler.ir.interpret import check_inputs
from qcompiler.ir.rewrite import Record
from qcompiler.ir.settings import own_defaults
from qcompiler.passes import Pass
from qcompiler.passes.base import Override
from qcompiler.quant.encoding import Encodings
from qcompiler.session.batches import Forward
from qcompiler.session.options import Effort, Options, Unmatched
from qcompiler.session.pipeline import (
    lowering_passes,
)
from qcompiler.session.progress import steps
from qcompiler.session.session import Session
from qcompiler.session.source import Model, check_forward, load_model, prepared
from qcompiler.storage.destination import Destination
from qcompiler.storage.writing import write_file
from qcompiler.targets import Target, load_target
from qcompiler.training.module import QATModule
from qcompiler.validation.exact import Codes, simulate
from qcompiler.verification.forms import Forms
from qcompiler.verification.forms import verify as verify_forms
from qcompiler.verification.report import Report

__all__ = ["Compiled", "compile"]

OnFailure: TypeAlias = Literal["error", "warn", "off"]


@dataclass(frozen=True)
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
        diagnostics: Notes for the user.
        seconds: Wall-clock time by step, seconds; not part of the artifact.
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

    def report(self, path: str | Path) -> Path:
        """Write an HTML report: comparison of the forms, rewrites and refusals of each pass, range of each tensor."""
        return write_file(path, self.artifact.report().encode())

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
    calibration_data: Iterable[object] | None = None,
    forward: Forward | None = None,
    effort: Effort = "default",
    overrides: Mapping[str, Override] | None = None,
    encodings: str | Path | Encodings | None = None,
    unmatched_encodings: Unmatched = "error",
    passes: Sequence[Pass] | None = None,
    pipeline: str | None = None,
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
        model: A module in eval mode, a GraphModule, an ExportedProgram, or the path of a saved one (`.pt2`); or what
            `prepare_qat` made, which brings target, ranges and widths along: what it computes in eval mode is compiled.
        target: Name, path of a TOML file, or a target; `int8_dsp` when None.
        example_inputs: A tensor, tuple or dict; looked for in the calibration data and in the model when absent.
        calibration_data: Batches that bind to the forward signature; of a tuple batch, a model of one input takes the
            first element. None: ranges follow from batch norms.
        forward: How the model is called for a batch, `lambda model, batch: model(batch["image"])`, where batches do
            not bind themselves.
        effort: `fast`: ranges are the smallest and largest value seen. `default`: channels are equalized; weights of
            fewer than eight bits get the ranges of least error and corrected biases. `best`: weights are rounded to
            data, and what `default` does is kept where the outputs come nearer to the float model that way; needs
            `calibration_data`. With both, activations of fewer than six bits get the ranges of least error.
        overrides: Widths by node name, module path, glob or op: `{"features.0": 16}`.
        encodings: Grids that are given, as a file of version 0.6.1, 1.0.0 or 2.0.0: they win over calibration, which
            finds what the file leaves out, if there is data. A file of this package names the passes that led to it,
            and they run again, whatever `effort` is; with any other file the model is not equalized, so that the grids
            are those of its tensors.
        unmatched_encodings: What names do that no tensor has: `error`, or `ignore`.
        passes: Instead of the default pipeline.
        pipeline: The same as text, such as `"canonicalize, fold-batch-norm, ..."`.
        verify: What a failed verification does. `off` skips it.
        seed: Of all random numbers.
        memory: Mebibytes of activations that adaptive rounding and bias correction keep in memory; more goes to disk.
        device: Where calibration runs; where the model is when None.
        output: Folder for the artifact; it appears, or takes the place of the artifact there, in one step after
            verification. Anything else there is refused before a pass runs. What long steps finish is kept next to it,
            in `<output>.work`: the same call goes on from there when it was ended before.

    Raises:
        QCompilerError: The compile failed; there is one subclass per kind of cause, and nothing is written.
    """
    if verify not in ("error", "warn", "off"):
        raise InputError(f"verify is {verify!r}", expected='"error", "warn" or "off"')
    given = grids.load(encodings) if isinstance(encodings, str | Path) else encodings
    options = Options(
        example_inputs=example_inputs,
        calibration_data=calibration_data,
        forward=forward,
        effort=effort,
        overrides=overrides or {},
        encodings=given,
        unmatched_encodings=unmatched_encodings,
        passes=passes,
        pipeline=pipeline,
        seed=seed,
        memory=memory,
        device=device,
    )
    learned = prepared(model)
    if learned is not None:
        _check_learned(learned, target, (example_inputs, calibration_data, forward, overrides, given, passes, pipeline))
    hardware = load_target("int8_dsp" if target is None else target) if learned is None else learned.target
    chosen = options.deployment_passes(hardware) if learned is None else lowering_passes()
    if hardware.simulation is not None:
        raise UnsupportedError(
            f"the target {hardware.name} is for simulation only: {hardware.simulation.reason}",
            fix="Compile for a target that is a piece of hardware, such as int8_dsp.",
        )
    destination = None if output is None else Artifact.destination(output)
    source = load_model(model) if learned is None else learned
    check_forward(source, options)
    with (
        processes() as group,
        _held(destination, group),
        steps(len(chosen) + 3, show=group.rank == 0) as progress,
    ):
        journal = Journal(None if destination is None else destination.finished, group)
        session = Session(source, hardware, options, chosen, group=group, journal=journal, progress=progress)
        try:
            compiled = _compiled(session, verify)
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


def _compiled(session: Session, verify: OnFailure) -> Compiled:
    """The artifact of a session, its forms compared.

    Raises:
        VerificationError: A form differs, and `verify` is "error".
    """
    unverified, samples = session.artifact(), session.samples
    quantized, integer = session.quantized.module, session.integer.module
    verification = None
    if verify != "off":
        forms = _forms(unverified, quantized, integer)
        verification = verify_forms(forms, samples, session.target, seed=session.options.seed)
    session.progress.finished("verify")
    if verification is not None and not verification.passed:
        message = f"the forms of the model disagree:\n{verification}"
        if verify == "error":
            raise VerificationError(message, fix="Nothing was written. The first tensor named is where to look.")
        warnings.warn(message, stacklevel=2)
    artifact = unverified if verification is None else session.artifact(verification.to_dict())
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
            "a module of prepare_qat is compiled with arguments that it was prepared with",
            expected="none of example_inputs, calibration_data, forward, overrides, encodings, passes and pipeline",
            fix="Give them to prepare_qat.",
        )
    if target is not None and load_target(target).digest() != model.target.digest():
        raise InputError(
            f"a module that was trained for {model.target.name} is compiled for {load_target(target).name}",
            fix="Leave target= out, or prepare the model for the other target.",
        )


def _forms(artifact: Artifact, quantized: Module, lowered: Module) -> Forms:
    return Forms(artifact.program, artifact.forms, quantized.main, lowered.main, artifact.read_back)

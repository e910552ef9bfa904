"""The command line: `qcompiler compile | check | verify | run | explain | traffic | ...`.

Exit codes: 0 done, 1 refused or failed verification, 2 wrong usage. Results go to stdout, with `--json` as JSON;
progress and diagnostics go to stderr.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import io
import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from qcompiler.cli.arguments import (
    LARGEST,
    Base,
    Changes,
    Effort,
    FixedInputs,
    Folder,
    InputShapes,
    Json,
    Normalization,
    OverrideOptions,
    TargetName,
    read_calibration,
    read_fixed_inputs,
    read_model,
    read_overrides,
    read_target,
    target_names,
)
from qcompiler.cli.printing import one_line, print_json, print_table, say
from qcompiler.cli.searches import app
from qcompiler.cli.words import in_options
from qcompiler.errors import (
    CaptureError,
    InputError,
    QCompilerError,
    UnsupportedError,
    VerificationError,
)
from qcompiler.storage.writing import write_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qcompiler.verification.report import Report


class OnFailure(enum.StrEnum):
    """Action after a failed verification."""

    error = "error"
    warn = "warn"
    off = "off"


class Io(enum.StrEnum):
    """Type at inputs and outputs of the program."""

    float = "float"
    uint8 = "uint8"
    int8 = "int8"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Arguments without the program's name; None for the arguments of this process.

    Returns:
        The exit code.
    """
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the terminal's encoding may lack characters of a name
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe
        _discard(sys.stdout)
        return 1
    except OSError as error:
        _discard(sys.stdout)
        say(f"error: cannot write the results: {error.strerror}")
        return 1
    return code


def _run(arguments: Sequence[str] | None) -> int:
    """Run the command line, without flushing its output; see `main`."""
    try:
        stopped = app(arguments, standalone_mode=False)
    except QCompilerError as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        # These classes show lines of code or tables. In all others a line break can only come from a name of the user.
        shows_lines = isinstance(error, CaptureError | UnsupportedError | VerificationError)
        say(in_options(f"error: {str(error).rstrip()}{notes}" if shows_lines else f"error: {one_line(error)}{notes}"))
        return 1
    except (typer.Abort, KeyboardInterrupt):
        say("aborted")
        return 1
    except MemoryError:
        say("error: out of memory. Use fewer samples or a smaller --batch-size.")
        return 1
    except BrokenPipeError:
        raise
    except Exception as error:  # usage errors of the parser, which have `show`, and defects
        if hasattr(error, "show"):
            error.show()
            return 2
        if isinstance(error, OSError):
            if error.filename is None:
                raise  # an error of a stream
            say(f"error: {str(error.filename)[:200]!r} cannot be accessed: {error.strerror}")
            return 1
        say(_defect(error))
        return 1
    if stopped == INTERRUPTED:
        say("aborted")
        return 1
    return stopped if isinstance(stopped, int) else 0  # the code of typer.Exit


INTERRUPTED = 130
"""Exit code of typer for an interrupt from the keyboard."""
DEBUG = "QCOMPILER_DEBUG"
"""Environment variable; with any value, the message of a defect includes its traceback."""


def _defect(error: Exception) -> str:
    """The message for an unexpected exception."""
    if os.environ.get(DEBUG):
        return "".join(traceback.format_exception(error)).rstrip()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"error: this is a defect in qcompiler: {text} (at {Path(frame.filename).name}:{frame.lineno}). "
        f"Please report it with the traceback, which {DEBUG}=1 shows."
    )


def _discard(stream: TextIO | None) -> None:
    """Redirect a closed stream to the null device, so that the interpreter can flush it at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[union-attr]


def _print_version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        typer.echo(f"qcompiler {metadata.version('qcompiler')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", metavar="", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Compile PyTorch models to verified integer programs."""


@app.command()
def compile(  # the field's word for it
    model: Annotated[
        str, typer.Argument(help="Function that returns the model, as package.module:function, or a .pt2 file.")
    ],
    target: TargetName = "int8_dsp",
    base: Base = None,
    changes: Changes = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the artifact.")] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Calibration data (.npz, .npy, .safetensors or .pt, samples on the first axis), or folder of images."
        ),
    ] = None,
    normalize: Annotated[
        Normalization,
        typer.Option(help="Normalization of images: pixels from 0 to 1, from -1 to 1, or as for ImageNet."),
    ] = Normalization.unit,
    batch_size: Annotated[int, typer.Option(min=1, max=LARGEST, help="Samples per calibration batch.")] = 32,
    override: OverrideOptions = None,
    fixed_input: FixedInputs = None,
    input_shape: InputShapes = None,
    encodings: Annotated[
        Path | None,
        typer.Option(help="File of encodings (version 0.6.1, 1.0.0 or 2.0.0) whose scales and zero points are used."),
    ] = None,
    ignore_unmatched: Annotated[
        bool, typer.Option("--ignore-unmatched", help="Ignore encodings that match no tensor.", metavar="")
    ] = False,
    effort: Annotated[Effort, typer.Option(help="Time to spend on accuracy.")] = Effort.default,
    pipeline: Annotated[str | None, typer.Option(help="Passes as text, in place of the default pipeline.")] = None,
    io: Annotated[
        Io, typer.Option(help="Type at inputs and outputs of the C and the ONNX file: real numbers, or codes.")
    ] = Io.float,
    verify: Annotated[OnFailure, typer.Option(help="Action after a failed verification.")] = OnFailure.error,
    seed: Annotated[int, typer.Option(min=0, help="Seed for all random number generators.")] = 0,
    memory: Annotated[
        int, typer.Option(min=0, max=LARGEST, help="Memory for cached activations in MiB; the rest is stored on disk.")
    ] = 1024,
    as_json: Json = False,
) -> None:
    """Compile a model and verify the result."""
    import qcompiler
    from qcompiler.ir.diagnostics import SUMMARY

    subject, example = read_model(model, input_shape)
    fixed = read_fixed_inputs(fixed_input or [])
    data = (
        None
        if calibration is None
        else read_calibration(calibration, batch_size, normalize.value, subject, example, fixed)
    )
    compiled = qcompiler.compile(
        subject,
        read_target(target, base, changes or []),
        example_inputs=example,
        fixed_inputs=fixed,
        calibration_data=data,
        overrides=read_overrides(override or []),
        encodings=encodings,
        unmatched_encodings="ignore" if ignore_unmatched else "error",
        effort=effort.value,
        pipeline=pipeline,
        io=io.value,
        verify=verify.value,
        seed=seed,
        memory=memory,
        output=output,
    )
    for item in compiled.diagnostics:
        if item.code not in SUMMARY:
            typer.echo(in_options(f"note: {item}"), err=True)
    report = compiled.verification
    if as_json:
        print_json(
            {
                "target": compiled.target.name,
                "output": None if output is None else str(output),
                "verification": None if report is None else report.to_dict(),
                "diagnostics": [{**item.plain(), "text": str(item)} for item in compiled.diagnostics],
                "seconds": dict(compiled.seconds),
                "bytes": {name: len(data) for name, data in compiled.artifact.files().items()},
                "memory": compiled.artifact.memory,
                "estimate": compiled.artifact.estimate.to_dict(),
            }
        )
        return
    _print_report(report)
    for item in compiled.diagnostics:
        if item.code in SUMMARY:
            typer.echo(str(item))
    if compiled.artifact.memory:
        sizes = ", ".join(f"{name} {size}" for name, size in compiled.artifact.memory.items())
        typer.echo(f"activation memory in bytes: {sizes}")
    typer.echo(str(compiled.artifact.estimate))
    if output is not None:
        typer.echo(f"written to {output}")


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="Model, as for compile.")],
    target: TargetName = "int8_dsp",
    base: Base = None,
    changes: Changes = None,
    override: OverrideOptions = None,
    fixed_input: FixedInputs = None,
    input_shape: InputShapes = None,
    as_json: Json = False,
) -> None:
    """Show what compile would fold, fuse, quantize, keep in float or refuse, and give advice on the model."""
    import qcompiler

    subject, example = read_model(model, input_shape)
    fixed = read_fixed_inputs(fixed_input or [])
    found = qcompiler.check(
        subject,
        read_target(target, base, changes or []),
        example_inputs=example,
        fixed_inputs=fixed,
        overrides=read_overrides(override or []),
    )
    if as_json:
        print_json(found.to_dict())
    else:
        for text in found.diagnostics:
            typer.echo(in_options(f"note: {text}"), err=True)
        rows = [(node.fate, node.name, node.op, node.detail) for node in found.nodes]
        print_table(("fate", "node", "op", "detail"), rows)
        for item in found.advice:
            names = ", ".join(item.nodes[:4]) + (f" and {len(item.nodes) - 4} more" if len(item.nodes) > 4 else "")
            typer.echo(in_options(f"{item.rule} ({names}): {item.text}"))
    if not found.passed:
        raise typer.Exit(1)


@app.command()
def verify(
    artifact: Folder,
    inputs: Annotated[Path | None, typer.Option(help="Inputs for the comparison; random by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random inputs.")] = 0,
    as_json: Json = False,
) -> None:
    """Check the hashes of an artifact, and compare its forms with each other."""
    import qcompiler
    from qcompiler.cli.inputs import load_tensors

    loaded = qcompiler.load(artifact)
    report = loaded.verify(*(() if inputs is None else load_tensors(inputs)), seed=seed)
    for item in report.diagnostics:
        typer.echo(in_options(f"note: {item}"), err=True)
    if as_json:
        print_json(report.to_dict())
    else:
        _print_report(report)
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def run(
    artifact: Folder,
    inputs: Annotated[Path, typer.Argument(help="Inputs of the model: .npz, .npy, .safetensors or .pt.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the outputs: .npz.")] = None,
    as_json: Json = False,
) -> None:
    """Run the integer program of an artifact."""
    import numpy as np

    import qcompiler
    from qcompiler.cli.inputs import load_tensors
    from qcompiler.ir import tree

    loaded = qcompiler.load(artifact)
    results, _ = tree.flatten(loaded.run(*load_tensors(inputs)))
    arrays = {f"output_{index}": tensor.numpy() for index, tensor in enumerate(results)}
    if output is not None:
        if output.suffix != ".npz":
            raise InputError(f"--output is {output.name!r}", expected="a name that ends in .npz")
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        write_file(output, buffer.getvalue())
    if as_json:
        print_json({name: array.tolist() for name, array in arrays.items()})
    elif output is None:
        for name, array in arrays.items():
            typer.echo(f"{name} {list(array.shape)}\n{array}")
    else:
        typer.echo(f"written to {output}")


class Version(enum.StrEnum):
    """Version of a file of encodings; see `backends.encodings.write`."""

    v0_6_1 = "0.6.1"
    v1_0_0 = "1.0.0"
    v2_0_0 = "2.0.0"


@app.command()
def encodings(
    artifact: Folder,
    version: Annotated[Version, typer.Option(help="Version of the format.")] = Version.v1_0_0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; stdout by default.")] = None,
) -> None:
    """Write the encoding of each tensor as JSON in the format of AIMET."""
    import qcompiler

    text = qcompiler.load(artifact).encodings(version.value)
    if output is None:
        typer.echo(text, nl=False)
        return
    write_file(output, text.encode())
    typer.echo(f"written to {output}")


@app.command()
def estimate(artifact: Folder, as_json: Json = False) -> None:
    """Estimate cycles, time and bytes moved per instruction from the figures of the target; nothing is measured."""
    import qcompiler

    found = qcompiler.load(artifact).estimate
    if as_json:
        print_json(found.to_dict())
        return
    rows = [
        (
            layer.name,
            layer.op,
            layer.macs,
            sum(layer.bytes.values()),
            "?" if layer.compute_cycles is None else layer.compute_cycles,
            ", ".join(f"{name} {cycles}" for name, cycles in layer.memory_cycles.items()) or "?",
            "?" if layer.cycles is None else layer.cycles,
            layer.bound,
        )
        for layer in found.layers
    ]
    print_table(("tensor", "operation", "products", "bytes", "compute", "memory", "cycles", "bound by"), rows)
    typer.echo(str(found))


@app.command()
def explain(
    artifact: Folder,
    node: Annotated[str, typer.Argument(help="Name of a node, or a module path such as features.0.")],
    as_json: Json = False,
) -> None:
    """Show what each pass did to a node, and why."""
    import qcompiler

    text = qcompiler.load(artifact).explain(node)
    if as_json:
        print_json(text.splitlines())
    else:
        typer.echo(text)


@app.command()
def targets(
    name: Annotated[
        str | None, typer.Argument(help="Name of a target, or path of a .toml file.", autocompletion=target_names)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the known targets, or show the arithmetic, facts and unknowns of one target."""
    import qcompiler

    if name is not None:
        target = qcompiler.load_target(name)
        known = {"target": target.name, "description": target.descriptor.target.description}
        facts = [*known.items(), *target.summary(), *target.facts()]
        if as_json:
            print_json({**known, "facts": facts, "descriptor": json.loads(target.to_json())})
        else:
            print_table(("", ""), facts)
        return
    rows = {name: qcompiler.load_target(name).descriptor.target.description for name in qcompiler.targets()}
    if as_json:
        print_json(rows)
    else:
        print_table(("target", "description"), list(rows.items()))


@app.command()
def passes(as_json: Json = False) -> None:
    """List the passes that a pipeline can use, with their options."""
    from qcompiler.session.pipeline import known_passes

    rows = []
    for name, cls in known_passes().items():
        options = ", ".join(f"{field.name.replace('_', '-')}={field.default}" for field in dataclasses.fields(cls))
        summary = (cls.__doc__ or "").strip().splitlines() or [""]
        rows.append((name, options, summary[0]))
    if as_json:
        print_json([{"name": name, "options": options, "summary": text} for name, options, text in rows])
    else:
        print_table(("pass", "options", "summary"), rows)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the artifact.")] = Path("out/digits"),
    as_json: Json = False,
) -> None:
    """Compile a network for handwritten digits, and compare its accuracy before and after."""
    from qcompiler.cli import demo as example

    result = example.run(output)
    if as_json:
        print_json(dataclasses.asdict(result))
    else:
        typer.echo(str(result))
    if not result.passed:
        raise typer.Exit(1)


def _print_report(report: Report | None) -> None:
    from qcompiler.verification.report import integer_kernels

    if report is None:
        typer.echo("not verified")
        return
    rows = [
        (form.name, form.status if form.status != "not run" else f"not run: {form.reason}", form.tensors, form.elements)
        + ((form.differing, form.largest, form.first) if form.status != "not run" else ("", "", ""))
        for form in report.forms
    ]
    head = ("form", "status", "tensors", "elements", "differing", "LSB", "first tensor")
    typer.echo(f"compared with the {report.reference} on {report.samples} samples:")
    print_table(head, rows)
    for sentence in integer_kernels(report.integer_macs):
        typer.echo(sentence)


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    typer.echo(f"warning: {message}", err=True)

"""The command line: `qcompiler compile | verify | run | explain | targets | passes | demo`.

Exit codes: 0 done, 1 refused or failed verification, 2 wrong usage. Results go to stdout, with `--json` as JSON;
progress and diagnostics go to stderr.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcompiler.errors import ArtifactError, InputError, NotSupportedYetError, QCompilerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch

    from qcompiler.verify import Report

app = typer.Typer(
    name="qcompiler",
    help="Compile PyTorch models to verified integer programs.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[Path, typer.Argument(help="An artifact folder.")]


class OnFailure(enum.StrEnum):
    """What a failed verification does."""

    error = "error"
    warn = "warn"
    off = "off"


class Effort(enum.StrEnum):
    """How hard the compiler tries."""

    fast = "fast"
    default = "default"
    best = "best"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; those of the process when None.

    Returns:
        The exit code.
    """
    warnings.showwarning = _show_warning
    try:
        stopped = app(arguments, standalone_mode=False)
    except QCompilerError as error:
        typer.echo(f"error: {error}", err=True)
        for note in getattr(error, "__notes__", ()):
            typer.echo(f"  {note}", err=True)
        return 1
    except typer.Abort:
        typer.echo("aborted", err=True)
        return 1
    except Exception as error:  # usage errors of the parser: all have `show` and an exit code
        if not hasattr(error, "show"):
            raise
        error.show()
        return 2
    return stopped if isinstance(stopped, int) else 0  # what typer.Exit carried


@app.command()
def compile(  # the field's word for it
    model: Annotated[str, typer.Argument(help="package.module:function that returns the model, or a .pt2 file.")],
    target: Annotated[str, typer.Option("--target", "-t", help="Name, or path of a .toml file.")] = "int8_dsp",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Artifact folder to write.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Inputs, samples along the first axis: .npz, .npy, .safetensors or .pt.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per calibration batch.")] = 32,
    override: Annotated[list[str] | None, typer.Option(help="PATTERN=BITS; may be repeated.")] = None,
    effort: Annotated[Effort, typer.Option(help="fast, default or best.")] = Effort.default,
    pipeline: Annotated[str | None, typer.Option(help="Passes as text, instead of the default ones.")] = None,
    verify: Annotated[OnFailure, typer.Option(help="What a failed verification does.")] = OnFailure.error,
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    as_json: Json = False,
) -> None:
    """Compile a model and verify the result."""
    import qcompiler

    subject, example = _model(model)
    data = None if calibration is None else list(_batches(_tensors(calibration), batch_size))
    compiled = qcompiler.compile(
        subject,
        target,
        example_inputs=example,
        calibration_data=data,
        overrides=_overrides(override or []),
        effort=effort.value,
        pipeline=pipeline,
        verify=verify.value,
        seed=seed,
        output=output,
    )
    for text in compiled.diagnostics:
        typer.echo(f"note: {text}", err=True)
    report = compiled.verification
    if as_json:
        _print_json(
            {
                "target": compiled.target.name,
                "output": None if output is None else str(output),
                "verification": None if report is None else report.to_dict(),
                "seconds": dict(compiled.seconds),
                "bytes": {name: len(data) for name, data in compiled.artifact.files().items()},
            }
        )
        return
    _print_report(report)
    if output is not None:
        typer.echo(f"written to {output}")


@app.command()
def verify(
    artifact: Folder,
    inputs: Annotated[Path | None, typer.Option(help="Inputs to compare on; made up when absent.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is made up.")] = 0,
    as_json: Json = False,
) -> None:
    """Check the hashes of an artifact, and run its forms against each other."""
    import qcompiler

    loaded = qcompiler.load(artifact)
    report = loaded.verify(*(() if inputs is None else _tensors(inputs)), seed=seed)
    if as_json:
        _print_json(report.to_dict())
    else:
        _print_report(report)
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def run(
    artifact: Folder,
    inputs: Annotated[Path, typer.Argument(help="The model's inputs: .npz, .npy, .safetensors or .pt.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the outputs: .npz.")] = None,
    as_json: Json = False,
) -> None:
    """Run the integer program of an artifact."""
    import numpy as np

    import qcompiler
    from qcompiler.ir import tree

    loaded = qcompiler.load(artifact)
    results, _ = tree.flatten(loaded.run(*_tensors(inputs)))
    arrays = {f"output_{index}": tensor.numpy() for index, tensor in enumerate(results)}
    if output is not None:
        if output.suffix != ".npz":
            raise InputError(f"the output is {output.name!r}", expected="a name that ends in .npz")
        np.savez(output, allow_pickle=False, **arrays)
    if as_json:
        _print_json({name: array.tolist() for name, array in arrays.items()})
    elif output is None:
        for name, array in arrays.items():
            typer.echo(f"{name} {list(array.shape)}\n{array}")
    else:
        typer.echo(f"written to {output}")


@app.command()
def explain(
    artifact: Folder,
    node: Annotated[str, typer.Argument(help="Name of a node, or a module path such as features.0.")],
    as_json: Json = False,
) -> None:
    """What each pass did to a node, and why."""
    import qcompiler

    text = qcompiler.load(artifact).explain(node)
    if as_json:
        _print_json(text.splitlines())
    else:
        typer.echo(text)


@app.command()
def targets(as_json: Json = False) -> None:
    """The targets that can be named."""
    import qcompiler

    rows = {name: qcompiler.load_target(name).descriptor.target.description for name in qcompiler.targets()}
    if as_json:
        _print_json(rows)
    else:
        _print_table(("target", "description"), list(rows.items()))


@app.command()
def passes(as_json: Json = False) -> None:
    """The passes that a pipeline can name, with their options."""
    from qcompiler.pipeline import known_passes

    rows = []
    for name, cls in known_passes().items():
        options = ", ".join(f"{field.name.replace('_', '-')}={field.default}" for field in dataclasses.fields(cls))
        summary = (cls.__doc__ or "").strip().splitlines() or [""]
        rows.append((name, options, summary[0]))
    if as_json:
        _print_json([{"name": name, "options": options, "summary": text} for name, options, text in rows])
    else:
        _print_table(("pass", "options", "summary"), rows)


@app.command()
def analyze(model: Annotated[str, typer.Argument(help="As for compile.")]) -> None:
    """Tell which layers suffer from quantization. Not supported yet."""
    raise NotSupportedYetError(f"the analysis of {model}", fix="Use qcompiler verify and the report of the artifact.")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Artifact folder to write.")] = Path("out/digits"),
    as_json: Json = False,
) -> None:
    """Compile a network for handwritten digits, and show what became of its accuracy."""
    from qcompiler import demo as example

    result = example.run(output)
    if as_json:
        _print_json(dataclasses.asdict(result))
    else:
        typer.echo(str(result))
    if not result.passed:
        raise typer.Exit(1)


def _model(text: str) -> tuple[Any, object]:
    """The model that a command line names, and the example inputs that its function gives beside it."""
    if Path(text).suffix in (".pt2", ".onnx"):
        return text, None
    module, colon, function = text.partition(":")
    if not colon or not module or not function:
        raise InputError(f"the model is {text!r}", expected="package.module:function, or a .pt2 file")
    sys.path.insert(0, "")
    try:
        item = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{text!r} cannot be imported: {error}", fix="Run from the folder of the module.") from error
    finally:
        sys.path.remove("")
    result = item() if callable(item) and not hasattr(item, "forward") else item
    return result if isinstance(result, tuple) and len(result) == 2 else (result, None)


def _overrides(texts: Iterable[str]) -> dict[str, int | str]:
    result: dict[str, int | str] = {}
    for text in texts:
        pattern, equals, value = text.rpartition("=")
        if not equals or not pattern:
            raise InputError(f"the override is {text!r}", expected="PATTERN=BITS, such as features.0=16")
        result[pattern] = int(value) if value.isdigit() else value
    return result


def _tensors(path: Path) -> tuple[torch.Tensor, ...]:
    """The arrays of a file, in the order of their names' appearance."""
    import numpy as np
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        match path.suffix:
            case ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    return tuple(torch.from_numpy(arrays[name]) for name in arrays.files)
            case ".npy":
                return (torch.from_numpy(np.load(path, allow_pickle=False)),)
            case ".safetensors":
                return tuple(load_file(path).values())
            case ".pt" | ".pth":
                item = torch.load(path, weights_only=True, map_location="cpu")  # noqa: TID251  # tensors only: runs no code
                items = (
                    list(item.values())
                    if isinstance(item, dict)
                    else item
                    if isinstance(item, tuple | list)
                    else [item]
                )
                if all(isinstance(x, torch.Tensor) for x in items):
                    return tuple(items)
                raise InputError(f"{path} holds something else than tensors", expected="a tensor, or several")
    except FileNotFoundError:
        raise InputError(f"there is no file {str(path)!r}") from None
    except (OSError, ValueError, EOFError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    raise InputError(f"{path.name!r} is of an unknown kind", expected=".npz, .npy, .safetensors or .pt")


def _batches(tensors: tuple[torch.Tensor, ...], size: int) -> Iterable[tuple[torch.Tensor, ...]]:
    """The samples of `tensors` in batches; one tuple of arguments per batch."""
    count = min((len(x) for x in tensors if x.dim()), default=0)
    for start in range(0, count, size):
        yield tuple(x[start : start + size] for x in tensors)


def _print_report(report: Report | None) -> None:
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
    _print_table(head, rows)
    if report.integer_macs is not None:
        typer.echo(f"ONNX Runtime does {100 * report.integer_macs:.1f} % of the products in integer kernels")


def _print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(head):
        numbers = bool(rows) and all(isinstance(row[index], int) or row[index] == "" for row in rows)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a pipe has no width: do not fold what others parse
    console.print(table)


def _print_json(data: object) -> None:
    typer.echo(json.dumps(data, indent=1))


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    typer.echo(f"warning: {message}", err=True)

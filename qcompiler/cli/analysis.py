"""Commands that examine a model: `qcompiler analyze | compare | debug | traffic`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcompiler.cli.arguments import (
    LARGEST,
    Base,
    BatchSize,
    Calibration,
    Changes,
    Effort,
    FixedInputs,
    Folder,
    InputShapes,
    Json,
    Normalization,
    Normalize,
    OverrideOptions,
    Seed,
    TargetName,
    app,
    read_calibration,
    read_fixed_inputs,
    read_function,
    read_model,
    read_overrides,
    read_target,
)
from qcompiler.cli.printing import print_json, print_table

if TYPE_CHECKING:
    from qcompiler.analysis.findings import Analysis

__all__ = ["app"]


@app.command()
def compare(
    dump: Annotated[Path, typer.Argument(help="Codes of a device by tensor, .npz, as NAME_dump.c writes them.")],
    artifact: Folder,
    as_json: Json = False,
) -> None:
    """Compare the results of a device with the integer program: the first step that differs, by how much, and why."""
    import qcompiler
    from qcompiler.verification.compare_dump import compare_dump, read_dump

    found = compare_dump(read_dump(dump), qcompiler.load(artifact).program)
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(str(found))
    if not found.equal:
        raise typer.Exit(1)


@app.command()
def traffic(
    model: Annotated[str, typer.Argument(help="Model, as for compile.")],
    target: TargetName = "int8_dsp",
    base: Base = None,
    changes: Changes = None,
    override: OverrideOptions = None,
    fixed_input: FixedInputs = None,
    input_shape: InputShapes = None,
    batch: Annotated[int, typer.Option(min=1, max=LARGEST, help="Samples per step.")] = 1,
    gradient_bits: Annotated[
        int, typer.Option(min=0, max=16, help="Width of gradients; 0 leaves out the backward pass.")
    ] = 8,
    accumulator_bits: Annotated[
        int | None, typer.Option(min=16, max=64, help="Width of accumulators; by default that of the target.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count the bytes that each layer moves with static and with dynamic quantization ranges, forward and backward."""
    import qcompiler

    subject, example = read_model(model, input_shape)
    fixed = read_fixed_inputs(fixed_input or [])
    found = qcompiler.memory_movement(
        subject,
        read_target(target, base, changes or []),
        example_inputs=example,
        fixed_inputs=fixed,
        batch=batch,
        gradient_bits=gradient_bits or None,
        accumulator_bits=accumulator_bits,
        overrides=read_overrides(override or []),
    )
    if as_json:
        print_json(found.to_dict())
        return
    print_table(found.HEAD, found.table())
    typer.echo(found.summary())


Evaluate = Annotated[
    str | None,
    typer.Option(help="Function of the model that returns a score, larger is better: package.module:function."),
]
Efforts = Annotated[Effort, typer.Option(help="Effort of the analyzed compile.")]
Samples = Annotated[int, typer.Option(min=1, max=LARGEST, help="Samples on which tensors are measured.")]
Budget = Annotated[str, typer.Option(help="Quantized models that are scored, or a time such as 20min, 90s or 1.5h.")]
Work = Annotated[
    Path | None, typer.Option(help="Folder for finished measurements; an interrupted command goes on from there.")
]
ReportFile = Annotated[Path | None, typer.Option("--report", help="HTML page to write.")]


@app.command()
def analyze(
    model: Annotated[str, typer.Argument(help="Model, as for compile.")],
    calibration: Calibration,
    target: TargetName = "int8_dsp",
    base: Base = None,
    changes: Changes = None,
    evaluate: Evaluate = None,
    normalize: Normalize = Normalization.unit,
    batch_size: BatchSize = 32,
    override: OverrideOptions = None,
    fixed_input: FixedInputs = None,
    effort: Efforts = Effort.default,
    samples: Samples = 32,
    budget: Budget = "24",
    work: Work = None,
    seed: Seed = 0,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """Find the layers that lose accuracy by quantization, the causes, and keywords of compile that help."""
    chosen = (
        target,
        base,
        changes,
        evaluate,
        normalize,
        batch_size,
        override,
        fixed_input,
        effort,
        samples,
        budget,
        work,
        seed,
    )
    found = _analyzed(model, calibration, *chosen)
    if report is not None:
        found.report(report)
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(str(found))


@app.command()
def debug(
    model: Annotated[str, typer.Argument(help="Model, as for compile.")],
    calibration: Calibration,
    target: TargetName = "int8_dsp",
    base: Base = None,
    changes: Changes = None,
    evaluate: Evaluate = None,
    normalize: Normalize = Normalization.unit,
    batch_size: BatchSize = 32,
    override: OverrideOptions = None,
    fixed_input: FixedInputs = None,
    effort: Efforts = Effort.default,
    samples: Samples = 32,
    budget: Budget = "24",
    work: Work = None,
    seed: Seed = 0,
    allowed_drop: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Share of the float score that may be lost.")
    ] = 0.01,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """Walk through the debugging flow of the white paper: each fix in order, and the score after it."""
    chosen = (
        target,
        base,
        changes,
        evaluate,
        normalize,
        batch_size,
        override,
        fixed_input,
        effort,
        samples,
        budget,
        work,
        seed,
    )
    analysis = _analyzed(model, calibration, *chosen)
    found = analysis.diagnose(allowed_drop)
    if report is not None:
        analysis.report(report, found)
    if as_json:
        print_json(found.to_dict())
        return
    typer.echo(str(found))
    if found.keywords:
        typer.echo(f"qcompiler.compile(..., {found.keywords})")


def _analyzed(
    model: str,
    calibration: Path,
    target: str,
    base: str | None,
    changes: list[str] | None,
    evaluate: str | None,
    normalize: Normalization,
    batch_size: int,
    override: list[str] | None,
    fixed_input: list[str] | None,
    effort: Effort,
    samples: int,
    budget: str,
    work: Path | None,
    seed: int,
) -> Analysis:
    import qcompiler

    subject, example = read_model(model)
    fixed = read_fixed_inputs(fixed_input or [])
    return qcompiler.analyze(
        subject,
        read_target(target, base, changes or []),
        read_calibration(calibration, batch_size, normalize.value, subject, example, fixed),
        None if evaluate is None else read_function(evaluate),
        example_inputs=example,
        fixed_inputs=fixed,
        effort=effort.value,
        overrides=read_overrides(override or []),
        samples=samples,
        budget=budget,
        work=work,
        seed=seed,
    )

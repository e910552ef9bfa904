"""Commands that search for a way to quantize a model: `qcompiler autoquant`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompiler.cli.analysis import app
from qcompiler.cli.arguments import (
    LARGEST,
    Base,
    BatchSize,
    Calibration,
    Changes,
    Json,
    Normalization,
    Normalize,
    OverrideOptions,
    Seed,
    TargetName,
    read_calibration,
    read_function,
    read_model,
    read_overrides,
    read_target,
)
from qcompiler.cli.printing import print_json

__all__ = ["app"]


@app.command()
def autoquant(
    model: Annotated[str, typer.Argument(help="Model, as for compile.")],
    calibration: Calibration,
    evaluate: Annotated[
        str,
        typer.Option(help="Function of the model that returns a score, larger is better: package.module:function."),
    ],
    target: TargetName = "int8_dsp",
    base: Base = None,
    changes: Changes = None,
    allowed_drop: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Share of the float score that may be lost.")
    ] = 0.01,
    budget: Annotated[str, typer.Option(help="Number of evaluations, or a time such as 20min, 90s or 1.5h.")] = "40",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the artifact of the best candidate so far.")
    ] = None,
    normalize: Normalize = Normalization.unit,
    batch_size: BatchSize = 32,
    override: OverrideOptions = None,
    seed: Seed = 0,
    memory: Annotated[
        int, typer.Option(min=0, max=LARGEST, help="Memory for cached activations in MiB; the rest is stored on disk.")
    ] = 1024,
    as_json: Json = False,
) -> None:
    """Search for the cheapest way to quantize a model within an allowed drop of its score."""
    import qcompiler

    subject, example = read_model(model)
    found = qcompiler.autoquant(
        subject,
        read_target(target, base, changes or []),
        read_calibration(calibration, batch_size, normalize.value, subject, example),
        read_function(evaluate),
        allowed_drop,
        budget=budget,
        output=output,
        example_inputs=example,
        overrides=read_overrides(override or []),
        seed=seed,
        memory=memory,
    )
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(str(found))
        if output is not None:
            typer.echo(f"written to {output}")
    if not found.met:
        raise typer.Exit(1)

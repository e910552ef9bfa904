"""Commands that search for a way to quantize a model: `qcompiler autoquant | mixed-precision`."""

from __future__ import annotations

import enum
import re
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
    Effort,
    FixedInputs,
    Json,
    Normalization,
    Normalize,
    OverrideOptions,
    Seed,
    TargetName,
    read_calibration,
    read_fixed_inputs,
    read_function,
    read_model,
    read_overrides,
    read_target,
)
from qcompiler.cli.printing import print_json
from qcompiler.errors import InputError

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
    fixed_input: FixedInputs = None,
    seed: Seed = 0,
    memory: Annotated[
        int, typer.Option(min=0, max=LARGEST, help="Memory for cached activations in MiB; the rest is stored on disk.")
    ] = 1024,
    as_json: Json = False,
) -> None:
    """Search for the cheapest way to quantize a model within an allowed drop of its score."""
    import qcompiler

    subject, example = read_model(model)
    fixed = read_fixed_inputs(fixed_input or [])
    found = qcompiler.autoquant(
        subject,
        read_target(target, base, changes or []),
        read_calibration(calibration, batch_size, normalize.value, subject, example, fixed),
        read_function(evaluate),
        allowed_drop,
        budget=budget,
        output=output,
        example_inputs=example,
        fixed_inputs=fixed,
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


class Cost(enum.StrEnum):
    """Cost of an assignment of widths; see `mixed_precision`."""

    bit_operations = "bit_operations"
    bytes = "bytes"
    cycles = "cycles"
    energy = "energy"


@app.command("mixed-precision")
def mixed_precision(
    model: Annotated[str, typer.Argument(help="Model, as for compile.")],
    calibration: Calibration,
    target: TargetName = "int8_dsp",
    base: Base = None,
    changes: Changes = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(help="Widths that a layer may have, such as a16w8; may be repeated. By default all that fit."),
    ] = None,
    cost: Annotated[Cost, typer.Option(help="Cost of an assignment, for one sample.")] = Cost.bit_operations,
    evaluate: Annotated[
        str | None,
        typer.Option(help="Function of the model that returns a score, or a score and its standard error."),
    ] = None,
    points: Annotated[int, typer.Option(min=2, max=LARGEST, help="Assignments that are measured.")] = 12,
    at_cost: Annotated[float | None, typer.Option(help="Print the overrides for this largest cost.")] = None,
    at_score: Annotated[float | None, typer.Option(help="Print the overrides for this smallest score in dB.")] = None,
    normalize: Normalize = Normalization.unit,
    batch_size: BatchSize = 32,
    override: OverrideOptions = None,
    fixed_input: FixedInputs = None,
    effort: Annotated[Effort, typer.Option(help="Effort of the compiles.")] = Effort.default,
    samples: Annotated[int, typer.Option(min=1, max=LARGEST, help="Samples on which outputs are compared.")] = 32,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Find the bit widths of each layer for every budget of cost."""
    import qcompiler

    subject, example = read_model(model)
    fixed = read_fixed_inputs(fixed_input or [])
    front = qcompiler.mixed_precision(
        subject,
        read_target(target, base, changes or []),
        read_calibration(calibration, batch_size, normalize.value, subject, example, fixed),
        None if candidate is None else [_widths(text) for text in candidate],
        cost.value,
        None if evaluate is None else read_function(evaluate),
        points=points,
        samples=samples,
        example_inputs=example,
        fixed_inputs=fixed,
        effort=effort.value,
        overrides=read_overrides(override or []),
        seed=seed,
    )
    chosen = None if at_cost is None and at_score is None else front.at(cost=at_cost, score=at_score)
    if as_json:
        print_json(front.to_dict() if chosen is None else chosen)
    else:
        typer.echo(str(front) if chosen is None else front.call(chosen))


def _widths(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"a([0-9]{1,9})w([0-9]{1,9})", text)
    if found is None:
        raise InputError(f"--candidate is {text!r}", expected="widths of activations and weights, such as a16w8")
    return int(found[1]), int(found[2])

"""Commands that examine a model: `qcompiler traffic | analyze`."""

from __future__ import annotations

from typing import Annotated

import typer

from qcompiler.cli.arguments import (
    LARGEST,
    Base,
    Changes,
    Json,
    OverrideOptions,
    TargetName,
    app,
    read_model,
    read_overrides,
    read_target,
)
from qcompiler.cli.printing import print_json, print_table
from qcompiler.errors import NotSupportedYetError

__all__ = ["app"]


@app.command()
def traffic(
    model: Annotated[str, typer.Argument(help="Model, as for compile.")],
    target: TargetName = "int8_dsp",
    base: Base = None,
    changes: Changes = None,
    override: OverrideOptions = None,
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

    subject, example = read_model(model)
    found = qcompiler.memory_movement(
        subject,
        read_target(target, base, changes or []),
        example_inputs=example,
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


@app.command()
def analyze(model: Annotated[str, typer.Argument(help="Model, as for compile.")]) -> None:
    """Find the layers that lose most accuracy by quantization. Not supported yet."""
    raise NotSupportedYetError(f"the analysis of {model}", fix="Use qcompiler verify and the report of the artifact.")

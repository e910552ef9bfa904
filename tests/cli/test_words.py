"""Messages of the library in the words of the command line."""

from __future__ import annotations

import inspect

import pytest
import typer

import qcompiler
from qcompiler.cli.arguments import app
from qcompiler.cli.words import OPTIONS, in_options

SPELLED = {
    'Run it in float, load_target("int8_dsp").override(fallback="float"), or replace it': "Run it in float, --set fallback=float, or replace it",
    "try target.override(per_channel=True, weight_bits=4)": "try --set per_channel=true --set weight_bits=4",
    "overrides={'concat': 16} has no effect": "--override concat=16 has no effect",
    "Override what it reads: overrides={'a.b': 16, 'c*': 'float'}.": "Override what it reads: --override a.b=16 --override 'c*'=float.",
    "overrides={'a': {'activation_bits': 16, 'weight_bits': 4}}": "--override a=a16w4",
    "run the layer in float: overrides={...: 'float'}.": "run the layer in float: --override PATTERN=float.",
    "effort='best' needs calibration_data. Pass calibration_data=, or use effort='default'.": "--effort best needs --calibration. Pass --calibration, or use --effort default.",
    'Use io="float".': "Use --io float.",
    "batch 3 of calibration_data": "batch 3 of --calibration",
    "Ignore them: unmatched_encodings='ignore', or --ignore-unmatched.": "Ignore them: --ignore-unmatched.",
    "Pass example_inputs=: a tensor, a tuple of arguments, or a dict of arguments by name.": "Give --input-shape, or let the function return the model and its example inputs.",
    'Name a target as base: load_target("config.json", base="int8_dsp"), or --base int8_dsp.': "Name a target as base: --base int8_dsp.",
    "the layer audio=3 has target.override(x) and seed = 4": "the layer audio=3 has target.override(x) and seed = 4",
}  # fmt: skip


@pytest.mark.parametrize("text", SPELLED)
def test_arguments_become_options(text: str) -> None:
    assert in_options(text) == SPELLED[text]
    assert in_options(SPELLED[text]) == SPELLED[text]


def test_every_argument_and_every_option_exists() -> None:
    assert set(OPTIONS) <= set(inspect.signature(qcompiler.compile).parameters)
    command = typer.main.get_command(app)
    options = {name for item in command.commands["compile"].params for name in item.opts}  # type: ignore[attr-defined]
    assert {*OPTIONS.values(), "--set", "--base", "--ignore-unmatched"} <= options

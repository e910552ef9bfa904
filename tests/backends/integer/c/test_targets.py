"""Every shipped target in C: networks of all kinds of operators, built without a warning, run under sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcompiler
from examples.digits.data import load_data
from examples.digits.model import load_digits_net
from qcompiler.program.files import ProgramFiles
from tests.backends.integer.c.builds import SANITIZED, STRICT, differing, random_codes
from tests.targets.test_shipped import QUICK, SHIPPED, mixed

SHARED = ("cmsis_nn", "hexagon_htp_a16w8", "int8_dsp", "ort_cpu", "w4a8_npu_blocks")
"""With those of `QUICK` one for each kind of arithmetic and of weights."""


def program(network: str, name: str) -> ProgramFiles:
    if network == "mixed":
        model, x = mixed()
    else:
        model, x = load_digits_net(), load_data().calibration_images[:64]
    compiled = qcompiler.compile(model, name, calibration_data=[x], effort="fast", verify="off")
    return compiled.artifact.program


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in (*QUICK, *SHARED) else [pytest.mark.slow]) for name in SHIPPED]
)
@pytest.mark.parametrize("network", ["mixed", pytest.param("digits", marks=pytest.mark.slow)])
def test_no_element_differs(network: str, name: str, tmp_path: Path) -> None:
    files = program(network, name)
    assert files.program.memory is not None
    flags = ("-O1", *STRICT, *SANITIZED)
    assert not differing(files, random_codes(files, 2), tmp_path, flags, plan=files.program.memory)

"""The model of noise ranks the quantizers of trained networks as measurements do."""

from __future__ import annotations

import pytest

from benchmarks.noise_ranks import LEAST, main


@pytest.mark.parametrize("network", ["mobilenet_hard", "resnet"])
def test_expected_and_measured_losses_have_the_same_ranks(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--networks", network]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    name, quantizers, correlation = (cell.strip() for cell in row.strip("|").split("|"))
    assert name == network
    assert int(quantizers) > 20
    assert LEAST <= float(correlation) <= 1.0

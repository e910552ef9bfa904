"""Networks of torchvision through the whole compiler: two on every run, all with the slow tests."""

from __future__ import annotations

import pytest

from benchmarks import zoo

QUICK = ("squeezenet1_1",)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in zoo.NETWORKS]
)
def test_every_form_of_the_network_agrees(name: str) -> None:
    row = zoo.row(name)
    assert row.differing == 0
    assert row.tensors > 20
    assert row.sqnr > 10, "random weights, 8 bits: a fault gives zero or less"
    assert abs(row.runtime - row.plain) < 0.5, "the file gives the same results in both sessions"
    assert row.layer < 5000

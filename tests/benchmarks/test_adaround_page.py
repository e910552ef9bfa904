"""The section on adaptive rounding, from made-up figures."""

from __future__ import annotations

from typing import Any

from benchmarks.adaround_page import section


def row(layer: str, quotient: float) -> dict[str, Any]:
    return {
        "network": "net",
        "layer": layer,
        "steps": 10_000,
        "shape": [8, 4, 3, 3],
        "seconds": [0.5, 100.0],
        "gram over nearest": [0.5, 0.6],
        "sgd over nearest": [0.55, 0.6],
        "gram over sgd": [[quotient, 0.02], [1.0, 0.01]],
    }


def test_layers_sums_and_the_peer_are_told() -> None:
    own = {"seconds": 4.0, "accuracy": 0.9, "float": 0.95}
    draws = [{"ours": own, "theirs": {"version": "2", "seconds": 400.0, "accuracy": 0.89 - k / 1000}} for k in (0, 1)]
    peer = {"images": 32, "draws": draws}
    text = section([row("a", 0.9)], [row("a", 0.9), row("b", 1.01), row("c", 1.1)], peer, images=7)
    assert (
        "| net | `a` | 8x4x3x3 | 0.500 | 0.550 | 0.900 ± 0.020 | 0.600 | 0.600 | 1.000 ± 0.010 | 0.50 | 100.00 |"
        in text
    )
    assert "| net | 3 | 1.003 | 1.100 | 1 | 1.000 | 1.000 | 0 | 1.5 | 300.0 |" in text
    assert "| draw 0 | 95.00% | 90.00% | 89.00% | 4.0 | 400 | 100 |" in text
    assert "Here it is higher by 1.05 ± 0.64 points" in text
    assert "was not measured: no network." in section([row("a", 1)], [], {"skipped": "no network"}, images=7)

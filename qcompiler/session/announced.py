"""Announced functions that this release does not implement; calling them raises `NotSupportedYetError`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from torch import nn

from qcompiler.errors import NotSupportedYetError
from qcompiler.targets import Target


def analyze(
    model: nn.Module,
    target: str | Path | Target,
    data: Iterable[object],
    evaluate: Callable[[nn.Module], float],
) -> None:
    """Find the layers that lose accuracy through quantization.

    Raises:
        NotSupportedYetError: Always.
    """
    raise NotSupportedYetError("qcompiler.analyze", fix="Use Compiled.verify() and the report.")

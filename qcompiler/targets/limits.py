"""Sizes beyond what an op of the target may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qcompiler.targets.schema import Limits

__all__ = ["Geometry", "beyond"]


@dataclass(frozen=True)
class Geometry:
    """What the limits of a rule are about; None, or nothing, where an op has no such size.

    Args:
        kernel: Size of the window along each axis.
        stride: Along each axis.
        dilation: Along each axis.
        groups: Of a convolution.
        channels: Its input channels.
        terms: Products, or elements, in one sum.
    """

    kernel: Sequence[int] = ()
    stride: Sequence[int] = ()
    dilation: Sequence[int] = ()
    groups: int = 1
    channels: int | None = None
    terms: int | None = None


def beyond(limits: Limits, geometry: Geometry) -> str:
    """Which size is beyond the limits; empty where none is."""
    sizes: Mapping[str, Sequence[int]] = {
        "kernel": geometry.kernel,
        "stride": geometry.stride,
        "dilation": geometry.dilation,
    }
    for name, values in sizes.items():
        ends = getattr(limits, name)
        if ends is not None and any(not ends[0] <= value <= ends[1] for value in values):
            return f"a {name} of {' x '.join(map(str, values))}, where {ends[0]} to {ends[1]} are possible"
    if limits.groups != "any" and geometry.groups != 1:
        depthwise = geometry.groups == geometry.channels
        if limits.groups == "one" or not depthwise:
            return f"{geometry.groups} groups of channels, where {limits.groups.replace('_', ' ')} is possible"
    if limits.terms is not None and geometry.terms is not None and geometry.terms > limits.terms:
        return f"sums of {geometry.terms} products, where {limits.terms} are possible"
    return ""

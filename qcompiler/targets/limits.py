"""Checks of operator sizes against the limits of a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qcompiler.targets.schema import Limits

__all__ = ["Geometry", "beyond"]


@dataclass(frozen=True)
class Geometry:
    """The sizes of an op that a rule may limit; None, or empty, if the op has no such size.

    Args:
        kernel: Size of the window along each axis.
        stride: Step of the window along each axis.
        dilation: Dilation along each axis.
        groups: Number of groups of a convolution.
        channels: Number of input channels of a convolution.
        terms: Number of products, or elements, in one sum.
    """

    kernel: Sequence[int] = ()
    stride: Sequence[int] = ()
    dilation: Sequence[int] = ()
    groups: int = 1
    channels: int | None = None
    terms: int | None = None


def beyond(limits: Limits, geometry: Geometry) -> str:
    """Description of the first size beyond the limits; empty if every size is within them."""
    sizes: Mapping[str, Sequence[int]] = {
        "kernel": geometry.kernel,
        "stride": geometry.stride,
        "dilation": geometry.dilation,
    }
    for name, values in sizes.items():
        ends = getattr(limits, name)
        if ends is not None and any(not ends[0] <= value <= ends[1] for value in values):
            return f"a {name} of {' x '.join(map(str, values))}, but only {ends[0]} to {ends[1]} are possible"
    if limits.groups != "any" and geometry.groups != 1:
        depthwise = geometry.groups == geometry.channels
        if limits.groups == "one" or not depthwise:
            return f"{geometry.groups} groups of channels, but only {limits.groups.replace('_', ' ')} is possible"
    if limits.terms is not None and geometry.terms is not None and geometry.terms > limits.terms:
        return f"sums of {geometry.terms} products, but at most {limits.terms} are possible"
    return ""

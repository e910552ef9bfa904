"""Learned range parameters: nothing, the scale, or the ends of the range.

Each class defines the parameters of a quantizer and how scale and zero point follow from them. `training.quantizer`
computes the gradients of scale and zero point; the chain rule gives those of the parameters.

No scale reaches 0 with any optimizer. `step()` of the training module lets a scale shrink to at most half of
its value, and reflects a step over 0 to between half and the whole of the value. Until that call, a scale at or below 0
counts as the half. The gradient follows the papers and passes straight through to the parameter. Steps of less than
half a scale are unchanged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from qcompiler.errors import InputError
from qcompiler.quant.affine import SMALLEST_SCALE, channel_rows
from qcompiler.quant.rounding import Rounding, round_float
from qcompiler.quant.spec import QuantSpec, ScaleKind

__all__ = [
    "FixedRange",
    "LearnedClip",
    "LearnedEnds",
    "LearnedOffset",
    "LearnedScale",
    "Ranges",
    "RecomputedRange",
]


class Holder(Protocol):
    """A module that holds the parameters of one range."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None: ...

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None: ...

    def add_module(self, name: str, module: nn.Module | None) -> None: ...


_LEAST = 0.5
"""Smallest share of a scale that remains after one optimizer step.

A W8A8 MobileNet after 100 steps of Adam at 0.03, whose scales begin at about 0.01: 69 % accuracy. With a floor at 2^-10
of the first scales, which lets whole layers clip, 8 %: chance.
"""


def limit_of(name: str) -> str:
    """Name of the buffer with the limit of a parameter towards 0."""
    return f"{name}_limit"


def learn(holder: Holder, name: str, value: Tensor, *, limited: bool = True) -> None:
    """Register a parameter in `holder`.

    Args:
        holder: Quantizer.
        name: Name of the parameter.
        value: Initial value.
        limited: Whether the parameter keeps its sign. The limit follows from the parameter and is not saved.
    """
    holder.register_parameter(name, nn.Parameter(value))
    if limited:
        holder.register_buffer(limit_of(name), value.detach() * _LEAST, persistent=False)


@torch.no_grad()
def renew_limits(holder: nn.Module, ranges: Ranges) -> None:
    """Recompute the limits from parameters that were loaded or set by hand."""
    for names, sign in ((ranges.positive, 1.0), (ranges.negative, -1.0)):
        for name in names:
            if limit_of(name) in dict(holder.named_buffers(recurse=False)):
                value, limit = holder.get_parameter(name), _tensor(holder, limit_of(name))
                limit.copy_(torch.where(value * sign > 0, value * _LEAST, limit))


@torch.no_grad()
def hold_signs(holders: Sequence[tuple[nn.Module, Ranges]]) -> None:
    """Correct parameters that an optimizer step moved too near to 0 or across it; see the module text.

    Args:
        holders: Quantizers and their learned range parameters.
    """
    for above in (True, False):
        parameters, limits = [], []
        for holder, ranges in holders:
            for name in ranges.positive if above else ranges.negative:
                limit = getattr(holder, limit_of(name), None)
                if isinstance(limit, Tensor):
                    parameters.append(holder.get_parameter(name).data)
                    limits.append(limit)
        if parameters:
            push = torch._foreach_maximum_ if above else torch._foreach_minimum_
            push(parameters, torch._foreach_mul(limits, -1.0 / _LEAST))  # noqa: SLF001  # one kernel for all
            torch._foreach_abs_(parameters)
            if not above:
                torch._foreach_neg_(parameters)
            push(parameters, limits)
            torch._foreach_copy_(limits, parameters)
            torch._foreach_mul_(limits, _LEAST)


class _AboveZero(torch.autograd.Function):
    """x, or the limit where x is 0 or below; NaN stays. The gradient passes straight through.

    An autograd function is needed because x + (limit - x) may differ from the limit in float32, and may be 0.
    """

    @staticmethod
    def forward(ctx: object, x: Tensor, limit: Tensor) -> Tensor:  # noqa: ARG004  # torch's own signature
        return torch.where(x <= 0, limit, x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004  # as above
        return gradient, None


def _above_zero(x: Tensor, limit: Tensor) -> Tensor:
    return cast("Tensor", _AboveZero.apply(x, limit))


def _limited(holder: nn.Module, name: str) -> Tensor:
    """The parameter, above 0."""
    return _above_zero(_tensor(holder, name), _tensor(holder, limit_of(name)))


@dataclass(frozen=True)
class Ranges(ABC):
    """The learned parameters of a range; frozen and stateless, so that quantizers can share one object."""

    rounding_gradient: ClassVar[bool] = True
    """Whether the rounding error inside the grid contributes to the gradient of the scale."""
    scales: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters in units of a scale."""
    ends: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters in units of the tensor: range ends and offsets."""
    positive: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that stay above 0; see the module text."""
    negative: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that stay below 0."""
    decays: ClassVar[bool] = False
    """Whether the method uses weight decay on its parameters."""

    def learns_zero_point(self, spec: QuantSpec) -> bool:
        """Whether the zero point is computed from parameters."""
        return False

    @abstractmethod
    def register(self, holder: Holder, spec: QuantSpec, scale: Tensor, zero_point: Tensor) -> None:
        """Register parameters and buffers in `holder`, so that `grid` starts at `scale` and `zero_point`."""

    @abstractmethod
    def grid(self, holder: nn.Module, spec: QuantSpec, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale, and zero point as float32 integers; None for a zero point that does not learn."""


def _keep_zero_point(holder: Holder, spec: QuantSpec, zero_point: Tensor) -> None:
    if not spec.symmetric:
        holder.register_buffer("zero_point", zero_point)


def _tensor(holder: nn.Module, name: str) -> Tensor:
    return cast("Tensor", getattr(holder, name))


def _allowed(scale: Tensor, spec: QuantSpec) -> Tensor:
    """The nearest scale that the specification allows, with a straight-through gradient."""
    if spec.scale_kind is not ScaleKind.POW2:
        return scale
    with torch.no_grad():
        exponent = round_float(torch.log2(scale.clamp(min=SMALLEST_SCALE)), Rounding.NEAREST_EVEN)
        power = torch.exp2(exponent)
    return scale + (power - scale).detach()


def _rounded(zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """The nearest code, with a straight-through gradient."""
    with torch.no_grad():
        code = round_float(zero_point, Rounding.NEAREST_EVEN).clamp(spec.qmin, spec.qmax)
    return zero_point + (code - zero_point).detach()


@dataclass(frozen=True)
class FixedRange(Ranges):
    """A fixed range: scale and zero point stay as calibrated."""

    def register(self, holder: Holder, spec: QuantSpec, scale: Tensor, zero_point: Tensor) -> None:
        """Register the buffers `scale` and `zero_point`."""
        holder.register_buffer("scale", scale)
        _keep_zero_point(holder, spec, zero_point)

    def grid(self, holder: nn.Module, spec: QuantSpec, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The fixed scale."""
        return _tensor(holder, "scale"), None


@dataclass(frozen=True)
class RecomputedRange(Ranges):
    """The grid of a weight covers its largest magnitude at every step: scale = max |w| / qmax, without a gradient.

    Source: AIMET's training without range learning, in which the ranges of weights follow the weights.
    """

    def register(self, holder: Holder, spec: QuantSpec, scale: Tensor, zero_point: Tensor) -> None:
        """Register no parameter: the range follows from the weight.

        Raises:
            InputError: The quantizer is asymmetric, so it is not a weight quantizer.
        """
        if not spec.symmetric:
            raise InputError(
                f"a range that is computed at each step cannot be used with the grid {spec}",
                expected="a symmetric grid of a weight",
                fix="Use another method for activations: 'ste' keeps the range, 'lsq' learns it.",
            )

    def grid(self, holder: nn.Module, spec: QuantSpec, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale from the largest magnitude of the weight."""
        with torch.no_grad():
            rows = x.abs() if spec.axis is None else channel_rows(x.abs(), spec.axis)
            largest = (rows.amax() if spec.axis is None else rows.amax(1)).to(torch.float32)
            scale = torch.where(largest > 0, largest / spec.qmax, torch.ones_like(largest))
            return _allowed(scale, spec), None


@dataclass(frozen=True)
class LearnedScale(Ranges):
    """LSQ: the scale is a parameter, the zero point is fixed.

    Source: Esser et al. 2020, arXiv:1902.08153. Starts at the calibrated scale, where the paper starts at
    2 mean|w| / sqrt(qmax).
    """

    scales: ClassVar[tuple[str, ...]] = ("scale",)
    positive: ClassVar[tuple[str, ...]] = ("scale",)

    def register(self, holder: Holder, spec: QuantSpec, scale: Tensor, zero_point: Tensor) -> None:
        """Register the parameter `scale` and the buffer `zero_point`."""
        learn(holder, "scale", scale)
        _keep_zero_point(holder, spec, zero_point)

    def grid(self, holder: nn.Module, spec: QuantSpec, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The learned scale."""
        return _allowed(_limited(holder, "scale"), spec), None


@dataclass(frozen=True)
class LearnedOffset(LearnedScale):
    """LSQ+: scale and offset are parameters. The zero point is round(-offset / scale).

    In the paper the offset is a real number and becomes part of the bias of the next layer, which is not exact with
    padding. Here the offset is rounded to a whole number of steps, as integer arithmetic requires, with a
    straight-through gradient. The gradients are those of the paper. With v = (x - offset) / scale, n = qmin and
    p = qmax,

        dy/dscale  = round(v) - v  where n <= v <= p, else n or p
        dy/doffset = 0             where n <= v <= p, else 1

    Clipped elements give n and p. LSQ, whose zero point z is constant, gives n - z and p - z; here z = -offset / scale
    depends on the scale, and the clipped value is scale n + offset.

    Source: Bhalgat et al. 2020, arXiv:2004.09576, equations 5 to 8.
    """

    ends: ClassVar[tuple[str, ...]] = ("offset",)

    def learns_zero_point(self, spec: QuantSpec) -> bool:
        """Whether the quantizer is asymmetric; a symmetric one has no offset and equals LSQ."""
        return not spec.symmetric

    def register(self, holder: Holder, spec: QuantSpec, scale: Tensor, zero_point: Tensor) -> None:
        """Register the parameters `scale` and `offset`."""
        learn(holder, "scale", scale)
        if not spec.symmetric:
            learn(holder, "offset", -zero_point.to(scale.dtype) * scale, limited=False)

    def grid(self, holder: nn.Module, spec: QuantSpec, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the class."""
        scale = _allowed(_limited(holder, "scale"), spec)
        if spec.symmetric:
            return scale, None
        fixed = scale.detach().clamp(min=SMALLEST_SCALE)
        zero_point = _rounded(-_tensor(holder, "offset") / fixed, spec)
        # d(-offset / scale) / dscale = z / scale with the sign turned, of the zero point that is used: with -scale, the
        # quantizer's gradient of z, this makes n - z and p - z exactly n and p.
        return scale, zero_point - zero_point.detach() / fixed * (scale - scale.detach())


@dataclass(frozen=True)
class LearnedEnds(Ranges):
    """Learned range ends: both ends of the range are parameters.

        scale = (high - low) / (qmax - qmin),     zero point = qmin - round(low / scale)

    The gradients are AIMET's. With N = qmax - qmin, S the sum over dy/ds and Z over dy/dz of `training.quantizer`, each
    times the gradient of the result,

        dL/dlow  = -S / N - Z N high / (high - low)^2
        dL/dhigh = +S / N + Z N low  / (high - low)^2

    A symmetric grid has one parameter, scale = high / qmax; in AIMET, both ends then move symmetrically.

    Source: AIMET, quantization-aware training with range learning.
    """

    ends: ClassVar[tuple[str, ...]] = ("low", "high")
    positive: ClassVar[tuple[str, ...]] = ("high",)
    negative: ClassVar[tuple[str, ...]] = ("low",)

    def learns_zero_point(self, spec: QuantSpec) -> bool:
        """Whether the quantizer is asymmetric."""
        return not spec.symmetric

    def register(self, holder: Holder, spec: QuantSpec, scale: Tensor, zero_point: Tensor) -> None:
        """Register the parameter `high`, and `low` if the quantizer is asymmetric."""
        z = zero_point.to(scale.dtype)
        learn(holder, "high", scale * (spec.qmax - z))
        if not spec.symmetric:
            learn(holder, "low", scale * (spec.qmin - z))

    def grid(self, holder: nn.Module, spec: QuantSpec, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the class. The range always contains 0, with a straight-through gradient."""
        if spec.symmetric:
            return _allowed(_limited(holder, "high") / spec.qmax, spec), None
        high, low = _tensor(holder, "high"), _tensor(holder, "low")
        high = high + (high.clamp(min=0.0) - high).detach()
        low = low + (low.clamp(max=0.0) - low).detach()
        steps = spec.qmax - spec.qmin
        least = (_tensor(holder, limit_of("high")) - _tensor(holder, limit_of("low"))) / steps
        scale = _allowed(_above_zero((high - low) / steps, least), spec)
        safe = scale + (scale.clamp(min=SMALLEST_SCALE) - scale).detach()
        return scale, _rounded(spec.qmin - low / safe, spec)


@dataclass(frozen=True)
class LearnedClip(Ranges):
    """PACT: the upper end is a parameter without a gradient from rounding. scale = clip / (qmax - zero point).

    dL/dclip is the sum of the gradients of elements clipped above. On grids with negative codes, the gradients of
    elements clipped below are added, times the ratio of the two ends. The paper defines the clip for activations after
    a ReLU and adds weight decay: `parameter_groups` does.

    Source: Choi et al. 2018, arXiv:1805.06085, equations 2 and 3.
    """

    rounding_gradient: ClassVar[bool] = False
    ends: ClassVar[tuple[str, ...]] = ("clip",)
    positive: ClassVar[tuple[str, ...]] = ("clip",)
    decays: ClassVar[bool] = True

    def register(self, holder: Holder, spec: QuantSpec, scale: Tensor, zero_point: Tensor) -> None:
        """Register the parameter `clip` and the buffer `zero_point`.

        Raises:
            InputError: The grid ends at 0.
        """
        codes = spec.qmax - zero_point.to(scale.dtype)
        if bool((codes <= 0).any()):
            raise InputError(
                "a learned clipping limit needs a grid that does not end at 0",
                expected="positive values",
                fix="Use 'lsq'.",
            )
        learn(holder, "clip", scale * codes)
        _keep_zero_point(holder, spec, zero_point)

    def grid(self, holder: nn.Module, spec: QuantSpec, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the class."""
        clip = _limited(holder, "clip")
        codes = spec.qmax if spec.symmetric else spec.qmax - _tensor(holder, "zero_point").to(clip.dtype)
        return _allowed(clip / codes, spec), None

"""What of a grid learns: nothing, its scale, its ends.

Each class says which parameters a quantizer holds, and how scale and zero point follow from them. The gradients of
scale and zero point are those of `training.quantizer`; the rest is the chain rule over these few numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from qcompiler.errors import InputError
from qcompiler.quant.affine import SMALLEST_SCALE
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
    """A module that holds the numbers of one grid."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None: ...

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None: ...


@dataclass(frozen=True)
class Ranges(ABC):
    """How a grid learns. Frozen, stateless: one object may serve all quantizers."""

    rounding_gradient: ClassVar[bool] = True
    """Whether the error of rounding inside the grid moves the scale."""
    scales: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters in units of a scale."""
    ends: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters in units of the tensor: ends of its range, offsets."""
    positive: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that are above 0: an optimizer that steps over 0 lands as far on the near side of it."""
    decays: ClassVar[bool] = False
    """Whether the method asks for weight decay on its parameters."""

    def learns_zero_point(self, spec: QuantSpec) -> bool:
        """Whether the zero point of a grid is a result of parameters."""
        return False

    @abstractmethod
    def register(self, holder: Holder, spec: QuantSpec, scale: Tensor, zero_point: Tensor) -> None:
        """Give `holder` its parameters and buffers, so that `grid` starts at `scale` and `zero_point`."""

    @abstractmethod
    def grid(self, holder: nn.Module, spec: QuantSpec, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale, and the zero point where it learns: float32 integers."""


def _keep_zero_point(holder: Holder, spec: QuantSpec, zero_point: Tensor) -> None:
    if not spec.symmetric:
        holder.register_buffer("zero_point", zero_point)


def _tensor(holder: nn.Module, name: str) -> Tensor:
    return cast("Tensor", getattr(holder, name))


def _allowed(scale: Tensor, spec: QuantSpec) -> Tensor:
    """The nearest scale that the grid may have, straight through."""
    if spec.scale_kind is not ScaleKind.POW2:
        return scale
    with torch.no_grad():
        exponent = round_float(torch.log2(scale.clamp(min=SMALLEST_SCALE)), Rounding.NEAREST_EVEN)
        power = torch.exp2(exponent)
    return scale + (power - scale).detach()


def _rounded(zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """The nearest code, straight through."""
    with torch.no_grad():
        code = round_float(zero_point, Rounding.NEAREST_EVEN).clamp(spec.qmin, spec.qmax)
    return zero_point + (code - zero_point).detach()


@dataclass(frozen=True)
class FixedRange(Ranges):
    """The grid stays as calibrated."""

    def register(self, holder: Holder, spec: QuantSpec, scale: Tensor, zero_point: Tensor) -> None:
        """Buffers `scale` and `zero_point`."""
        holder.register_buffer("scale", scale)
        _keep_zero_point(holder, spec, zero_point)

    def grid(self, holder: nn.Module, spec: QuantSpec, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The buffer."""
        return _tensor(holder, "scale"), None


@dataclass(frozen=True)
class RecomputedRange(Ranges):
    """The grid of a weight covers its largest magnitude at every step: scale = max |w| / qmax, without a gradient.

    Source: AIMET's training without range learning, in which the ranges of weights follow the weights.
    """

    def register(self, holder: Holder, spec: QuantSpec, scale: Tensor, zero_point: Tensor) -> None:
        """Nothing: the weight says it all.

        Raises:
            InputError: The grid is not symmetric, that is, not one of a weight.
        """
        if not spec.symmetric:
            raise InputError(
                f"a range that is computed anew at each step, for the grid {spec}",
                expected="the symmetric grid of a weight",
                fix="Give activations another method: 'ste' keeps their range, 'lsq' learns it.",
            )

    def grid(self, holder: nn.Module, spec: QuantSpec, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """From the weight."""
        with torch.no_grad():
            rows = x.abs() if spec.axis is None else x.abs().movedim(spec.axis, 0).flatten(1)
            largest = (rows.amax() if spec.axis is None else rows.amax(1)).to(torch.float32)
            scale = torch.where(largest > 0, largest / spec.qmax, torch.ones_like(largest))
            return _allowed(scale, spec), None


@dataclass(frozen=True)
class LearnedScale(Ranges):
    """The scale is a parameter, the zero point stays: LSQ.

    Source: Esser et al. 2020, arXiv:1902.08153. Starts at the calibrated scale, where the paper starts at
    2 mean|w| / sqrt(qmax).
    """

    scales: ClassVar[tuple[str, ...]] = ("scale",)
    positive: ClassVar[tuple[str, ...]] = ("scale",)

    def register(self, holder: Holder, spec: QuantSpec, scale: Tensor, zero_point: Tensor) -> None:
        """A parameter `scale`, a buffer `zero_point`."""
        holder.register_parameter("scale", nn.Parameter(scale))
        _keep_zero_point(holder, spec, zero_point)

    def grid(self, holder: nn.Module, spec: QuantSpec, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The parameter."""
        return _allowed(_tensor(holder, "scale"), spec), None


@dataclass(frozen=True)
class LearnedOffset(LearnedScale):
    """Scale and offset are parameters: LSQ+. The zero point is round(-offset / scale).

    The paper's offset is any real number; it enters the bias of the next layer, which padding does not let it do
    exactly. Here it is rounded to a whole number of steps, straight through, as integer arithmetic asks, and the
    gradients are the paper's: of the offset 0 inside and 1 outside, of the scale as in LSQ.

    Source: Bhalgat et al. 2020, arXiv:2004.09576, equations 5 to 8.
    """

    ends: ClassVar[tuple[str, ...]] = ("offset",)

    def learns_zero_point(self, spec: QuantSpec) -> bool:
        """A symmetric grid has no offset: there it is LSQ."""
        return not spec.symmetric

    def register(self, holder: Holder, spec: QuantSpec, scale: Tensor, zero_point: Tensor) -> None:
        """Parameters `scale` and `offset`."""
        holder.register_parameter("scale", nn.Parameter(scale))
        if not spec.symmetric:
            holder.register_parameter("offset", nn.Parameter(-zero_point.to(scale.dtype) * scale))

    def grid(self, holder: nn.Module, spec: QuantSpec, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the class."""
        scale = _allowed(_tensor(holder, "scale"), spec)
        if spec.symmetric:
            return scale, None
        return scale, _rounded(-_tensor(holder, "offset") / scale.detach().clamp(min=SMALLEST_SCALE), spec)


@dataclass(frozen=True)
class LearnedEnds(Ranges):
    """The ends of the range are parameters.

        scale = (high - low) / (qmax - qmin),     zero point = qmin - round(low / scale)

    The gradients are AIMET's. With N = qmax - qmin, S the sum over dy/ds and Z over dy/dz of `training.quantizer`, each
    times the gradient of the result,

        dL/dlow  = -S / N - Z N high / (high - low)^2
        dL/dhigh = +S / N + Z N low  / (high - low)^2

    A symmetric grid has one parameter, scale = high / qmax: AIMET's two ends move there as mirror images.

    Source: AIMET, quantization-aware training with range learning.
    """

    ends: ClassVar[tuple[str, ...]] = ("low", "high")

    def learns_zero_point(self, spec: QuantSpec) -> bool:
        """Of an asymmetric grid."""
        return not spec.symmetric

    def register(self, holder: Holder, spec: QuantSpec, scale: Tensor, zero_point: Tensor) -> None:
        """Parameters `high`, and `low` where the grid is asymmetric."""
        z = zero_point.to(scale.dtype)
        holder.register_parameter("high", nn.Parameter(scale * (spec.qmax - z)))
        if not spec.symmetric:
            holder.register_parameter("low", nn.Parameter(scale * (spec.qmin - z)))

    def grid(self, holder: nn.Module, spec: QuantSpec, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the class. The range always holds 0, straight through."""
        high = _tensor(holder, "high")
        high = high + (high.clamp(min=0.0) - high).detach()
        if spec.symmetric:
            return _allowed(high / spec.qmax, spec), None
        low = _tensor(holder, "low")
        low = low + (low.clamp(max=0.0) - low).detach()
        scale = _allowed((high - low) / (spec.qmax - spec.qmin), spec)
        safe = scale + (scale.clamp(min=SMALLEST_SCALE) - scale).detach()
        return scale, _rounded(spec.qmin - low / safe, spec)


@dataclass(frozen=True)
class LearnedClip(Ranges):
    """The upper end is a parameter that rounding does not move: PACT. scale = clip / (qmax - zero point).

    dL/dclip is the sum of the gradients of what is clipped above, and, on grids with negative codes, of what is clipped
    below times the ratio of the two ends. The paper defines it for activations behind a ReLU and adds weight decay to
    the clip: `parameter_groups` does.

    Source: Choi et al. 2018, arXiv:1805.06085, equations 2 and 3.
    """

    rounding_gradient: ClassVar[bool] = False
    ends: ClassVar[tuple[str, ...]] = ("clip",)
    positive: ClassVar[tuple[str, ...]] = ("clip",)
    decays: ClassVar[bool] = True

    def register(self, holder: Holder, spec: QuantSpec, scale: Tensor, zero_point: Tensor) -> None:
        """A parameter `clip`, a buffer `zero_point`.

        Raises:
            InputError: The grid ends at 0.
        """
        codes = spec.qmax - zero_point.to(scale.dtype)
        if bool((codes <= 0).any()):
            raise InputError("a learned clip for a grid that ends at 0", expected="positive values", fix="Use 'lsq'.")
        holder.register_parameter("clip", nn.Parameter(scale * codes))
        _keep_zero_point(holder, spec, zero_point)

    def grid(self, holder: nn.Module, spec: QuantSpec, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the class."""
        clip = _tensor(holder, "clip")
        codes = spec.qmax if spec.symmetric else spec.qmax - _tensor(holder, "zero_point").to(clip.dtype)
        return _allowed(clip / codes, spec), None

"""Quantizers whose range follows statistics of the tensor instead of gradients."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError, InputError
from qcompiler.quant.affine import along_axis
from qcompiler.quant.spec import QuantSpec
from qcompiler.training.quantizer import Clamp, Plan, Quantizer, fake_quantize
from qcompiler.training.range_estimators import RangeEstimator
from qcompiler.training.ranges import Holder, Ranges
from qcompiler.training.tracker import RangeTracker, qparams_of

__all__ = ["TrackedQuantizer", "TrackedRange", "check_known"]


@dataclass(frozen=True)
class TrackedRange(Ranges):
    """A range that follows statistics; see `training.range_estimators`.

    Args:
        estimator: Estimator of the range.
        starts: Whether the calibrated range is the first state; otherwise the first tensor gives it.
    """

    estimator: RangeEstimator
    starts: bool = True

    def learns_zero_point(self, spec: QuantSpec) -> bool:
        """Whether the quantizer is asymmetric: its zero point then moves with the range."""
        return not spec.symmetric

    def register(self, holder: Holder, spec: QuantSpec, scale: Tensor, zero_point: Tensor) -> None:
        """Register the tracker `range`.

        Raises:
            InputError: The quantizer has a scale per channel.
        """
        if spec.axis is not None:
            raise InputError(
                f"the range of '{spec}' cannot follow statistics",
                expected="a grid with one scale, which activations have",
                fix="Use method='recomputed' for weights: their range is known at every step.",
            )
        z = zero_point.to(torch.float32)
        given = torch.stack((-(spec.qmin - z) * scale, (spec.qmax - z) * scale))
        holder.add_module("range", RangeTracker(self.estimator, given if self.starts else None, scale.device))

    def grid(self, holder: nn.Module, spec: QuantSpec, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point of the state."""
        scale, zero_point = qparams_of(cast("RangeTracker", holder.get_submodule("range")).reach, spec)
        return scale, None if spec.symmetric else zero_point.to(torch.float32)


class TrackedQuantizer(Quantizer):
    """A quantizer with a `TrackedRange`, whose statistics it collects in train mode.

    State in `state_dict`: `range.*`; see `RangeTracker`.
    """

    def grid(
        self, x: Tensor, low: float | Tensor | None = None, high: float | Tensor | None = None, axis: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point; in train mode those of the estimator, and the statistics of x are collected.

        Args:
            x: Tensor to quantize.
            low: Lower limit of the preceding activation; with `axis` one per channel, [C].
            high: Upper limit of the preceding activation.
            axis: Channel axis of the limits.
        """
        if not self.training:
            return super().grid(x)
        with torch.no_grad():
            scale, zero_point = self.tracker.state.grid(
                *self._measured(x, low, high, axis), self.spec, self.tracker.estimator
            )
        return scale, None if self.spec.symmetric else zero_point.to(torch.float32)

    @torch.no_grad()
    def observe(
        self, x: Tensor, low: float | Tensor | None = None, high: float | Tensor | None = None, axis: int | None = None
    ) -> None:
        """Collect the statistics of a further tensor on the same grid in train mode; arguments as for `grid`."""
        if self.training:
            self.tracker.state.collect(self._measured(x, low, high, axis)[0])

    def _measured(
        self, x: Tensor, low: float | Tensor | None, high: float | Tensor | None, axis: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """The statistics of x after the preceding activation."""
        estimator = self.tracker.estimator
        if estimator.searches or isinstance(low, Tensor) or isinstance(high, Tensor):
            return estimator.measured(_limited(x, low, high, axis), self.spec, self.tracker.count)
        # Limiting the two ends costs nothing; limiting the tensor costs a pass over it.
        ends = torch.stack(torch.aminmax(x.detach())).to(torch.float32)
        ends = ends if low is None and high is None else ends.clamp(low, high)
        return estimator.of_reach(torch.stack((-ends[0], ends[1]))), None

    @property
    def tracker(self) -> RangeTracker:
        """The range."""
        return cast("RangeTracker", self.get_submodule("range"))

    def forward(
        self,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None = None,
        low: float | Tensor | None = None,
        high: float | Tensor | None = None,
        axis: int | None = None,
    ) -> Tensor:
        """Fake-quantize x with the result of `grid`; arguments as for `Quantizer.forward`."""
        y = self._quantized(x, scale, zero_point, low, high, axis)
        state = self.tracker.state
        if self.training and state.watched is not None:
            zero = 0.0 if zero_point is None else zero_point
            ends = [(code - zero) * scale for code in (self.spec.qmin, self.spec.qmax)]
            state.watch(_limited(x.detach(), low, high, axis), y, *ends)
        return y

    def _quantized(
        self,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        low: float | Tensor | None,
        high: float | Tensor | None,
        axis: int | None,
    ) -> Tensor:
        reads = x.device.type == "cpu" and not torch.compiler.is_compiling() and not isinstance(low, Tensor)
        if zero_point is None or not reads or not bool(zero_point.isfinite()):
            return super().forward(x, scale, zero_point, low, high, axis)
        # With a zero point that is a number, kernels take half as many passes over the tensor.
        clamp = None if low is None and high is None else Clamp(cast("float | None", low), cast("float | None", high))
        return fake_quantize(x, scale, None, plan_at(self._plan, int(zero_point)), clamp)


def check_known(root: nn.Module) -> None:
    """Refuse quantizers of activations whose first range is not known yet.

    Args:
        root: Training module.

    Raises:
        CalibrationError: There is one.
    """
    for name, item in root.named_modules():
        if isinstance(item, TrackedQuantizer) and not bool(item.tracker.reach.isfinite().all()):
            raise CalibrationError(
                "the quantizer has no range yet",
                where=name,
                expected="a range from calibration_data or from a step of training",
                fix="Train for at least one step, or pass calibration_data=.",
            )


@functools.lru_cache(maxsize=4096)
def plan_at(plan: Plan, zero_point: int) -> Plan:
    """A plan with a fixed zero point."""
    return dataclasses.replace(plan, zero_point=zero_point)


def _limited(x: Tensor, low: float | Tensor | None, high: float | Tensor | None, axis: int | None) -> Tensor:
    """x after the preceding activation."""
    x = x.detach()
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        return x.clamp_min(along_axis(low, x.dim(), axis)).clamp_max(along_axis(high, x.dim(), axis))
    return x if low is None and high is None else x.clamp(cast("float | None", low), cast("float | None", high))

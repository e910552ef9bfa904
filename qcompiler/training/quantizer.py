"""The training quantizer, in float32: forward on the grid, backward by a gradient estimator.

    v = x / s,   k = clamp(round(v) + z, qmin, qmax) - z,   y = s k

The forward divides and rounds exactly as codes are made (`quant.affine.quantize`). With phi the estimator's factor,

    dy/dx = phi(v)       where qmin <= v + z <= qmax, else 0
    dy/ds = k - phi(v) v where qmin <= v + z <= qmax, else k
    dy/dz = -s           where v + z is outside of qmin..qmax, else 0

For phi = 1 the second line is that of LSQ: round(v) - v inside, the end of the grid outside. As in the papers, v
decides between inside and outside; the code of Nagel et al. 2022 uses round(v), half a step different at each end.

Source: Esser et al. 2020, arXiv:1902.08153, equations 2 and 3; Nagel et al. 2021, arXiv:2106.08295, section 4.1;
Nagel et al. 2022, arXiv:2203.11086, section 2.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from qcompiler.quant.affine import SMALLEST_SCALE, along_axis
from qcompiler.quant.blocks import expand_factors
from qcompiler.quant.rounding import Rounding, round_float, round_float_
from qcompiler.quant.spec import QuantSpec
from qcompiler.training.estimators import Estimator
from qcompiler.training.oscillations import Oscillations
from qcompiler.training.ranges import Ranges, renew_limits

__all__ = ["Clamp", "Plan", "Quantizer", "fake_quantize"]


@dataclass(frozen=True)
class Plan:
    """The constants of one quantizer.

    Args:
        qmin: Lowest code.
        qmax: Highest code.
        estimator: Estimator of gradients through rounding.
        zero_point: Fixed zero point; 0 if the zero point is a tensor.
        axis: Channel axis; None for one scale.
        rounding: Rounding mode for ties.
        rounding_gradient: Whether rounding inside the grid contributes to the gradient of the scale: k - phi v instead
            of 0.
        by_chance: Whether rounding is stochastic.
        gradient_scale: Whether gradients of scale and zero point are divided by sqrt(N p), with N elements per scale
            and p = qmax - zero point, at least 1: the learning rate does not depend on how codes are stored. Source:
            Esser et al. 2020, arXiv:1902.08153, section 2.2.
        shared: N; None: the number of elements of the tensor per scale.
    """

    qmin: int
    qmax: int
    estimator: Estimator
    zero_point: int = 0
    axis: int | None = None
    rounding: Rounding = Rounding.NEAREST_EVEN
    rounding_gradient: bool = True
    gradient_scale: bool = False
    by_chance: bool = False
    shared: int | None = None
    low: int = field(init=False)
    high: int = field(init=False)
    below: float = field(init=False)
    above: float = field(init=False)
    open_qmin: float = field(init=False)
    open_qmax: float = field(init=False)

    def __post_init__(self) -> None:
        # The masking kernel uses an open interval; the next float32 beyond each end makes it closed.
        for name, value in (
            ("low", self.qmin - self.zero_point),
            ("high", self.qmax - self.zero_point),
            ("below", _next(self.qmin - self.zero_point, -1)),
            ("above", _next(self.qmax - self.zero_point, 1)),
            ("open_qmin", _next(self.qmin, -1)),
            ("open_qmax", _next(self.qmax, 1)),
        ):
            object.__setattr__(self, name, value)


def _next(code: int, direction: int) -> float:
    """The float32 next to a code. Next to 0: the smallest normal number, because some processors flush subnormals."""
    if code == 0:
        return direction * _TINY
    return float(np.nextafter(np.float32(code), np.float32(direction * math.inf)))


@dataclass(frozen=True)
class Clamp:
    """The activation before a quantizer.

    Args:
        low: Lower limit; None: unlimited.
        high: Upper limit; None: unlimited.
        axis: Channel axis of limits per channel, which are given as tensors; None: scalar limits.
    """

    low: float | None = None
    high: float | None = None
    axis: int | None = None


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    plan: Plan,
    clamp: Clamp | None = None,
    lows: Tensor | None = None,
    highs: Tensor | None = None,
) -> Tensor:
    """x on the grid; see the module text for the gradients.

    Args:
        x: Tensor of any shape; float16 and bfloat16 are quantized in float32.
        scale: Scale, float32, one element or [C] along the axis of `plan`. A scale below `SMALLEST_SCALE` counts as
            `SMALLEST_SCALE`, with the gradient at that value, so that training can recover it.
        zero_point: Learned zero point, float32 integers in the shape of `scale`; None: that of `plan`.
        plan: Constants of the quantizer.
        clamp: Activation before the quantizer, fused so that its result is not saved. Its gradient is 0 at a limit, as
            for ReLU, and 1 at a limit per channel, as for torch.clamp.
        lows: Lower limits per channel, [C]; an infinity means unlimited.
        highs: Upper limits per channel, [C].

    Returns:
        The quantized tensor in the shape and type of `x`.
    """
    return cast("Tensor", _FakeQuantize.apply(x, scale, zero_point, plan, clamp, lows, highs))


class _Context(Protocol):
    """The context that `_FakeQuantize` keeps between forward and backward."""

    plan: Plan
    clamp: Clamp | None
    is_plain: bool
    needs_input_grad: tuple[bool, ...]

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]: ...

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization that saves only its input and allocates little memory."""

    @staticmethod
    def forward(
        ctx: _Context,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        plan: Plan,
        clamp: Clamp | None,
        lows: Tensor | None,
        highs: Tensor | None,
    ) -> Tensor:
        s = _scale(scale, x.dim(), plan)
        if _is_plain(x, s, zero_point, plan, lows):
            low, high = limits_with(clamp, s, plan)
            y = round_float_(x / s, plan.rounding).clamp_(low, high).mul_(s)
            # Most networks keep y for the operator that reads it, so saving y costs no memory.
            ctx.save_for_backward(x, s, None, None, None, y)
            ctx.plan, ctx.clamp, ctx.is_plain = plan, clamp, True
            return y
        wide = _limited(x.to(torch.float32), clamp, lows, highs)
        v = wide / s if wide is x else wide.div_(s)
        if plan.by_chance:
            codes = v.add_(torch.rand_like(v)).floor_()
        else:
            codes = round_float_(v, plan.rounding)
        y = _clamped(codes, zero_point, x.dim(), plan).mul_(s).to(x.dtype)
        # Chance cannot be repeated: its result is kept.
        ctx.save_for_backward(x, s, zero_point, lows, highs, y if plan.by_chance else None)
        ctx.plan, ctx.clamp, ctx.is_plain = plan, clamp, False
        return y

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, s, zero_point, lows, highs, result = ctx.saved_tensors
        assert x is not None
        assert s is not None
        if ctx.is_plain:
            assert result is not None
            return (*_plain_gradients(ctx, gradient, x, s, result), None, None, None, None, None)
        plan, dim = ctx.plan, x.dim()
        wide, g = x.to(torch.float32), gradient.to(torch.float32)
        limited = _limited(wide, ctx.clamp, lows, highs)
        beyond = None if lows is None or not ctx.needs_input_grad[0] else wide - limited
        v = limited / s if limited is wide else limited.div_(s)
        position, below, above = v, plan.below, plan.above
        if zero_point is not None:
            position, below, above = v + along_axis(zero_point, dim, plan.axis), plan.open_qmin, plan.open_qmax
        inside = _masked(g, position, below, above)

        learns = ctx.needs_input_grad[1]
        codes = v
        if learns or not plan.estimator.is_constant:
            if result is not None:
                codes = round_float_(result.to(torch.float32) / s, Rounding.NEAREST_EVEN)
            else:
                codes = _clamped(round_float(v, plan.rounding), zero_point, dim, plan)
        factor = None if plan.estimator.is_constant else plan.estimator.factor(g, v, codes)

        scale_gradient = zero_point_gradient = None  # dy/dz = -s outside; dy/ds = k - phi(v) v inside, k outside
        if zero_point is not None and ctx.needs_input_grad[2]:
            zero_point_gradient = _inner((inside - g).mul_(s), None, plan)
        if learns:
            if plan.rounding_gradient:
                taken = _masked_(v, position, below, above)
            else:
                taken = _masked(codes, position, below, above)
            if factor is not None and plan.rounding_gradient:
                taken = taken.mul_(factor)
            scale_gradient = _inner(codes.sub_(taken), g, plan)
        if plan.gradient_scale:
            factor_of_lsq = gradient_factor(plan, x.numel() // s.numel(), zero_point)
            scale_gradient = None if scale_gradient is None else scale_gradient * factor_of_lsq
            zero_point_gradient = None if zero_point_gradient is None else zero_point_gradient * factor_of_lsq

        input_gradient = None  # dy/dx = phi(v) inside, where the fused activation passes x
        if ctx.needs_input_grad[0]:
            if beyond is not None:
                inside = _masked_(inside, beyond, -_TINY, _TINY)
            elif ctx.clamp is not None:
                low, high = ctx.clamp.low, ctx.clamp.high
                inside = _masked_(inside, wide, -math.inf if low is None else low, math.inf if high is None else high)
            input_gradient = (inside if factor is None else inside.mul_(factor)).to(x.dtype)
        return input_gradient, scale_gradient, zero_point_gradient, None, None, None, None


def gradient_factor(plan: Plan, elements: int, zero_point: Tensor | None) -> float | Tensor:
    """LSQ's g = 1 / sqrt(N p), by which the gradients of a scale and of its zero point are multiplied.

    Args:
        plan: Plan of the quantizer.
        elements: N where the plan does not give it.
        zero_point: Learned zero points, [] or [C]; None: that of the plan.

    Returns:
        A number, or one per zero point.
    """
    count = max(1, elements if plan.shared is None else plan.shared)
    if zero_point is None:
        return 1.0 / math.sqrt(count * max(1, plan.high))
    return (plan.qmax - zero_point).clamp(min=1.0).mul_(count).rsqrt_()


def _is_plain(x: Tensor, s: Tensor, zero_point: Tensor | None, plan: Plan, lows: Tensor | None) -> bool:
    """Whether thresholds can be compared with x itself: one scale, whose value can be read now, and plain LSQ.

    On a processor the kernels are bound by memory, so half as many passes over a tensor take half the time. Elsewhere
    the value of a scale cannot be read: a compiler does not have the value, and a GPU would have to be synchronized.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and type(s) is Tensor
        and plan.axis is None
        and zero_point is None
        and lows is None
        and plan.estimator.is_constant
        and plan.rounding_gradient
        and not plan.by_chance
        and not torch.compiler.is_compiling()
    )


def limits_with(clamp: Clamp | None, s: Tensor, plan: Plan) -> tuple[float, float]:
    """Code limits of a clamp and the grid together, which exist because rounding and division are monotone.

    Args:
        clamp: Activation before the quantizer.
        s: Scale, float32, one element.
        plan: Constants of the quantizer.
    """
    low, high = float(plan.low), float(plan.high)
    if clamp is not None:
        ends = [low if clamp.low is None else clamp.low, high if clamp.high is None else clamp.high]
        codes = round_float_(torch.tensor(ends) / s.reshape(()), plan.rounding).tolist()
        # A clamp beyond the grid is replaced by the nearest code.
        least = low if clamp.low is None else min(max(codes[0], low), high)
        most = high if clamp.high is None else min(max(codes[1], low), high)
        return least, most
    return low, high


def _plain_gradients(ctx: _Context, g: Tensor, x: Tensor, s: Tensor, y: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and of the scale, with y the result of the quantizer.

    dx = g where x is between all limits,     ds = sum g (y - x_in) / s,     x_in = x inside of the grid, else 0
    """
    plan, clamp = ctx.plan, ctx.clamp
    scale = np.float32(s.item())
    below, above = _threshold(plan.below, scale), -_threshold(-plan.above, scale)
    low = -math.inf if clamp is None or clamp.low is None else clamp.low
    high = math.inf if clamp is None or clamp.high is None else clamp.high
    input_gradient = _masked(g, x, max(below, low), min(above, high)) if ctx.needs_input_grad[0] else None
    if not ctx.needs_input_grad[1]:
        return input_gradient, None
    # Values that the activation clamps to 0 stay 0. A limit within the grid counts with its own value.
    if (low == 0.0 or not below < low < above) and not below < high < above:
        inside = _masked(x, x, max(below, low), min(above, high))
    else:
        inside = x.clamp(None if low == -math.inf else low, None if high == math.inf else high)
        if not (below < low and high < above):
            inside = _masked_(inside, inside, below, above)
    # On the way to it, (y - x_in) / s is the error of rounding in steps: LSQ's k - v.
    scale_gradient = _inner(torch.sub(y, inside, out=inside), g, plan) / s.reshape(())
    if plan.gradient_scale:
        scale_gradient = scale_gradient * gradient_factor(plan, x.numel(), None)
    return input_gradient, scale_gradient.reshape(s.shape)


def _threshold(limit: float, scale: np.float32) -> float:
    """The largest float32 x for which x / scale, rounded to float32, is at most `limit`."""
    x = np.float32(limit * float(scale))
    while x / scale <= limit:
        x = np.nextafter(x, np.float32(math.inf))
    while x / scale > limit:
        x = np.nextafter(x, np.float32(-math.inf))
    return float(x)


_TINY = 2.0**-126
"""The smallest normal float32; numbers closer to 0 become 0."""


def _scale(scale: Tensor, dim: int, plan: Plan) -> Tensor:
    """The scale as it broadcasts."""
    return along_axis(scale.clamp(min=SMALLEST_SCALE), dim, plan.axis)


def _limited(x: Tensor, clamp: Clamp | None, lows: Tensor | None, highs: Tensor | None) -> Tensor:
    """x clamped to the limits of an activation, in new memory; x itself without limits."""
    if clamp is None:
        return x
    if lows is None or highs is None:
        return x.clamp(clamp.low, clamp.high)
    low, high = (along_axis(limit, x.dim(), clamp.axis) for limit in (lows, highs))
    # Two kernels that vectorize: a clamp by two tensors does not.
    return x.clamp_min(low).clamp_max_(high)


def _clamped(codes: Tensor, zero_point: Tensor | None, dim: int, plan: Plan) -> Tensor:
    """Codes, zero point removed, clamped to the grid in their own memory."""
    if zero_point is None:
        return codes.clamp_(plan.low, plan.high)
    z = along_axis(zero_point, dim, plan.axis)
    return codes.add_(z).clamp_(plan.qmin, plan.qmax).sub_(z)


def _masked(values: Tensor, position: Tensor, below: float, above: float) -> Tensor:
    """`values` where below < position < above, else 0, in one kernel."""
    return cast("Tensor", torch.ops.aten.hardtanh_backward(values, position, below, above))


def _masked_(values: Tensor, position: Tensor, below: float, above: float) -> Tensor:
    """The same in the memory of `values`: new memory costs more than the kernel."""
    if torch.compiler.is_compiling():
        return _masked(values, position, below, above)
    return cast(
        "Tensor", torch.ops.aten.hardtanh_backward.grad_input(values, position, below, above, grad_input=values)
    )


def _inner(left: Tensor, right: Tensor | None, plan: Plan) -> Tensor:
    """The sum of left * right, [] or per channel [C]; `left` may be overwritten."""
    if plan.axis is not None:
        product = left if right is None else left.mul_(right)
        axis = plan.axis % product.dim()
        return product.sum([other for other in range(product.dim()) if other != axis])
    if right is None:
        return left.sum()
    if left.is_contiguous() and right.is_contiguous() and not torch.compiler.is_compiling():
        return torch.dot(left.view(-1), right.view(-1))
    product = left.mul_(right)
    if torch.compiler.is_compiling() and product.dim() > 2:
        # The sums for a preceding batch norm are over the same axes, so a compiler can fuse both loops.
        return product.sum([0, *range(2, product.dim())]).sum()
    return product.sum()


def _with_gradient_times(scale: Tensor, factor: float | Tensor) -> Tensor:
    """`scale`, whose gradient is multiplied by `factor` on its way back."""
    return cast("Tensor", _ScaledGradient.apply(scale, factor)) if torch.is_grad_enabled() else scale


class _ScaledGradientContext(Protocol):
    factor: float | Tensor


class _ScaledGradient(torch.autograd.Function):
    """The identity as a custom function, because s factor + (s - s factor) is not always s in float32."""

    @staticmethod
    def forward(ctx: _ScaledGradientContext, scale: Tensor, factor: float | Tensor) -> Tensor:
        ctx.factor = factor
        return scale.view_as(scale)

    @staticmethod
    def backward(ctx: _ScaledGradientContext, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class Quantizer(nn.Module):
    """A fake quantizer with learnable range parameters.

    State in `state_dict`: the parameters of `ranges` (`scale`, ...), `zero_point` if asymmetric, and `oscillation.*` if
    oscillations are tracked.

    Args:
        spec: Specification of the quantizer.
        ranges: Learned parameters of the range.
        estimator: Estimator of gradients through rounding.
        scale: Calibrated scale, float32 [] or [C].
        zero_point: Calibrated zero point, int32 in the shape of `scale`.
        gradient_scale: See `Plan`.
        shared: See `Plan`.
        factors: Block factors, uint8 [C, blocks], which stay as calibrated; None without blocks.

    Attributes:
        oscillation: Oscillation state of the weight; None if not tracked. A frozen code replaces the rounded code.
    """

    scale: Tensor
    zero_point: Tensor
    factors: Tensor | None

    def __init__(
        self,
        spec: QuantSpec,
        ranges: Ranges,
        estimator: Estimator,
        scale: Tensor,
        zero_point: Tensor,
        *,
        gradient_scale: bool = False,
        shared: int | None = None,
        factors: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("factors", None if factors is None else factors.detach().clone())
        self.spec, self.ranges, self.estimator = spec, ranges, estimator
        self.gradient_scale, self.shared = gradient_scale, shared
        self.oscillation: Oscillations | None = None
        ranges.register(self, spec, scale.detach().clone(), zero_point.detach().clone())
        self._plan = self._planned()

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale and learned zero point (else None), both with gradients.

        Args:
            x: Tensor to quantize, for ranges that follow its values.
        """
        return self._known_grid(x)

    def _known_grid(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point without a change of state."""
        steps = self.steps_per_code(x)
        return self.ranges.grid(self, self.spec, x if steps is None else x / steps)

    def whole_zero_point(self, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        """The zero point as a tensor, also where it is fixed.

        Args:
            scale: Scale from `grid`.
            zero_point: Zero point from `grid`.
        """
        return torch.full_like(scale, float(self._plan.zero_point)) if zero_point is None else zero_point

    def steps_per_code(self, x: Tensor) -> Tensor | None:
        """The block factor of each element of a weight, float32, broadcastable; None without blocks.

        Args:
            x: Tensor to quantize.
        """
        if self.factors is None or self.spec.axis is None or self.spec.block is None:
            return None
        return expand_factors(self.factors.to(torch.float32), x.shape, self.spec.axis, self.spec.block)

    def forward(
        self,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None = None,
        low: float | Tensor | None = None,
        high: float | Tensor | None = None,
        axis: int | None = None,
    ) -> Tensor:
        """Fake-quantize x with the result of `grid`.

        Args:
            x: Tensor of any shape.
            scale: Scale from `grid`.
            zero_point: Zero point from `grid`.
            low: Lower limit of the preceding activation; with `axis` one per channel, [C].
            high: Upper limit of the preceding activation.
            axis: Channel axis of the limits.
        """
        if isinstance(low, Tensor) or isinstance(high, Tensor):
            assert isinstance(low, Tensor)
            assert isinstance(high, Tensor)
            return fake_quantize(x, scale, zero_point, self._plan, Clamp(axis=axis), low, high)
        steps = self.steps_per_code(x)
        clamp = None if low is None and high is None else Clamp(low, high)
        y = fake_quantize(x if steps is None else x / steps, scale, zero_point, self._plan, clamp)
        if self.oscillation is not None and self.oscillation.freezes:
            factor = gradient_factor(self._plan, x.numel() // scale.numel(), zero_point) if self.gradient_scale else 1.0
            y = self.oscillation.override(y, along_axis(_with_gradient_times(scale, factor), x.dim(), self.spec.axis))
        return y if steps is None else y * steps

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Codes of x minus the zero point, float32, rounded to nearest; frozen codes keep their value."""
        scale, zero_point = self._known_grid(x)
        factors = self.steps_per_code(x)
        wide = x.to(torch.float32) if factors is None else x.to(torch.float32) / factors
        codes = _clamped(
            round_float_(wide / _scale(scale, x.dim(), self._plan), self.spec.rounding), zero_point, x.dim(), self._plan
        )
        if self.oscillation is not None and self.oscillation.freezes:
            codes = self.oscillation.override(codes, torch.ones((), device=codes.device))
        return codes

    @torch.no_grad()
    def deployed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale (float32, at least `SMALLEST_SCALE`) and zero point (int32) for the integer program."""
        scale, zero_point = self._known_grid(x)
        if zero_point is None:
            zero_point = torch.full_like(scale, float(self._plan.zero_point))
        for name in self.ranges.scales:
            # `hold_signs` keeps optimizer steps from making a scale 0. A 0 set elsewhere stays: compile refuses it.
            scale = scale.masked_fill(self.get_parameter(name) == 0, 0.0)
        return scale.clamp(min=SMALLEST_SCALE), zero_point.to(torch.int32)

    def train(self, mode: bool = True) -> Quantizer:
        """Set train or eval mode; stochastic rounding applies in train mode only."""
        super().train(mode)
        self._renew()
        return self

    def _renew(self) -> None:
        """Recompute the plan and the limits after a change of state."""
        self._plan = self._planned()
        renew_limits(self, self.ranges)

    def _planned(self) -> Plan:
        zero_point = 0
        if not self.ranges.learns_zero_point(self.spec) and not self.spec.symmetric:
            zero_point = int(self.zero_point)
        return Plan(
            self.spec.qmin,
            self.spec.qmax,
            self.estimator,
            zero_point,
            self.spec.axis,
            self.spec.rounding,
            self.ranges.rounding_gradient,
            self.gradient_scale,
            self.estimator.stochastic and self.training,
            self.shared,
        )

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:  # noqa: ANN401  # torch's own signature
        super()._load_from_state_dict(*arguments, **keywords)
        self._renew()

    def extra_repr(self) -> str:
        """One line for `repr`."""
        return f"{self.spec}, {self.ranges}, {self.estimator}"

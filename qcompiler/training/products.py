"""A layer of quantized training: three products whose operands are all quantized.

    forward    y   = Q(x) * Q(w) + b
    backward   g^  = Q(g)                      the gradient of y, quantized once for both products and the bias
               g_w = Q(x)^T * g^,    g_b = sum of g^
               g_x = g^ * Q(w)^T               with one weight scale
               g_x = Q(g s_w) * k_w^T          with weight scales s_w per output channel and codes k_w: these scales do
                                               not leave the sum over output channels, so they go into the gradient,
                                               which has a second quantizer

`arithmetic` decides how the products are computed from the same quantized operands: `float` multiplies their real
values in float32; `integer` multiplies codes, in int8 where `integer_products` serves and in float64 otherwise, and
multiplies each sum once by the scales; `reference` does the same with all codes in float64. Sums of products of codes
are exact, so that `integer` and `reference` agree in every bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from qcompiler.quant.affine import along_axis
from qcompiler.quant.gradients import gradient_steps
from qcompiler.quant.rounding import Rounding, round_float
from qcompiler.quant.spec import QuantSpec
from qcompiler.quant.stochastic import Key, Word, noise_key
from qcompiler.training import integer_products
from qcompiler.training.batch_norm import process_rank
from qcompiler.training.geometry import Geometry
from qcompiler.training.integer_products import Codes8
from qcompiler.training.range_estimators import DSGC, RangeEstimator
from qcompiler.training.tracker import RangeState, RangeTracker

__all__ = ["ARITHMETICS", "Arithmetic", "Job", "LayerProducts", "Operand"]

Arithmetic: TypeAlias = Literal["float", "integer", "reference"]
Grid: TypeAlias = tuple[Tensor, Tensor]
"""Scale, float32, one element or one per channel, and zero point, integral."""
ARITHMETICS: tuple[Arithmetic, ...] = ("float", "integer", "reference")


@dataclass(frozen=True)
class Job:
    """The constants of a layer.

    Args:
        geometry: Geometry of its products.
        spec: Grid of its gradients.
        estimator: Estimator of the ranges of its gradients.
        stochastic: Whether gradients are rounded stochastically.
        arithmetic: Evaluation of the products; see the module text.
        x: Grid of the first operand; None: it is not quantized.
        w: Grid of the second operand; None: it is not quantized.
        seed: Seed of the noise.
        layer: Number of the layer in the model.
        scaled: Whether the gradient for the input has the second quantizer.
    """

    geometry: Geometry
    spec: QuantSpec
    estimator: RangeEstimator
    stochastic: bool
    arithmetic: Arithmetic
    x: QuantSpec | None
    w: QuantSpec | None
    seed: int
    layer: int
    scaled: bool


_CALLS = 2**20
"""Largest number of micro-batches of a step."""


class LayerProducts(nn.Module):
    """One sum of products with its quantizers of gradients.

    State in `state_dict`: `gradient.*`, `scaled_gradient.*` with the second quantizer, and `calls`.

    Args:
        job: Constants.
        device: Device of the state.

    Attributes:
        gradient: Range of the gradient.
        scaled_gradient: Range of the gradient times the weight scales; None if the weight has one scale.
        calls: Number of backwards in this step, int64 []: the micro-batches of a step have noise of their own.
    """

    calls: Tensor

    def __init__(self, job: Job, device: torch.device | None = None) -> None:
        super().__init__()
        self.job = job
        self.gradient = RangeTracker(job.estimator, device=device)
        self.scaled_gradient = RangeTracker(job.estimator, device=device) if job.scaled else None
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64, device=device))

    @property
    def trackers(self) -> list[RangeTracker]:
        """The ranges of this layer."""
        return [self.gradient, *([self.scaled_gradient] if self.scaled_gradient is not None else [])]

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        x_grid: Grid | None,
        w_grid: Grid | None,
    ) -> Tensor:
        """The result of the layer.

        Args:
            x: Quantized input, or first operand of a matrix product.
            w: Quantized weight, or second operand.
            bias: Bias, [out].
            x_grid: Scale and zero point of x; None if x is not quantized.
            w_grid: Scale and zero point of w; None if w is not quantized.
        """
        geometry = self.job.geometry
        if geometry.border:
            x = torch.nn.functional.pad(x, geometry.border)
        states = [tracker.state for tracker in self.trackers]
        # torch.compile traces functions of tensors: the states are passed one tensor at a time.
        flat = [tensor for state in states for tensor in _tensors(state)]
        grids = (*(x_grid or (None, None)), *(w_grid or (None, None)))
        return cast("Tensor", _Products.apply(x, w, bias, *grids, self.calls, self.job, process_rank(), *flat))

    def extra_repr(self) -> str:
        """One line for `repr`."""
        rounding = "stochastic" if self.job.stochastic else "nearest"
        return f"gradients {self.job.spec} {rounding}, {self.job.arithmetic}"


def _tensors(state: RangeState) -> tuple[Tensor | None, ...]:
    return state.reach, state.pending, state.count, state.factor, state.watched


@dataclass(frozen=True)
class Operand:
    """An operand of a product on its grid.

    Args:
        steps: Codes minus the zero point, integral float tensor.
        scale: Scale, float32, one element or [out].
        zero_point: Zero point, the same for all channels where `codes` are used.
        qmin: Lowest code.
    """

    steps: Tensor
    scale: Tensor
    zero_point: Tensor
    qmin: int

    @property
    def wide(self) -> Tensor:
        """The integers in float64."""
        return self.steps.to(torch.float64)

    @property
    def codes(self) -> Codes8:
        """The codes in int8."""
        return Codes8.of(self.steps, int(self.zero_point.reshape(-1)[0]), self.qmin)


class _Context(Protocol):
    """The values that `_Products` keeps between forward and backward."""

    job: Job
    rank: int
    states: list[RangeState]
    calls: Tensor
    needs_input_grad: tuple[bool, ...]

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]: ...


class _Products(torch.autograd.Function):
    """See the module text."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # torch's own signature; `_Context` in the backward
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        x_scale: Tensor | None,
        x_zero: Tensor | None,
        w_scale: Tensor | None,
        w_zero: Tensor | None,
        calls: Tensor,
        job: Job,
        rank: int,
        *flat: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, w, x_scale, x_zero, w_scale, w_zero)
        ctx.job, ctx.rank, ctx.calls = job, rank, calls
        ctx.states = _states(flat)
        if job.arithmetic == "float":
            return job.geometry.forward(x, w, bias)
        left, right = _operands(job, x, w, (x_scale, x_zero, w_scale, w_zero))
        y = _scaled(_forward(job, left, right), (left.scale, None), (right.scale, job.geometry.output_axis))
        return y if bias is None else y + along_axis(bias, y.dim(), job.geometry.output_axis)

    @staticmethod
    def backward(ctx: _Context, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w, _, _, w_scale, w_zero = ctx.saved_tensors
        assert x is not None
        assert w is not None
        job, geometry = ctx.job, ctx.job.geometry
        needs_x, needs_w, needs_bias = ctx.needs_input_grad[:3]
        step = ctx.states[0].count
        quantized = _quantized(ctx, g, 0, step)
        factor = ctx.states[0].factor if isinstance(job.estimator, DSGC) and job.estimator.slows else None
        bias_gradient = (geometry.over_channels(quantized.steps) * quantized.scale).to(g.dtype) if needs_bias else None

        scaled = quantized
        if job.scaled and needs_x:
            assert w_scale is not None
            scaled = _quantized(ctx, g * along_axis(w_scale, g.dim(), geometry.output_axis), 1, step)
        ctx.calls.add_(1)
        nothing = (None,) * (7 + len(ctx.states) * 5)
        if job.arithmetic == "float":
            w_steps = _operand(w, w_scale, w_zero, job.w, _axis(job)).steps if job.scaled else w
            real = quantized.steps * quantized.scale
            other = real if scaled is quantized else scaled.steps * scaled.scale
            input_gradient = geometry.for_input(other, x, w_steps) if needs_x else None
            weight_gradient = geometry.for_weight(real, x, w) if needs_w else None
            return input_gradient, _times(weight_gradient, factor), bias_gradient, *nothing

        left, right = _operands(job, x, w, ctx.saved_tensors[2:])
        input_gradient = weight_gradient = None
        if needs_x:
            sums = _for_input(job, scaled, left, right)
            own = torch.ones_like(right.scale[:1]).reshape(()) if job.scaled else right.scale
            input_gradient = _scaled(sums, (scaled.scale, None), (own, None))
        if needs_w:
            sums = _for_weight(job, quantized, left, right)
            weight_gradient = _scaled(sums, (quantized.scale, None), (left.scale, None))
        return input_gradient, _times(weight_gradient, factor), bias_gradient, *nothing


def _times(gradient: Tensor | None, factor: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or factor is None else gradient * factor


def _states(flat: Sequence[Tensor | None]) -> list[RangeState]:
    fields = [flat[begin : begin + 5] for begin in range(0, len(flat), 5)]
    return [RangeState(*cast("Any", part)) for part in fields]


def _axis(job: Job) -> int | None:
    """Axis of the scales of the second operand; None for one scale."""
    return job.geometry.weight_axis if job.w is not None and job.w.axis is not None else None


def _quantized(ctx: _Context, g: Tensor, place: int, step: Tensor) -> Operand:
    """A gradient on its grid; `place` numbers the quantizers of the layer."""
    job, state = ctx.job, ctx.states[place]
    measured = job.estimator.measured(g, job.spec, state.count)
    scale, zero_point = state.grid(*measured, job.spec, job.estimator)
    key = _key(job, ctx.rank, place, step, ctx.calls) if job.stochastic else None
    steps = gradient_steps(g, scale, zero_point, job.spec, key)
    if state.watched is not None:
        low, high = ((end - zero_point) * scale for end in (job.spec.qmin, job.spec.qmax))
        state.watch(g, steps * scale, low, high)
    return Operand(steps, scale, zero_point, job.spec.qmin)


def _key(job: Job, rank: int, place: int, step: Tensor, calls: Tensor) -> Key:
    # Reading a counter would break a compiled graph, and would make a GPU wait.
    reads = step.device.type == "cpu" and not torch.compiler.is_compiling()
    # One word for both counters: each word costs a kernel per operation of the hash.
    counter: Word = int(step) * _CALLS + int(calls) if reads else step * _CALLS + calls
    return noise_key(job.seed, rank, job.layer, place, counter)


def _operands(job: Job, x: Tensor, w: Tensor, grids: Sequence[Tensor | None]) -> tuple[Operand, Operand]:
    x_scale, x_zero, w_scale, w_zero = grids
    return _operand(x, x_scale, x_zero, job.x, None), _operand(w, w_scale, w_zero, job.w, _axis(job))


def _operand(
    real: Tensor, scale: Tensor | None, zero_point: Tensor | None, spec: QuantSpec | None, axis: int | None
) -> Operand:
    """The operand of a tensor that is on its grid already, so that x / s is within 2^-23 of an integer."""
    assert scale is not None
    assert zero_point is not None
    assert spec is not None
    steps = round_float(real / along_axis(scale, real.dim(), axis), Rounding.NEAREST_EVEN)
    return Operand(steps, scale, zero_point, spec.qmin)


def _scaled(sums: Tensor, *scales: tuple[Tensor, int | None]) -> Tensor:
    """Integral float64 sums times the product of scales, rounded once to float32.

    The result is contiguous, because sums over it in other operators depend on its layout.
    """
    (left, left_axis), (right, right_axis) = scales
    product = along_axis(left.double(), sums.dim(), left_axis) * along_axis(right.double(), sums.dim(), right_axis)
    return (sums * product).to(torch.float32, memory_format=torch.contiguous_format)


def _serves(job: Job, *specs: QuantSpec | None, device: torch.device) -> bool:
    """Whether the kernels on int8 compute a product of operands with one zero point each.

    Codes times the factors of blocks are wider than codes.
    """
    if any(spec.axis is not None and not spec.symmetric for spec in specs if spec is not None):
        return False
    widths = [spec.bits + (0 if spec.block is None else spec.factor_bits) for spec in specs if spec is not None]
    return job.arithmetic == "integer" and integer_products.serves(job.geometry, device, max(widths))


def _forward(job: Job, x: Operand, w: Operand) -> Tensor:
    if _serves(job, job.x, job.w, device=x.steps.device):
        return integer_products.forward(job.geometry, x.codes, w.codes)
    return job.geometry.forward(x.wide, w.wide)


def _for_input(job: Job, g: Operand, x: Operand, w: Operand) -> Tensor:
    if _serves(job, job.spec, job.w, device=g.steps.device) and _is_finite(g):
        return integer_products.for_input(job.geometry, g.codes, w.codes, x.steps.shape)
    return job.geometry.for_input(g.wide, x.wide, w.wide)


def _for_weight(job: Job, g: Operand, x: Operand, w: Operand) -> Tensor:
    if _serves(job, job.spec, job.x, device=g.steps.device) and _is_finite(g):
        return integer_products.for_weight(job.geometry, g.codes, x.codes, w.steps.shape)
    return job.geometry.for_weight(g.wide, x.wide, w.wide)


def _is_finite(g: Operand) -> bool:
    """Whether a gradient has codes: one that is not finite stays so, for checks that look for it."""
    return bool(torch.isfinite(g.scale))

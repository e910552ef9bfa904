"""The state of a range that follows statistics: read by a quantizer, collected in a step, moved once per step.

range ──► reach used in this step ──► quantizer
tensor ──► statistics ──► pending (merged over the micro-batches of a step) ──► move ──► range of the next step
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qcompiler.quant.affine import unchecked_qparams
from qcompiler.quant.opaque import is_compiled_for_a_processor, known
from qcompiler.quant.spec import QuantSpec
from qcompiler.training.batch_norm import process_count
from qcompiler.training.range_estimators import DSGC, RangeEstimator, cosine_distance

__all__ = ["RangeState", "RangeTracker", "move"]


@dataclass(frozen=True)
class RangeState:
    """The tensors of a tracker, for functions that torch.compile traces without the module.

    Args:
        reach: Reach [-low, high] known before this step, float32 [2]; NaN where no range is known.
        pending: Statistics of this step so far; minus infinity without any.
        count: Number of moves with statistics so far, int64 [].
        factor: Factor of the learning rate, float32 []; see `DSGC`.
        watched: Share of clipped elements and cosine distance of the last tensor, float32 [2]; None: not computed.
    """

    reach: Tensor
    pending: Tensor
    count: Tensor
    factor: Tensor
    watched: Tensor | None = None

    @torch.no_grad()
    def grid(
        self, present: Tensor, distance: Tensor | None, spec: QuantSpec, estimator: RangeEstimator
    ) -> tuple[Tensor, Tensor]:
        """Scale and zero point for a tensor, whose statistics are collected.

        Args:
            present: Statistics of the tensor; see `RangeEstimator.measured`.
            distance: Cosine distance where the estimator has searched for it.
            spec: Grid of the quantizer.
            estimator: Estimator of the range.

        Returns:
            scale (float32) and zero point (integral, float64), [] each. A tensor that is not finite gives the scale
            NaN: its infinities would otherwise become codes, and no check of the loss or of gradients would find them.
        """
        self.collect(present)
        if distance is not None and isinstance(estimator, DSGC) and estimator.slows:
            self.factor.copy_(estimator.factor(distance))
        used = torch.where(is_known(self.reach), estimator.used(self.reach, present, self.count), present)
        scale, zero_point = qparams_of(used, spec)
        scale = scale + (present - present).sum()
        return known(scale, zero_point) if is_compiled_for_a_processor(scale) else (scale, zero_point)

    @torch.no_grad()
    def collect(self, present: Tensor) -> None:
        """Merge statistics into those of this step; statistics that are not finite are left out."""
        finite = torch.isfinite(present).all()
        self.pending.copy_(torch.where(finite, torch.maximum(self.pending, present), self.pending))

    @torch.no_grad()
    def watch(self, x: Tensor, y: Tensor, low: Tensor, high: Tensor) -> None:
        """Record the share of elements of x outside of [low, high], and the cosine distance of x and y."""
        if self.watched is not None:
            outside = ((x < low) | (x > high)).to(torch.float32).mean()
            self.watched.copy_(torch.stack((outside, cosine_distance(x, y).to(torch.float32))))


def is_known(reach: Tensor) -> Tensor:
    """Whether a reach, [..., 2], is a range of more than 0, bool [..., 1].

    A range of only 0 comes from a tensor of zeros, such as the gradient before a residual branch that starts at zero.
    Quantized in that range, the next tensor would be lost.
    """
    return reach.clamp(min=0.0).sum(-1, keepdim=True) > 0


def qparams_of(reach: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (integral, float64) of a grid over a reach [2]."""
    wide = reach.to(torch.float64)
    return unchecked_qparams(-wide[0], wide[1], spec)


class RangeTracker(nn.Module):
    """The range of one quantizer, or of several with one grid.

    State in `state_dict`: `reach`, `pending`, `count`, and `factor` if the estimator uses it; see `RangeState`.

    Args:
        estimator: Estimator of the range.
        reach: Given range as [-low, high]; None: the first tensor gives it.
        device: Device of the state.

    Attributes:
        watched: Share of clipped elements and cosine distance of the last tensor, [2], while `watch` is on; else None.
    """

    reach: Tensor
    pending: Tensor
    count: Tensor
    factor: Tensor
    watched: Tensor | None

    def __init__(
        self, estimator: RangeEstimator, reach: Tensor | None = None, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.estimator = estimator
        unknown = torch.full((2,), torch.nan, device=device)
        self.register_buffer("reach", unknown if reach is None else reach.to(torch.float32).clone())
        self.register_buffer("pending", torch.full((2,), -torch.inf, device=self.reach.device))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=self.reach.device))
        slows = isinstance(estimator, DSGC) and estimator.slows
        self.register_buffer("factor", torch.ones((), device=self.reach.device), persistent=slows)
        self.register_buffer("watched", None, persistent=False)

    @property
    def state(self) -> RangeState:
        """The tensors."""
        return RangeState(self.reach, self.pending, self.count, self.factor, self.watched)

    def watch(self, on: bool = True) -> None:
        """Compute, or stop computing, the share of clipped elements and the cosine distance of each tensor."""
        self.watched = torch.full((2,), torch.nan, device=self.reach.device) if on else None

    def extra_repr(self) -> str:
        """One line for `repr`."""
        return f"{self.estimator}"


@torch.no_grad()
def move(trackers: Sequence[RangeTracker]) -> None:
    """Move the ranges of one step: merge the statistics of all processes, apply the estimators, begin the next step.

    A tracker without statistics keeps its range. All processes of a distributed run must call this together; their
    ranges are then equal.

    Args:
        trackers: Trackers of a module.
    """
    pending = [tracker.pending for tracker in trackers]
    if process_count() > 1 and pending:
        merged = torch.stack(pending)
        torch.distributed.all_reduce(merged, torch.distributed.ReduceOp.MAX)
        pending = list(merged.unbind())
    groups: dict[tuple[RangeEstimator, torch.device], list[tuple[RangeTracker, Tensor]]] = {}
    for tracker, statistics in zip(trackers, pending, strict=True):
        groups.setdefault((tracker.estimator, tracker.reach.device), []).append((tracker, statistics))
    for (estimator, _), members in groups.items():
        _move_group(estimator, members)


def _move_group(estimator: RangeEstimator, members: Sequence[tuple[RangeTracker, Tensor]]) -> None:
    """Move the ranges of trackers with one estimator in one computation: a kernel for each costs more than its work."""
    reach = torch.stack([tracker.reach for tracker, _ in members])
    statistics = torch.stack([found for _, found in members])
    counts = torch.stack([tracker.count for tracker, _ in members]).unsqueeze(1)
    moved = torch.where(is_known(reach), estimator.moved(reach, statistics, counts), statistics)
    has_any = statistics.isfinite().all(1, keepdim=True)
    moved = torch.where(has_any, moved, reach)
    counts = counts + has_any.to(torch.int64)
    for (tracker, _), own, count in zip(members, moved.unbind(), counts.squeeze(1).unbind(), strict=True):
        tracker.reach.copy_(own)
        tracker.count.copy_(count)
        tracker.pending.fill_(-torch.inf)

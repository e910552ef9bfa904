"""Batch norms that continue to learn after quantized layers.

The trained graph is the shipped graph: its layers have their batch norms folded. A learning batch norm is another
parametrization of weight, bias and scale of such a layer. With g = gamma / sqrt(var + eps) per channel,

    folded weight  g w          folded bias  beta + (b - mean) g

there are two ways to train:

    keep     y = batch_norm(conv(x, q(w)) + b)            the scale of a channel ends as |g| times that of w: exact,
                                                          where each channel has a scale of its own
    double   z = conv(x, w) + b gives mean_B and var_B    w_f = w gamma / sqrt(var + eps), with the running variance at
             y = conv(x, q(w_f)) c + beta                 the last step, so that the quantized weight does not jump from
                 + (b - mean_B) gamma / sqrt(var_B + eps) batch to batch; c = sqrt(var + eps) / sqrt(var_B + eps)
                                                          corrects it

Source: Nagel et al. 2021, arXiv:2106.08295, section 4.2 (static folding, double forward, per-channel); Krishnamoorthi
2018, arXiv:1806.08342, section 3.2.2 (the correction); Jacob et al. 2018, arXiv:1712.05877, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from qcompiler.errors import CalibrationError
from qcompiler.quant.affine import along_axis

__all__ = ["BatchNorm", "Divergence", "Divergences", "Style", "kl_divergence", "reestimate", "statistics_divergence"]

Style: TypeAlias = Literal["fold", "double", "keep"]


class BatchNorm(nn.Module):
    """A batch norm with the parameter names of torch: `weight`, `bias`, `running_mean`, `running_var`.

    In train mode the module normalizes with the batch and updates the running statistics; `eval()` of this module
    alone keeps them fixed, as in torch.

    Args:
        weight: gamma, float32 [C].
        bias: beta.
        mean: Running mean.
        variance: Running variance.
        eps: Added to the variance.
        momentum: Share of the newest batch; 0: the running statistics are the mean of all batches, torch's
            `momentum=None`.
        learns: Whether gamma and beta are parameters.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    folded_var: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        momentum: float,
        *,
        learns: bool = True,
    ) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        for name, tensor in (("weight", weight), ("bias", bias)):
            if learns:
                self.register_parameter(name, nn.Parameter(tensor.detach().clone()))
            else:
                self.register_buffer(name, tensor.detach().clone())
        self.register_buffer("running_mean", mean.detach().clone())
        self.register_buffer("running_var", variance.detach().clone())
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64, device=mean.device))
        # `double` folds this copy, which no forward changes: torch.compile (2.15) recomputes values derived from a
        # buffer in the backward, from the buffer's state after the forward.
        self.register_buffer("folded_var", variance.detach().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, [N, C, ...]."""
        share = self._share() if self.training else 0.0
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, share, self.eps
        )

    def split(self, z: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Gain, correction and shift of a `double` forward, from the result z of the float layer.

        Args:
            z: Result of the layer including its bias, [N, C, ...].
            bias: Bias of the layer, [C].

        Returns:
            gain of the weight, correction and shift of the result: w_f = w * gain, y = conv(x, q(w_f)) * correction +
            shift; [C] each.
        """
        folded = torch.sqrt(self.folded_var + self.eps)
        if self.training:
            with torch.autocast(z.device.type, enabled=False):
                wide = z.to(torch.float32)
                variance, mean = torch.var_mean(wide, [0, *range(2, z.dim())], correction=0)
            self._move(mean, variance, z.numel() // z.shape[1])
            deviation = torch.sqrt(variance + self.eps)
            correction = folded / deviation
        else:
            mean, deviation = self.running_mean, torch.sqrt(self.running_var + self.eps)
            folded, correction = deviation, torch.ones_like(deviation)
        offset = -mean if bias is None else bias - mean
        return self.weight / folded, correction, self.bias + offset * self.weight / deviation

    def folded(self, weight: Tensor, bias: Tensor | None, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        """Weight and bias of the layer with this batch norm folded in, and g, from the running statistics.

        Args:
            weight: Weight of the preceding layer.
            bias: Bias of the preceding layer; None if the layer has no bias.
            axis: Output channel axis of the weight.

        Returns:
            float64: g w, beta + (b - mean) g, and g [C].
        """
        wide = [item.detach().to(torch.float64) for item in (self.weight, self.bias, self.running_mean)]
        gamma, beta, mean = wide
        gain = gamma / torch.sqrt(self.running_var.to(torch.float64) + self.eps)
        own = torch.zeros_like(mean) if bias is None else bias.detach().to(torch.float64)
        return (
            weight.detach().to(torch.float64) * along_axis(gain, weight.dim(), axis),
            beta + (own - mean) * gain,
            gain,
        )

    @property
    def gain(self) -> Tensor:
        """gamma / sqrt(var + eps), [C], with the variance that `double` folds."""
        return self.weight / torch.sqrt(self.folded_var + self.eps)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the running variance, so that the next forwards fold its current value."""
        self.folded_var.copy_(self.running_var)

    def train(self, mode: bool = True) -> BatchNorm:
        """Set train or eval mode."""
        super().train(mode)
        self.refresh()
        return self

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:  # noqa: ANN401  # torch's own signature
        super()._load_from_state_dict(*arguments, **keywords)
        self.refresh()

    def _share(self) -> float:
        """The share of this batch in the running statistics."""
        self.num_batches_tracked.add_(1)
        if self.momentum:
            return self.momentum
        return 1.0 / float(self.num_batches_tracked)

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor, count: int) -> None:
        share = self._share()
        self.running_mean.lerp_(mean, share)
        # As in torch, the running variance is unbiased and the variance used for normalization is not.
        self.running_var.lerp_(variance * (count / max(1, count - 1)), share)

    def extra_repr(self) -> str:
        """One line for `repr`."""
        return f"{self.running_mean.numel()}, eps={self.eps}, momentum={self.momentum}"


def reestimate(
    module: nn.Module,
    batches: Iterable[object],
    forward: Callable[[nn.Module, object], object],
    limit: int | None = None,
) -> int:
    """Set running statistics to the mean over batches of the statistics of each.

    All other modules run in eval mode. Oscillating weights corrupt the moving averages of training; the result is the
    statistics of the current weights.

    Args:
        module: Module that contains the batch norms.
        batches: Batches of inputs.
        forward: Function that runs the module, in float, on one batch.
        limit: Maximum number of batches per process; 50 in the code of Nagel et al. 2022, 100 in AIMET.

    Returns:
        The number of batches read, by all processes of a distributed run.

    Raises:
        CalibrationError: `batches` is empty in all processes.

    Source: Nagel et al. 2022, arXiv:2203.11086, section 3.1; AIMET, batch norm re-estimation.
    """
    norms = list(batch_norms(module).values())
    sums: list[tuple[Tensor, Tensor]] = []
    count = 0
    with torch.no_grad(), _batch_statistics(module, norms):
        for batch in batches:
            if limit is not None and count == limit:
                break
            forward(module, batch)
            found = [(n.running_mean.to(torch.float64), n.running_var.to(torch.float64)) for n in norms]
            sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, found, strict=True)] if sums else found
            count += 1
    # A process without a batch contributes zeros, so that all processes take part in the sum.
    flat = [tensor for pair in sums for tensor in pair] if count else [_nothing(n) for n in norms for _ in range(2)]
    *flat, batches_read = sum_over_processes([*flat, torch.tensor(count, dtype=torch.float64)])
    count = int(batches_read)
    if not count:
        raise CalibrationError("there is no batch from which to estimate batch norms", expected="at least one")
    with torch.no_grad():
        for norm, mean, variance in zip(norms, flat[::2], flat[1::2], strict=True):
            norm.running_mean.copy_(mean / count)
            norm.running_var.copy_(variance / count)
            norm.refresh()
    return count


def batch_norms(module: nn.Module) -> dict[str, BatchNorm]:
    """The batch norms that learn in `module`, by name."""
    return {name: item for name, item in module.named_modules() if isinstance(item, BatchNorm)}


def process_count() -> int:
    """Number of processes of a distributed run; 1 where torch.distributed is not initialized."""
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if running else 1


def process_rank() -> int:
    """Rank of this process in a distributed run; 0 where torch.distributed is not initialized."""
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if running else 0


def sum_over_processes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over all processes, bit-identical in all of them; one all-reduce in float64.

    Args:
        tensors: Tensors of any shapes and types, moved to the device of the first one.
    """
    if process_count() == 1:
        return list(tensors)
    flat = torch.cat([tensor.to(tensors[0].device, torch.float64).reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _nothing(norm: BatchNorm) -> Tensor:
    return torch.zeros_like(norm.running_mean, dtype=torch.float64)


@contextmanager
def _batch_statistics(module: nn.Module, norms: list[BatchNorm]) -> Iterator[None]:
    """Eval mode in which the running statistics of batch norms are those of the last batch alone."""
    modes = {item: item.training for item in module.modules()}
    kept = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    module.eval()
    try:
        for norm in norms:
            norm.training, norm.momentum = True, 1.0
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
        for item, mode in modes.items():
            item.training = mode


@dataclass(frozen=True)
class Divergence:
    """KL divergence of the running statistics of one batch norm from the statistics of data, nats.

    Args:
        largest: Maximum over the channels.
        mean: Mean over the channels.
    """

    largest: float
    mean: float


class Divergences(dict[str, Divergence]):
    """Divergences by the name of the batch norm; `str` gives a table sorted from largest to smallest."""

    def __str__(self) -> str:
        width = max((len(name) for name in self), default=0)
        worst = sorted(self.items(), key=lambda pair: -pair[1].largest)
        rows = [f"{'batch norm':<{width}}  largest, nats  mean, nats"]
        rows += [f"{name:<{width}}  {item.largest:13.4f}  {item.mean:10.4f}" for name, item in worst]
        return "\n".join(rows)


def kl_divergence(mean: Tensor, variance: Tensor, other_mean: Tensor, other_variance: Tensor) -> Tensor:
    """D_KL(N(mean, variance) || N(other_mean, other_variance)), nats, element by element.

        log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1 / 2

    Nagel et al. 2022 print log(s2^2 / s1^2), twice the first term. Their value is still 0 for equal distributions but
    may be negative for others; this function uses the standard formula.

    Args:
        mean: Mean of the population, m1.
        variance: s1^2, above 0.
        other_mean: The estimate, m2.
        other_variance: s2^2, above 0.
    """
    ratio = torch.log(other_variance / variance) / 2
    return ratio + (variance + (mean - other_mean).square()) / (2 * other_variance) - 0.5


def statistics_divergence(
    module: nn.Module,
    batches: Iterable[object],
    forward: Callable[[nn.Module, object], object],
    limit: int | None = None,
) -> Divergences:
    """The divergence between the statistics of data and the running statistics, per batch norm; nothing is changed.

    The effect of oscillations shows here first, most in layers with few weights per output channel (depthwise layers).

    Args:
        module: See `reestimate`.
        batches: See `reestimate`.
        forward: See `reestimate`.
        limit: See `reestimate`.

    Returns:
        Divergences by the name of the batch norm. The population (m1, s1) is the data.

    Raises:
        CalibrationError: There is no batch.

    Source: Nagel et al. 2022, arXiv:2203.11086, section 3.1, table 1.
    """
    norms = batch_norms(module)
    before = {name: (n.running_mean.clone(), n.running_var.clone()) for name, n in norms.items()}
    try:
        reestimate(module, batches, forward, limit)
        found = Divergences()
        for name, norm in norms.items():
            eps = norm.eps
            wide = [item.to(torch.float64) for item in (norm.running_mean, norm.running_var, *before[name])]
            divergence = kl_divergence(wide[0], wide[1] + eps, wide[2], wide[3] + eps)
            found[name] = Divergence(float(divergence.max()), float(divergence.mean()))
        return found
    finally:
        with torch.no_grad():
            for name, norm in norms.items():
                norm.running_mean.copy_(before[name][0])
                norm.running_var.copy_(before[name][1])
                norm.refresh()

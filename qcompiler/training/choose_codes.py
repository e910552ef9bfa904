"""Choose the codes of oscillating weights after training.

At the end of training an oscillating weight has the code of the last step, by chance. Oscillation tracking stores its
two codes and the share of time spent on the upper code. Two methods choose from them, all layers at once:

    sampling       upper code with that share as probability, per seed: measures the influence of chance
    optimisation   h in [0, 1] per weight, code = lower + h, by gradients of the task loss; an annealed penalty drives h
                   to 0 or 1 (the penalty of adaptive rounding, on the task loss instead of a layer's error)

Re-estimate batch norms after either.

Source: Nagel et al. 2022, arXiv:2203.11086, section 3.2 and table 3; Nagel et al. 2020, arXiv:2004.10568, equations
21 to 24, for h and its penalty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError, InputError
from qcompiler.quant.affine import along_axis
from qcompiler.training.batch_norm import BatchNorm
from qcompiler.training.module import QATModule
from qcompiler.training.oscillations import OSCILLATING
from qcompiler.training.tracking import oscillating

__all__ = ["BinaryOptimization", "TwoCodes", "choose", "optimize_codes", "sample_codes", "two_codes"]

LOW_END, HIGH_END = -0.1, 1.1
"""gamma and zeta: ends of the sigmoid before it is clipped, so that h reaches 0 and 1."""


@dataclass(frozen=True, eq=False)
class TwoCodes:
    """The oscillating weights of a layer.

    Args:
        mask: Positions of the oscillating weights, bool in the shape of the weight.
        lower: Lower of the two codes of each weight, float32 [M], in the order of the mask.
        share: Share of time on the upper code, lower + 1, float32 [M] in [0, 1].
    """

    mask: Tensor
    lower: Tensor
    share: Tensor


def two_codes(module: QATModule, threshold: float = OSCILLATING) -> dict[str, TwoCodes]:
    """The oscillating weights by layer; layers without oscillating weights are omitted.

    The two codes are the code of the last step and its neighbour in the direction from which the last change came. The
    share is the average code minus the lower code, clipped to [0, 1].

    Args:
        module: That tracked oscillations while it learned.
        threshold: Frequency above which a weight oscillates.
    """
    found = {}
    for layer, state in module.oscillations().items():
        mask = oscillating(state, threshold)
        if bool(mask.any()):
            lower = torch.where(state.direction > 0, state.previous - 1, state.previous)[mask]
            found[layer] = TwoCodes(mask, lower, (state.average[mask] - lower).clamp(0.0, 1.0))
    return found


def choose(module: QATModule, codes: dict[str, tuple[TwoCodes, Tensor]]) -> int:
    """Set oscillating weights to chosen codes: the latent weight becomes the value of the code.

    Args:
        module: Module that was given to `two_codes`.
        codes: Oscillating weights by layer, with bool [M]: whether each takes its upper code.

    Returns:
        The number of weights whose code changed.

    Raises:
        InputError: The range of a weight follows its values, so that its codes cannot be chosen.
    """
    moved = 0
    for layer, (item, up) in codes.items():
        wanted = torch.zeros(item.mask.shape, device=item.lower.device)
        wanted[item.mask] = item.lower + up.to(item.lower)
        moved += module.put_on_codes(layer, item.mask, wanted)
    return moved


def sample_codes(module: QATModule, *, seed: int, threshold: float = OSCILLATING) -> int:
    """Sample the code of every oscillating weight; the probability of the upper code is its share of time.

    Samples with different seeds are independent; each replaces the previous sample.

    Args:
        module: Module that tracked oscillations during training.
        seed: Seed for the sample.
        threshold: Frequency above which a weight oscillates.

    Returns:
        How many weights have another code than before.

    Raises:
        InputError: See `choose`.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = {}
    for layer, item in two_codes(module, threshold).items():
        chance = torch.rand(item.share.shape, generator=generator).to(item.share.device)
        chosen[layer] = (item, chance < item.share)
    return choose(module, chosen)


@dataclass(frozen=True)
class BinaryOptimization:
    """Settings for choosing codes by the task loss.

        loss + strength * sum over weights of 1 - |2 h - 1|^beta,     h = clip(1.2 sigmoid(v) - 0.1, 0, 1)

    v starts where h equals the share of time on the upper code; Adam updates it. The penalty is off for a share of the
    steps, then beta falls from `hard` to `soft` along a cosine: at first the penalty is flat except near 0 and 1, later
    it drives h to the nearer of 0 and 1.

    Comments in the paper's source mention 10,000 steps with batches of 64. The other settings are not published; those
    of adaptive rounding are used.

    Args:
        steps: Number of optimizer steps, at least 1.
        lr: Learning rate of Adam.
        strength: Factor of the penalty.
        begin: Share of the steps without penalty.
        hard: Initial beta.
        soft: Final beta.
    """

    steps: int = 10_000
    lr: float = 0.01
    strength: float = 0.01
    begin: float = 0.2
    hard: float = 20.0
    soft: float = 2.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps}", expected="at least 1")
        if not 0.0 <= self.begin < 1.0:
            raise InputError(f"begin={self.begin}", expected="a share of the steps, from 0 to below 1")

    def penalty(self, h: Tensor, step: int) -> Tensor | None:
        """The penalty at a step, strength included; None before it begins."""
        first = self.begin * self.steps
        if step < first:
            return None
        progress = torch.tensor((step - first) / max(1.0, self.steps - first))
        beta = float(self.soft + 0.5 * (self.hard - self.soft) * (1.0 + torch.cos(torch.pi * progress)))
        return self.strength * (1.0 - (2.0 * h - 1.0).abs().pow(beta)).sum()


def optimize_codes(
    module: QATModule,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    how: BinaryOptimization | None = None,
    *,
    threshold: float = OSCILLATING,
) -> int:
    """Choose the codes of all oscillating weights at once by minimizing the task loss.

    Nothing else changes: parameters, their gradients and running statistics stay the same. Batch norms normalize with
    the batch meanwhile, because their running statistics belong to other codes. In a distributed run, call it in one
    process: gradients are not shared.

    Args:
        module: Module that tracked oscillations during training.
        batches: Training data; read again from the start when exhausted.
        loss: Function that computes the differentiable loss of the module, in float, on a batch.
        how: Steps, rates and penalty.
        threshold: Frequency above which a weight oscillates.

    Returns:
        How many weights have another code than before.

    Raises:
        CalibrationError: There is no batch.
        InputError: See `choose`.
    """
    how = how or BinaryOptimization()
    found = two_codes(module, threshold)
    if not found:
        return 0
    variables = {layer: _inverse(item.share).requires_grad_() for layer, item in found.items()}
    optimizer = torch.optim.Adam(list(variables.values()), lr=how.lr)
    source = _endless(batches)
    with _softly(module, found, variables):
        for step in range(how.steps):
            total = loss(module, next(source))
            penalty = how.penalty(torch.cat([_soft(v) for v in variables.values()]), step)
            gradients = torch.autograd.grad(total if penalty is None else total + penalty, list(variables.values()))
            for variable, gradient in zip(variables.values(), gradients, strict=True):
                variable.grad = gradient
            optimizer.step()
    return choose(module, {layer: (item, _soft(variables[layer]) > 0.5) for layer, item in found.items()})


def _soft(variable: Tensor) -> Tensor:
    """h."""
    return (torch.sigmoid(variable) * (HIGH_END - LOW_END) + LOW_END).clamp(0.0, 1.0)


def _inverse(h: Tensor) -> Tensor:
    """v of h."""
    # The clip has no gradient at 0 and 1, so start slightly inside.
    inner = h.clamp(0.01, 0.99)
    return torch.logit((inner - LOW_END) / (HIGH_END - LOW_END))


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise CalibrationError("there is no batch for the choice of codes", expected="at least one")


@contextmanager
def _softly(module: QATModule, found: dict[str, TwoCodes], variables: dict[str, Tensor]) -> Iterator[None]:
    """Eval mode in float with oscillating weights between their codes; batch norm statistics are restored."""
    modes = {item: item.training for item in module.modules()}
    norms = [item for item in module.modules() if isinstance(item, BatchNorm)]
    kept = [(n.running_mean.clone(), n.running_var.clone(), n.num_batches_tracked.clone()) for n in norms]
    hooks = []
    for layer, item in found.items():
        quantizer = module.quantizer(layer)

        def between(
            _: nn.Module, given: tuple[Any, ...], result: Tensor, layer: str = layer, item: TwoCodes = item
        ) -> Tensor:
            scale = along_axis(given[1].detach(), result.dim(), module.quantizer(layer).spec.axis)
            codes = (item.lower + _soft(variables[layer])) * scale.expand(result.shape)[item.mask]
            return result.detach().masked_scatter(item.mask, codes)

        hooks.append(quantizer.register_forward_hook(between))
    module.eval()
    for norm in norms:
        norm.training = True
    try:
        with module.in_float():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for inner, mode in modes.items():
            inner.training = mode
        with torch.no_grad():
            for norm, (mean, variance, count) in zip(norms, kept, strict=True):
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)
                norm.num_batches_tracked.copy_(count)

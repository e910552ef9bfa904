"""After training: which of its two codes shall a weight have that oscillates?

At the end of a training an oscillating weight has the code of the last step, by chance. Its two codes, and the share of
the time that it spent on the upper one, are known: two ways to choose by them, all layers at once.

    sampling       up with the probability of that share, anew for each seed: how much chance decides
    optimisation   h in [0, 1] per weight, code = lower + h, found by gradients of the loss of the task; a penalty that
                   is annealed drives h to 0 or 1 (that of adaptive rounding, on the task instead of a layer)

Batch norms want to be estimated anew after either.

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
from qcompiler.training.module import TrainingModule
from qcompiler.training.oscillations import OSCILLATING
from qcompiler.training.tracking import oscillating

__all__ = ["BinaryOptimization", "TwoCodes", "choose", "optimize_codes", "sample_codes", "two_codes"]

LOW_END, HIGH_END = -0.1, 1.1
"""gamma and zeta: ends of the sigmoid before it is clipped, so that h reaches 0 and 1."""


@dataclass(frozen=True, eq=False)
class TwoCodes:
    """The oscillating weights of a layer.

    Args:
        mask: bool in the shape of the weight, where they are.
        lower: float32 [M], the lower of the two codes of each, in the order of the mask.
        share: float32 [M] in [0, 1], of the time on the upper one, lower + 1.
    """

    mask: Tensor
    lower: Tensor
    share: Tensor


def two_codes(module: TrainingModule, threshold: float = OSCILLATING) -> dict[str, TwoCodes]:
    """The oscillating weights by layer; layers without any are left out.

    The two codes are that of the last step and its neighbour on the side where the last change came from; the share is
    what the average of the codes has above the lower one, within 0 and 1.

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


def choose(module: TrainingModule, codes: dict[str, tuple[TwoCodes, Tensor]]) -> int:
    """Put oscillating weights onto chosen codes: the latent weight goes to the middle of the code.

    Args:
        module: Of `two_codes`.
        codes: By layer, where the weights are and, bool [M], which go up.

    Returns:
        How many weights have another code than before.

    Raises:
        InputError: The range of a weight follows its values, so that no code can be chosen.
    """
    moved = 0
    for layer, (item, up) in codes.items():
        wanted = torch.zeros(item.mask.shape, device=item.lower.device)
        wanted[item.mask] = item.lower + up.to(item.lower)
        moved += module.put_on_codes(layer, item.mask, wanted)
    return moved


def sample_codes(module: TrainingModule, *, seed: int, threshold: float = OSCILLATING) -> int:
    """Sample the code of every oscillating weight: up with the probability of the share of its time there.

    Samples of one module with different seeds are independent; each replaces the one before.

    Args:
        module: That tracked oscillations while it learned.
        seed: Of the sample.
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
    """How codes are chosen by the loss of the task.

        loss + strength * sum over weights of 1 - |2 h - 1|^beta,     h = clip(1.2 sigmoid(v) - 0.1, 0, 1)

    v begins where h is the share of the time on the upper code and is moved by Adam. The penalty is off for a share of
    the steps, then beta falls from `hard` to `soft` by a cosine: first h may be anything but near the middle is flat,
    in the end it has to be 0 or 1, whichever is nearer then.

    The comments of the paper's source speak of 10,000 steps with batches of 64. What else they used is not said; the
    rest is that of adaptive rounding.

    Args:
        steps: At least 1.
        lr: Of Adam.
        strength: Of the penalty.
        begin: Share of the steps without penalty.
        hard: beta at first.
        soft: beta at last.
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
    module: TrainingModule,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    how: BinaryOptimization | None = None,
    *,
    threshold: float = OSCILLATING,
) -> int:
    """Choose the codes of all oscillating weights at once by the loss of the task.

    Nothing else learns: parameters, their gradients and running statistics stay as they are. Batch norms normalize with
    the batch meanwhile, since their running statistics belong to other codes. Of a distributed run, one process
    chooses: gradients are not shared.

    Args:
        module: That tracked oscillations while it learned.
        batches: Training data; read again from the start when it ends.
        loss: Of the module, in float, on a batch: differentiable.
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
    # At 0 and 1 themselves the clip has no gradient: a little inside, the variable can move.
    inner = h.clamp(0.01, 0.99)
    return torch.logit((inner - LOW_END) / (HIGH_END - LOW_END))


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise CalibrationError("there is no batch to choose codes by", expected="at least one")


@contextmanager
def _softly(module: TrainingModule, found: dict[str, TwoCodes], variables: dict[str, Tensor]) -> Iterator[None]:
    """Oscillating weights between their codes; eval mode in float, with batch norms that keep nothing."""
    modes = {item: item.training for item in module.modules()}
    norms = [item for item in module.modules() if isinstance(item, BatchNorm)]
    kept = [(n.running_mean.clone(), n.running_var.clone(), n.num_batches_tracked.clone()) for n in norms]
    exact = module.exact
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
    module.exact = False
    for norm in norms:
        norm.training = True
    try:
        yield
    finally:
        module.exact = exact
        for hook in hooks:
            hook.remove()
        for inner, mode in modes.items():
            inner.training = mode
        with torch.no_grad():
            for norm, (mean, variance, count) in zip(norms, kept, strict=True):
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)
                norm.num_batches_tracked.copy_(count)

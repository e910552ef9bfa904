"""Weights that oscillate: what is known of the movements of each code, and which codes are frozen.

Where the state lives: every quantizer of a weight that is tracked has an `Oscillations` as its child `oscillation`,
whose buffers have the shape of the weight and are part of the `state_dict`. It is updated by `step()` of the training
module, once per optimizer step, after the optimizer has moved the weights: forwards in between, of gradient
accumulation or evaluation, do not count, and nothing changes inside a compiled forward. All of it follows from the
weights, so that the processes of a distributed run agree without a word.

    codes      w_int = clip(round(w / s), n, p), or the frozen code
    change     D = w_int(t) - w_int(t - 1); the direction is its sign
    oscillation  o = 1 where D is not 0 and its direction is opposite to that of the last change
    frequency  f = m o + (1 - m) f
    average    a = m w_int + (1 - m) a

Source: Nagel et al. 2022, arXiv:2203.11086, section 4.1 and algorithm 1; first changes as in its code, where they do
not count because no direction came before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["OSCILLATING", "Oscillations"]

OSCILLATING = 0.005
"""A weight with a higher frequency counts as oscillating in the tables of the paper."""


class Oscillations(nn.Module):
    """The state of one weight's codes.

    Args:
        codes: float32 integers in the shape of the weight: where it starts.
        momentum: m, the share of the newest step in frequency and average, in (0, 1]. A threshold of freezing should be
            two to three times as large at least.

    Attributes:
        previous: float32, codes after the last step.
        direction: int8, sign of the last change, 0 before any.
        frequency: float32 in [0, 1], exponential moving average of oscillations.
        average: float32, exponential moving average of the codes.
        frozen: bool, codes that stay for good.
        frozen_codes: float32, the codes that stay, in integers, so that a scale that goes on learning does not move
            them to other codes; 0 elsewhere.
        freezes: Whether the quantizer has to look at `frozen`. False until something may be frozen, so that tracking
            alone costs the forward nothing.
    """

    previous: Tensor
    direction: Tensor
    frequency: Tensor
    average: Tensor
    frozen: Tensor
    frozen_codes: Tensor

    def __init__(self, codes: Tensor, momentum: float = 0.001) -> None:
        super().__init__()
        self.momentum = momentum
        self.freezes = False
        codes = codes.detach().to(torch.float32)
        self.register_buffer("previous", codes.clone())
        self.register_buffer("direction", torch.zeros_like(codes, dtype=torch.int8))
        self.register_buffer("frequency", torch.zeros_like(codes))
        self.register_buffer("average", codes.clone())
        self.register_buffer("frozen", torch.zeros_like(codes, dtype=torch.bool))
        self.register_buffer("frozen_codes", torch.zeros_like(codes))

    @torch.no_grad()
    def update(self, codes: Tensor) -> None:
        """Take in the codes of another step; see the module text.

        Args:
            codes: float32 integers in the shape of the weight, frozen ones as they are frozen.
        """
        change = (codes - self.previous).sign_().to(torch.int8)
        oscillates = (change * self.direction) == -1
        self.frequency.lerp_(oscillates.to(torch.float32), self.momentum)
        self.average.lerp_(codes, self.momentum)
        self.direction.copy_(torch.where(change == 0, self.direction, change))
        self.previous.copy_(codes)

    def override(self, result: Tensor, scale: Tensor) -> Tensor:
        """`result`, with frozen_codes * scale where codes are frozen; the gradient of the scale goes through.

        Args:
            result: What the quantizer made of the weight.
            scale: As it broadcasts with it; ones for codes.
        """
        return torch.where(self.frozen, (self.frozen_codes * scale).to(result.dtype), result)

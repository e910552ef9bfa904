"""Oscillating weights: the oscillation state of each code, and frozen codes.

The quantizer of each tracked weight has an `Oscillations` as its child `oscillation`. Its buffers have the shape of the
weight and are part of the `state_dict`. `step()` of the training module updates them once per optimizer step, after the
optimizer has changed the weights: other forwards (gradient accumulation, evaluation) do not count, and nothing changes
inside a compiled forward. The state follows from the weights alone, so processes of a distributed run need not exchange
it.

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
"""Frequency above which a weight counts as oscillating in the tables of the paper."""


class Oscillations(nn.Module):
    """The oscillation state of one weight tensor.

    Args:
        codes: Initial codes, float32 integers in the shape of the weight.
        momentum: m, the share of the newest step in frequency and average, in (0, 1]. A threshold for freezing should
            be at least two to three times as large.

    Attributes:
        previous: Codes after the last step, float32.
        direction: Sign of the last change, int8; 0 before the first change.
        frequency: Exponential moving average of oscillations, float32 in [0, 1].
        average: Exponential moving average of the codes, float32.
        frozen: Mask of the frozen codes, bool.
        frozen_codes: Frozen codes as float32 integers, so that a learning scale does not change them; 0 elsewhere.
        freezes: Whether the quantizer must apply `frozen`. False if nothing is frozen, so that tracking alone adds no
            cost to the forward.
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
        """Update the state with the codes of the next step; see the module text.

        Args:
            codes: Codes, float32 integers in the shape of the weight, frozen codes included.
        """
        change = (codes - self.previous).sign_().to(torch.int8)
        oscillates = (change * self.direction) == -1
        self.frequency.lerp_(oscillates.to(torch.float32), self.momentum)
        self.average.lerp_(codes, self.momentum)
        self.direction.copy_(torch.where(change == 0, self.direction, change))
        self.previous.copy_(codes)

    def override(self, result: Tensor, scale: Tensor) -> Tensor:
        """`result`, with frozen_codes * scale where codes are frozen; the scale keeps its gradient.

        Args:
            result: Quantized weight.
            scale: Scale, broadcastable with `result`; ones if `result` holds codes.
        """
        return torch.where(self.frozen, (self.frozen_codes * scale).to(result.dtype), result)

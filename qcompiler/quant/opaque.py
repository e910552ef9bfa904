"""Operators into which torch.compile does not look, for compiled graphs on a processor.

A compiler for processors fuses what computes a scale, a few operations in float64 on one number, into the loop over the
tensor that is divided by the scale, and repeats them for each element. It also vectorizes no loop that reads int16. An
operator of unknown contents ends the fusion.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["is_compiled_for_a_processor", "known", "widened"]


def is_compiled_for_a_processor(x: Tensor) -> bool:
    """Whether torch.compile traces a computation on a tensor of the processor."""
    return x.device.type == "cpu" and torch.compiler.is_compiling()


@torch.library.custom_op("qcompiler::known", mutates_args=(), schema="(Tensor x, Tensor y) -> (Tensor, Tensor)")
def known(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of two tensors, which are computed once before they are read."""
    return x.clone(), y.clone()


@known.register_fake
def _(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(y)


@torch.library.custom_op("qcompiler::widened", mutates_args=(), schema="(Tensor x) -> Tensor")
def widened(x: Tensor) -> Tensor:
    """A tensor in float32."""
    return x.to(torch.float32)


@widened.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32)

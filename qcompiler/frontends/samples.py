"""Tensors that hold one sample for the whole batch, in the records of a trace."""

from __future__ import annotations

import torch
from torch import fx

from qcompiler.frontends.builder import Observed
from qcompiler.frontends.table import plain_name
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.graph import Value

__all__ = ["REPEATS", "common_sample", "is_only_written", "joins_other_axis", "repeats_samples"]

REPEATS = ("expand", "expand_as", "broadcast_to", "repeat", "tile")
"""Functions that may repeat one sample for the whole batch."""


def repeats_samples(input: Value | Leaf, observed: Observed) -> bool:
    """Whether the result is `input`, one sample, for each sample of the batch."""
    if not input.type.shape or input.type.shape[0] != 1:
        return False
    return input.type.shape[1:] == observed.shape[1:] and not isinstance(observed.shape[0], int)


def is_only_written(node: fx.Node, input: object) -> bool:
    """Whether all users write a tensor without a batch to a part of another one, which repeats it by itself."""
    if not isinstance(input, Value | Leaf) or not all(isinstance(size, int) for size in input.type.shape):
        return False
    return bool(node.users) and all(plain_name(user.target) == "copy" and user.args[1] is node for user in node.users)


def joins_other_axis(node: fx.Node, rank: int) -> bool:
    """Whether a call concatenates along another axis than the batch."""
    if plain_name(node.target) != "cat":
        return False
    axis = node.kwargs.get("dim", node.kwargs.get("axis", node.args[1] if len(node.args) > 1 else 0))
    return isinstance(axis, int) and axis % rank != 0


def common_sample(small: torch.Tensor, large: torch.Tensor | None) -> torch.Tensor | None:
    """The sample of which both tensors hold nothing but copies along the first axis; None if there is none."""
    if large is None or not small.dim() or small.shape[1:] != large.shape[1:] or small.dtype != large.dtype:
        return None
    sample = small[:1]
    equal = torch.equal(small, sample.expand_as(small)) and torch.equal(large, sample.expand_as(large))
    return sample.clone() if equal else None

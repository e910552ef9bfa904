"""Parallel layers of one input as kernels over a common window.

The taps of a window have offsets from the position stride * y of a result: a kernel of k taps with dilation d and p
zeros before the input has the offsets -p, d - p, ..., (k - 1) d - p. Kernels are aligned if one kernel has all their
offsets, and if they all leave the same distance from the last offset to the end of the padded input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.ir.graph import Node, Value
from qcompiler.ops.layers import Layer


@dataclass(frozen=True, eq=False)
class Branch:
    """A linear function of an input, as a layer.

    Args:
        value: The result.
        source: The input.
        node: The layer; None for the input itself.
        kernel: Weights, float64 [groups, outputs per group, inputs per group, taps...].
        bias: float64 [outputs].
        offsets: First offset of each axis.
        dilation: Distance of the taps of each axis.
        rest: Distance from the last offset to the end of the padded input, for each axis.
        stride: Step of each axis.
    """

    value: Value
    source: Value
    node: Node | None
    kernel: Tensor
    bias: Tensor
    offsets: tuple[int, ...]
    dilation: tuple[int, ...]
    rest: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the layer or of the input."""
        return self.value.name if self.node is None else self.node.name

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return self.kernel.shape[0]

    @property
    def taps(self) -> tuple[int, ...]:
        """Taps of each axis."""
        return tuple(self.kernel.shape[3:])

    @property
    def last(self) -> tuple[int, ...]:
        """Last offset of each axis."""
        return tuple(o + (k - 1) * d for o, k, d in zip(self.offsets, self.taps, self.dilation, strict=True))


@dataclass(frozen=True, eq=False)
class Merged:
    """The sum of several branches as one layer; see `Branch` for `kernel` and `bias`.

    Args:
        kernel: Weights.
        bias: Bias.
        padding: All begins, then all ends.
        dilation: Distance of the taps of each axis.
    """

    kernel: Tensor
    bias: Tensor
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def branch_of(value: Value) -> Branch | None:
    """The layer that computes `value`, or the factor per channel; None if there is none."""
    layer = Layer.of(value.producer)
    if layer is None:
        return _scaled_identity(value)
    if layer.transposed:
        return None
    rank = len(layer.kernel)
    bias = layer.bias_tensor()
    rows = layer.rows().to(torch.float64)
    begins, ends = layer.padding[:rank], layer.padding[rank:]
    lasts = [(k - 1) * d - p for k, d, p in zip(layer.kernel, layer.dilation, begins, strict=True)]
    return Branch(
        value,
        layer.node.inputs[0],
        layer.node,
        rows.reshape(*rows.shape[:3], *layer.kernel),
        torch.zeros(layer.outputs, dtype=torch.float64) if bias is None else bias.to(torch.float64),
        tuple(-p for p in begins),
        layer.dilation,
        tuple(end - last for end, last in zip(ends, lasts, strict=True)),
        layer.stride,
    )


def identity(value: Value, like: Branch) -> Branch:
    """The input of `like` as a branch of the same rank: one tap of weight 1 for each channel."""
    channels = like.kernel.shape[0] * like.kernel.shape[2]
    return _diagonal(value, value, None, torch.ones(channels, dtype=torch.float64), torch.zeros(()), len(like.taps))


def _diagonal(value: Value, source: Value, node: Node | None, gain: Tensor, shift: Tensor, rank: int) -> Branch:
    channels, zero, one = len(gain), (0,) * rank, (1,) * rank
    kernel = gain.reshape(channels, 1, 1, *one)
    return Branch(value, source, node, kernel, shift.expand(channels), zero, one, zero, one)


def _scaled_identity(value: Value) -> Branch | None:
    """A batch norm as a depthwise 1x1 layer between two reshapes, for values that are no images."""
    after = value.made_by("reshape")
    layer = Layer.of(after.inputs[0].producer) if after is not None and len(after.inputs[0].users) == 1 else None
    before = layer.node.inputs[0].made_by("reshape") if layer is not None else None
    if layer is None or before is None or layer.transposed or layer.terms != 1 or layer.groups != layer.inputs:
        return None
    source = before.inputs[0]
    plain = not layer.pads and set(layer.stride) == {1} and layer.inputs == layer.outputs
    images = layer.node.inputs[0].type.shape[0] == value.type.shape[0]
    if not plain or not images or source.type.shape != value.type.shape or value.type.rank < 2:
        return None
    if value.type.shape[1] != layer.outputs:
        return None
    bias = layer.bias_tensor()
    shift = torch.zeros((), dtype=torch.float64) if bias is None else bias.to(torch.float64)
    gain = layer.rows().to(torch.float64).reshape(-1)
    return _diagonal(value, source, after, gain, shift, value.type.rank - 2)


def layers_of(branch: Branch) -> list[Node]:
    """The nodes of a branch, from the last to the first."""
    if branch.node is None:
        return []
    found = [branch.node]
    while found[-1].inputs[0] is not branch.source:
        producer = found[-1].inputs[0].producer
        assert producer is not None, "a branch begins at its input"
        found.append(producer)
    return found


def merged(branches: Sequence[Branch]) -> Merged | None:
    """The sum of branches of one input; None if their windows are not aligned."""
    first = branches[0]
    axes = range(len(first.taps))
    if any((len(item.taps), item.stride, item.rest) != (len(axes), first.stride, first.rest) for item in branches):
        return None
    offsets = [min(item.offsets[axis] for item in branches) for axis in axes]
    lasts = [max(item.last[axis] for item in branches) for axis in axes]
    steps = [{item.dilation[axis] for item in branches if item.taps[axis] > 1} or {1} for axis in axes]
    if any(len(step) > 1 for step in steps):
        return None
    dilation = [step.pop() for step in steps]
    apart = [(item.offsets[axis] - offsets[axis]) % dilation[axis] for item in branches for axis in axes]
    ends = [first.rest[axis] + lasts[axis] for axis in axes]
    if any(apart) or min((*ends, *(-offset for offset in offsets)), default=0) < 0:
        return None
    groups = math.gcd(*(item.groups for item in branches))
    taps = [(lasts[axis] - offsets[axis]) // dilation[axis] + 1 for axis in axes]
    channels = [first.kernel.shape[0] * first.kernel.shape[axis] // groups for axis in (1, 2)]
    kernel = torch.zeros(groups, *channels, *taps, dtype=torch.float64)
    for item in branches:
        begins = [(item.offsets[axis] - offsets[axis]) // dilation[axis] for axis in axes]
        window = tuple(slice(begin, begin + count) for begin, count in zip(begins, item.taps, strict=True))
        _diagonal_blocks(kernel, item.groups // groups)[(slice(None),) * 4 + window] += _in_groups(item.kernel, groups)
    bias = torch.stack([item.bias for item in branches]).sum(0)
    return Merged(kernel, bias, (*(-o for o in offsets), *ends), tuple(dilation))


def _diagonal_blocks(kernel: Tensor, count: int) -> Tensor:
    """A view of the `count` blocks on the diagonal of each group: [groups, blocks, outputs, inputs, taps...]."""
    groups, outputs, inputs, *taps = kernel.shape
    blocks = kernel.view(groups, count, outputs // count, count, inputs // count, *taps)
    return blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)


def _in_groups(kernel: Tensor, groups: int) -> Tensor:
    """The kernel of a branch with its groups in `groups` parts, in the shape of `_diagonal_blocks`."""
    return kernel.reshape(groups, kernel.shape[0] // groups, *kernel.shape[1:])

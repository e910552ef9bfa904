"""The three products of a sum of products, for operands of any float type.

    y   = x * w            forward
    g_x = g * w^T          the gradient of the input
    g_w = x^T * g          the gradient of the weight

`*` is a convolution, a linear layer or a matrix product. Each function is one sum of products of its two operands, so
that scales of operands leave it, and integral float64 operands give exact results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from qcompiler.ir.graph import Node
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.ops.mac import pad_amounts

__all__ = ["Geometry"]


@dataclass(frozen=True)
class Geometry:
    """The geometry of a sum of products.

    Args:
        kind: Kind of the product; `matmul` has two activations as operands.
        stride: Step of the window; empty if the product is no convolution, as are the next four.
        padding: Padding at both ends of each axis.
        dilation: Distance of the taps.
        output_padding: Additional size of the result of a transposed convolution.
        border: Padding of the input before the product in the order of `torch.nn.functional.pad`, where both ends of an
            axis differ; else empty.
        transposed: Whether the convolution is transposed.
        groups: Groups of the convolution.
        weight_axis: Output channel axis of the weight.
        output_axis: Channel axis of the result, counted from the end for all but convolutions.
        factor: Factor of a product of two activations.
    """

    kind: Literal["conv", "linear", "matmul"]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    border: tuple[int, ...] = ()
    transposed: bool = False
    groups: int = 1
    weight_axis: int = 0
    output_axis: int = -1
    factor: float = 1.0

    @classmethod
    def of(cls, node: Node) -> Geometry:
        """The geometry of a node with the trait MAC."""
        if not is_weighted(node):
            return cls("matmul", factor=node.number("factor"))
        layer = Layer(node)
        if layer.is_linear:
            return cls("linear")
        rank = len(layer.stride)
        begins, ends = layer.padding[:rank], layer.padding[rank:] or layer.padding[:rank]
        uneven = begins != ends
        return cls(
            "conv",
            layer.stride,
            (0,) * rank if uneven else begins,
            layer.dilation,
            node.integers("output_padding", (0,) * rank),
            tuple(pad_amounts(begins, ends)) if uneven else (),
            node.definition.has(Trait.TRANSPOSED),
            layer.groups,
            layer.weight_axis,
            1,
        )

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """x * w, plus the bias [out] of a layer."""
        if self.kind == "matmul":
            return torch.matmul(x, w) * self.factor
        if self.kind == "linear":
            return torch.nn.functional.linear(x, w, bias)
        y = torch.ops.aten.convolution(
            x,
            w,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )
        return cast("Tensor", y)

    def for_input(self, g: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """g * w^T, in the shape of `x`, whose values are not read."""
        if self.kind == "matmul":
            return (torch.matmul(g, w.transpose(-1, -2)) * self.factor).sum_to_size(x.shape)
        if self.kind == "linear":
            return torch.matmul(g, w)
        return self._backward(g, x, w, 0)

    def for_weight(self, g: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """x^T * g, in the shape of `w`, whose values are not read."""
        if self.kind == "matmul":
            return (torch.matmul(x.transpose(-1, -2), g) * self.factor).sum_to_size(w.shape)
        if self.kind == "linear":
            return g.reshape(-1, w.shape[0]).t() @ x.reshape(-1, w.shape[1])
        return self._backward(g, x, w, 1)

    def _backward(self, g: Tensor, x: Tensor, w: Tensor, place: int) -> Tensor:
        found = torch.ops.aten.convolution_backward(
            g,
            x,
            w,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
            [place == 0, place == 1, False],
        )
        return cast("Tensor", found[place])

    def over_channels(self, g: Tensor) -> Tensor:
        """The sum of a gradient over all but the channels of the result, float64 [out]: the gradient of the bias."""
        axis = self.output_axis % g.dim()
        return g.sum([other for other in range(g.dim()) if other != axis], dtype=torch.float64)

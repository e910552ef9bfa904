"""Weighted layers: convolutions, transposed convolutions and linear layers, through one common view.

    weight of a convolution                [out, in / groups, kernel...]
    weight of a transposed convolution     [in, out / groups, kernel...]
    weight of a linear layer               [out, in]
    rows of any of them                    [groups, out per group, in per group, taps]

The channel axis of a convolution is axis 1 of its input and result; that of a linear layer is the last axis. A product
of two activations is not a layer, because it has no weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from qcompiler.ir.graph import Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ops.quantizers import is_leaf, is_quantizer, leaf_tensor


def leaf_of(value: Value) -> Value:
    """The parameter before quantization: the operand of the quantizer of `value`, or `value` itself."""
    producer = value.producer
    if producer is None or not producer.definition.has(Trait.QUANTIZER, Trait.BIAS_QUANTIZER):
        return value
    return producer.inputs[0]


def is_weighted(node: Node) -> bool:
    """Whether `node` multiplies its input with a weight, its second operand, wherever the weight comes from."""
    return node.definition.has(Trait.WEIGHTED)


@dataclass(frozen=True)
class Layer:
    """A view of a weighted node of a FLOAT, CANONICAL or QUANTIZED graph.

    Args:
        node: A node for which `is_weighted` holds.
    """

    node: Node

    @classmethod
    def of(cls, node: Node | None) -> Layer | None:
        """The layer that `node` is; None if `node` is no layer, or if weight or bias are not tensors of the model."""
        if node is None or not is_weighted(node):
            return None
        return cls(node) if all(is_leaf(leaf_of(value)) for value in node.inputs[1:]) else None

    @property
    def weight(self) -> Value:
        """The weight itself, without its quantizer."""
        return leaf_of(self.node.inputs[1])

    @property
    def bias(self) -> Value | None:
        """The bias itself, without its quantizer; None without a bias."""
        return leaf_of(self.node.inputs[2]) if len(self.node.inputs) > 2 else None

    @property
    def quantizer(self) -> Node | None:
        """The quantizer of the weight; None while the weight has none."""
        maker = self.node.inputs[1].producer
        return maker if is_quantizer(maker) else None

    @property
    def is_linear(self) -> bool:
        """Whether the layer is a matrix product at each position, with its channels along the last axis."""
        return not self.node.definition.has(Trait.CONVOLUTION)

    @property
    def transposed(self) -> bool:
        """Whether the layer is a transposed convolution."""
        return self.node.definition.has(Trait.TRANSPOSED)

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for a linear layer."""
        return self.node.integer("groups", 1)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Size of the window; empty for a linear layer."""
        return self._sizes[2:]

    @property
    def stride(self) -> tuple[int, ...]:
        """Step of the window; empty for a linear layer."""
        return self.node.integers("stride", ())

    @property
    def dilation(self) -> tuple[int, ...]:
        """Distance of the taps; empty for a linear layer."""
        return self.node.integers("dilation", ())

    @property
    def padding(self) -> tuple[int, ...]:
        """All begins, then all ends; one number per axis for a transposed convolution; empty for a linear layer."""
        return self.node.integers("padding", ())

    @property
    def pads(self) -> bool:
        """Whether some windows read zeros outside the input."""
        return any(self.padding)

    @property
    def weight_axis(self) -> int:
        """Output channel axis of the weight; for a transposed convolution the axis holds the channels of one group."""
        return 1 if self.transposed else 0

    @property
    def input_axis(self) -> int:
        """Channel axis of the input."""
        return self.node.inputs[0].type.rank - 1 if self.is_linear else 1

    @property
    def output_axis(self) -> int:
        """Channel axis of the result."""
        return self.node.output.type.rank - 1 if self.is_linear else 1

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return self._sizes[0] if self.transposed else self._sizes[1] * self.groups

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return self._sizes[1] * self.groups if self.transposed else self._sizes[0]

    @property
    def terms(self) -> int:
        """Number of products in the sum for one element of the result."""
        return self.inputs // self.groups * math.prod(self.kernel)

    def weight_tensor(self) -> Tensor:
        """The weight in its own shape."""
        return leaf_tensor(self.weight)

    def bias_tensor(self) -> Tensor | None:
        """The bias, [outputs]; None without a bias."""
        return None if self.bias is None else leaf_tensor(self.bias)

    def rows(self, weight: Tensor | None = None) -> Tensor:
        """A view of the weight, or of a tensor of its shape: [groups, outputs, inputs, taps], counts per group."""
        tensor = self.weight_tensor() if weight is None else weight
        split = tensor.reshape(self.groups, tensor.shape[0] // self.groups, tensor.shape[1], -1)
        return split.transpose(1, 2) if self.transposed else split

    def from_rows(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`: [groups, outputs, inputs, taps], counts per group, in the shape of the weight."""
        return (rows.transpose(1, 2) if self.transposed else rows).reshape(self._sizes)

    @property
    def _sizes(self) -> tuple[int, ...]:
        return self.node.inputs[1].type.sizes

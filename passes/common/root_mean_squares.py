"""Normalizations that a model writes out become the operator.

mul(x, rsqrt(mean(x x) + eps))            ->  layer_norm(x, 1, 0), not centered     mean over the last axes
mul(x, reciprocal(sqrt(mean(x x) + eps))) ->  the same
mul(layer_norm(x, w, b), c)               ->  layer_norm(x, w c, b c)               c: a tensor of the model
add(layer_norm(x, w, b), c)               ->  layer_norm(x, w, b + c)
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ops.quantizers import is_leaf, leaf_tensor
from qcompiler.passes.base import only_user

__all__ = ["fold_into_norm", "write_as_norm"]

FOUND = Sentence("root-mean-square", "a value divided by the root of the mean of its squares")
SCALED = Sentence("norm-scaled", "its weight includes {constant}")
SHIFTED = Sentence("norm-shifted", "its bias includes {constant}")


def write_as_norm(node: Node, rewriter: Rewriter) -> bool:
    """Replace a product with the reciprocal of a root of squares by a normalization."""
    if node.op != "mul":
        return False
    for index, factor in enumerate(node.inputs):
        x = node.inputs[1 - index]
        found = _inverse_root(factor, x)
        if found is None or x.type.shape != node.output.type.shape:
            continue
        axes, eps = found
        sizes = [x.type.shape[axis] for axis in axes]
        known = [size for size in sizes if isinstance(size, int)]
        if list(axes) != list(range(x.type.rank - len(axes), x.type.rank)) or len(known) < len(sizes):
            return False
        shape = (1,) * (len(axes) - 1) + (known[-1],)
        parameters = [
            rewriter.leaf("constant", torch.full(shape, value), ref=f"{node.name}.{name}", before=node, like=node)
            for name, value in (("weight", 1.0), ("bias", 0.0))
        ]
        attributes = {"eps": eps, "dims": len(axes), "centered": False}
        norm = rewriter.insert("layer_norm", [x, *parameters], attributes, before=node, like=node)
        rewriter.note(norm, FOUND())
        rewriter.replace(node, norm.output)
        return True
    return False


def _inverse_root(value: Value, x: Value) -> tuple[tuple[int, ...], float] | None:
    """Axes and eps of 1 / sqrt(mean(x x) + eps)."""
    node = value.made_by("rsqrt")
    if node is None:
        reciprocal = value.made_by("reciprocal")
        node = None if reciprocal is None else reciprocal.inputs[0].made_by("sqrt")
    total = None if node is None else node.inputs[0].made_by("add")
    if total is None:
        return None
    for index, operand in enumerate(total.inputs):
        mean = total.inputs[1 - index].made_by("mean")
        eps = _number(operand)
        if mean is None or eps is None or eps < 0 or not mean.flag("keepdim"):
            continue
        square = mean.inputs[0].made_by("mul")
        if square is not None and all(item is x for item in square.inputs):
            return mean.integers("axes"), eps
    return None


def _number(value: Value) -> float | None:
    tensor = leaf_tensor(value) if is_leaf(value) and value.type.dtype.is_float else None
    return float(tensor) if tensor is not None and tensor.numel() == 1 else None


def fold_into_norm(node: Node, rewriter: Rewriter) -> bool:
    """Include a constant that multiplies a normalization, or is added to it, in its parameters."""
    if node.op not in ("mul", "add"):
        return False
    for index, operand in enumerate(node.inputs):
        norm = node.inputs[1 - index].made_by("layer_norm")
        if norm is None or not is_leaf(operand) or only_user(norm) is not node:
            continue
        weight, bias = norm.inputs[1:]
        constant = leaf_tensor(operand)
        if not (is_leaf(weight) and is_leaf(bias)) or not _fits(constant, norm):
            continue
        tensors = [leaf_tensor(weight), leaf_tensor(bias)]
        tensors = [item * constant for item in tensors] if node.op == "mul" else [tensors[0], tensors[1] + constant]
        shape = torch.broadcast_shapes(*(item.shape for item in tensors))
        parameters = [
            rewriter.leaf(
                "constant", item.expand(shape).contiguous(), ref=f"{node.name}.{name}", before=node, like=node
            )
            for name, item in zip(("weight", "bias"), tensors, strict=True)
        ]
        attributes = {**norm.attributes, "dims": norm.integer("dims", weight.type.rank)}
        new = rewriter.insert("layer_norm", [norm.inputs[0], *parameters], attributes, before=node, like=norm)
        rewriter.note(new, (SCALED if node.op == "mul" else SHIFTED)(constant=operand.name))
        rewriter.replace(node, new.output)
        return True
    return False


def _fits(constant: Tensor, norm: Node) -> bool:
    """Whether a constant broadcasts with the last axes of a normalization and does not enlarge it."""
    sizes = norm.output.type.shape[norm.output.type.rank - constant.dim() :]
    return (
        constant.is_floating_point()
        and constant.dim() <= norm.output.type.rank
        and all(own in (1, size) for own, size in zip(constant.shape, sizes, strict=True))
    )

"""One spelling for each computation.

identity(x), dropout(x) at inference        ->  x             `keep_dropout` keeps dropouts
reshape(reshape(x)), permute(permute(x))    ->  one of them, or none
gather(gather(x)), one axis                 ->  one of them, or none
adaptive_avg_pool2d(x, 1)                   ->  mean(x, axes H W, keepdim)
adaptive_avg_pool2d(x), windows divide      ->  avg_pool2d(x)
adaptive_avg_pool2d(x), resize(x), same size ->  x
avg_pool2d(x) over the whole image          ->  mean(x, axes H W, keepdim)
avg_pool2d(x), a sum of n divided by d      ->  mul(avg_pool2d(x), n / d)
conv(pad(x, zeros))                         ->  conv(x) with more padding
clamp(x, 0, inf)                            ->  relu(x)
clamp(x, -inf, inf)                         ->  x
clamp_channels(x), limits all alike         ->  clamp(x)
maximum, minimum (x, one constant)          ->  clamp(x)
maximum, minimum (x, constant per channel)  ->  clamp_channels(x), where the target clamps each channel to its limits
scaled_unary(x), scales all 1               ->  its function of x
div(x, constant or tensor of the model)     ->  mul(x, 1 / constant)
div(y, x)                                   ->  mul(reciprocal(x), y)
add, mul (constant, x)                      ->  add, mul (x, constant)
matmul(x, W), W a matrix of the model       ->  linear(x, W^T)
matmul(W, x)                                ->  (linear(x^T, W))^T, of the last two axes
reshape(linear(reshape(x))), batch inside   ->  linear(x), if the batch is not the first axis of x
softmax(x + M), M far below 0 in places     ->  softmax(x, mask), see `common.softmax_masks`
one sample repeated for the whole batch     ->  the sample where it broadcasts, see `common.repeated_samples`
mul(matmul(a, b), c), matmul(mul(a, c), b)  ->  matmul(a, b) times c, see `common.product_factors`; not where a
                                                multiplier has no factor
x / the root of the mean of its squares     ->  layer_norm(x), not centered, see `common.root_mean_squares`
numbers that a computed mask chooses        ->  the mask, see `common.two_valued`
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qcompiler.ir.dims import as_dim
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops import SCALED
from qcompiler.ops.quantizers import activation_bounds, is_leaf, leaf_tensor
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.channel_limits import keeps_caps, limits_of, set_limits
from qcompiler.passes.common.channel_tables import scales_of, set_scales
from qcompiler.passes.common.product_factors import take_factor
from qcompiler.passes.common.repeated_samples import read_sample
from qcompiler.passes.common.root_mean_squares import fold_into_norm, write_as_norm
from qcompiler.passes.common.softmax_masks import separate_mask
from qcompiler.passes.common.two_valued import rules as rules_of_masks
from qcompiler.passes.common.two_valued import zeros_and_ones
from qcompiler.targets import Target
from qcompiler.validation.contracts import Close, Contract

REMOVED = Sentence("removed", "removed {op}")
RESHAPES = Sentence("reshapes-merged", "replaces two reshapes")
PERMUTATIONS = Sentence("permutations-merged", "replaces two permutations")
GATHERS = Sentence("gathers-merged", "replaces two gathers")
ADAPTIVE = Sentence("adaptive-pool", "an adaptive pooling whose windows are all {height} by {width}")
DIVIDED_SUM = Sentence("sum-as-mean", "a sum of {terms} divided by {divisor}, as a mean times a constant")
WHOLE_IMAGE = Sentence("pool-as-mean", "a {op} over the whole image")
PADDING = Sentence("padding-merged", "includes the zero padding of {pad}")
CLAMP_TO_RELU = Sentence("clamp-as-relu", "a clamp from 0 to infinity")
EQUAL_LIMITS = Sentence("equal-limits", "a clamp per channel with equal limits")
ONE_LIMIT = Sentence("limit-as-clamp", "a {op} with a constant")
UNIT_SCALES = Sentence("unit-scales", "scales that are all 1")
DIVISION = Sentence("division-as-product", "a division by a constant")
RECIPROCAL = Sentence("division-as-reciprocal", "a division by a value, as a product with its reciprocal")
MATRIX_RIGHT = Sentence("product-with-matrix", "a product with a matrix of the model")
MATRIX_LEFT = Sentence("matrix-times-value", "a matrix of the model times a value")
BATCH_INSIDE = Sentence("batch-inside", "a layer before the batch is merged with other axes")
CONSTANT_LAST = Sentence("constant-last", "the constant is now the second operand")


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Rewrite each node into its canonical spelling, until nothing changes.

    Args:
        keep_dropout: Whether dropouts stay in the graph, for further training. They are removed before lowering.
    """

    name: ClassVar[str] = "canonicalize"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.CANONICAL})
    becomes: ClassVar[Stage | None] = Stage.CANONICAL
    establishes: ClassVar[frozenset[str]] = frozenset({"canonical"})
    keep_dropout: bool = False

    @property
    def contract(self) -> Contract:
        """A mean and a pooling over the same window sum in different orders; a reciprocal rounds once more."""
        return Close(rtol=1e-5)

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        rewriter = context.rewriter(graph)
        of_masks = rules_of_masks(zeros_and_ones(graph, context.samples))
        rules = {op: rule for op, rule in _RULES.items() if not (self.keep_dropout and rule is _dropout)}
        if keeps_caps(context):
            rules |= dict.fromkeys(("maximum", "minimum"), _channel_limit)
        general = (write_as_norm, fold_into_norm, *([take_factor] if _has_factors(context.target) else []))
        changed = True
        while changed:
            changed = False
            for node in graph.nodes:
                found = (read_sample, of_masks.get(node.op), rules.get(node.op), *general)
                changed |= any(rule is not None and rule(node, rewriter) for rule in found)


def _has_factors(target: Target | None) -> bool:
    """Whether multipliers of products of two activations include constants."""
    if target is None or target.arithmetic.requant.mode.is_shift:
        return False
    return target.descriptor.requantize.product_factors


def _remove(node: Node, rewriter: Rewriter) -> bool:
    rewriter.note(node, REMOVED(op=node.op))
    rewriter.replace(node, node.inputs[0])
    return True


def _dropout(node: Node, rewriter: Rewriter) -> bool:
    return not node.flag("training") and _remove(node, rewriter)


def _reshape(node: Node, rewriter: Rewriter) -> bool:
    x = node.inputs[0]
    if x.type.shape == node.output.type.shape and not node.location.place:  # its operand has the grid of the place
        return _remove(node, rewriter)
    first = x.made_by("reshape")
    if first is not None and not first.location.place:
        rewriter.replace_input(node, 0, first.inputs[0])
        rewriter.note(node, RESHAPES())
        _erase_if_unused(first, rewriter)
        return True
    return False


def _permute(node: Node, rewriter: Rewriter) -> bool:
    axes = node.integers("axes")
    if axes == tuple(range(len(axes))):
        return _remove(node, rewriter)
    first = node.inputs[0].made_by("permute")
    if first is None:
        return False
    inner = first.integers("axes")
    rewriter.replace_input(node, 0, first.inputs[0])
    rewriter.set_attributes(node, axes=tuple(inner[axis] for axis in axes))
    rewriter.note(node, PERMUTATIONS())
    _erase_if_unused(first, rewriter)
    return True


def _gather(node: Node, rewriter: Rewriter) -> bool:
    x, axis, indices = node.inputs[0], node.integer("axis"), node.integers("indices")
    if indices == tuple(range(x.type.size(axis))):
        return _remove(node, rewriter)
    first = x.made_by("gather")
    if first is None or first.integer("axis") != axis:
        return False
    inner = first.integers("indices")
    rewriter.replace_input(node, 0, first.inputs[0])
    rewriter.set_attributes(node, indices=tuple(inner[index] for index in indices))
    rewriter.note(node, GATHERS())
    _erase_if_unused(first, rewriter)
    return True


def _adaptive_avg_pool2d(node: Node, rewriter: Rewriter) -> bool:
    x = node.inputs[0].type
    sizes = x.shape[-2:]
    wanted = node.integers("output_size")
    if wanted == sizes:
        return _remove(node, rewriter)
    if wanted == (1, 1):
        return _to_mean(node, rewriter)
    if not all(isinstance(size, int) for size in sizes):
        return False
    image = (x.size(-2), x.size(-1))
    if any(size % want for size, want in zip(image, wanted, strict=True)):
        return False
    kernel = tuple(size // want for size, want in zip(image, wanted, strict=True))
    pool = rewriter.insert(
        "avg_pool2d",
        node.inputs,
        {"kernel": kernel, "stride": kernel, "padding": (0, 0)},
        before=node,
        like=node,
    )
    rewriter.note(pool, ADAPTIVE(height=kernel[0], width=kernel[1]))
    rewriter.replace(node, pool.output)
    return True


def _resize(node: Node, rewriter: Rewriter) -> bool:
    return node.attributes["size"] == node.inputs[0].type.shape[-2:] and _remove(node, rewriter)


def _avg_pool2d(node: Node, rewriter: Rewriter) -> bool:
    whole = node.integers("kernel") == node.inputs[0].type.shape[-2:] and not any(node.integers("padding"))
    if node.given("divisor_override"):
        return _to_mean_of_windows(node, rewriter)
    return whole and _to_mean(node, rewriter)


def _to_mean_of_windows(node: Node, rewriter: Rewriter) -> bool:
    """Turn a sum with another divisor than its number of terms into a mean, whose range is that of its operand."""
    x, y = node.inputs[0], node.output
    kernel, stride, padding = (node.integers(key) for key in ("kernel", "stride", "padding"))
    terms, divisor = math.prod(kernel), node.integer("divisor_override")
    factor = terms / divisor
    if factor == 1.0 or not all(isinstance(size, int) for size in (*x.type.shape[2:], *y.type.shape[2:])):
        return False
    sizes, counts = ([value.type.size(axis) for axis in (2, 3)] for value in (x, y))
    # If the number of windows is rounded up, a window may end after the padding, where torch counts no zeros.
    covered = [(count - 1) * s + k for count, s, k in zip(counts, stride, kernel, strict=True)]
    ends = [max(0, c - size - p) for c, size, p in zip(covered, sizes, padding, strict=True)]
    if any(end > p for end, p in zip(ends, padding, strict=True)):
        pad = (0, 0, *padding, 0, 0, *ends)
        x = rewriter.insert("pad", [x], {"pad": pad, "value": 0.0}, before=node, like=node).output
        padding = (0, 0)
    window = {"kernel": kernel, "stride": stride, "padding": padding}
    pool = rewriter.insert("avg_pool2d", [x], window, before=node, like=node)
    leaf = rewriter.leaf("constant", torch.tensor([factor]), ref=f"{node.name}.factor", before=node, like=node)
    product = rewriter.insert("mul", [pool.output, leaf], before=node, like=node)
    rewriter.note(product, DIVIDED_SUM(terms=terms, divisor=divisor))
    rewriter.replace(node, product.output)
    return True


def _to_mean(node: Node, rewriter: Rewriter) -> bool:
    mean = rewriter.insert("mean", node.inputs, {"axes": (2, 3), "keepdim": True}, before=node, like=node)
    rewriter.note(mean, WHOLE_IMAGE(op=node.op))
    rewriter.replace(node, mean.output)
    return True


def _conv(node: Node, rewriter: Rewriter) -> bool:
    pad = node.inputs[0].made_by("pad")
    if pad is None or pad.number("value") != 0.0:
        return False
    amounts = pad.integers("pad")
    rank = len(amounts) // 2
    begins, ends = amounts[:rank], amounts[rank:]
    if any(begins[:2]) or any(ends[:2]) or min(amounts) < 0:
        return False
    own = node.integers("padding")
    padding = tuple(a + b for a, b in zip(own, begins[2:] + ends[2:], strict=True))
    rewriter.replace_input(node, 0, pad.inputs[0])
    rewriter.set_attributes(node, padding=padding)
    rewriter.note(node, PADDING(pad=pad.name))
    _erase_if_unused(pad, rewriter)
    return True


def _clamp(node: Node, rewriter: Rewriter) -> bool:
    low, high = activation_bounds(node)
    if high != math.inf:
        return False
    if low == -math.inf:
        return _remove(node, rewriter)
    if low != 0.0:
        return False
    relu = rewriter.insert("relu", node.inputs, before=node, like=node)
    rewriter.note(relu, CLAMP_TO_RELU())
    rewriter.replace(node, relu.output)
    return True


def _clamp_channels(node: Node, rewriter: Rewriter) -> bool:
    if not all(map(is_leaf, node.inputs[1:])):
        return False
    axis = node.integer("axis")
    low, high = limits_of(node, node.output.type.size(axis))
    if bool(((low != low[0]) | (high != high[0])).any()):
        return False
    rewriter.note(set_limits(node, low, high, axis, rewriter), EQUAL_LIMITS())
    return True


def _limit(node: Node, rewriter: Rewriter) -> bool:
    """A maximum or minimum with one number, which no training changes, as a clamp."""
    x, limits = _value_and_constant(node)
    if limits is None or limits.numel() != 1:
        return False
    return _clamped(node, x, limits.reshape(1).expand(1), 0, rewriter)


def _channel_limit(node: Node, rewriter: Rewriter) -> bool:
    """As `_limit`, also for one number per index of an axis."""
    x, limits = _value_and_constant(node)
    if limits is None:
        return False
    sizes = (1,) * (x.type.rank - limits.dim()) + tuple(limits.shape)
    axes = [axis for axis, size in enumerate(sizes) if size > 1]
    if len(axes) > 1:
        return False
    return _clamped(node, x, limits.reshape(-1), axes[0] if axes else 0, rewriter)


def _value_and_constant(node: Node) -> tuple[Value, Tensor | None]:
    """The operand that is computed, and the tensor of the other one, a constant of the same shape or less."""
    for x, other in (node.inputs, node.inputs[::-1]):
        kind = other.producer.op if is_leaf(other) and other.producer is not None else ""
        if kind == "constant" and not is_leaf(x) and x.type == node.output.type and x.type.dtype.is_float:
            return x, leaf_tensor(other)
    return node.inputs[0], None


def _clamped(node: Node, x: Value, limits: Tensor, axis: int, rewriter: Rewriter) -> bool:
    free = torch.full_like(limits, math.inf)
    low, high = (limits, free) if node.op == "maximum" else (-free, limits)
    if limits.numel() == 1:
        clamp = rewriter.insert("clamp", [x], {"min": float(low), "max": float(high)}, before=node, like=node)
    else:
        leaves = [
            rewriter.leaf("constant", limit, ref=f"{node.name}.{end}", before=node, like=node)
            for end, limit in (("low", low), ("high", high))
        ]
        clamp = rewriter.insert("clamp_channels", [x, *leaves], {"axis": axis}, before=node, like=node)
    name = node.output.name
    rewriter.note(clamp, ONE_LIMIT(op=node.op))
    rewriter.replace(node, clamp.output)
    rewriter.rename(clamp.output, name)
    return True


def _scaled_unary(node: Node, rewriter: Rewriter) -> bool:
    if not is_leaf(node.inputs[1]):
        return False
    axis = node.integer("axis")
    scales = scales_of(node, node.output.type.size(axis))
    if bool((scales != 1).any()):
        return False
    rewriter.note(set_scales(node, scales, axis, rewriter), UNIT_SCALES())
    return True


def _div(node: Node, rewriter: Rewriter) -> bool:
    divisor = node.inputs[1].producer
    if divisor is None or not is_leaf(divisor.output):
        return _to_reciprocal(node, rewriter)
    tensor = leaf_tensor(divisor.output)
    if not tensor.is_floating_point():
        return False
    factor = rewriter.set_tensor(node.inputs[1], 1.0 / tensor, before=node)
    product = rewriter.insert("mul", [node.inputs[0], factor], before=node, like=node)
    rewriter.note(product, DIVISION())
    rewriter.replace(node, product.output)
    _erase_if_unused(divisor, rewriter)
    return True


def _to_reciprocal(node: Node, rewriter: Rewriter) -> bool:
    if not node.inputs[1].type.dtype.is_float:
        return False
    reciprocal = rewriter.insert("reciprocal", [node.inputs[1]], before=node, like=node)
    product = rewriter.insert("mul", [reciprocal.output, node.inputs[0]], before=node, like=node)
    rewriter.note(product, RECIPROCAL())
    rewriter.replace(node, product.output)
    return True


def _matmul(node: Node, rewriter: Rewriter) -> bool:
    """Turn a product with a matrix of the model into a layer, with the ranges, rounding and kernels of layers."""
    left, right = node.inputs
    if right.type.rank == 2 and left.type.rank >= 2 and not is_leaf(left):
        weight = _matrix(right, rewriter, node, transposed=True)
        if weight is None:
            return False
        layer = rewriter.insert("linear", [left, weight], before=node, like=node)
        rewriter.note(layer, MATRIX_RIGHT())
        rewriter.replace(node, layer.output)
    elif left.type.rank == 2 and right.type.rank >= 2 and not is_leaf(right):
        weight = _matrix(left, rewriter, node, transposed=False)
        if weight is None:
            return False
        rank = right.type.rank
        axes = (*range(rank - 2), rank - 1, rank - 2)
        turned = rewriter.insert("permute", [right], {"axes": axes}, before=node, like=node)
        layer = rewriter.insert("linear", [turned.output, weight], before=node, like=node)
        back = rewriter.insert("permute", [layer.output], {"axes": axes}, before=node, like=node)
        rewriter.note(layer, MATRIX_LEFT())
        rewriter.replace(node, back.output)
    else:
        return False
    for value in (left, right):
        if value.producer is not None and (is_leaf(value) or value.made_by("permute")):
            _erase_if_unused(value.producer, rewriter)
    return True


def _linear(node: Node, rewriter: Rewriter) -> bool:
    """Apply a layer before the batch, which is not the first axis, is merged with the axes before it."""
    merged = node.inputs[0].made_by("reshape")
    if merged is None or node.inputs[0].type.rank != 2:
        return False
    x, (rows, inputs) = merged.inputs[0], node.inputs[0].type.shape
    outer = x.type.shape[0]
    if isinstance(rows, int) or not isinstance(outer, int) or outer == 1:
        return False
    inner = as_dim(rows // outer)
    if isinstance(inner, int) or as_dim(inner * outer) != rows:
        return False
    apart = {"shape": (outer, inner, inputs)}
    x = rewriter.insert("reshape", [x], apart, before=node, like=merged).output
    layer = rewriter.insert("linear", [x, *node.inputs[1:]], before=node, like=node)
    shape = {"shape": node.output.type.shape}
    back = rewriter.insert("reshape", [layer.output], shape, before=node, like=node)
    rewriter.note(layer, BATCH_INSIDE())
    rewriter.replace(node, back.output)
    _erase_if_unused(merged, rewriter)
    return True


def _matrix(value: Value, rewriter: Rewriter, before: Node, *, transposed: bool) -> Value | None:
    """A leaf with the matrix or its transpose if `value` is a leaf or transposes one; otherwise None."""
    turned = value.made_by("permute")
    if turned is not None and is_leaf(turned.inputs[0]):
        value, transposed = turned.inputs[0], not transposed
    if not is_leaf(value) or not value.type.dtype.is_float:
        return None
    leaf = value.producer
    if not transposed or leaf is None:
        return value
    # A new leaf, also for a square matrix, because the old leaf may have other users.
    ref = leaf.text("ref")
    return rewriter.leaf(leaf.op, leaf_tensor(value).T.contiguous(), ref=ref, before=before, like=leaf)


def _constant_last(node: Node, rewriter: Rewriter) -> bool:
    left, right = node.inputs
    if not is_leaf(left) or is_leaf(right):
        return False
    rewriter.replace_input(node, 0, right)
    rewriter.replace_input(node, 1, left)
    rewriter.note(node, CONSTANT_LAST())
    return True


def _erase_if_unused(node: Node, rewriter: Rewriter) -> None:
    unused = all(not value.users and not node.graph.is_output(value) for value in node.outputs)
    if unused and (node.definition.has(Trait.LEAF) or node.inputs):
        rewriter.erase(node)


_RULES: dict[str, Callable[[Node, Rewriter], bool]] = {
    "identity": _remove,
    "linear": _linear,
    "matmul": _matmul,
    "dropout": _dropout,
    "reshape": _reshape,
    "permute": _permute,
    "gather": _gather,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "avg_pool2d": _avg_pool2d,
    "resize": _resize,
    "softmax": separate_mask,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "clamp": _clamp,
    "clamp_channels": _clamp_channels,
    "maximum": _limit,
    "minimum": _limit,
    SCALED: _scaled_unary,
    "div": _div,
    "add": _constant_last,
    "mul": _constant_last,
}

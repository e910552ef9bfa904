"""Inferred shapes and types against those that torch gives, for geometry at random and for a batch without a size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.dims import evaluate_dim, symbol
from qcompiler.ir.graph import Graph, Module, Node
from qcompiler.ir.interpret import evaluate_node
from qcompiler.ir.registry import known_ops
from qcompiler.ir.types import DType, Stage, TensorType
from qcompiler.ops.common import window_size

Attributes = dict[str, Attribute]


def build(op: str, tensors: list[Tensor], attributes: Attributes, batch: bool) -> Node:
    """A graph of one node; with `batch` the first size of each operand that shares it is N."""
    graph = Module().add(Graph())
    values = []
    for item in tensors:
        shape = tuple(item.shape)
        if batch and shape and shape[0] == tensors[0].shape[0]:
            shape = (symbol("N"), *shape[1:])
        values.append(graph.add_input("x", TensorType(DType.of(item.dtype), shape)))
    return graph.append(op, values, attributes)


def check(op: str, tensors: list[Tensor], attributes: Attributes, expected: Tensor, *, bits: bool = True) -> None:
    """Values and types, with a known batch and with N; `tensors[0]` alone is batched."""
    for batch in (False, True):
        node = build(op, tensors, attributes, batch and tensors[0].dim() > 0)
        (found,) = evaluate_node(node, tensors)
        if bits:
            assert torch.equal(found, expected)
        else:
            # torch may choose another algorithm where it is asked to pad by itself.
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        inferred = node.output.type
        sizes = {"N": tensors[0].shape[0]} if tensors[0].dim() else {}
        assert tuple(evaluate_dim(size, sizes) for size in inferred.shape) == tuple(expected.shape)
        assert inferred.dtype.torch == found.dtype == expected.dtype


BATCH = 7
"""A size that no other axis has."""


def image(draw: Any, channels: int, rank: int, low: int = 1, high: int = 6) -> Tensor:
    shape = (BATCH, channels, *(draw(st.integers(low, high)) for _ in range(rank)))
    return torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))


def numbers(draw: Any, count: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(low, high)) for _ in range(count))


@given(data=st.data())
@settings(max_examples=50)
def test_convolutions(data: st.DataObject) -> None:
    draw = data.draw
    rank = draw(st.integers(1, 3))
    groups, per_group, rows = draw(st.sampled_from([(1, 3, 2), (2, 2, 3), (3, 1, 1), (2, 1, 2)]))
    kernel, stride, dilation = (numbers(draw, rank, 1, most) for most in (3, 3, 2))
    begins, ends = numbers(draw, rank, 0, 2), numbers(draw, rank, 0, 2)
    x = image(draw, groups * per_group, rank)
    weight = torch.randn(groups * rows, per_group, *kernel)
    operands = [x, weight, torch.randn(groups * rows)] if draw(st.booleans()) else [x, weight]
    attributes: Attributes = {"stride": stride, "padding": begins + ends, "dilation": dilation, "groups": groups}
    amounts = [size for pair in zip(reversed(begins), reversed(ends), strict=True) for size in pair]
    run: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    try:
        bias = operands[2] if len(operands) > 2 else None
        expected = run(functional.pad(x, amounts), weight, bias, stride, 0, dilation, groups)
    except RuntimeError:
        with pytest.raises(GraphError, match="does not fit"):
            build(f"conv{rank}d", operands, attributes, False)
        return
    check(f"conv{rank}d", operands, attributes, expected, bits=False)


@given(data=st.data())
@settings(max_examples=40)
def test_transposed_convolutions(data: st.DataObject) -> None:
    draw = data.draw
    rank = draw(st.integers(1, 3))
    groups, columns, per_group = draw(st.sampled_from([(1, 3, 2), (2, 2, 3), (3, 1, 1)]))
    kernel, stride, dilation = (numbers(draw, rank, 1, most) for most in (3, 3, 2))
    padding, extra = numbers(draw, rank, 0, 2), numbers(draw, rank, 0, 2)
    x = image(draw, groups * columns, rank, 1, 4)
    weight = torch.randn(groups * columns, per_group, *kernel)
    attributes: Attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    attributes["output_padding"] = extra
    run: Any = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
    try:
        expected = run(x, weight, None, stride, padding, extra, groups, dilation)
    except RuntimeError:
        expected = torch.empty(0)
    if not expected.numel():
        with pytest.raises(GraphError, match="padding"):
            build(f"conv_transpose{rank}d", [x, weight], attributes, False)
        return
    check(f"conv_transpose{rank}d", [x, weight], attributes, expected)


@given(data=st.data())
@settings(max_examples=60)
def test_poolings(data: st.DataObject) -> None:
    draw = data.draw
    kernel, stride = numbers(draw, 2, 1, 4), numbers(draw, 2, 1, 4)
    padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    ceil = draw(st.booleans())
    x = image(draw, 2, 2, 1, 8)
    geometry: Attributes = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil}
    dilation = numbers(draw, 2, 1, 2)
    try:
        largest = functional.max_pool2d(x, kernel, stride, padding, dilation, ceil)
    except RuntimeError:
        with pytest.raises(GraphError, match="does not fit"):
            build("max_pool2d", [x], {**geometry, "dilation": dilation}, False)
    else:
        if bool(torch.isinf(largest).any()):
            with pytest.raises(GraphError, match=r"contains none of the \d elements"):
                build("max_pool2d", [x], {**geometry, "dilation": dilation}, False)
        else:
            check("max_pool2d", [x], {**geometry, "dilation": dilation}, largest)
    count, divisor = draw(st.booleans()), draw(st.sampled_from([None, 1, 5]))
    try:
        averaged = functional.avg_pool2d(x, kernel, stride, padding, ceil, count, divisor)
    except RuntimeError:
        with pytest.raises(GraphError, match="does not fit"):
            build("avg_pool2d", [x], geometry, False)
        return
    check("avg_pool2d", [x], {**geometry, "count_include_pad": count, "divisor_override": divisor}, averaged)


@given(data=st.data())
@settings(max_examples=150)
def test_windows_along_an_axis_of_unknown_size(data: st.DataObject) -> None:
    """The formula over N, where there is one, holds for every N."""
    draw = data.draw
    kernel, stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    begin, ceil = draw(st.integers(0, kernel // 2)), draw(st.booleans())
    try:
        formula = window_size(symbol("N"), kernel, stride, 2 * begin, dilation, ceil=ceil, begin=begin)
    except GraphError:
        assert ceil
        return
    for size in range(dilation * (kernel - 1) + 1, 15):
        known = window_size(size, kernel, stride, 2 * begin, dilation, ceil=ceil, begin=begin)
        assert evaluate_dim(formula, {"N": size}) == known


@given(data=st.data())
@settings(max_examples=60)
def test_arithmetic_with_broadcasting(data: st.DataObject) -> None:
    draw = data.draw
    op = draw(st.sampled_from(["add", "sub", "mul", "div", "maximum", "minimum"]))
    sizes = [BATCH, *(draw(st.integers(1, 4)) for _ in range(draw(st.integers(0, 3))))]
    left = [draw(st.sampled_from([size, size, 1])) for size in sizes]
    right = [draw(st.sampled_from([size, size, 1])) for size in sizes][draw(st.integers(0, len(sizes))) :]
    assume(left[0] == BATCH)
    a, b = torch.randn(left), torch.randn(right)
    function: Any = getattr(torch, op)
    check(op, [a, b], {}, function(a, b))


def test_arithmetic_on_integers_keeps_them_but_for_quotients() -> None:
    a, b = torch.tensor([7, -7], dtype=torch.int32), torch.tensor([2, 2], dtype=torch.int32)
    for op in ("add", "sub", "mul"):
        function: Any = getattr(torch, op)
        check(op, [a, b], {}, function(a, b))
    with pytest.raises(GraphError, match="floating point"):
        build("div", [a, b], {}, False)


@given(data=st.data())
@settings(max_examples=60)
def test_products_of_matrices(data: st.DataObject) -> None:
    draw = data.draw
    m, k, n = (draw(st.integers(1, 4)) for _ in range(3))
    batch = [BATCH, *(draw(st.integers(1, 3)) for _ in range(draw(st.integers(0, 2))))]
    right = [draw(st.sampled_from([size, 1])) for size in batch][draw(st.integers(0, len(batch))) :]
    a, b = torch.randn(*batch, m, k), torch.randn(*right, k, n)
    check("matmul", [a, b], {}, torch.matmul(a, b))
    weight, bias = torch.randn(n, k), torch.randn(n)
    check("linear", [a, weight], {}, functional.linear(a, weight))
    check("linear", [a, weight, bias], {}, functional.linear(a, weight, bias))


@given(data=st.data())
@settings(max_examples=100)
def test_movements_and_means(data: st.DataObject) -> None:
    draw = data.draw
    shape = (BATCH, *(draw(st.integers(1, 4)) for _ in range(draw(st.integers(0, 4)))))
    rank = len(shape)
    x = torch.randn(shape)
    axes = tuple(draw(st.permutations(range(rank))))
    check("permute", [x], {"axes": axes}, x.permute(axes))
    some, keepdim = axes[: draw(st.integers(1, rank))], draw(st.booleans())
    check("mean", [x], {"axes": some, "keepdim": keepdim}, x.mean(some, keepdim))
    begins, ends = [numbers(draw, rank, 0, 2) for _ in range(2)]
    amounts = [size for pair in zip(reversed(begins), reversed(ends), strict=True) for size in pair]
    expected = functional.pad(x, amounts, value=-2.5)
    check("pad", [x], {"pad": begins + ends, "value": -2.5}, expected)
    axis = draw(st.integers(1, rank - 1)) if rank > 1 else None
    others = [torch.randn(*shape[:axis], draw(st.integers(1, 3)), *shape[axis + 1 :]) for _ in "ab"] if axis else []
    check("concat", [x, *others], {"axis": axis or 0}, torch.cat([x, *others], axis or 0))
    if axis:
        start = draw(st.integers(0, shape[axis] - 1))
        stop, step = draw(st.integers(start + 1, shape[axis])), draw(st.integers(1, 3))
        index = (slice(None),) * axis + (slice(start, stop, step),)
        check("slice", [x], {"axis": axis, "start": start, "stop": stop, "step": step}, x[index])
        indices = numbers(draw, draw(st.integers(1, 5)), 0, shape[axis] - 1)
        check("gather", [x], {"axis": axis, "indices": indices}, x.index_select(axis, torch.tensor(indices)))


def test_a_reshape_keeps_the_batch_symbol() -> None:
    graph = Module().add(Graph())
    n = symbol("N")
    x = graph.add_input("x", TensorType(DType.F32, (n, 2, 3, 4)))
    node = graph.append("reshape", [x], {"shape": (n * 2, 12)})
    for batch in (1, 5):
        assert evaluate_node(node, [torch.zeros(batch, 2, 3, 4)])[0].shape == (2 * batch, 12)
    with pytest.raises(GraphError, match="cannot be reshaped to"):
        graph.append("reshape", [x], {"shape": (n, 25)})


@pytest.mark.parametrize("op", ["batch_norm", "dropout", "identity", "relu", "clamp"])
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_elementwise_operators_keep_every_shape(op: str, rank: int) -> None:
    x = torch.randn(BATCH, *range(2, rank + 1))
    parameters = [torch.rand(x.shape[1]) + 0.1 for _ in range(4)] if op == "batch_norm" else []
    for batch in (False, True):
        node = build(op, [x, *parameters], {}, batch)
        assert node.output.type == node.inputs[0].type
        assert evaluate_node(node, [x, *parameters])[0].shape == x.shape


def test_every_stage_of_a_float_operator_is_a_float_stage() -> None:
    for name, item in known_ops().items():
        if Stage.FLOAT in item.stages and Stage.INTEGER in item.stages and not name.startswith("test_"):
            assert item.has("movement", "exact") or name in ("parameter", "state", "constant", "call"), name  # type: ignore[arg-type]  # the trait's own word

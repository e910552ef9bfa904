"""Places of the largest and smallest elements, and elements at computed places."""

from __future__ import annotations

from qcompiler.frontends.builder import Builder, Operand
from qcompiler.frontends.table import axis_of, rule
from qcompiler.ir.graph import Value

__all__ = ["place_of_extreme"]


def place_of_extreme(b: Builder, input: Operand, axis: int, *, largest: bool, keepdim: bool) -> Value:
    """The place of the first of the largest or smallest elements along an axis."""
    found = _top(b, input, axis, 1, largest=largest)
    if keepdim:
        return found
    shape = input.type.shape
    return b.node("reshape", [found], shape=(*shape[:axis], *shape[axis + 1 :]))


def _top(b: Builder, input: Operand, axis: int, count: int, *, largest: bool) -> Value:
    if not isinstance(input.type.shape[axis], int):
        raise b.unsupported(f"{b.function} over the batch", "Compute it for each sample.")
    return b.node("top_places", [input], axis=axis, count=count, largest=largest)


@rule("argmax", "argmin")
def _place(b: Builder, input: Operand, dim: int | None = None, keepdim: bool = False) -> Value:
    largest = b.function.startswith("argmax")
    if dim is not None:
        return place_of_extreme(b, input, axis_of(input, dim), largest=largest, keepdim=keepdim)
    raise b.unsupported(f"{b.function} over the batch", "Name an axis: dim=1, after flatten(1) for all elements.")


@rule("topk")
def _topk(
    b: Builder, input: Operand, k: object, dim: int = -1, largest: bool = True, sorted: bool = True
) -> list[Value]:
    """Values and places in their order, also for sorted=False. Of equal elements, the first comes first."""
    if not isinstance(k, int):
        raise b.unsupported("topk with a computed k", "Pass a number.")
    axis = axis_of(input, dim)
    places = _top(b, input, axis, k, largest=largest)
    return [b.node("take_along", [input, places], axis=axis), places]


@rule("gather", "take_along_dim")
def _gather(b: Builder, input: Operand, dim: object, index: object, *, sparse_grad: bool = False) -> Value:
    """`torch.gather(x, dim, index)`, and `torch.take_along_dim(x, index, dim)`."""
    axis, places = (dim, index) if b.function == "gather" else (index, dim)
    if not isinstance(axis, int) or not isinstance(places, Value):
        raise b.unsupported(f"{b.function} with constant places", "Index with them: x[:, [2, 0]].")
    axis = axis_of(input, axis)
    shape = input.type.shape
    wanted = (*shape[:axis], *places.type.shape[axis : axis + 1], *shape[axis + 1 :])
    if places.type.shape != wanted or not isinstance(shape[axis], int):
        raise b.unsupported(
            f"{b.function} along axis {axis} of {input.type} at {places.type}",
            "Give places for all elements of the other axes; an axis of the batch cannot be chosen from.",
        )
    return b.node("take_along", [input, places], axis=axis)

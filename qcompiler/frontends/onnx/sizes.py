"""Operators on whole numbers that depend on the batch size: arithmetic of shapes.

A shape that an operator reads, cuts and joins stays a list of numbers, some of which are traced; see `symbolic`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcompiler.frontends.onnx.symbolic import Size
from qcompiler.frontends.onnx.table import At, Held, Sizes, Translation, sizes_of

__all__ = ["SIZE_RULES"]

SIZE_RULES: dict[str, Translation] = {}
"""Translations for operators of which an operand has sizes."""


def _rule(*names: str) -> Callable[[Translation], Translation]:
    def enter(function: Translation) -> Translation:
        SIZE_RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def _array(held: Held | None) -> Sizes:
    """An operand as an array of whole numbers."""
    if isinstance(held, np.ndarray):
        return held
    assert isinstance(held, Tensor)
    array = np.empty(tuple(held.shape), dtype=object)
    array[...] = np.array(held.tolist(), dtype=object).reshape(tuple(held.shape)) if held.dim() else held.item()
    return array


def _held(array: Any) -> Held:
    """An array as a tensor if all numbers are known."""
    found = np.asarray(array, dtype=object)
    if any(isinstance(item, Size) for item in found.reshape(-1)):
        return found
    return torch.tensor(found.tolist(), dtype=torch.int64)


def _elementwise(function: Callable[[Any, Any], Any]) -> Translation:
    def rule(at: At) -> Held:
        result = _array(at.operands[0])
        for other in at.operands[1:]:
            result = np.frompyfunc(function, 2, 1)(result, _array(other))
        return _held(result)

    return rule


def _divided(a: Any, b: Any) -> Any:
    """Quotient of sizes, which are not negative, so that rounding down equals rounding towards zero."""
    return operator.floordiv(a, b)


def _least(a: Any, b: Any) -> Any:
    return _ordered(a, b)[0]


def _largest(a: Any, b: Any) -> Any:
    return _ordered(a, b)[1]


def _ordered(a: Any, b: Any) -> tuple[Any, Any]:
    """Two numbers in order, if the order is the same at each batch size."""
    left, right = (item.values if isinstance(item, Size) else (item,) for item in (a, b))
    runs = max(len(left), len(right))
    signs = {(left * runs)[run] <= (right * runs)[run] for run in range(runs)}
    if len(signs) > 1:
        raise ValueError("the order of two sizes depends on the batch size")
    return (a, b) if signs.pop() else (b, a)


SIZE_RULES.update(
    {
        "Add": _elementwise(operator.add),
        "Sub": _elementwise(operator.sub),
        "Mul": _elementwise(operator.mul),
        "Div": _elementwise(_divided),
        "Mod": _elementwise(operator.mod),
        "Min": _elementwise(_least),
        "Max": _elementwise(_largest),
    }
)


@_rule("Identity", "Cast", "Floor", "Ceil", "Abs")
def _same(at: At) -> Held:
    return _held(_array(at.operands[0]))


@_rule("Concat")
def _concat(at: At) -> Held:
    return _held(np.concatenate([_array(item) for item in at.operands]))


@_rule("Gather")
def _gather(at: At) -> Held:
    return _held(
        np.take(_array(at.operands[0]), np.array(at.known(1).tolist(), dtype=np.int64), axis=at.attribute("axis", 0))
    )


@_rule("Slice")
def _slice(at: At) -> Held:
    array = _array(at.operands[0])
    if "starts" in at.attributes:
        starts, ends, steps = at.attribute("starts"), at.attribute("ends"), [1]
    else:
        starts, ends, steps = at.ints(1), at.ints(2), at.ints(4) if at.has(4) else [1]
    return _held(array[starts[0] : ends[0] : steps[0]])


@_rule("Unsqueeze")
def _unsqueeze(at: At) -> Held:
    return _held(_array(at.operands[0]).reshape(1))


@_rule("Squeeze")
def _squeeze(at: At) -> Held:
    return _held(_array(at.operands[0]).reshape(()))


@_rule("Reshape")
def _reshape(at: At) -> Held:
    return _held(_array(at.operands[0]).reshape(at.ints(1)))


@_rule("ReduceProd")
def _product(at: At) -> Held:
    array = _array(at.operands[0]).reshape(-1)
    found = array[0]
    for item in array[1:]:
        found = found * item
    return sizes_of([found], scalar=not at.attribute("keepdims", 1))


@_rule("ReduceSum")
def _sum(at: At) -> Held:
    array = _array(at.operands[0]).reshape(-1)
    found = array[0]
    for item in array[1:]:
        found = found + item
    return sizes_of([found], scalar=not at.attribute("keepdims", 1))


@_rule("Split")
def _split(at: At) -> list[Held]:
    array = _array(at.operands[0])
    lengths = at.axes(1, "split") or [-(-len(array) // at.results)] * at.results
    ends = np.cumsum(lengths)[:-1]
    return [_held(part) for part in np.split(array, ends)]


@_rule("Equal")
def _equal(at: At) -> Tensor:
    left, right = np.broadcast_arrays(_array(at.operands[0]), _array(at.operands[1]))
    return torch.tensor([a == b for a, b in zip(left.reshape(-1), right.reshape(-1), strict=True)]).reshape(left.shape)


@_rule("Where")
def _where(at: At) -> Held:
    condition = np.array(at.known(0).tolist(), dtype=bool)
    left, right = np.broadcast_arrays(_array(at.operands[1]), _array(at.operands[2]))
    chosen = np.broadcast_to(condition, left.shape)
    found = [
        a if take else b for a, b, take in zip(left.reshape(-1), right.reshape(-1), chosen.reshape(-1), strict=True)
    ]
    return _held(np.array(found, dtype=object).reshape(left.shape))


@_rule("Expand")
def _expand(at: At) -> Held:
    return _held(np.broadcast_to(_array(at.operands[0]), at.ints(1)))

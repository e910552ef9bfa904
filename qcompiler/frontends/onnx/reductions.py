"""Reductions of ONNX, sorting and places of extremes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from qcompiler.frontends.onnx.symbolic import Operand, apply, parts
from qcompiler.frontends.onnx.table import At, translates


def _sum(x: Operand, axes: list[int], keep: bool) -> Operand:
    return apply(torch.sum, x, axes, keepdim=keep, dtype=x.dtype)


def _product(x: Operand, axes: list[int], keep: bool) -> Operand:
    found = x
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        found = apply(torch.prod, found, axis, keepdim=keep, dtype=x.dtype)
    return found


def _boolean(function: Callable[..., Any]) -> Callable[[Operand, list[int], bool], Operand]:
    def reduced(x: Operand, axes: list[int], keep: bool) -> Operand:
        if x.dtype == torch.bool:
            numbers = apply(torch.Tensor.to, x, torch.uint8)
            return apply(torch.Tensor.to, apply(function, numbers, axes, keepdim=keep), torch.bool)
        return apply(function, x, axes, keepdim=keep)

    return reduced


def _mean(x: Operand, axes: list[int], keep: bool) -> Operand:
    if x.dtype.is_floating_point:
        return apply(torch.mean, x, axes, keepdim=keep)
    found = apply(torch.mean, apply(torch.Tensor.to, x, torch.float64), axes, keepdim=keep)
    return apply(torch.Tensor.to, found, x.dtype)


def _square(x: Operand) -> Operand:
    return apply(torch.mul, x, x)


def _root(x: Operand, dtype: torch.dtype) -> Operand:
    if dtype.is_floating_point:
        return apply(torch.sqrt, x)
    return apply(torch.Tensor.to, apply(torch.sqrt, apply(torch.Tensor.to, x, torch.float64)), dtype)


def _logarithm(x: Operand, dtype: torch.dtype) -> Operand:
    found = apply(torch.log, x)
    return found if found.dtype == dtype else apply(torch.Tensor.to, found, dtype)


def _log_sum_exp(x: Operand, axes: list[int], keep: bool) -> Operand:
    if x.dtype.is_floating_point:
        return apply(torch.logsumexp, x, axes, keepdim=keep)
    real = apply(torch.Tensor.to, x, torch.float64)
    return apply(torch.Tensor.to, apply(torch.logsumexp, real, axes, keepdim=keep), x.dtype)


REDUCTIONS: Mapping[str, Callable[[Operand, list[int], bool], Operand]] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceProd": _product,
    "ReduceMax": _boolean(torch.amax),
    "ReduceMin": _boolean(torch.amin),
    "ReduceL1": lambda x, axes, keep: _sum(apply(torch.abs, x), axes, keep),
    "ReduceL2": lambda x, axes, keep: _root(_sum(_square(x), axes, keep), x.dtype),
    "ReduceSumSquare": lambda x, axes, keep: _sum(_square(x), axes, keep),
    "ReduceLogSum": lambda x, axes, keep: _logarithm(_sum(x, axes, keep), x.dtype),
    "ReduceLogSumExp": _log_sum_exp,
}


def _reduction(function: Callable[[Operand, list[int], bool], Operand]) -> Callable[[At], Operand]:
    def translation(at: At) -> Operand:
        x, axes = at.tensor(0), at.axes(1)
        if not axes:
            if at.attribute("noop_with_empty_axes", 0):
                return _alone(at, x)
            axes = list(range(x.dim()))
        return function(x, axes, bool(at.attribute("keepdims", 1)))

    return translation


def _alone(at: At, x: Operand) -> Operand:
    """A reduction over no axes: what is done to each element."""
    if at.op == "ReduceSumSquare":
        return _square(x)
    if at.op in ("ReduceL1", "ReduceL2"):
        return apply(torch.abs, x)
    return apply(torch.log, x) if at.op == "ReduceLogSum" else x


for name, function in REDUCTIONS.items():
    translates(name)(_reduction(function))


@translates("ArgMax", "ArgMin")
def _arg(at: At) -> Operand:
    x = at.tensor(0)
    axis, keep = at.attribute("axis", 0) % x.dim(), bool(at.attribute("keepdims", 1))
    function = torch.argmax if at.op == "ArgMax" else torch.argmin
    if not at.attribute("select_last_index", 0):
        return apply(function, x, axis, keepdim=keep)
    size = x.shape[axis]
    found = apply(function, apply(torch.flip, x, [axis]), axis, keepdim=keep)
    return apply(torch.sub, size - 1, found)


@translates("TopK")
def _top_k(at: At) -> Any:
    x = at.tensor(0)
    count = at.attribute("k") if "k" in at.attributes else at.ints(1)[0]
    largest = bool(at.attribute("largest", 1))
    axis = at.attribute("axis", -1) % x.dim()
    # torch.topk chooses among equal numbers as it likes, ONNX the first ones.
    values, places = parts(torch.sort, x, dim=axis, descending=largest, stable=True)
    return [apply(torch.narrow, values, axis, 0, count), apply(torch.narrow, places, axis, 0, count)]


@translates("CumSum", "CumProd")
def _cumulative(at: At) -> Operand:
    x, axis = at.tensor(0), at.ints(1)[0] % at.tensor(0).dim()
    function, neutral = (torch.cumsum, 0) if at.op == "CumSum" else (torch.cumprod, 1)
    back = at.attribute("reverse", 0)
    found = apply(torch.flip, x, [axis]) if back else x
    found = apply(function, found, axis, dtype=x.dtype)
    if at.attribute("exclusive", 0):
        size = x.shape[axis]
        first = apply(torch.full_like, apply(torch.narrow, x, axis, 0, 1), neutral)
        found = apply(torch.cat, [first, apply(torch.narrow, found, axis, 0, size - 1)], axis)
    return apply(torch.flip, found, [axis]) if back else found

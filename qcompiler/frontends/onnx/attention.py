"""Attention of ONNX."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from qcompiler.frontends.onnx.symbolic import Operand, apply
from qcompiler.frontends.onnx.table import At, translates

SCORES, CAPPED, BIASED, WEIGHTS = range(4)
"""Steps whose result may be returned."""


@translates("Attention")
def _attention(at: At) -> Any:
    """softmax(softcap(q k^T scale + mask)) v, with heads along an axis of their own or inside the last one."""
    q, k, v = (_heads(at, index) for index in range(3))
    flat = at.tensor(0).dim() == 3
    results: list[Any] = [None] * 4
    if at.has(4) and at.has(5):
        k, v = apply(torch.cat, [at.tensor(4), k], 2), apply(torch.cat, [at.tensor(5), v], 2)
    results[1], results[2] = k, v
    before = _known(at, k.shape[2]) - _known(at, at.tensor(1).shape[-2]) if at.has(4) else 0
    groups = _known(at, q.shape[1]) // _known(at, k.shape[1])
    if groups > 1:
        k, v = (apply(torch.repeat_interleave, item, groups, 1) for item in (k, v))
    scale = at.attribute("scale", 0.0) or 1.0 / math.sqrt(_known(at, q.shape[-1]))
    mask = _mask(at, q, k, before)
    cap, mode = at.attribute("softcap", 0.0), at.attribute("qk_matmul_output_mode", 0)
    if at.results < 4 and not cap:
        result = apply(F.scaled_dot_product_attention, q, k, v, attn_mask=mask, scale=scale)
    else:
        scores = apply(torch.mul, apply(torch.matmul, q, apply(torch.transpose, k, -1, -2)), scale)
        steps = {SCORES: scores}
        steps[CAPPED] = scores = _capped(scores, cap) if cap else scores
        steps[BIASED] = scores = scores if mask is None else apply(torch.add, scores, _added(mask))
        steps[WEIGHTS] = weights = apply(torch.softmax, scores, -1)
        results[3] = steps[mode]
        result = apply(torch.matmul, weights, v)
    if flat:
        result = apply(torch.flatten, apply(torch.transpose, result, 1, 2), 2)
    results[0] = result
    return results[: max(1, at.results)]


def _capped(scores: Operand, cap: float) -> Operand:
    return apply(torch.mul, apply(torch.tanh, apply(torch.div, scores, cap)), cap)


def _known(at: At, size: object) -> int:
    if not isinstance(size, int):
        raise at.refusal("Attention over a length that depends on the batch size")
    return size


def _heads(at: At, index: int) -> Operand:
    """An operand as [batch, heads, length, size]."""
    x = at.tensor(index)
    if x.dim() == 4:
        return x
    heads = at.attribute("q_num_heads" if index == 0 else "kv_num_heads")
    split = apply(torch.reshape, x, [x.shape[0], x.shape[1], heads, -1])
    return apply(torch.transpose, split, 1, 2)


def _added(mask: Operand) -> Operand:
    """The numbers that a mask adds."""
    if mask.dtype != torch.bool:
        return mask
    return apply(torch.where, mask, torch.tensor(0.0), torch.tensor(-math.inf))


def _mask(at: At, q: Operand, k: Operand, before: int) -> Operand | None:
    """The mask, with that of causal attention, of windows, and of the lengths that are not padding."""
    rows, columns = _known(at, q.shape[2]), _known(at, k.shape[2])
    mask = at.optional(3)
    if mask is not None and isinstance(mask.shape[-1], int) and mask.shape[-1] < columns:
        missing = columns - mask.shape[-1]
        mask = apply(F.pad, mask, [0, missing], value=False if mask.dtype == torch.bool else -math.inf)
    # The place of a query among the keys.
    places: Operand = torch.arange(rows).reshape(-1, 1) + before
    if at.has(6):
        lengths = apply(torch.reshape, at.tensor(6), [-1, 1, 1, 1])
        mask = _both(mask, apply(torch.lt, torch.arange(columns), lengths))
        places = apply(torch.add, apply(torch.sub, lengths, rows), torch.arange(rows).reshape(-1, 1))
    keys = torch.arange(columns)
    left, right = at.attribute("left_window_size", -1), at.attribute("right_window_size", -1)
    if at.attribute("is_causal", 0):
        right = 0
    if right >= 0:
        mask = _both(mask, apply(torch.le, keys, apply(torch.add, places, right)))
    if left >= 0:
        mask = _both(mask, apply(torch.ge, keys, apply(torch.sub, places, left)))
    return mask


def _both(mask: Operand | None, other: Operand) -> Operand:
    if mask is None:
        return other
    if mask.dtype == torch.bool:
        return apply(torch.logical_and, mask, other)
    return apply(torch.add, mask, _added(other))

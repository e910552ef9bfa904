"""Kinds of lines without an operator of their own, which most targets compute in float islands."""

from __future__ import annotations

import torch

from tests.fuzz.draw import Drawing
from tests.fuzz.ends import INDICES
from tests.fuzz.table import divisors, kind

STRANGE = [
    "{0}.sum(-1)", "{0}.sum(1, keepdim=True)", "{0}.amax(-1)", "{0}.max(1).values", "{0}.cumsum(1)", "torch.flip({0}, (1,))", "torch.roll({0}, 1, 1)",
    "{0}.std(-1)", "F.normalize({0}, dim=1)", "F.glu({0}, 1)", "torch.where({0} > 0, {0}, {0} * 0.1)", "{0}.masked_fill({0} < 0, 0.5)", "{0}.repeat(1, *[2] * ({0}.dim() - 1))",
    "torch.maximum({0}, {0}.flip(1))", "{0} / ({0}.abs() + 1)", "{0}.argmax(1)", "({0} > 0).float()", "{0} > 0.5", "F.instance_norm({0})", "F.group_norm({0}, 1)",
    "torch.einsum('bc...,bd...->bcd', {0}, {0})", "{0}.topk(1, 1).values", "{0}.sort(1).values", "{0}.cumsum(1).long()", "torch.remainder({0}, 1.0)", "{0}.floor()", "{0}.sign()",
    "{0}.norm(dim=1)", "{0}.expand(-1, *[-1] * ({0}.dim() - 1))", "F.threshold({0}, 0.1, 20.0)", "torch.outer({0}.flatten(), {0}.flatten())[:4]", "{0}.double().sin().float()",
    "F.one_hot({0}.argmax(1), {0}.shape[1]).float()", "torch.gather({0}, 1, {0}.argmax(1, keepdim=True))", "{0}.var(1, unbiased=False)", "{0}.half().float()", "{0}.prod(1)",
    "torch.logsumexp({0}, 1)", "{0}.min()", "{0}.mean()", "{0}.sum()", "{0} - {0}.mean()", "{0} / {0}.abs().max().clamp(min=0.1)",
    "torch.where({0} > 0, {0}, torch.tensor(0.5))", "torch.maximum({0}, torch.tensor(0.0))", "torch.clamp({0}, max=torch.tensor(1.0))", "{0}.masked_fill({0} < 0, -1e4).clamp(min=-2.0)",
    "({0} > 0) & ({0} < 1)", "torch.isfinite({0})", "{0}.round()", "{0}.int().float()", "{0}.bfloat16().float()", "{0}.to({0}.device, torch.float64).float()", "{0}.to(torch.int32)",
    "F.group_norm({0} * 0 + 1, 1)", "F.layer_norm(torch.ones_like({0}), {0}.shape[-1:])", "torch.full_like({0}, 2.0).cumsum(1) * {0}", "{0}.nan_to_num()", "torch.argsort({0}, 1)",
    "F.pad({0}, (1, 1), mode='reflect')", "F.pad({0}, (1, 0, 1, 0), mode='replicate')", "{0}.unfold(1, 2, 1)", "{0}.diff(dim=1)", "torch.count_nonzero({0}, 1)", "{0}.tril()",
]  # fmt: skip


@kind(14, wild=True)
def strange(d: Drawing, x: str) -> str:
    """A function without an operator."""
    d.odd = True
    return d.pick(STRANGE).format(x)


@kind(10, wild=True)
def looked_up(d: Drawing, x: str) -> str:
    """Rows of a table, by indices that are computed."""
    d.odd = True
    rows, features = d.number(2, 6), d.number(1, 6)
    indices = d.pick([f"{x}.abs().long().clamp(max=1)", f"{x}.flatten(1).argmax(1).clamp(max={rows - 1})"])
    if not d.samples[x].is_floating_point():
        indices = d.pick(
            [f"{x}.long().clamp(0, {rows - 1})", f"(({x} > 0).cumsum(1) * ({x} > 0)).long().clamp(0, {rows - 1})"]
        )
        if x in d.inputs and d.samples[x].dtype != torch.bool:
            rows, indices = max(rows, INDICES), x
    if d.chance(0.25):
        return f"{d.tensor([rows, features])}[{indices}]"
    table = d.make("emb", f"nn.Embedding({rows}, {features}{', padding_idx=0' if d.chance(0.2) else ''})")
    if d.chance(0.2):
        return f"{table}({indices}) @ {table}.weight.t()"
    return f"{table}({indices})"


@kind(4, wild=True)
def masked(d: Drawing, x: str) -> str:
    """Elements that another tensor chooses."""
    d.odd = True
    mask = d.pick([name for name in d.samples if d.broadcasts(x, name)])
    forms = [
        "{0}.masked_fill({1} > 0, 0.0)",
        "torch.where({1} > 0, {0}, torch.zeros_like({0}))",
        "{0} * ({1} > 0)",
        "torch.where({1} != 0, {0}, -1.0)",
        "{0} * ({1} > 0).float()",
    ]
    return d.pick(forms).format(x, mask)


@kind(4, wild=True)
def attention_module(d: Drawing, x: str) -> str:
    """Attention as torch has it."""
    sizes = d.shape(x)
    d.needs(len(sizes) == 3)
    d.odd = True
    attention = d.make("mha", f"nn.MultiheadAttention({sizes[2]}, {d.pick(divisors(sizes[2]))}, batch_first=True)")
    return f"{attention}({x}, {x}, {x}, need_weights=False)[0]"


@kind(1, wild=True)
def groups_norm(d: Drawing, x: str) -> str:
    """A norm over groups of channels."""
    sizes = d.shape(x)
    d.needs(len(sizes) > 2)
    d.odd = True
    more = ["nn.init.zeros_(@.weight)"] if d.chance(0.15) else []
    return f"{d.make('gn', f'nn.GroupNorm({d.pick(divisors(sizes[1]))}, {sizes[1]})', *more)}({x})"

"""Integers and booleans without a grid in C."""

from __future__ import annotations

import math
from collections.abc import Mapping

from qcompiler.backends.integer.c.rules.movement import box_of
from qcompiler.backends.integer.c.shapes import check_rank
from qcompiler.backends.integer.c.text import Value
from qcompiler.backends.integer.c.writer import Rule, Step, Writer
from qcompiler.ir.table import Table

emits: Table[Rule] = Table()

FORMULAS: Mapping[str, str] = {
    # Unsigned, because signed sums must not overflow in C.
    **{name: f"(u{{X}})p {sign} (u{{X}})q" for name, sign in (("add", "+"), ("subtract", "-"), ("multiply", "*"))},
    "minimum": "p < q ? p : q",
    "maximum": "p > q ? p : q",
    "equal": "p == q",
    "not_equal": "p != q",
    "less": "p < q",
    "less_equal": "p <= q",
    "greater": "p > q",
    "greater_equal": "p >= q",
    "and": "p && q",
    "or": "p || q",
    "xor": "p != q",
}
"""Formula of each function of two operands p and q."""


@emits("exact")
def exact(writer: Writer, step: Step) -> None:
    """A function of two operands, with broadcasting."""
    item, name = step.item, str(step.item.attributes["compute"])
    shape = writer.shapes[item.output]
    distances = []
    for operand in item.inputs:
        own, steps = writer.shapes[operand], writer.steps(operand)
        lead = [0] * (len(shape) - len(own))
        distances.append(lead + [0 if size == 1 else step for size, step in zip(own, steps, strict=True)])
    box = box_of(writer, shape, *distances)
    check_rank(box, item)
    members: dict[str, Value] = {
        "count": math.prod(shape),
        "rank": len(box),
        "size": [size for size, *_ in box] or [0],
        "a_step": [a for _, a, _ in box] or [0],
        "b_step": [b for *_, b in box] or [0],
    }
    x = writer.ctype(item.inputs[0])
    types = {"X": x, "Y": writer.ctype(item.output), "NAME": name, "FORMULA": FORMULAS[name].format(X=x)}
    writer.emit(step, "exact", types, item.inputs, members)


@emits("not", "cast")
def unary(writer: Writer, step: Step) -> None:
    """A function of one operand, element by element in the order of memory."""
    item = step.item
    truth = writer.program.tensors[item.output].dtype == "bool"
    formula = "!p" if item.op == "not" else "p != 0" if truth else "p"
    name = item.op if item.op == "not" or not truth else "truth"
    types = {"X": writer.ctype(item.inputs[0]), "Y": writer.ctype(item.output), "NAME": name, "FORMULA": formula}
    writer.emit(step, "exact_unary", types, item.inputs, {"count": math.prod(writer.shapes[item.output])})


@emits("cumsum")
def cumsum(writer: Writer, step: Step) -> None:
    """Sums along one axis."""
    item = step.item
    box = writer.channel_box(item.output, int(writer.call_of(item)["axis"]))
    ctype = writer.ctype(item.output)
    members = {"outer": box["outer"], "count": box["channels"], "inner": box["inner"]}
    writer.emit(step, "cumsum", {"X": ctype, "U": f"u{ctype}"}, item.inputs, members)

"""Operators that the `unknown` entries of a descriptor concern."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from qcompiler.targets.target import Target

__all__ = ["uncertain"]

_SUMS = ("add", "sub")
CONCERNED: dict[str, tuple[str, ...]] = {
    "table": ("table",),
    "rounding.table": ("table",),
    "rounding.average": ("average",),
    "elementwise": (*_SUMS, "mul"),
    "elementwise.add_shift": _SUMS,
}
"""Operators, or kinds of operators, that an entry concerns by its key alone."""


def uncertain(target: Target, ops: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The entries of the `unknown` list that concern some operators.

    An entry `KEY: TEXT` concerns the operators that its text names, and those in `CONCERNED` for its key.
    Entries about all operators, or about facts that are no operator's, concern none.

    Args:
        target: Hardware target.
        ops: Operators of a model.

    Returns:
        Each entry without its key, with its operators in the order of `ops`.
    """
    for entry in target.descriptor.target.unknown:
        key, _, text = entry.partition(": ")
        concerned = CONCERNED.get(key, ())
        names = {*re.findall(r"\w+", text), *concerned}
        rules = {op: target.op_rule(op) for op in ops}
        found = [op for op, rule in rules.items() if rule is not None and (op in names or rule.kind in concerned)]
        if found:
            yield text, found

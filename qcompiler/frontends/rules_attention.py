"""Softmax and attention."""

from __future__ import annotations

from qcompiler.frontends.builder import Builder, Observed, Operand
from qcompiler.frontends.table import axis_of, rule
from qcompiler.ir.graph import Value


@rule("softmax", "softmin")
def _softmax(
    b: Builder,
    input: Operand,
    dim: int | None = None,
    half_to_float: object = None,
    dtype: object = None,
    **keywords: object,
) -> Value:
    """`torch.softmax(x, dim)`, `functional.softmax(x, dim, _stacklevel, dtype)`, and `aten._softmax`."""
    result = b.observed
    if not isinstance(result, Observed) or result.dtype != input.type.dtype.torch:
        raise b.unsupported(f"{b.function} changes the element type from {input.type.dtype}", "Convert the input.")
    if dim is None:  # as torch chooses with a warning
        dim = 0 if input.type.rank in (0, 1, 3) else 1
    x = b.node("mul", [input, -1.0]) if b.function == "softmin" else input
    return b.node("softmax", [x], axis=axis_of(input, dim))

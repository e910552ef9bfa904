"""Single operators on codes, for the tests of exact evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Module, Node
from qcompiler.ir.types import DType, Stage, TensorType
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.targets import load_target
from qcompiler.validation.exact import Codes, Exact, Pending
from qcompiler.validation.exact.rules import RULES

ARITHMETIC = load_target("int8_dsp").arithmetic
OUT = AffineParams(torch.tensor(0.05), torch.tensor(3, dtype=torch.int32))
"""A grid for results: -6.55 to 6.2."""


def grid(scale: float | Sequence[float], zero_point: int = 0, axis: int | None = None) -> AffineParams:
    """A grid of one scale, or of one per channel."""
    scales = torch.tensor(scale)
    return AffineParams(scales, torch.full_like(scales, zero_point, dtype=torch.int32), axis)


def codes(shape: Sequence[int], params: AffineParams, seed: int = 0, low: int = -128, high: int = 127) -> Codes:
    """Random codes between `low` and `high`, of 8 bits."""
    generator = torch.Generator().manual_seed(seed)
    return Codes(torch.randint(low, high + 1, tuple(shape), generator=generator), params, low, high, 8)


def node(op: str, operands: Sequence[Exact], shapes: Sequence[Sequence[int]] = (), **attributes: Any) -> Node:
    """A node that reads graph inputs in the shapes of `operands`; `shapes` for those that wait."""
    graph = Module().add(Graph("main", Stage.QUANTIZED))
    found: list[Any] = [
        item.codes.shape if isinstance(item, Codes) else getattr(item, "shape", None) for item in operands
    ]
    sizes = [tuple(shape or given) for shape, given in zip(found, shapes or found, strict=True)]
    dtypes = [item.dtype if isinstance(item, Tensor) else torch.float32 for item in operands]
    types = [TensorType(DType.of(dtype), shape) for dtype, shape in zip(dtypes, sizes, strict=True)]
    values = [graph.add_input(f"x{i}", kind) for i, kind in enumerate(types)]
    return graph.append(op, values, attributes, name=op)


def evaluate(
    op: str, *operands: Exact, shapes: Sequence[Sequence[int]] = (), arithmetic: Arithmetic = ARITHMETIC, **attributes: Any
) -> Exact:  # fmt: skip
    """The exact evaluation of one operator."""
    made = node(op, operands, shapes, **attributes)
    rule = RULES.find(made.definition)
    assert rule is not None
    return rule(made, operands, arithmetic)


def real_result(op: str, *operands: Exact, **attributes: Any) -> Tensor:
    """The operator on the real numbers of the operands, in float64."""
    reals = [(item.real() if isinstance(item, Codes) else item).to(torch.float64) for item in operands]  # type: ignore[union-attr]
    return node(op, operands, **attributes).definition.evaluate(node(op, operands, **attributes), reals)[0]


def check_rounds(found: Exact, real: Tensor, slack: float = 0.5, qmin: int = -128, qmax: int = 127) -> None:
    """Check that what waits becomes the codes on `OUT` nearest to `real`: at most `slack` steps away."""
    assert isinstance(found, Pending)
    result = found.requantize(OUT, qmin, qmax)
    assert result.dtype == torch.int64
    exact = (real / OUT.scale.to(torch.float64) + OUT.zero_point).clamp(qmin, qmax)
    assert exact.unique().numel() > 3, "a test of one code shows little"
    assert float((result - exact).abs().max()) <= slack + 1e-3

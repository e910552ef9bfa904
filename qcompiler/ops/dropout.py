"""Dropout of elements, channels or samples during training; the identity at inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes, number
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import OpDef, Trait, register
from qcompiler.ir.types import TensorType
from qcompiler.ops.common import FLOAT_STAGES

Drop = Callable[[Tensor, float], Tensor]


def _samples(x: Tensor, p: float, shape: Sequence[int]) -> Tensor:
    kept = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1.0 - p)
    return x * (kept / (1.0 - p) if p < 1.0 else kept)


_MODES: dict[str, Drop] = {
    "elements": lambda x, p: functional.dropout(x, p, True),
    "channels": lambda x, p: torch.feature_dropout(x, p, True),
    "alpha": lambda x, p: functional.alpha_dropout(x, p, True),
    "alpha_channels": lambda x, p: functional.feature_alpha_dropout(x, p, True),
    "rows": lambda x, p: _samples(x, p, [x.shape[0]] + [1] * (x.dim() - 1)),
    "batch": lambda x, p: _samples(x, p, [1] * x.dim()),
}

DROPOUT_MODES = tuple(_MODES)
"""Elements; channels along axis 1; elements or channels set to a value that keeps mean and variance after SELU; single
samples (stochastic depth); the whole batch at once."""


def drop(x: Tensor, p: float, mode: str) -> Tensor:
    """Drop parts of `x` with probability `p` and scale the rest to keep the mean.

    Args:
        x: [N, ...].
        p: Probability of a drop, in [0, 1].
        mode: One of `DROPOUT_MODES`.
    """
    return _MODES[mode](x, p)


def _infer(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    if not 0.0 <= number(attributes, "p") <= 1.0:
        raise GraphError(f"p is {attributes['p']}", expected="a probability")
    if attributes["mode"] not in _MODES:
        raise GraphError(f"the mode is {attributes['mode']!r}", expected="one of " + ", ".join(_MODES))
    return (types[0],)


def _evaluate(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not node.attributes["training"]:
        return (operands[0],)
    return (drop(operands[0], node.number("p"), node.text("mode")),)


register(
    OpDef(
        name="dropout",
        operands=("x",),
        attributes={"p": 0.5, "mode": "elements", "training": False},
        infer=_infer,
        evaluate=_evaluate,
        stages=FLOAT_STAGES,
        # At inference nothing is dropped: elements, codes included, pass unchanged.
        traits=frozenset({Trait.MOVEMENT, Trait.KEEPS_SIGN, Trait.COMMUTES_WITH_SCALE}),
        summary="Zeroes elements, channels or samples while training; the identity at inference.",
    )
)

"""Ops without operands, which read a tensor by name: from the module, or from the tensors of a run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes, integers, text
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import REQUIRED, OpDef, Trait, register
from qcompiler.ir.types import DType, TensorType
from qcompiler.ops.common import ANY_STAGE


def _infer(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    return (_type(text(attributes, "dtype"), integers(attributes, "shape")),)


@lru_cache(maxsize=1024)  # half of the nodes of a graph are leaves, of few types
def _type(dtype: str, shape: tuple[int, ...]) -> TensorType:
    return TensorType(DType(dtype), shape)


def _evaluate(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    raise GraphError(f"a {node.op} is read by the interpreter", where=node.where)


for _name, _summary in (
    ("parameter", "A trained tensor."),
    ("state", "A tensor that the model updates: statistics, zero points."),
    ("constant", "A tensor that never changes."),
):
    register(
        OpDef(
            name=_name,
            operands=(),
            attributes={"ref": REQUIRED, "dtype": REQUIRED, "shape": REQUIRED},
            infer=_infer,
            evaluate=_evaluate,
            stages=ANY_STAGE,
            traits=frozenset({Trait.LEAF}),
            summary=_summary,
        )
    )

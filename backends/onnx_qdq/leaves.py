"""The tensors of a module as arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcompiler.errors import UnsupportedError
from qcompiler.ir.graph import Value
from qcompiler.ir.interpret import LEAVES


def leaf_array(value: Value) -> npt.NDArray[np.generic]:
    """The array of a leaf.

    Raises:
        UnsupportedError: `value` is not a leaf.
    """
    node = value.producer
    if node is None or node.op not in LEAVES:
        raise UnsupportedError(f"%{value.name} is not emitted yet")
    array: npt.NDArray[np.generic] = node.graph.module.tensors[node.text("ref")].detach().cpu().numpy()
    return array

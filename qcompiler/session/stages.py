"""The stages of a session: a captured model, and its state after passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Module


@dataclass(frozen=True)
class Captured:
    """A captured model: the first stage of a session.

    Args:
        module: The graph; at stage FLOAT, or QUANTIZED where the model was prepared for its target.
        diagnostics: Notes for the user.
        facts: Facts that hold of the graph.
        records: Records of passes that were run on the graph before.
        pipeline: The passes of these records, as text.
        name: Name of the model.
        trial: A part of the first batch, flat, on which forms are run as their users run them; empty without data.
    """

    module: Module
    diagnostics: Sequence[Diagnostic] = ()
    facts: frozenset[str] = frozenset()
    records: tuple[Record, ...] = ()
    pipeline: str = ""
    name: str = "model"
    trial: Sequence[Tensor] = ()


@dataclass(frozen=True)
class State:
    """A model at one stage of a session.

    Args:
        module: The graph. It belongs to the session: clone it before changing it.
        records: Records of all passes that led to it, in order.
        generator: State of the random number generator after these passes.
    """

    module: Module
    records: tuple[Record, ...]
    generator: Tensor

"""Snapshots of modules: they detect that a pass changed nothing, so that the graph need not run again.

A snapshot holds everything on which the results of a module depend: its nodes with operands, attributes and types, its
outputs, and the identity and version of its tensors. Tensors are held by weak references, so that a snapshot keeps no
weights of earlier states alive.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.ir.graph import Module

__all__ = ["Snapshot"]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of a module at one time.

    Args:
        structure: Nodes and outputs of all graphs.
        tensors: Reference to each tensor, by name.
        versions: Version of each tensor, which every change in its memory raises. A tensor made in inference mode
            counts no versions, so that a module with such a tensor never is the same.
    """

    structure: list[object]
    tensors: dict[str, weakref.ref[Tensor]]
    versions: list[int]

    @classmethod
    def of(cls, module: Module) -> Snapshot:
        """A snapshot of `module`."""
        tensors = module.tensors.items()
        references = {name: weakref.ref(tensor) for name, tensor in tensors}
        versions = [-1 if torch.is_inference(tensor) else tensor._version for _, tensor in tensors]
        return cls(_structure(module), references, versions)

    def same(self, other: Snapshot | None) -> bool:
        """Whether a module at the time of both snapshots, or its copy, gives the same results."""
        return (
            other is not None
            and self.versions == other.versions
            and min(self.versions, default=0) >= 0
            and list(self.tensors) == list(other.tensors)
            and all(
                old() is new() is not None
                for old, new in zip(self.tensors.values(), other.tensors.values(), strict=True)
            )
            and self.structure == other.structure
        )


def _structure(module: Module) -> list[object]:
    """One flat list: as many small tuples would keep the garbage collector busy for longer than the comparison."""
    found: list[object] = []
    for name, graph in module.graphs.items():
        found += (name, graph.stage, len(graph.inputs))
        for value in graph.inputs:
            found += (value.name, value.type)
        for node in graph.nodes:
            found += (node.op, len(node.inputs), len(node.outputs))
            found += [value.name for value in node.inputs]
            for value in node.outputs:
                found += (value.name, value.type)
            for key, item in node.attributes.items():
                found += (key, item)
        found += [value.name for value in graph.outputs]
    return found

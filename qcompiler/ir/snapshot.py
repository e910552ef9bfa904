"""Snapshots of modules: they detect that a pass changed nothing, so that the graph need not run again.

A snapshot holds everything on which the results of a module depend: its nodes with operands, attributes and types, its
outputs, and the identity and version of its tensors. Tensors are held by weak references, so that a snapshot keeps no
weights of earlier states alive.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Module

__all__ = ["Snapshot"]

Structure: TypeAlias = tuple[object, ...]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of a module at one time.

    Args:
        structure: Nodes and outputs of all graphs.
        tensors: Reference and version of each tensor. A tensor made in inference mode counts no versions, so that a
            module with such a tensor never is the same.
    """

    structure: Structure
    tensors: dict[str, tuple[weakref.ref[Tensor], int]]

    @classmethod
    def of(cls, module: Module) -> Snapshot:
        """A snapshot of `module`."""
        tensors = {
            name: (weakref.ref(tensor), -1 if torch.is_inference(tensor) else tensor._version)
            for name, tensor in module.tensors.items()
        }
        return cls(_structure(module), tensors)

    def same(self, other: Snapshot | None) -> bool:
        """Whether a module at the time of both snapshots, or its copy, gives the same results."""
        if other is None or self.tensors.keys() != other.tensors.keys():
            return False
        pairs = ((held, other.tensors[name]) for name, held in self.tensors.items())
        return (
            all(version == later >= 0 and held() is found() is not None for (held, version), (found, later) in pairs)
            and self.structure == other.structure
        )


def _structure(module: Module) -> Structure:
    return tuple((name, *_lines(graph)) for name, graph in module.graphs.items())


def _lines(graph: Graph) -> Structure:
    nodes = (
        (
            node.op,
            tuple(value.name for value in node.inputs),
            tuple((value.name, value.type) for value in node.outputs),
            tuple(node.attributes.items()),
        )
        for node in graph.nodes
    )
    inputs = tuple((value.name, value.type) for value in graph.inputs)
    return (graph.stage, inputs, tuple(value.name for value in graph.outputs), *nodes)

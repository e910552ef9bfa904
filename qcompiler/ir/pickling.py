"""Pickles of modules as text, because pickle would overflow its stack on the linked list of nodes."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from qcompiler.ir.graph import Module
from qcompiler.ir.text import parse_module, print_module
from qcompiler.ir.tree import Tree


def _reduced(module: Module) -> tuple[Callable[..., Module], tuple[Any, ...]]:
    trees = {name: (graph.input_tree, graph.output_tree) for name, graph in module.graphs.items()}
    return _read_module, (print_module(module), module.tensors, trees)


def _read_module(text: str, tensors: dict[str, Tensor], trees: Mapping[str, tuple[Tree, Tree]]) -> Module:
    """The module of a pickle; the trees hold the model's own classes, which the text does not."""
    module = parse_module(text, tensors)
    for name, (inputs, outputs) in trees.items():
        module.graphs[name].input_tree, module.graphs[name].output_tree = inputs, outputs
    return module


copyreg.pickle(Module, _reduced)

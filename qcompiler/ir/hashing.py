"""Hash of a module: structure, types and the content of tensors, independent of names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import torch
from torch import Tensor

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.graph import Graph, Module, Value
from qcompiler.ir.text import format_attribute
from qcompiler.ir.types import DType

TENSOR_ATTRIBUTES = ("ref", "statistics", "center")
"""Attributes that name a tensor of the module."""


def module_hash(module: Module) -> str:
    """sha256 of the computation of `module`, in hex.

    The hash covers, for each graph in order: name, stage, types of the inputs, bounds of the symbols, and the nodes in
    order with their op, operands, attributes, result types and equal places in loops; names of the model's arguments
    and the trees of inputs and outputs; the type, shape and bytes of every referenced tensor. It does not cover the
    names of values and tensors, which leaves share a tensor, other locations, origins, or unused tensors.

    Raises:
        GraphError: A node refers to a tensor that the module does not hold.
    """
    digest = hashlib.sha256()
    known: dict[str, str] = {}
    for graph in module.graphs.values():
        for line in _lines(graph, known):
            digest.update(line.encode())
            digest.update(b"\n")
    return digest.hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """sha256 of element type, shape and bytes, in hex."""
    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{DType.of(tensor.dtype)}{list(tensor.shape)}".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _lines(graph: Graph, known: dict[str, str]) -> Iterator[str]:
    numbers: dict[Value, int] = {}
    places: dict[str, int] = {}

    def define(value: Value) -> str:
        numbers[value] = len(numbers)
        return f"%{numbers[value]} : {value.type}"

    yield f"graph {json.dumps([graph.name, graph.stage, sorted(graph.bounds.items()), graph.input_names])}"
    yield f"{json.dumps(graph.input_tree)} {json.dumps(graph.output_tree)}"
    yield ", ".join(map(define, graph.inputs))
    for node in graph.nodes:
        operands = [numbers[value] for value in node.inputs]
        attributes = ", ".join(
            f"{key} = {_attribute(graph, key, item, known)}" for key, item in node.attributes.items()
        )
        place = node.location.place
        again = f" at {places.setdefault(place, len(places))}" if place else ""
        yield f"{node.op} {operands} {{{attributes}}} -> {', '.join(map(define, node.outputs))}{again}"
    yield f"return {[numbers[value] for value in graph.outputs]}"


def _attribute(graph: Graph, key: str, item: Attribute, known: dict[str, str]) -> str:
    if key not in TENSOR_ATTRIBUTES or not isinstance(item, str):
        return format_attribute(item)
    if item not in known:
        if item not in graph.module.tensors:
            raise GraphError(f"the module has no tensor {item!r}", where=f"@{graph.name}")
        known[item] = tensor_digest(graph.module.tensors[item])
    return known[item]

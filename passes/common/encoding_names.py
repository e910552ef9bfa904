"""Resolves names in a file of encodings to tensors of a QUANTIZED graph.

Names are searched in three ways, and the first match is used:

    1. as in the ONNX file of an artifact: `features.0.2.q`, `features.0.0.weight.q.codes`, `features.0.2.q.bias.codes`
    2. as in the model: inputs (`x`), parameters (`features.0.0.weight`), module paths and nodes (`features.0.2`)
    3. as torch.onnx.export calls tensors after modules: `/features/features.0/features.0.0/Conv_output_0`
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.onnx_types import OPS
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import leaf_of
from qcompiler.ops.pooling import averages_windows
from qcompiler.ops.quantizers import is_quantizer, quantizer_after, quantizers_reading, quantizes_parameter

_EXPORTED = re.compile(r"(?P<scope>(?:/[^/]+)*)/(?P<type>[A-Za-z]+?)(?:_(?P<index>\d+))?_output_0")


class Role(StrEnum):
    """Relation between a node and the grid of an encoding."""

    ACTIVATION = "activation"
    """The node is a quantizer of a value."""
    PARAMETER = "parameter"
    """The node is a quantizer of a tensor of the model."""
    MOVED = "moved"
    """The node only moves elements: it has the grid of its input, or a quantizer after it."""
    AFTER = "after"
    """The quantizer after a node that only moves elements; it may not exist yet."""
    AVERAGE = "average"
    """The result of an average before its own quantizer: on the grid of its input."""
    BIAS = "bias"
    """The node is a layer, and the grid is that of its bias."""


@dataclass(frozen=True)
class Place:
    """The place of a grid in the graph."""

    role: Role
    node: Node


class Names:
    """The names of the tensors of a graph.

    Args:
        graph: A graph at stage QUANTIZED.
        given: All names of the file.
    """

    def __init__(self, graph: Graph, given: Collection[str]) -> None:
        self._given = frozenset(given)
        self._artifact: dict[str, list[Place]] = {}
        self._model: dict[str, list[Place]] = {}
        self._captured: dict[str, list[Place]] = {}
        """Places by name of captured node; the last node that computes it has the result."""
        self._paths: dict[str, list[Node]] = {}
        self._reasons: dict[str, str] = {}
        self._outputs = [value.name for value in graph.outputs]
        for value in graph.inputs:
            _add(self._model, [value.name], _quantizers(value))
        for node in graph.nodes:
            self._enter(node)

    def find(self, name: str) -> list[Place]:
        """The places of `name`: several if layers share a parameter, none if the name is unknown."""
        if name in self._artifact:  # 1. as in the ONNX file
            return list(self._artifact[name])
        if len(self._runs(name)) > 1:
            return []
        for table in (self._model, self._captured):  # 2. as in the model: inputs, parameters and nodes
            if table.get(name):
                return list(table[name])
        # 2. module paths, then 3. the names that torch.onnx.export derives from modules
        return self._module(name) or self._exported(name)

    def explain(self, name: str) -> str:
        """The reason why a name was not found, or the nearest names."""
        if name in self._reasons:
            return self._reasons[name]
        runs = self._runs(name)
        if len(runs) > 1:
            known = [place.node.name for node in runs for place in self._results(node)]
            return f"it runs several times: use {' or '.join(known[:3])}"
        match = _EXPORTED.fullmatch(name)
        if match is not None:
            kin = [
                node.name for nodes in self._paths.values() for node in nodes if node.op in _spellings(match["type"])
            ]
            return f"operators of that type are {', '.join(kin[:3])}" if kin else "there is no operator of that type"
        near = difflib.get_close_matches(name, dict.fromkeys([*self._model, *self._captured, *self._artifact]), n=3)
        return f"did you mean {' or '.join(near)}?" if near else f"the outputs are {', '.join(self._outputs)}"

    def _enter(self, node: Node) -> None:
        if quantizes_parameter(node):
            place = Place(Role.PARAMETER, node)
            _add(self._artifact, [node.name, f"{node.name}.codes"], [place])
            _add(self._model, _parameter_names(node.inputs[0], node.output.users, "weight"), [place])
        elif is_quantizer(node):
            # `.int` is the tensor before limits per channel, with the same grid.
            _add(self._artifact, [node.name, f"{node.name}.int"], [Place(Role.ACTIVATION, node)])
        elif node.callee is not None:
            for value in node.outputs:
                _add(self._model, [value.name], _quantizers(value))
        elif not node.definition.has(Trait.LEAF, Trait.BIAS_QUANTIZER) and node.op != "scale_product":
            self._enter_operator(node)

    def _enter_operator(self, node: Node) -> None:
        places = self._results(node)
        if node.definition.has(Trait.MOVEMENT):
            _add(self._artifact, [node.name], places)
            _add(self._artifact, [f"{node.name}.q"], [Place(Role.AFTER, node)])
        # The integer form has the grid of its input, and a separate name if the quantizer has another grid.
        if averages_windows(node) and (not places or places[0].node.name in self._given):
            _add(self._artifact, [node.name], [Place(Role.AVERAGE, node)])
        if not places:
            follower = next(iter(node.output.users), None)
            fused = f"fused with {follower.name}" if follower is not None else "not quantized"
            reason = f"its result has no quantizer: it is {fused}"
            self._reasons.update(dict.fromkeys((node.name, *node.origins), reason))
        _add(self._model, [node.name], places)
        self._captured.update(dict.fromkeys(node.origins, places))
        self._paths.setdefault(node.location.path, []).append(node)
        if node.definition.has(Trait.MAC):
            bias, following = Place(Role.BIAS, node), quantizer_after(node)
            if following is not None:
                _add(self._artifact, [f"{following.name}.bias", f"{following.name}.bias.codes"], [bias])
            if len(node.inputs) > 2:
                _add(self._model, _parameter_names(leaf_of(node.inputs[2]), [node], "bias"), [bias])

    def _results(self, node: Node) -> list[Place]:
        if node.definition.has(Trait.MOVEMENT):
            return [Place(Role.MOVED, node)]
        return _quantizers(node.output)

    def _runs(self, path: str) -> list[Node]:
        """The last node of a module, for each run of the module."""
        nodes = self._paths.get(path, []) if path else []
        return [node for node in nodes if node.op == nodes[-1].op]

    def _module(self, path: str) -> list[Place]:
        """The places of the result of a module, which is the result of its last node."""
        return self._results(self._runs(path)[-1]) if self._runs(path) else []

    def _exported(self, name: str) -> list[Place]:
        """`/layer1/layer1.0/conv1/Conv_output_0`: module `layer1.0.conv1`, its first Conv."""
        match = _EXPORTED.fullmatch(name)
        if match is None or match["type"] not in OPS:
            return []
        nodes = self._paths.get(_module_path(match["scope"].split("/")[1:]), [])
        fitting = [node for node in nodes if node.op in _spellings(match["type"])] or (nodes if len(nodes) == 1 else [])
        index = int(match["index"] or 0)
        return self._results(fitting[index]) if index < len(fitting) else []


def _spellings(type: str) -> tuple[str, ...]:
    """Operators for an ONNX operator type, including their forms after equalization."""
    return (*OPS.get(type, ()), *(("clamp_channels",) if type == "Clip" else ()))


def _add(table: dict[str, list[Place]], names: Iterable[str], places: list[Place]) -> None:
    for name in dict.fromkeys(names):
        known = table.setdefault(name, [])
        known += [place for place in places if place not in known]


def _quantizers(value: Value) -> list[Place]:
    """The quantizers that read `value`: one, or one for some of its users."""
    return [Place(Role.ACTIVATION, quantizer) for quantizer in quantizers_reading(value)]


def _parameter_names(leaf: Value, readers: Iterable[Node], role: str) -> Iterator[str]:
    if leaf.producer is not None and "ref" in leaf.producer.attributes:
        yield str(leaf.producer.attributes["ref"])
    for layer in readers:
        if layer.definition.has(Trait.MAC):
            yield f"{layer.name}.{role}"
            if layer.location.path:
                yield f"{layer.location.path}.{role}"


def _module_path(scopes: list[str]) -> str:
    """Whether each scope is the name of a child, or the path of a child without a name: `layer1`, `layer1.0`."""
    path = ""
    for scope in scopes:
        last = path.rpartition(".")[2]
        if path and scope.startswith(f"{last}."):
            path = f"{path.removesuffix(last)}{scope}"
        elif path and scope.startswith(f"{path}."):
            path = scope
        else:
            path = f"{path}.{scope}" if path else scope
    return path

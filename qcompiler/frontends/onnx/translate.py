"""Walks the operators of an ONNX file and records the calls of torch that compute them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from qcompiler.errors import QCompilerError, UnsupportedError
from qcompiler.frontends.onnx import translations  # noqa: F401  # fills the table
from qcompiler.frontends.onnx.reading import DOMAINS, OnnxFile, to_tensor
from qcompiler.frontends.onnx.sizes import SIZE_RULES
from qcompiler.frontends.onnx.symbolic import Recording, Traced
from qcompiler.frontends.onnx.table import TRANSLATIONS, At, Held, unknown
from qcompiler.frontends.running import first_line
from qcompiler.frontends.trace import Trace
from qcompiler.ir.graph import Location

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

__all__ = ["trace"]

MOST_SIZES = 64
"""Elements of a known tensor that takes part in a computation with sizes."""


def trace(file: OnnxFile, parameters: Sequence[str], runs: Sequence[Sequence[Tensor]]) -> Trace:
    """The calls of torch that compute a file.

    Args:
        file: The file.
        parameters: Names of the parameters of a call, in the order of the inputs of the file.
        runs: The inputs at one or two batch sizes.

    Raises:
        UnsupportedError: An operator has no translation with these operands.
    """
    recording = Recording(len(runs))
    values: dict[str, Held] = {}
    placeholders: dict[str, str] = {}
    for index, (declared, parameter) in enumerate(zip(file.inputs, parameters, strict=True)):
        shapes = [torch.empty(run[index].shape, dtype=run[index].dtype, device="meta") for run in runs]
        traced = recording.input(parameter, shapes)
        values[declared.name] = traced
        placeholders[traced.node.name] = parameter
    for name, tensor in file.initializers.items():
        kind = "parameter" if tensor.is_floating_point() else "constant"
        values[name] = recording.name(tensor, kind, name)
    _Walk(file, recording, values).run(_expanded(file).graph)
    results = []
    for declared in file.outputs:
        held = values[declared.name]
        if isinstance(held, np.ndarray):
            raise UnsupportedError(
                f"the output {declared.name!r} depends on the batch size alone", fix="Remove it from the outputs."
            )
        results.append(recording.node_of_result(held))
    recording.graph.output(results)
    names = [declared.name for declared in file.outputs]

    def bind(call: inspect.BoundArguments) -> dict[str, object]:
        return {node: call.arguments[parameter] for node, parameter in placeholders.items()}

    def nest(found: Any) -> object:
        return found[0] if len(names) == 1 else dict(zip(names, found, strict=True))

    return Trace(nn.Module(), recording.graph, frozenset({""}), {}, recording.leaves, bind, nest)


def _expanded(file: OnnxFile) -> ModelProto:
    """The model with operators without translation as the functions by which ONNX defines them, where it does."""
    import onnx
    from onnx import inliner

    used = {node.op_type for node in file.model.graph.node if node.domain in DOMAINS}
    version = file.opsets.get("", 1)
    wanted = []
    for op in sorted(used - set(TRANSLATIONS)):
        if onnx.defs.has(op, version):
            schema = onnx.defs.get_schema(op, version)
            if schema.has_function or schema.has_context_dependent_function:
                wanted.append(("", op))
    if not wanted:
        return file.model
    typed = onnx.shape_inference.infer_shapes(file.model)
    found: ModelProto = inliner.inline_selected_functions(typed, wanted, inline_schema_functions=True)
    return found


class _Walk:
    """Computes the values of the names of a graph.

    Args:
        file: The file.
        recording: Calls.
        values: Values by name; grows.
    """

    def __init__(self, file: OnnxFile, recording: Recording, values: dict[str, Held]) -> None:
        self.file, self.recording, self.values = file, recording, values

    def run(self, graph: GraphProto) -> None:
        """Compute all results of a graph that are needed."""
        needed = _needed(graph)
        for node in graph.node:
            if not any(name in needed for name in node.output):
                continue
            self._node(node)

    def _node(self, node: NodeProto) -> None:
        op = node.op_type if node.domain in DOMAINS else f"{node.domain}::{node.op_type}"
        first = next(filter(None, node.output), "")
        location = Location(node.name or first, op)
        self.recording.location = location
        operands = [self.values[name] if name else None for name in node.input]
        attributes = {item.name: self._attribute(item) for item in node.attribute}
        version = self.file.opsets.get("" if node.domain in DOMAINS else node.domain, 1)
        at = At(op, location, version, attributes, operands, len(node.output), self.recording)
        if op == "If":
            results = self._branch(at)
        else:
            results = self._results(at)
        is_known = not any(isinstance(item, Traced | np.ndarray) for item in operands)
        learned = any(self.recording.names.get(id(item), (None, ""))[1] == "parameter" for item in operands)
        for name, result in zip(node.output, results, strict=False):
            if not name:
                continue
            if is_known and isinstance(result, Tensor) and id(result) not in self.recording.names:
                kind = "parameter" if learned and result.is_floating_point() else "constant"
                self.recording.name(result, kind, name)
            self.values[name] = result

    def _results(self, at: At) -> list[Held]:
        arrays = any(isinstance(item, np.ndarray) for item in at.operands)
        function = SIZE_RULES.get(at.op) if arrays and _small(at.operands) else None
        function = function or TRANSLATIONS.get(at.op)
        if function is None:
            raise unknown(at.op, at.location)
        try:
            found = function(at)
        except QCompilerError:
            raise
        except Exception as error:  # torch raises many types for operands that do not fit
            raise at.refusal(f"{at.op} cannot be computed with these operands: {first_line(error)}") from error
        return list(found) if isinstance(found, list | tuple) else [found]

    def _branch(self, at: At) -> list[Held]:
        """The results of the branch that a known condition takes."""
        condition = at.operands[0]
        if not isinstance(condition, Tensor):
            raise at.refusal(
                "the condition of an If depends on the inputs", "Fix the input that decides, or export one branch."
            )
        graph = at.attribute("then_branch" if bool(condition) else "else_branch")
        inner = _Walk(self.file, self.recording, dict(self.values))
        for item in graph.initializer:
            tensor = to_tensor(item, str(at.location))
            inner.values[item.name] = self.recording.name(
                tensor, "parameter" if tensor.is_floating_point() else "constant", item.name
            )
        inner.run(graph)
        return [inner.values[item.name] for item in graph.output]

    def _attribute(self, item: AttributeProto) -> Any:
        from onnx import AttributeProto, helper

        if item.type == AttributeProto.TENSOR:
            return to_tensor(item.t, item.name)
        if item.type == AttributeProto.GRAPH:
            return item.g
        found = helper.get_attribute_value(item)
        if isinstance(found, bytes):
            return found.decode("utf-8", "replace")
        if isinstance(found, Iterable) and not isinstance(found, str | Mapping):
            return [part.decode("utf-8", "replace") if isinstance(part, bytes) else part for part in found]
        return found


def _small(operands: Sequence[Held | None]) -> bool:
    return all(not isinstance(item, Traced) and (not isinstance(item, Tensor) or item.numel() <= MOST_SIZES) for item in operands)


def _needed(graph: GraphProto) -> set[str]:
    """Names on which the outputs of a graph depend."""
    needed = {item.name for item in graph.output}
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            needed.update(node.input)
            for item in node.attribute:
                if item.HasField("g"):
                    needed |= _read_inside(item.g)
    return needed


def _read_inside(graph: GraphProto) -> set[str]:
    """Names that a subgraph reads."""
    found: set[str] = set()
    for node in graph.node:
        found.update(node.input)
        for item in node.attribute:
            if item.HasField("g"):
                found |= _read_inside(item.g)
    return found | {item.name for item in graph.output}

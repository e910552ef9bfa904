"""Walks the operators of an ONNX file and records the calls of torch that compute them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from qcompiler.errors import InputError, QCompilerError, UnsupportedError
from qcompiler.frontends.onnx import translations  # noqa: F401  # fills the table
from qcompiler.frontends.onnx.bounded import Bounded
from qcompiler.frontends.onnx.reading import DOMAINS, OnnxFile, needed_names, to_tensor
from qcompiler.frontends.onnx.sizes import SIZE_RULES
from qcompiler.frontends.onnx.symbolic import Recording, Traced, apply
from qcompiler.frontends.onnx.table import TRANSLATIONS, At, Held, unknown
from qcompiler.frontends.running import first_line
from qcompiler.frontends.trace import Trace
from qcompiler.ir.graph import Location

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

__all__ = ["trace"]

MOST_STEPS = 512
"""Steps of a loop that is unrolled."""

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
    with Bounded(lambda: recording.location):
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

    model, version = file.model, file.opsets.get("", 1)
    done: set[str] = set()
    while True:
        used = {node.op_type for node in model.graph.node if node.domain in DOMAINS}
        wanted = sorted(op for op in used - set(TRANSLATIONS) - done if _is_function(op, version))
        if not wanted:
            return model
        done.update(wanted)
        typed = onnx.shape_inference.infer_shapes(model)
        ids = [("", op) for op in wanted]
        try:
            model = inliner.inline_selected_functions(typed, ids, inline_schema_functions=True)
        except RuntimeError:  # a function whose body depends on an operand that is left out
            return model


def _is_function(op: str, version: int) -> bool:
    """Whether ONNX defines an operator by others."""
    import onnx

    if not onnx.defs.has(op, version):
        return False
    schema: Any = onnx.defs.get_schema(op, version)
    return bool(schema.has_function or schema.has_context_dependent_function)


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
        needed = needed_names(graph)
        for node in graph.node:
            if not any(name in needed for name in node.output):
                continue
            self._node(node)

    def _node(self, node: NodeProto) -> None:
        op = node.op_type if node.domain in DOMAINS else f"{node.domain}::{node.op_type}"
        first = next(filter(None, node.output), "")
        location = Location(node.name or first, op)
        self.recording.location = location
        operands = [self._value(name, location) if name else None for name in node.input]
        attributes = {item.name: self._attribute(item) for item in node.attribute}
        version = self.file.opsets.get("" if node.domain in DOMAINS else node.domain, 1)
        at = At(op, location, version, attributes, operands, len(node.output), self.recording)
        inner = {"If": self._branch, "Loop": self._loop, "Scan": self._scan}.get(op, self._results)
        results = inner(at)
        is_known = not any(isinstance(item, Traced | np.ndarray) for item in operands)
        learned = any(self.recording.names.get(id(item), (None, ""))[1] == "parameter" for item in operands)
        for name, result in zip(node.output, results, strict=False):
            if not name:
                continue
            if is_known and isinstance(result, Tensor) and id(result) not in self.recording.names:
                kind = "parameter" if learned and result.is_floating_point() else "constant"
                self.recording.name(result, kind, name)
            self.values[name] = result

    def _value(self, name: str, location: Location) -> Held:
        if name not in self.values:
            raise InputError(f"the value {name!r} is read before anything computes it", where=str(location))
        return self.values[name]

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
        return self._inside(at, at.attribute("then_branch" if bool(condition) else "else_branch"), {})

    def _loop(self, at: At) -> list[Held]:
        """The results of a Loop of a known number of steps, step by step."""
        body = at.attribute("body")
        steps = at.ints(0)[0] if at.has(0) else MOST_STEPS + 1
        condition = at.operands[1] if at.has(1) else torch.tensor(True)
        carried: list[Any] = list(at.operands[2:])
        scanned: list[list[Any]] = [[] for _ in range(len(body.output) - 1 - len(carried))]
        step = 0
        while step < steps:
            if not isinstance(condition, Tensor):
                raise at.refusal("the number of steps of a Loop depends on the inputs", "Use a known number of steps.")
            if not bool(condition):
                break
            if step >= MOST_STEPS:
                raise at.refusal(f"a Loop of more than {MOST_STEPS} steps")
            names = [item.name for item in body.input]
            found = self._inside(at, body, dict(zip(names, [torch.tensor(step), condition, *carried], strict=True)))
            condition, carried = found[0], found[1 : 1 + len(carried)]
            for part, item in zip(scanned, found[1 + len(carried) :], strict=True):
                part.append(item)
            step += 1
        return [*carried, *(self._stacked(at, part, 0) for part in scanned)]

    def _scan(self, at: At) -> list[Held]:
        """The results of a Scan, step by step."""
        body, count = at.attribute("body"), at.attribute("num_scan_inputs")
        states = list(at.operands[: len(at.operands) - count])
        axes = at.attribute("scan_input_axes", [0] * count)
        backwards = at.attribute("scan_input_directions", [0] * count)
        tensors = [at.tensor(len(states) + index) for index in range(count)]
        steps = tensors[0].shape[axes[0]]
        if not isinstance(steps, int) or steps > MOST_STEPS:
            raise at.refusal(f"a Scan of {steps} steps", f"Use a known number of at most {MOST_STEPS}.")
        results: list[list[Any]] = [[] for _ in range(len(body.output) - len(states))]
        names = [item.name for item in body.input]
        for step in range(steps):
            parts = [
                apply(torch.select, x, axis, steps - 1 - step if back else step)
                for x, axis, back in zip(tensors, axes, backwards, strict=True)
            ]
            found = self._inside(at, body, dict(zip(names, [*states, *parts], strict=True)))
            for kept, item in zip(results, found[len(states) :], strict=True):
                kept.append(item)
            states = list(found[: len(states)])
        ends = at.attribute("scan_output_axes", [0] * len(results))
        reverse = at.attribute("scan_output_directions", [0] * len(results))
        ordered = [items[::-1] if back else items for items, back in zip(results, reverse, strict=True)]
        carried: list[Any] = states
        return [*carried, *(self._stacked(at, items, axis) for items, axis in zip(ordered, ends, strict=True))]

    def _stacked(self, at: At, items: list[Any], axis: int) -> Held:
        if not items or any(isinstance(item, np.ndarray) for item in items):
            raise at.refusal(f"{at.op} that collects nothing, or numbers that depend on the batch size")
        stacked: Held = apply(torch.stack, items, axis)
        return stacked

    def _inside(self, at: At, graph: GraphProto, given: Mapping[str, Any]) -> list[Held]:
        """The results of a graph inside an operator."""
        inner = _Walk(self.file, self.recording, {**self.values, **given})
        for item in graph.initializer:
            tensor = to_tensor(item, str(at.location))
            kind = "parameter" if tensor.is_floating_point() else "constant"
            inner.values[item.name] = self.recording.name(tensor, kind, item.name)
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
    return all(
        not isinstance(item, Traced) and (not isinstance(item, Tensor) or item.numel() <= MOST_SIZES)
        for item in operands
    )

"""The floating-point types of a model that is captured in float32, and its results in its own types."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from qcompiler.errors import InputError
from qcompiler.frontends.examples import Binding
from qcompiler.frontends.precision import OTHER_FLOATS, Float32, as_float32, convert, types_of
from qcompiler.frontends.running import copy_model, run
from qcompiler.ir import tree
from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.ir.graph import Graph


class OwnTypes:
    """The floating-point types of a model, whose tensors are converted to float32.

    Args:
        model: A copy of the model, which is converted in place.
        given: The call as the caller makes it.
        device: Device on which the model runs.
        keep: Whether the model keeps its types.

    Raises:
        InputError: The model does not run on these inputs in its own types.
    """

    def __init__(self, model: nn.Module, given: Binding, device: torch.device, *, keep: bool) -> None:
        self.given, self.binding = given, given
        self.found: dict[str, None] = {}
        """Types to which the forward converts."""
        self.differs = False
        self.result: object = None
        """Results of the model in its own types; None if torch cannot compute them."""
        self.types: list[str] = []
        self.mode: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if not keep:
            self._convert(model, Float32(device))

    def _convert(self, model: nn.Module, mode: Float32) -> None:
        given = self.given
        self.mode, self.found = mode, mode.found
        self.types = types_of(model)
        self.differs = bool(self.types) or any(x.dtype in OTHER_FLOATS for x in given.tensors)
        if self.differs:
            self.result = self._result(copy_model(model))
            convert(model)
        self.binding = given.with_tensors(as_float32(given.tensors))

    def _result(self, model: nn.Module) -> object:
        try:
            return run(model, self.given)
        except InputError as error:
            # torch lacks some half-precision functions on the CPU; the model may need another device.
            if "not implemented for" not in str(error.__cause__):
                raise
            return None

    def look(self, model: nn.Module) -> None:
        """Record whether the forward converts to other types; called after a run in float32."""
        if self.found and not self.differs:
            self.differs, self.result = True, self._result(copy_model(model))

    def note(self, graph: Graph) -> list[Diagnostic]:
        """Record the caller's types in the trees of a graph.

        Returns:
            A note for the user if there are any.
        """
        if not self.differs:
            return []
        inputs = [x.dtype if x.dtype in OTHER_FLOATS else None for x in self.given.tensors]
        graph.input_tree = tree.with_types(graph.input_tree, inputs)
        if self.result is None:
            common = next((x for x in inputs if x is not None), None)
            outputs = [common if value.type.dtype.is_float else None for value in graph.outputs]
        else:
            leaves, _ = tree.flatten(self.result, "model's result", values=True)
            outputs = [x.dtype if x.dtype in OTHER_FLOATS else None for x in leaves]
        graph.set_outputs(graph.outputs, tree.with_types(graph.output_tree, outputs))
        names = [str(x).removeprefix("torch.") for x in (*inputs, *outputs) if x is not None]
        return [Diagnostic("other-types", {"types": list(dict.fromkeys([*self.types, *names, *self.found]))})]

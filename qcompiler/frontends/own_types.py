"""The types of a model that is captured in float32, and its results in its own types.

An input of bytes that the model only uses as real numbers, `x.float() / 255`, is one of float32, too: the results must
be the same for all bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, fx, nn

from qcompiler.errors import InputError, QCompilerError
from qcompiler.frontends.examples import Binding
from qcompiler.frontends.precision import OTHER_FLOATS, Float32, as_float32, convert, types_of
from qcompiler.frontends.running import copy_model, run
from qcompiler.frontends.trace import checks_types
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
        self.bytes: frozenset[int] = frozenset()
        """Places of the inputs that are bytes and compiled as float32."""
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
        self.bytes = self._bytes(model)
        self.binding = given.with_tensors(self._as_floats(given.tensors, self.bytes))

    def _bytes(self, model: nn.Module) -> frozenset[int]:
        """Inputs of bytes for which the model gives the same results if they are real numbers."""
        found = frozenset(index for index, x in enumerate(self.given.tensors) if x.dtype == torch.uint8)
        if not found:
            return found
        _remove_type_checks(model)
        # All bytes, because small ones do not show that a sum of bytes wraps around; one input at a time, because
        # another one may be an index.
        given = self.given.tensors
        found = frozenset(place for place in found if self._same(model, _with_every_byte(given, place), {place}))
        return found if not found or self._same(model, given, found) else frozenset()

    def _same(self, model: nn.Module, tensors: list[Tensor], places: Collection[int]) -> bool:
        """Whether a model gives the same results for floats at these places."""
        results = []
        for given in (self._as_floats(tensors, ()), self._as_floats(tensors, places)):
            try:
                result = run(copy_model(model), self.given.with_tensors(given))
                results.append(tree.flatten(result, "model's result", values=True))
            except QCompilerError:
                return False  # an index, or a function of integers
        (ours, nesting), (theirs, other) = results
        same = nesting == other and len(ours) == len(theirs)
        return same and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))

    @staticmethod
    def _as_floats(tensors: list[Tensor], places: Collection[int]) -> list[Tensor]:
        floats = as_float32(tensors)
        return [x.to(torch.float32) if index in places else x for index, x in enumerate(floats)]

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
        if not self.differs and not self.bytes:
            return []
        inputs = [
            x.dtype if x.dtype in OTHER_FLOATS or index in self.bytes else None
            for index, x in enumerate(self.given.tensors)
        ]
        graph.input_tree = tree.with_types(graph.input_tree, inputs)
        if self.result is None:
            common = next((x for x in inputs if x in OTHER_FLOATS), None)
            outputs = [common if value.type.dtype.is_float else None for value in graph.outputs]
        else:
            leaves, _ = tree.flatten(self.result, "model's result", values=True)
            outputs = [x.dtype if x.dtype in OTHER_FLOATS else None for x in leaves]
        graph.set_outputs(graph.outputs, tree.with_types(graph.output_tree, outputs))
        if not self.differs:
            return []
        names = [str(x).removeprefix("torch.") for x in (*inputs, *outputs) if x in OTHER_FLOATS]
        return [Diagnostic("other-types", {"types": list(dict.fromkeys([*self.types, *names, *self.found]))})]


def _remove_type_checks(model: nn.Module) -> None:
    """Remove the calls with which torch.export compares the types of tensors, from a copy of a program."""
    for module in model.modules():
        found = (
            [node for node in module.graph.nodes if checks_types(node)] if isinstance(module, fx.GraphModule) else []
        )
        for node in found:
            node.graph.erase_node(node)
        if found:
            cast("fx.GraphModule", module).recompile()


def _with_every_byte(tensors: list[Tensor], place: int) -> list[Tensor]:
    """The tensors, with one in whose place all bytes occur, as far as there is room."""
    x = tensors[place]
    values = torch.arange(x.numel(), device=x.device) * 37 + 255  # 37 is odd, so that all remainders of 256 occur
    return [*tensors[:place], (values % 256).to(torch.uint8).reshape(x.shape), *tensors[place + 1 :]]

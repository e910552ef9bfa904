"""Calibration data for the passes: flat lists of tensors that fit the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError, InputError
from qcompiler.frontends.examples import bind_example
from qcompiler.frontends.precision import as_float32
from qcompiler.frontends.source import Source
from qcompiler.frontends.torch_module import TorchModule
from qcompiler.ir import tree
from qcompiler.ir.graph import Graph
from qcompiler.ir.interpret import check_inputs
from qcompiler.ir.settings import callers_defaults
from qcompiler.storage.tensors import row_major

Forward: TypeAlias = Callable[[nn.Module, object], object]


class Batches:
    """Batches of the user's data, bound to the forward signature of the model.

    Args:
        source: Model to compile.
        data: Batches. A model with one input takes the first element of a tuple batch, so that labels are dropped.
        forward: Function that calls its first argument, the model, for a batch; None: the batch itself is bound.
        device: Device to move the tensors to; None: no move.

    Raises:
        InputError: `data` cannot be iterated.
    """

    def __init__(
        self,
        source: Source,
        data: Iterable[object],
        forward: Forward | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(data, Tensor) or not isinstance(data, Iterable):
            raise InputError(
                f"calibration_data is a {type(data).__name__}",
                expected="an iterable of batches, such as a DataLoader or a list of tensors",
                fix="Put a single batch into a list: [batch].",
            )
        self.source, self.data, self.forward, self.device = source, data, forward, device
        self.graph: Graph | None = None
        """Graph that each batch is checked against; None before capture."""
        self.example: object = None
        """Bound arguments of the last batch."""
        self._given: list[torch.dtype] = []
        """Element types of the last batch before conversion to float32."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        index = -1
        for index, item in enumerate(_in_callers_defaults(self.data)):
            try:
                tensors = [x.to(self.device) if self.device is not None else x for x in self._bind(item)]
                tensors = [row_major(x) for x in tensors]  # results must not depend on the user's strides
                if self.graph is not None:
                    tensors = with_floats(tensors, self.graph)
                    self.check(tensors)
            except InputError as error:
                raise InputError(
                    error.found,
                    where=f"batch {index} of calibration_data",
                    expected=error.expected,
                    fix="Use batches that bind to the model's forward, or forward=lambda model, batch: model(...).",
                ) from None
            yield tensors
        if index < 0:
            raise CalibrationError("calibration_data is empty", expected="at least one batch")

    def _bind(self, item: object) -> list[Tensor]:
        if self.forward is not None:
            assert isinstance(self.source, TorchModule)
            recorder = _Recorder(self.source.model)
            with torch.no_grad():
                self.forward(recorder, item)
            if recorder.call is None:
                raise InputError("forward= did not call the model")
            positional, keywords = recorder.call
            item = self.source.signature().bind(*positional, **keywords)
        elif isinstance(item, tuple | list) and len(item) > 1 and self._takes_one():
            item = item[0]
        binding = bind_example(self.source.signature(), item)
        self.example = binding.bound
        self._given = [x.dtype for x in binding.tensors]
        return as_float32(binding.tensors)

    def _takes_one(self) -> bool:
        parameters = list(self.source.signature().parameters.values())
        return len(parameters) == 1 and parameters[0].kind is not parameters[0].VAR_POSITIONAL

    def check(self, tensors: list[Tensor]) -> None:
        """Check the last batch against the graph.

        Raises:
            InputError: A shape differs, or an element type fits neither the graph nor the model.
        """
        assert self.graph is not None
        outside = dict(tree.leaf_types(self.graph.input_tree))
        for index, (tensor, given) in enumerate(zip(tensors, self._given, strict=True)):
            expected = outside.get(index)
            if given != tensor.dtype and (expected is None or given != expected.torch):
                tensors = [*tensors[:index], tensor.to(given), *tensors[index + 1 :]]
        check_inputs(self.graph, tensors)


def with_floats(tensors: list[Tensor], graph: Graph) -> list[Tensor]:
    """Flat inputs with float32 for bytes where the graph holds float32."""
    places = tree.bytes_of(graph.input_tree)
    return [x.to(torch.float32) if i in places and x.dtype == torch.uint8 else x for i, x in enumerate(tensors)]


class WithFloats:
    """Batches that were read before the graph was known, in the element types of the graph.

    Args:
        batches: Flat inputs.
        graph: Captured graph.
    """

    def __init__(self, batches: Iterable[list[Tensor]], graph: Graph) -> None:
        self.batches, self.graph = batches, graph

    def __iter__(self) -> Iterator[list[Tensor]]:
        return (with_floats(tensors, self.graph) for tensors in self.batches)


def _in_callers_defaults(data: Iterable[object]) -> Iterator[object]:
    """The batches of `data`, created under the caller's torch defaults."""
    with callers_defaults():
        batches = iter(data)
    end = object()
    while True:
        with callers_defaults():
            item = next(batches, end)
        if item is end:
            return
        yield item


class _Recorder(nn.Module):
    """Proxy of the model that records the call made by the user's `forward`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.call: tuple[tuple[object, ...], dict[str, object]] | None = None

    def forward(self, *arguments: object, **keywords: object) -> object:
        self.call = arguments, keywords
        return self.model(*arguments, **keywords)

"""An exported program of torch as a model source."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import nn
from torch.export import ExportedProgram

from qcompiler.errors import InputError
from qcompiler.frontends.convert import BATCH_BOUNDS
from qcompiler.frontends.examples import Binding
from qcompiler.frontends.export import batch_bounds, trace_program
from qcompiler.frontends.given import parse_device
from qcompiler.frontends.running import copy_model, first_line
from qcompiler.frontends.source import Call, Candidate, Source
from qcompiler.frontends.torch_module import convert, device_of


class Exported(Source):
    """An exported program, from memory or from a `.pt2` file.

    Args:
        program: The user's program.
    """

    name = "model"

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.bounds = batch_bounds(program) or BATCH_BOUNDS

    def signature(self) -> inspect.Signature:
        """The parameters of the call that was exported: names of placeholders, or `input_0` for a nested argument."""
        positional, keywords = self.program.call_spec.in_spec.children()
        flat = list(self.program.graph_signature.user_inputs)
        names: list[str] = []
        first = 0
        for index, spec in enumerate(positional.children()):
            plain = spec.is_leaf() and isinstance(flat[first], str)
            names.append(str(flat[first]) if plain else f"input_{index}")
            first += spec.num_leaves
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        parameters += [inspect.Parameter(str(name), inspect.Parameter.KEYWORD_ONLY) for name in keywords.context or []]
        return inspect.Signature(parameters)

    def example(self) -> object | None:
        """The inputs kept in the program."""
        if self.program.example_inputs is None:
            return None
        positional, keywords = self.program.example_inputs
        return dict(self.signature().bind(*positional, **keywords).arguments)

    def place(self, binding: Binding, device: torch.device | str | None) -> torch.device:
        """The device of the program, which cannot be moved."""
        home = device_of(self._module, binding)
        if device is not None and parse_device(device) != home:
            raise InputError(
                f"the exported program is on {home}, not on {device}",
                fix="Export the model from the device on which the program should run.",
            )
        return home

    def reference(self, device: torch.device) -> nn.Module:
        """A copy of the program as a module."""
        del device
        return copy_model(self._module)

    def graphs(self, reference: nn.Module, call: Call) -> Iterator[Callable[[], Candidate]]:
        """The graph of the program itself."""
        del reference
        trace = trace_program(self.program, None)
        if call.is_float32:
            trace.as_float32()

        def graph() -> Candidate:
            found = convert(trace, "given", call)
            tensors = found.module.tensors
            for name in tensors:  # those of the program are the user's
                tensors[name] = tensors[name].clone()
            return found

        yield graph

    @cached_property
    def _module(self) -> nn.Module:
        try:
            return self.program.module()
        except Exception as error:  # torch raises many types for an altered program
            raise InputError(
                f"the exported program cannot be run: {first_line(error)}", fix="Export the model again."
            ) from error

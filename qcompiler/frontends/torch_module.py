"""A module of torch as a model source, traced by torch.fx, or by torch.export."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, fx, nn

from qcompiler.errors import CaptureError, InputError, QCompilerError, UnsupportedError, quoted
from qcompiler.frontends import examples, export
from qcompiler.frontends import fx as fx_tracer
from qcompiler.frontends.convert import build
from qcompiler.frontends.examples import Binding
from qcompiler.frontends.given import check_mode, parse_device
from qcompiler.frontends.locations import failing_line, passes_through
from qcompiler.frontends.running import copy_model, first_line
from qcompiler.frontends.source import Call, Candidate, Route, Source
from qcompiler.frontends.trace import Trace

PADDED = "Pass padded sequences of one length, and take the results at the true lengths afterwards."
"""Remedy for packed sequences, whose lengths are values."""


class TorchModule(Source):
    """A module in eval mode, or a graph module.

    Args:
        model: The user's module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.name = type(model).__name__

    def signature(self) -> inspect.Signature:
        """The parameters of forward."""
        return inspect.signature(self.model.forward)

    def example(self) -> object | None:
        """Inputs or a size in the attributes of the module."""
        return examples.example_of(self.model)

    def place(self, binding: Binding, device: torch.device | str | None) -> torch.device:
        """See `Source.place`."""
        return device_of(self.model, binding) if device is None else parse_device(device)

    def reference(self, device: torch.device) -> nn.Module:
        """A copy of the module."""
        check_mode(self.model)
        return copy_model(self.model).to(device)

    def graphs(self, reference: nn.Module, call: Call) -> Iterator[Callable[[], Candidate]]:
        """The graph by torch.fx; by torch.export if that fails, or refuses a function that torch.fx keeps whole."""
        trace, route = _trace(reference, call)
        yield partial(convert, trace, route, call)
        if route == "fx":
            yield lambda: convert(_export(copy_model(reference), call), "export", call)


def convert(trace: Trace, route: Route, call: Call) -> Candidate:
    """The graph of a trace.

    Raises:
        CaptureError: The trace does not run, or its shapes are not linear in the batch size.
        UnsupportedError: No operator implements a call.
    """
    trace.is_float32 = call.is_float32
    module, diagnostics = build(trace, call.binding, call.batches, call.bounds)
    return Candidate(module, route, diagnostics)


def _export(model: nn.Module, call: Call) -> Trace:
    return export.export(model, call.binding, call.batches is not None)


def _trace(model: nn.Module, call: Call) -> tuple[Trace, Route]:
    """Trace with torch.fx, or with torch.export if that fails."""
    if isinstance(model, fx.GraphModule) and export.is_flat(model):
        return export.trace_graph_module(model), "given"
    given = isinstance(model, fx.GraphModule)
    try:
        return fx_tracer.trace(model, call.binding.bound), "given" if given else "fx"
    except Exception as error:  # the user's forward may raise any error on traced values
        fx_error = error
    try:
        return _export(model, call), "given" if given else "export"
    except QCompilerError:
        raise
    except Exception as error:  # torch.export documents no common base of its errors
        place, text = failing_line(error)
        if place is None:
            place, text = failing_line(fx_error)
        if quoted(place):  # the message quotes the line after its place; that of a notebook has no file
            text = ""
        if any(passes_through(item, "torch.nn.utils.rnn") for item in (error, fx_error)):
            raise UnsupportedError("the model packs sequences of several lengths", where=place, fix=PADDED) from error
        raise CaptureError(
            f"the model can be captured neither by torch.fx ({first_line(fx_error)}) "
            f"nor by torch.export ({first_line(error)}){f': `{text}`' if text else ''}",
            where=place,
            expected="a forward whose operations do not depend on the values of its inputs",
            fix="Rewrite this line without a decision on tensor values, or compile the parts around it separately.",
        ) from error


def device_of(model: nn.Module, binding: Binding) -> torch.device:
    """The device of both the model and the example.

    Raises:
        InputError: They are spread over several devices.
    """
    homes: dict[torch.device, str] = {}
    held: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in held:
        homes.setdefault(tensor.device, name)
    if len(homes) > 1:
        spread = ", ".join(f"{name!r} on {home}" for home, name in homes.items())
        raise InputError(
            f"the model is spread over several devices: {spread}", fix="Move the model to one device, or pass device=."
        )
    home = next(iter(homes), binding.tensors[0].device)
    for name, tensor in zip(binding.tensor_names(), binding.tensors, strict=True):
        if tensor.device != home:
            raise InputError(
                f"the example input {name!r} is on {tensor.device} and the model on {home}",
                fix="Move both to one device, or pass device=.",
            )
    return home

"""The protocol of model sources: how a model is called, what it computes, and its graph.

Modules of torch and exported programs are sources; capture compares the graph of a source with its results.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import nn

from qcompiler.frontends.convert import BATCH_BOUNDS
from qcompiler.frontends.examples import Binding
from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.ir.graph import Module
from qcompiler.quant.encoding import Encodings

Route: TypeAlias = Literal["fx", "export", "given"]


@dataclass(frozen=True)
class Call:
    """The call of a model that is captured.

    Args:
        binding: Example call.
        batches: Two batch sizes; None for a model that runs only at the batch size of the example.
        bounds: Smallest and largest batch size at which the model runs.
        is_float32: Whether other floating-point types of the model are replaced by float32.
    """

    binding: Binding
    batches: tuple[int, int] | None
    bounds: tuple[int, int]
    is_float32: bool


@dataclass(frozen=True)
class Candidate:
    """A graph that has not been compared with the model.

    Args:
        module: Graph at stage FLOAT, with module paths and source lines as locations and the model's names of tensors.
        route: Tracer that made it: `given` for an exported program or a graph module.
        diagnostics: Notes for the user.
    """

    module: Module
    route: Route
    diagnostics: list[Diagnostic]


class Source(ABC):
    """A model to capture. A source never changes the user's model."""

    name: str
    """Name of the model."""
    bounds: tuple[int, int] = BATCH_BOUNDS
    """Smallest and largest batch size that the model declares."""

    has_own_kernels: bool = False
    """Whether the reference computes with other kernels than torch, so that rounding differs; see `compare`."""

    @property
    def encodings(self) -> Encodings | None:
        """The quantizers of a model that has been quantized already; None for a model of real numbers."""
        return None

    @abstractmethod
    def signature(self) -> inspect.Signature:
        """The parameters of a call, without `self`."""

    @abstractmethod
    def example(self) -> object | None:
        """Example inputs that the model brings along, see `find_example_inputs`; None without any."""

    @abstractmethod
    def place(self, binding: Binding, device: torch.device | str | None) -> torch.device:
        """The device on which to run: `device`, or the device of the model if that is None.

        Raises:
            InputError: Model and example are on different devices, or the model cannot run on `device`.
        """

    @abstractmethod
    def reference(self, device: torch.device) -> nn.Module:
        """A copy of the model on `device`, whose results are the reference for its graph.

        It is a module so that messages can name the part that fails or differs.

        Raises:
            InputError: The model cannot be run, or is in train mode.
            CaptureError: The model cannot be copied.
        """

    @abstractmethod
    def graphs(self, reference: nn.Module, call: Call) -> Iterator[Callable[[], Candidate]]:
        """Functions that make graphs of the model, the preferred one first; a later one is tried if one is refused.

        Args:
            reference: A result of `reference`, which a tracer may change.
            call: The call to capture.

        Raises:
            CaptureError: The model cannot be traced.
            UnsupportedError: The model calls a function that has no operator, or writes to its buffers.
        """

"""Capture a model: compare the graph of its source with its results."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from qcompiler.errors import UnsupportedError
from qcompiler.frontends.examples import bind_example
from qcompiler.frontends.own_types import OwnTypes
from qcompiler.frontends.reference import Reference
from qcompiler.frontends.running import copy_model, plain, undisturbed
from qcompiler.frontends.source import Call, Candidate, Route, Source
from qcompiler.frontends.sources import Subject, find_example_inputs, source_of
from qcompiler.frontends.wrappers import unwrap
from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.ir.graph import Module
from qcompiler.ir.settings import own_defaults


@dataclass(frozen=True)
class Capture:
    """A captured model.

    Args:
        module: The module with the graph at stage FLOAT and copies of the tensors.
        inputs: The example inputs, flat.
        route: Method of the capture; `given` for an exported program or a graph module.
        diagnostics: Notes for the user.
    """

    module: Module
    inputs: list[Tensor]
    route: Route
    diagnostics: list[Diagnostic] = field(default_factory=list)


def capture(
    model: Subject,
    example_inputs: object = None,
    *,
    device: torch.device | str | None = None,
    precision: Literal["float32", "own"] = "float32",
) -> Capture:
    """Turn `model` into an equivalent graph.

    The model is traced with torch.fx, or with torch.export if torch.fx fails or keeps a function without an operator.
    The graph is compared with the model on the example inputs and at a second batch size. The model, its mode, the
    random state and torch's settings are not changed.

    Args:
        model: A module in eval mode, a graph module, an exported program, or a source.
        example_inputs: A tensor, a tuple of arguments or a dict of arguments by name. None: found in attributes of the
            model, see `find_example_inputs`.
        device: Device for the runs and for the tensors of the graph; by default the device of the model.
        precision: `float32` converts other float types. `own` keeps the types of a module, for comparisons in float64;
            quantization needs float32.

    Raises:
        InputError: The model is in train mode, or the example inputs are missing or do not fit.
        CaptureError: The model cannot be traced, or the results of graph and model differ.
        UnsupportedError: The model calls a function that has no operator.
    """
    unwrapped, notes = unwrap(model)
    source = source_of(unwrapped)
    if example_inputs is None:
        example_inputs = find_example_inputs(source)
    binding = bind_example(source.signature(), example_inputs)
    with undisturbed(), own_defaults(), torch.no_grad():
        target = source.place(binding, device)
        binding = binding.with_tensors([x.to(target) for x in binding.tensors])
        with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []), plain(target):
            own = source.reference(target)
            types = OwnTypes(own, binding, target, keep=precision == "own")
            with types.mode:
                copied = copy_model(own, share_parameters=True)
                reference = Reference(copied, types.binding, source.bounds, own_kernels=source.has_own_kernels)
            types.look(own)
            call = Call(types.binding, reference.batches, reference.bounds, types.differs)
            with types.mode if types.differs else contextlib.nullcontext():
                found, diagnostics = _compared(source, own, reference, call)
            diagnostics += types.note(found.module.main)
    inputs = [x.clone() for x in types.binding.tensors]
    return Capture(found.module, inputs, found.route, [*notes, *diagnostics])


def _compared(source: Source, own: nn.Module, reference: Reference, call: Call) -> tuple[Candidate, list[Diagnostic]]:
    """The first graph of a source that equals the reference, and notes for the user.

    Raises:
        CaptureError: The model cannot be traced, or its graph differs.
        UnsupportedError: The model calls a function that has no operator; the first such function in the first graph.
    """
    refused: UnsupportedError | None = None
    failed: Exception | None = None
    for make in source.graphs(own, call):
        try:
            found = make()
            diagnostics = [*reference.fixed_batch(), *found.diagnostics, *reference.check(found.module.main)]
        except UnsupportedError as error:
            refused = refused or error
        except Exception as error:  # tracing runs the model, which may raise anything
            if refused is None:
                raise
            # The first refusal names a function that the user can replace: it is raised, with this one as its cause.
            failed = error
        else:
            if refused is not None:
                data = {"route": found.route, "refused": refused.found}
                diagnostics.append(Diagnostic("second-capture", data, refused.where or ""))
            return found, diagnostics
    assert refused is not None
    raise refused from failed

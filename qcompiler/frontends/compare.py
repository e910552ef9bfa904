"""Compares the captured graph with the model: a trace can fix flags, branches and batch sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from qcompiler.errors import CaptureError, GraphError, InputError
from qcompiler.frontends.examples import Binding
from qcompiler.ir import tree
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import Evaluation, interpret, interpret_with

TOLERANCE_EPS = 128
"""Largest difference, in units of eps times the largest magnitude of the tensor.

The graph calls the model's kernels, so results are usually equal bit for bit (measured: difference 0 on ResNet-18 and
MobileNetV2). Calls rewritten in other operators, such as asymmetric padding before a convolution, sum in another order
and differ by a few eps. A wrong branch is off by whole magnitudes.
"""


NOISES = 16
"""Largest difference from other kernels, in units of the largest rounding noise of the graph in float32.

A graph of many layers amplifies the rounding of each: two orders of a sum are as far apart as float32 is from float64.
"""
FUNCTION_EPS = 4
"""Absolute difference from other kernels, in units of eps: approximations of sigmoid have such errors near 0."""


def is_close(found: Tensor, expected: Tensor, noise: Tensor | None = None) -> bool:
    """Whether two tensors agree within `TOLERANCE_EPS` and `NOISES` times a noise; NaN equals NaN."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if torch.equal(found, expected):
        return True
    if not expected.is_floating_point():
        return False
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    limit = TOLERANCE_EPS * torch.finfo(expected.dtype).eps * largest
    if noise is not None:
        limit += NOISES * float(noise.nan_to_num().abs().max()) + FUNCTION_EPS * torch.finfo(expected.dtype).eps
    return bool(torch.isclose(found, expected, rtol=0.0, atol=limit, equal_nan=True).all())


def compare(
    graph: Graph,
    model: nn.Module,
    binding: Binding,
    tensors: Sequence[Tensor],
    result: object,
    *,
    own_kernels: bool = False,
) -> None:
    """Check that `graph` reproduces the model's result on `tensors`.

    Args:
        graph: The captured graph.
        model: The model, which is searched for the first difference.
        binding: The example call.
        tensors: Inputs, flat.
        result: Result of the model on these inputs.
        own_kernels: Whether the model computes with other kernels than torch.

    Raises:
        CaptureError: The results differ; the error names the first module that differs.
    """
    expected, expected_tree = tree.flatten(result, "model's result", values=True)
    values: list[tuple[str, Tensor]] = []

    def observe(value: Value, tensor: Tensor) -> None:
        path = value.producer.location.path if value.producer is not None else ""
        values.append((path, tensor))

    batch = f" on inputs of shape {', '.join(str(list(x.shape)) for x in tensors)}"
    try:
        found, _ = interpret(graph, [x.clone() for x in tensors], graph.module.tensors)
    except (GraphError, InputError) as error:
        raise CaptureError(
            f"the captured graph cannot run{batch}: {error.found}",
            where=error.where,
            expected=error.expected,
            fix="Report it with the model: the trace of this call lacks something.",
        ) from error
    if tree.same_nesting(expected_tree, graph.output_tree):
        if all(map(is_close, found, expected)):
            return
        noises = _rounding_noise(graph, tensors, found) if own_kernels else None
        if noises is not None and all(map(is_close, found, expected, noises)):
            return
    interpret(graph, [x.clone() for x in tensors], graph.module.tensors, observe=observe)
    where, described = _first_difference(values, model, binding, tensors)
    raise CaptureError(
        f"the captured graph and the model differ{batch}; the first module that differs is {described}",
        where=where,
        expected="equal results",
        fix="The trace contains a flag, branch or size of the traced call: make the forward depend only on its inputs.",
    )


def _rounding_noise(graph: Graph, tensors: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor] | None:
    """Distances of the results of a graph from those in float64; None if it does not run in float64."""
    doubles = {name: x.double() if x.is_floating_point() else x for name, x in graph.module.tensors.items()}
    given = [x.double() if x.is_floating_point() else x.clone() for x in tensors]
    try:
        exact = interpret_with(graph, given, Evaluation(doubles))
    except (GraphError, InputError, RuntimeError, TypeError):  # a function that exists in float32 only
        return None
    pairs = zip(found, exact, strict=True)
    return [x.double() - y.double() if x.is_floating_point() else torch.zeros(()) for x, y in pairs]


@runtime_checkable
class HasParts(Protocol):
    """A model that is no tree of modules, and gives the results of its parts itself."""

    def parts(self, *inputs: Tensor) -> Iterable[tuple[str, str, list[Tensor]]]:
        """Path, kind and results of each part, in the order in which they finish."""


def _first_difference(
    values: Sequence[tuple[str, Tensor]], model: nn.Module, binding: Binding, tensors: Sequence[Tensor]
) -> tuple[str | None, str]:
    """The first module to finish with no result among the values of the graph."""
    for path, kind, results in _results_of_parts(model, binding, tensors):
        # Compare with values of the same module first: a value elsewhere may have equal numbers by chance.
        inside = [tensor for owner, tensor in values if owner == path or owner.startswith(f"{path}.")]
        if not inside and isinstance(model, HasParts):
            continue  # a part that the graph computes together with another one
        candidates = inside or [tensor for _, tensor in values]
        if not all(any(is_close(tensor, result) for tensor in candidates) for result in results):
            return path, f"{path} ({kind})"
    return None, f"the model itself ({type(model).__name__}), in its own forward"


def _results_of_parts(
    model: nn.Module, binding: Binding, tensors: Sequence[Tensor]
) -> Iterable[tuple[str, str, list[Tensor]]]:
    """Path, kind and results of each part of a model, in the order in which they finish."""
    if isinstance(model, HasParts):
        return model.parts(*binding.nest([x.clone() for x in tensors]).args)
    calls: list[tuple[str, str, list[Tensor]]] = []
    handles = []

    def hook(path: str) -> object:
        def note(module: nn.Module, arguments: object, result: object) -> None:
            try:
                leaves, _ = tree.flatten(result)
            except InputError:
                return
            calls.append((path, type(module).__name__, [leaf.clone() for leaf in leaves]))

        return note

    for path, module in model.named_modules():
        if path:
            handles.append(module.register_forward_hook(hook(path)))
    try:
        binding.call(model, tensors)
    finally:
        for handle in handles:
            handle.remove()
    return calls

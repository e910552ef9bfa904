"""Compares the captured graph with the model: a trace can fix flags, branches and batch sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qcompiler.errors import CaptureError, GraphError, InputError
from qcompiler.frontends.examples import Binding
from qcompiler.ir import tree
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import interpret

TOLERANCE_EPS = 128
"""Largest difference, in units of eps times the largest magnitude of the tensor.

The graph calls the model's kernels, so results are usually equal bit for bit (measured: difference 0 on ResNet-18 and
MobileNetV2). Calls rewritten in other operators, such as asymmetric padding before a convolution, sum in another order
and differ by a few eps. A wrong branch is off by whole magnitudes.
"""


def is_close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE_EPS) -> bool:
    """Whether two tensors agree within a tolerance as `TOLERANCE_EPS`; NaN equals NaN."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if torch.equal(found, expected):
        return True
    if not expected.is_floating_point():
        return False
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    limit = tolerance * torch.finfo(expected.dtype).eps * largest
    return bool(torch.isclose(found, expected, rtol=0.0, atol=limit, equal_nan=True).all())


def compare(
    graph: Graph,
    model: nn.Module,
    binding: Binding,
    tensors: Sequence[Tensor],
    result: object,
    tolerance: float = TOLERANCE_EPS,
) -> None:
    """Check that `graph` reproduces the model's result on `tensors`.

    Args:
        graph: The captured graph.
        model: The model, which is searched for the first difference.
        binding: The example call.
        tensors: Inputs, flat.
        result: Result of the model on these inputs.
        tolerance: See `TOLERANCE_EPS`.

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
        raise CaptureError(f"the captured graph cannot run{batch}: {error.found}", expected=error.expected) from error
    if tree.same_nesting(expected_tree, graph.output_tree) and all(
        is_close(x, y, tolerance) for x, y in zip(found, expected, strict=True)
    ):
        return
    interpret(graph, [x.clone() for x in tensors], graph.module.tensors, observe=observe)
    where, described = _first_difference(values, model, binding, tensors)
    raise CaptureError(
        f"the captured graph and the model differ{batch}; the first module that differs is {described}",
        where=where,
        expected="equal results",
        fix="The trace contains a flag, branch or size of the traced call: make the forward depend only on its inputs.",
    )


def _first_difference(
    values: Sequence[tuple[str, Tensor]], model: nn.Module, binding: Binding, tensors: Sequence[Tensor]
) -> tuple[str | None, str]:
    """The first module to finish with no result among the values of the graph."""
    calls: list[tuple[str, nn.Module, list[Tensor]]] = []
    handles = []

    def hook(path: str) -> object:
        def note(module: nn.Module, arguments: object, result: object) -> None:
            try:
                leaves, _ = tree.flatten(result)
            except InputError:
                return
            calls.append((path, module, [leaf.clone() for leaf in leaves]))

        return note

    for path, module in model.named_modules():
        if path:
            handles.append(module.register_forward_hook(hook(path)))
    try:
        binding.call(model, tensors)
    finally:
        for handle in handles:
            handle.remove()
    for path, module, results in calls:
        # Compare with values of the same module first: a value elsewhere may have equal numbers by chance.
        inside = [tensor for owner, tensor in values if owner == path or owner.startswith(f"{path}.")]
        candidates = inside or [tensor for _, tensor in values]
        if not all(any(is_close(tensor, result) for tensor in candidates) for result in results):
            return path, f"{path} ({type(module).__name__})"
    return None, f"the model itself ({type(model).__name__}), in its own forward"

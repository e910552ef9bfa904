"""Refuses models that return NaN or infinity, since the graph cannot be compared with such results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from qcompiler.errors import InputError
from qcompiler.frontends.examples import Binding
from qcompiler.ir import tree
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import LEAVES, interpret


def is_finite(result: object) -> bool:
    """Whether all floating-point tensors of a model's result are finite; invalid results are refused elsewhere."""
    return all(bool(x.isfinite().all()) for x in _floats(result))


def not_finite(tensors: Sequence[Tensor]) -> str:
    """The kinds of values in `tensors` that are not finite, in words."""
    return "NaN" if any(bool(x.isnan().any()) for x in tensors) else "infinity"


def check_result(model: nn.Module, binding: Binding, result: object) -> None:
    """Refuse a model whose result on the example is not finite.

    Raises:
        InputError: The result is not finite; the error names the first module that returns NaN or infinity.
    """
    if is_finite(result):
        return
    found: list[tuple[str, nn.Module]] = []

    def look(path: str) -> Callable[..., None]:
        def note(module: nn.Module, arguments: object, result: object) -> None:
            if not found and not is_finite(result):
                found.append((path, module))

        return note

    handles = [module.register_forward_hook(look(path)) for path, module in model.named_modules()]
    try:
        binding.call(model, binding.tensors)
    finally:
        for handle in handles:
            handle.remove()
    path, module = found[0] if found else ("", model)
    raise InputError(
        f"the model itself returns {not_finite(_floats(result))} on the example inputs, "
        f"first in {path or 'its own forward'} ({type(module).__name__})",
        where=path or None,
        expected="finite results",
        fix="Run the model in torch on the same inputs and inspect this module, or pass other example inputs.",
    )


def check_finite(graph: Graph, tensors: Sequence[Tensor], what: str, fix: str) -> None:
    """Refuse inputs on which the results of a captured model are not finite.

    Args:
        graph: The captured graph.
        tensors: The inputs, flat.
        what: Name of the inputs, for the message.
        fix: A remedy, for the message.

    Raises:
        InputError: A result is not finite; the error names the first node that returns NaN or infinity.
    """
    results, _ = interpret(graph, tensors, graph.module.tensors)
    outputs = [x for x in results if x.is_floating_point()]
    if all(bool(x.isfinite().all()) for x in outputs):
        return
    found: list[str] = []

    def observe(value: Value, tensor: Tensor) -> None:
        if found or value.producer is None or value.producer.op in LEAVES or not tensor.is_floating_point():
            return
        if not bool(tensor.isfinite().all()):
            found.append(value.producer.where)

    interpret(graph, tensors, graph.module.tensors, observe=observe)
    raise InputError(
        f"the model itself returns {not_finite(outputs)} on {what}",
        where=next(iter(found), None),
        expected="finite results",
        fix=fix,
    )


def _floats(result: object) -> list[Tensor]:
    try:
        leaves, _ = tree.flatten(result, values=True)
    except InputError:
        return []
    return [x for x in leaves if x.is_floating_point()]

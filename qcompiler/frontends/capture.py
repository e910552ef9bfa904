"""From a model to a graph that provably computes the same.

The capture is compared with the model itself on the example inputs and at a second batch size, because a trace can burn
in a flag, a branch or a batch size without telling.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qcompiler.errors import CaptureError, InputError, QCompilerError
from qcompiler.frontends import fx
from qcompiler.ir import tree
from qcompiler.ir.graph import Module
from qcompiler.ir.interpret import interpret

TOLERANCE = 1e-5
"""Largest difference from eager, relative to the largest output: kernels for another batch size sum in another order."""


@dataclass(frozen=True)
class Capture:
    """A captured model.

    Args:
        module: The graph, stage FLOAT.
        inputs: The example inputs, flat.
        diagnostics: What the user should know.
    """

    module: Module
    inputs: list[Tensor]
    diagnostics: list[str] = field(default_factory=list)


def capture(model: nn.Module, example_inputs: object = None) -> Capture:
    """Capture `model`; the model stays as it is.

    Args:
        model: In eval mode, on the CPU.
        example_inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments. None: looked for in
            the model.

    Raises:
        InputError: The model is in train mode, or the example inputs are missing or do not fit.
        CaptureError: The model cannot be traced, or the trace computes something else.
        UnsupportedError: It uses a function that has no operator.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}", expected="a torch.nn.Module")
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        shown = ", ".join(training[:3]) + (", ..." if len(training) > 3 else "")
        raise InputError(f"{len(training)} modules are in train mode ({shown})", fix="Call model.eval() first.")
    arguments, names = bind(model, find_example_inputs(model) if example_inputs is None else example_inputs)
    inputs, input_tree = tree.flatten(tuple(arguments), "example inputs")
    _check_devices(model, inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        expected = _eager(model, arguments, "the example inputs")
        module = fx.build(fx.trace(model), arguments, inputs, input_tree, names)
        _compare(model, module, inputs, expected)
        bigger = fx.resize_batch(inputs, inputs[0].shape[0] + 2)
        nested = tree.unflatten(input_tree, bigger)
        _compare(model, module, bigger, _eager(model, list(nested), "a second batch size"))  # type: ignore[call-overload]
    return Capture(module, inputs)


def find_example_inputs(model: nn.Module) -> Tensor:
    """One input of the size that the model itself names.

    Raises:
        InputError: It names none; the ways to give one are listed.
    """
    example = getattr(model, "example_input_array", None)
    if isinstance(example, Tensor):
        return example
    config = getattr(model, "default_cfg", None) or getattr(model, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
    if isinstance(size, Sequence) and all(isinstance(item, int) for item in size):
        return torch.zeros(1, *size)
    raise InputError(
        "the size of the input is not known",
        expected="example_inputs, calibration_data, or a model with example_input_array or default_cfg['input_size']",
        fix="Call compile(model, ..., example_inputs=(torch.randn(1, 3, 224, 224),)).",
    )


def bind(model: nn.Module, example: object) -> tuple[list[object], list[str]]:
    """Arguments of the forward in order, and their names.

    Raises:
        InputError: They do not fit the signature of forward.
    """
    signature = inspect.signature(model.forward)
    args = (example,) if isinstance(example, Tensor) else tuple(example) if isinstance(example, tuple | list) else ()
    keywords = dict(example) if isinstance(example, Mapping) else {}
    if not args and not keywords:
        raise InputError(
            f"the example inputs are a {type(example).__name__}" if example != () else "the example inputs are empty",
            expected="a tensor, a tuple of arguments or a dict of keyword arguments",
        )
    try:
        bound = signature.bind(*args, **keywords)
    except TypeError as error:
        raise InputError(
            f"the example inputs do not fit {type(model).__name__}.forward{signature}: {error}",
            fix="Give one value per argument, a tuple by position or a dict by name.",
        ) from None
    return list(bound.arguments.values()), list(bound.arguments)


def _check_devices(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    if not inputs:
        raise InputError("the example inputs hold no tensor")
    for index, tensor in enumerate(inputs):
        if not tensor.dim() or not tensor.shape[0]:
            raise InputError(
                f"example input {index} has shape {list(tensor.shape)}", expected="a batch of at least one sample"
            )
    tensors = [*inputs, *model.parameters(), *model.buffers()]
    elsewhere = sorted({str(t.device) for t in tensors if t.device.type != "cpu"})
    if elsewhere:
        raise InputError(
            f"tensors are on {', '.join(elsewhere)}", expected="everything on the cpu", fix="Call model.cpu() first."
        )


def _eager(model: nn.Module, arguments: Sequence[object], what: str) -> list[Tensor]:
    try:
        return tree.flatten(model(*arguments), "output of the model")[0]
    except QCompilerError:
        raise
    except Exception as error:  # whatever the user's forward raises
        raise InputError(
            f"the model fails on {what}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="Check shape and element type of the example inputs, and that the batch is the first axis.",
        ) from error


def _compare(model: nn.Module, module: Module, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    found = interpret(module.main, inputs)
    if len(found) == len(expected) and all(map(_close, found, expected)):
        return
    place = _first_difference(model, module, inputs)
    raise CaptureError(
        f"the captured graph does not compute what the model computes on {inputs[0].shape[0]} samples",
        where=place,
        expected="the same numbers: the trace has burnt in a flag, a branch or a size",
        fix="Make the computation depend on its tensors alone.",
    )


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    return not found.numel() or bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


def _first_difference(model: nn.Module, module: Module, inputs: Sequence[Tensor]) -> str | None:
    """The first module whose result differs, in the order of the graph."""
    last: dict[str, Tensor] = {}
    order: dict[str, str] = {}

    def observe(value: object, tensor: Tensor) -> None:
        producer = getattr(value, "producer", None)
        if producer is not None and producer.location.path:
            last[producer.location.path] = tensor
            order[producer.location.path] = str(producer.location)

    interpret(module.main, inputs, observe)
    seen: dict[str, Tensor] = {}
    hooks = [
        submodule.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out))
        for name, submodule in model.named_modules()
        if name
    ]
    try:
        nested = tree.unflatten(module.main.input_tree, list(inputs))
        model(*nested)  # type: ignore[misc]
    finally:
        for hook in hooks:
            hook.remove()
    for path, tensor in last.items():
        if isinstance(seen.get(path), Tensor) and not _close(tensor, seen[path]):
            return order[path]
    return type(model).__name__

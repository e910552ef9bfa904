"""Example inputs: found on the model or given by the user, bound to the parameters of the model's forward."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qcompiler.errors import GraphError, InputError
from qcompiler.ir import calls, tree
from qcompiler.ir.types import DType

WAYS = "Pass example_inputs=: a tensor, a tuple of arguments, or a dict of arguments by name."
_FOUND_BATCH = 2
"""Batch size of inputs made from a size alone. Not 1, because torch treats sizes of 1 specially."""


_STARS = {inspect._ParameterKind.VAR_POSITIONAL: "*", inspect._ParameterKind.VAR_KEYWORD: "**"}


@dataclass(frozen=True)
class Binding:
    """Arguments of a call of the model.

    Args:
        bound: Arguments as Python binds them, without the parameters that keep their defaults.
        tensors: All tensors of the arguments, flat.
        tree: Nesting of the tensors: a tuple with one entry per bound parameter.
    """

    bound: inspect.BoundArguments
    tensors: list[Tensor]
    tree: tree.Tree

    @property
    def names(self) -> list[str]:
        """The bound parameters of forward, in order."""
        return list(self.bound.arguments)

    @property
    def labels(self) -> list[str]:
        """The names as in the signature: `*name` and `**name` for variadic parameters."""
        kinds = {name: parameter.kind for name, parameter in self.bound.signature.parameters.items()}
        return [_STARS.get(kinds[name], "") + name for name in self.names]

    @property
    def batch(self) -> int | None:
        """The first size of the first tensor that has one."""
        return next((int(x.shape[0]) for x in self.tensors if x.dim()), None)

    def nest(self, leaves: Sequence[object]) -> inspect.BoundArguments:
        """The same call with `leaves` in place of the tensors."""
        nested = tree.unflatten(self.tree, leaves)
        assert isinstance(nested, tuple)
        return inspect.BoundArguments(
            self.bound.signature,
            dict(zip(self.names, nested, strict=True)),
        )

    def with_tensors(self, tensors: list[Tensor]) -> Binding:
        """The call with other tensors."""
        return Binding(self.nest(tensors), tensors, self.tree)

    def call(self, model: nn.Module, tensors: Sequence[Tensor]) -> object:
        """Run `model` on copies of `tensors`: a forward may write to its arguments."""
        bound = self.nest([x.clone() for x in tensors])
        return model(*bound.args, **bound.kwargs)

    def resized(self, batch: int) -> list[Tensor]:
        """The tensors with their samples repeated or cut to `batch`; tensors of another first size are unchanged."""
        return [
            x[torch.arange(batch, device=x.device) % x.shape[0]] if x.dim() and x.shape[0] == self.batch else x
            for x in self.tensors
        ]

    def tensor_names(self) -> list[str]:
        """A name for each tensor: the name of the parameter, then the path inside its value after a dot."""
        names: dict[int, str] = {}

        def walk(item: tree.Tree, name: str) -> None:
            if isinstance(item, int):
                names[item] = name
            for key, part in tree.children(item):
                walk(part, f"{name}.{key}")

        for name, (_, item) in zip(self.names, tree.children(self.tree), strict=True):
            walk(item, name)
        return [names[index] for index in range(len(self.tensors))]


def bind_example(signature: inspect.Signature, example_inputs: object) -> Binding:
    """Bind `example_inputs` to the forward of a model.

    Args:
        signature: Parameters of the forward.
        example_inputs: A tensor, a tuple or list of arguments, or a dict: arguments by name if its keys are names of
            parameters, otherwise the single argument of the forward. Or a `Binding`.

    Raises:
        InputError: The inputs are of another kind, do not fit the signature, or hold no tensor, an object that is not
            a tensor, an empty batch, NaN or infinity, or an unsupported element type.
    """
    arguments, keywords = _spread(signature, example_inputs)
    try:
        bound = signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise InputError(
            f"the example inputs do not fit the model's forward: {error}", expected=f"forward{signature}", fix=WAYS
        ) from None
    tensors: list[Tensor] = []
    for name, value in bound.arguments.items():
        try:
            found, _ = tree.flatten(value, f"argument {name!r} of the example inputs")
        except InputError as error:
            raise InputError(
                error.found,
                expected=error.expected,
                fix="Give other arguments a default in forward, or wrap the model in a module that passes them.",
            ) from None
        for tensor in found:
            _check_tensor(tensor, name)
        tensors += found
    if not tensors:
        raise InputError("the example inputs contain no tensor", expected=f"forward{signature}", fix=WAYS)
    _, nested = tree.flatten(tuple(bound.arguments.values()))
    return Binding(bound, [x.detach() for x in tensors], nested)


def _spread(signature: inspect.Signature, example: object) -> tuple[tuple[object, ...], dict[str, object]]:
    match example:
        case inspect.BoundArguments():
            return example.args, example.kwargs
        case Tensor():
            return (example,), {}
        case tuple() | list():
            return tuple(example), {}
        case Mapping():
            parameters = signature.parameters.values()
            example = calls.by_parameter({str(key): value for key, value in example.items()}, signature.parameters)
            positional = [p for p in parameters if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
            required = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
            if any(p.kind is p.VAR_KEYWORD for p in parameters):  # any name fits, except for a required argument
                positional = [p for p in positional if p in required and p.kind is not p.VAR_POSITIONAL]
            if positional and len(required) <= 1 and not any(key in signature.parameters for key in example):
                return (dict(example),), {}
            return (), example
    raise InputError(
        f"the example inputs are a {type(example).__name__}",
        fix="Convert them with torch.as_tensor." if hasattr(example, "__array__") else WAYS,
    )


def _check_tensor(tensor: Tensor, name: str) -> None:
    where = f"argument {name!r}"
    try:
        DType.of(tensor.dtype)
    except GraphError as error:
        raise InputError(
            f"an example input has the element type {tensor.dtype}", where=where, expected=error.expected
        ) from None
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
        raise InputError(f"an example input is a {kind} tensor", where=where, expected="a dense tensor with values")
    if not tensor.numel():
        raise InputError(
            f"an example input is empty: {list(tensor.shape)}", where=where, expected="at least one sample"
        )
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise InputError(
            "an example input contains NaN or infinity",
            where=where,
            expected="finite numbers, because the graph and the model are compared on these inputs",
        )


def example_of(model: nn.Module) -> object | None:
    """Example inputs found in the attributes of a module, see `find_example_inputs`; None without any."""
    array: object = getattr(model, "example_input_array", None)
    if array is not None:
        return array
    size = _input_size(model)
    if size is None:
        return None
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator("cpu").manual_seed(0)
    values = torch.randn(_FOUND_BATCH, *size, generator=generator, dtype=torch.float32, device="cpu")
    return values.to(device=reference.device, dtype=reference.dtype)


def _input_size(model: nn.Module) -> tuple[int, ...] | None:
    """Sizes of one sample, without the batch."""
    candidates: list[object] = []
    for name in ("default_cfg", "pretrained_cfg"):
        config = getattr(model, name, None)
        candidates.append(
            config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
        )
    candidates += [getattr(model, "input_size", None), getattr(model, "input_shape", None)]
    config = getattr(model, "config", None)
    channels, image = getattr(config, "num_channels", None), getattr(config, "image_size", None)
    if isinstance(channels, int) and image is not None:
        candidates.append((channels, image, image) if isinstance(image, int) else (channels, *image))
    candidates.append(_torchvision_size(model))
    for size in candidates:
        if isinstance(size, Sequence) and size and all(isinstance(part, int) and part > 0 for part in size):
            return tuple(size)
    return None


def _torchvision_size(model: nn.Module) -> tuple[int, ...] | None:
    """The size of the images on which torchvision evaluates its networks for single images."""
    library, _, rest = type(model).__module__.partition(".")
    kind = rest.removeprefix("models.").partition(".")[0]
    if library != "torchvision" or not rest.startswith("models.") or kind in ("detection", "optical_flow", "video"):
        return None
    size = getattr(model, "image_size", 224)
    return (3, size, size) if isinstance(size, int) else None

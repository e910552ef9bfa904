"""Replaces other floating-point types by float32: a float16 or float64 model is captured as a float32 model.

    parameters, buffers, plain tensors, inputs    converted once
    x.half(), x.to(torch.float64), dtype=...      float32 in their place, wherever the forward selects a type
    tensors from elsewhere                        converted where a call takes or makes one: globals, NumPy arrays
    with torch.autocast(...)                      has no effect

The caller's inputs and outputs keep their types, which the trees of the graph record (`ir.tree`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

OTHER_FLOATS = (torch.float16, torch.bfloat16, torch.float64)
"""Types that become float32."""
_TENSOR_CLASS: Any = type(torch.DoubleTensor)
CONVERSIONS = {"half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}
"""Methods that convert to one of these types."""


def plain_dtype(item: Any) -> Any:
    """float32 for another floating-point type; any other argument unchanged."""
    return torch.float32 if isinstance(item, torch.dtype) and item in OTHER_FLOATS else item


def as_float32(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, with floating-point tensors converted to float32."""
    return [x.to(plain_dtype(x.dtype)) for x in tensors]


def types_of(model: nn.Module) -> list[str]:
    """Floating-point types other than float32 among the tensors of `model`."""
    tensors = [*model.parameters(), *model.buffers(), *(x for m in model.modules() for x in _plain_tensors(m).values())]
    return sorted({_name(x.dtype) for x in tensors if x.dtype in OTHER_FLOATS})


def convert(model: nn.Module) -> None:
    """Convert all floating-point tensors of `model` to float32."""
    model.float()
    for module in model.modules():
        for name, tensor in _plain_tensors(module).items():
            vars(module)[name] = tensor.to(plain_dtype(tensor.dtype))


def _plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Tensors that are neither parameters nor buffers."""
    return {name: item for name, item in vars(module).items() if isinstance(item, Tensor)}


class Float32(TorchFunctionMode):
    """A mode in which torch calls use float32 for other floating-point types, and autocast has no effect.

    Args:
        device: Device on which the model runs.

    Attributes:
        found: Names of the replaced types, and `mixed precision` for autocast.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device.type
        self.found: dict[str, None] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func` with other floating-point types replaced by float32."""
        name = getattr(func, "__name__", "")
        if name in CONVERSIONS:
            self.found[_name(CONVERSIONS[name])] = None
            func, args = torch.Tensor.float, args[:1]
        elif name == "type" and len(args) > 1:
            args = (args[0], dtype_of_class(args[1]), *args[2:])
        elif name == "__deepcopy__":
            # The second argument remembers every tensor copied so far: to look through it takes quadratic time.
            return self._plain(func(self._plain(args[0]), *args[1:]))
        args, named = self._plain((args, kwargs or {}))
        if not torch.is_autocast_enabled(self.device):
            return self._plain(func(*args, **named))
        self.found["mixed precision"] = None
        with torch.autocast(self.device, enabled=False):
            return self._plain(func(*args, **named))

    def _plain(self, item: Any) -> Any:
        """`item` with float32 in place of other types and of tensors that have them, at any depth."""
        if isinstance(item, torch.dtype | Tensor):
            dtype = item.dtype if isinstance(item, Tensor) else item
            if dtype not in OTHER_FLOATS:
                return item
            self.found[_name(dtype)] = None
            return item.to(torch.float32) if isinstance(item, Tensor) else torch.float32
        if isinstance(item, tuple | list | dict):
            return _pytree.tree_map(self._plain, item) if _has_other(item) else item
        return item


def dtype_of_class(item: Any) -> Any:
    """The element type that a class such as `torch.DoubleTensor`, or its name, stands for; anything else as it is."""
    if isinstance(item, str):
        item = getattr(torch, item.removeprefix("torch."), item)
    return item.dtype if isinstance(item, _TENSOR_CLASS) and not item.is_cuda else item


def _has_other(item: Any) -> bool:
    leaves = _pytree.tree_leaves(item)
    return any(
        (x.dtype if isinstance(x, Tensor) else x) in OTHER_FLOATS for x in leaves if isinstance(x, torch.dtype | Tensor)
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

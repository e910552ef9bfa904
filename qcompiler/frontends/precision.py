"""Float32 in place of other floating-point types: a model of halves or doubles is captured as one of float32.

    parameters, buffers, plain tensors, inputs    converted once
    x.half(), x.to(torch.float64), dtype=...      float32 in their place, wherever the forward asks for a type
    with torch.autocast(...)                      has no effect

What the caller gives and gets keeps its type: the trees of the graph say which (`ir.tree`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

OTHER_FLOATS = (torch.float16, torch.bfloat16, torch.float64)
"""Types that become float32."""
CONVERSIONS = {"half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}
"""Methods that convert to one of them."""


def plain_dtype(item: Any) -> Any:
    """float32 for one of the other types; anything else as it is."""
    return torch.float32 if isinstance(item, torch.dtype) and item in OTHER_FLOATS else item


def as_float32(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Floating-point tensors in float32, the others as they are."""
    return [x.to(plain_dtype(x.dtype)) for x in tensors]


def types_of(model: nn.Module) -> list[str]:
    """The other floating-point types that the tensors of `model` have."""
    tensors = [*model.parameters(), *model.buffers(), *(x for m in model.modules() for x in _plain_tensors(m).values())]
    return sorted({_name(x.dtype) for x in tensors if x.dtype in OTHER_FLOATS})


def convert(model: nn.Module) -> None:
    """Give all floating-point tensors of `model` the type float32."""
    model.float()
    for module in model.modules():
        for name, tensor in _plain_tensors(module).items():
            vars(module)[name] = tensor.to(plain_dtype(tensor.dtype))


def _plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Tensors that are neither parameters nor buffers."""
    return {name: item for name, item in vars(module).items() if isinstance(item, Tensor)}


class Float32(TorchFunctionMode):
    """Inside, torch calls that ask for another floating-point type get float32, and autocast has no effect.

    Args:
        device: On which the model runs.

    Attributes:
        found: What was replaced: names of types, `autocast`.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device.type
        self.found: dict[str, None] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func` with float32 for other types."""
        name = getattr(func, "__name__", "")
        if name in CONVERSIONS:
            self.found[_name(CONVERSIONS[name])] = None
            func, args = torch.Tensor.float, args[:1]
        named = kwargs or {}
        for item in (*args, *named.values()):
            if isinstance(item, torch.dtype) and item in OTHER_FLOATS and name not in ("finfo", "can_cast"):
                self.found[_name(item)] = None
        args = tuple(plain_dtype(item) for item in args)
        named = {key: plain_dtype(item) for key, item in named.items()}
        if not torch.is_autocast_enabled(self.device):
            return func(*args, **named)
        self.found["autocast"] = None
        with torch.autocast(self.device, enabled=False):
            return func(*args, **named)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""A limit of the sizes of tensors, checked before a tensor is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from qcompiler.errors import UnsupportedError

__all__ = ["MOST_ELEMENTS", "Bounded", "TooLargeError", "check_sizes"]

MOST_ELEMENTS = 2**28
"""Largest number of elements of a tensor that a file makes: 1 GiB of float32."""


class TooLargeError(UnsupportedError):
    """A tensor of a file would have more than `MOST_ELEMENTS` elements."""


def check_sizes(shape: Sequence[int], what: str, where: str) -> None:
    """Refuse a shape with too many elements.

    Args:
        shape: Sizes.
        what: Noun for the tensor, for the message.
        where: Place in the file.

    Raises:
        TooLargeError: The product of the sizes is more than `MOST_ELEMENTS`.
    """
    count = 1
    for size in shape:
        count *= max(size, 0)
    if count > MOST_ELEMENTS:
        raise TooLargeError(
            f"{what} has the shape {list(shape)}", where=where, expected=f"at most {MOST_ELEMENTS} elements"
        )


class Bounded(TorchDispatchMode):
    """Refuses calls of torch whose result is too large: each call runs on shapes alone first.

    Args:
        where: Function that gives the place in the file.
    """

    def __init__(self, where: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no type for it
        self.where = where

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See the class."""
        del types
        named = kwargs or {}
        on_shapes: Any = None
        try:
            positional, keywords = fx.node.map_aggregate((args, named), _shape_of)
            device = {"device": torch.device("meta")} if "device" in named else {}
            on_shapes = func(*positional, **{**keywords, **device})
        except Exception:  # a call whose result depends on values, or one that fails on values, too
            on_shapes = None
        for item in on_shapes if isinstance(on_shapes, list | tuple) else [on_shapes]:
            if isinstance(item, Tensor):
                check_sizes(tuple(item.shape), "a result", str(self.where()))
        return func(*args, **named)


def _shape_of(item: Any) -> Any:
    """A tensor without its values; other arguments as they are."""
    if not isinstance(item, Tensor) or item.is_meta:
        return item
    return torch.empty_strided(item.shape, item.stride(), dtype=item.dtype, device="meta")

"""Finds calls whose results have as many elements as the values of the inputs decide, such as boxes that are kept.

No graph of fixed shapes computes them. A tracer reports them late and in its own words, or fixes a number.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from qcompiler.errors import UnsupportedError
from qcompiler.frontends.locations import source_of_frame

__all__ = ["SPLIT", "SizedByData"]

SPLIT = (
    "End the forward before this line and let your program call the rest: "
    'split = qcompiler.split_host(network, images, after=rest, steps_after=("box decoding", ...)), and compile '
    "split.network. For an SSD, RetinaNet or FCOS of torchvision, split_host(model, images) is enough."
)
"""The remedy for a forward that goes on in the program of the caller."""
NMS = "torchvision::nms"
LIBRARIES = ("torchvision.ops.",)
"""Modules that users call without a look at their lines."""


class SizedByData(TorchDispatchMode):
    """Watches one call of a model.

    Args:
        inputs: The tensors on which the model is called.
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._caller: FrameType | None = sys._getframe(1)
        self._from_inputs: MutableMapping[Tensor, bool] = WeakIdKeyDictionary()
        self._from_inputs.update(dict.fromkeys(inputs, True))
        self._sized: MutableMapping[Tensor, tuple[str, str]] = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        """Run a call, and note whether its results come from the inputs, and from a call that the values size."""
        del types
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        # In-place calls return the tensor that they read, so that it is looked up before the call.
        found = next((self._sized[x] for x in read if x in self._sized), None)
        follows = any(x in self._from_inputs for x in read)
        result = func(*args, **(kwargs or {}))
        if follows:
            if found is None and any(x in self._from_inputs for x in _deciding(func, args)):
                place = source_of_frame(sys._getframe(1), self._caller, LIBRARIES)
                found = (func.name().removesuffix(".default"), place)
            for x in tree_leaves(result):
                if isinstance(x, Tensor):
                    self._from_inputs[x] = True
                    if found is not None:
                        self._sized[x] = found
        return result

    def __exit__(self, *error: Any) -> None:
        """End of the call. A frame that is kept would keep the model until the next collection of garbage."""
        self._caller = None
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def check(self, result: object) -> None:
        """Refuse a result that such a call contributes to.

        Raises:
            UnsupportedError: The sizes of the result depend on the values of the inputs; the error shows how to split
                the model.
        """
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x in self._sized:
                name, place = self._sized[x]
                what = "non-maximum suppression" if name == NMS else name
                raise UnsupportedError(
                    f"the values of the inputs decide how many elements {what} returns",
                    where=place or None,
                    expected="results whose sizes follow from the sizes of the inputs",
                    fix=SPLIT,
                )


def _deciding(func: Any, args: Sequence[Any]) -> list[Tensor]:
    """The operands of a call whose values decide the size of its result."""
    aten = torch.ops.aten
    if func is aten.index.Tensor:
        operands = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
    elif func is aten.masked_select.default:
        operands = [args[1]]
    elif func.name() == NMS:
        operands = [*args[:2]]
    else:
        operands = [args[0]] if torch.Tag.dynamic_output_shape in func.tags else []
    return operands

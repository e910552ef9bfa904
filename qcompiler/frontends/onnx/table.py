"""The table of translations, which turn each operator of ONNX into calls of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qcompiler.errors import UnsupportedError
from qcompiler.frontends.named import Named
from qcompiler.frontends.onnx.symbolic import Operand, Recording, Size, Traced, Whole
from qcompiler.ir.graph import Location

__all__ = ["TRANSLATIONS", "At", "Sizes", "Translation", "sizes_of", "translates", "unknown"]

Sizes: TypeAlias = npt.NDArray[np.object_]
"""Whole numbers of at most one axis, at least one of which depends on the batch size."""
Held: TypeAlias = "Operand | Sizes"
"""The value of a name in the file."""


class At:
    """One operator of the file: its attributes and operands.

    Args:
        op: Name of the operator.
        location: Place in the file.
        version: Version of the domain's operators.
        attributes: Numbers, texts, tensors and lists of them by name.
        operands: Values; None for an operand that is left out.
        results: Number of results that the file names.
        recording: Names of the tensors of the model.
    """

    def __init__(
        self,
        op: str,
        location: Location,
        version: int,
        attributes: Mapping[str, Any],
        operands: Sequence[Held | None],
        results: int,
        recording: Recording,
    ) -> None:
        self.op, self.location, self.version = op, location, version
        self.attributes, self.operands, self.results = attributes, operands, results
        self.recording = recording

    def has(self, index: int) -> bool:
        """Whether there is an operand."""
        return index < len(self.operands) and self.operands[index] is not None

    def tensor(self, index: int) -> Operand:
        """An operand as a tensor.

        Raises:
            UnsupportedError: There is none, or its numbers depend on the batch size.
        """
        held = self.operands[index] if index < len(self.operands) else None
        if isinstance(held, Tensor | Traced):
            return held
        if held is None:
            raise self.refusal(f"{self.op} lacks its operand {index}")
        raise self.refusal(
            f"{self.op} computes with numbers that depend on the batch size",
            "Export the model with a fixed batch size: only shapes may depend on it.",
        )

    def tensors(self) -> list[Operand]:
        """All operands as tensors."""
        return [self.tensor(index) for index in range(len(self.operands))]

    def optional(self, index: int) -> Operand | None:
        """An operand that may be left out."""
        return self.tensor(index) if self.has(index) else None

    def known(self, index: int) -> Tensor:
        """An operand that must not depend on the inputs.

        Raises:
            UnsupportedError: It does.
        """
        held = self.tensor(index)
        if isinstance(held, Traced):
            raise self.refusal(
                f"the operand {index} of {self.op} depends on the inputs", "Export the model with it as a constant."
            )
        return held

    def sizes(self, index: int) -> list[Whole]:
        """An operand as whole numbers, which may depend on the batch size."""
        held = self.operands[index]
        if isinstance(held, np.ndarray):
            return [held.item()] if held.ndim == 0 else list(held)
        return [int(item) for item in self.known(index).reshape(-1).tolist()]

    def ints(self, index: int) -> list[int]:
        """An operand as known whole numbers.

        Raises:
            UnsupportedError: One of them depends on the batch size or on the inputs.
        """
        found = self.sizes(index)
        if any(isinstance(item, Size) for item in found):
            raise self.refusal(f"the operand {index} of {self.op} depends on the batch size")
        return [item for item in found if isinstance(item, int)]

    def sizes_or_number(self, index: int) -> Whole | float:
        """An operand of one element as a number, which may depend on the batch size."""
        held = self.operands[index]
        if isinstance(held, np.ndarray):
            found: Whole = held.item()
            return found
        number: int | float = self.known(index).reshape(-1)[0].item()
        return number

    def derived(self, tensor: Tensor, index: int) -> Tensor:
        """A tensor that is computed from a tensor of the model, with its name; without one if it is left out."""
        held = self.operands[index] if self.has(index) else None
        _, kind, name = self.recording.names.get(id(held), (None, "constant", ""))
        return tensor if tensor is held else self.recording.name(tensor, kind, name)

    def fixed(self, size: Whole) -> int:
        """A size that must not depend on the batch size.

        Raises:
            UnsupportedError: It does.
        """
        if isinstance(size, Size):
            raise self.refusal(
                f"{self.op} along an axis whose size depends on the batch size", "Export the model with a fixed batch."
            )
        return size

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.attributes.get(name, default)

    def axes(self, index: int, name: str = "axes") -> list[int] | None:
        """Axes, which older opsets have as an attribute and newer ones as an operand; None if they are left out."""
        if self.has(index):
            return self.ints(index)
        found = self.attribute(name)
        return None if found is None else list(found)

    def refusal(self, found: str, fix: str | None = None) -> UnsupportedError:
        """An error about this operator."""
        return UnsupportedError(found, where=str(self.location), fix=fix)


Translation: TypeAlias = Callable[[At], Any]
"""The result of an operator: an operand, sizes, or a list of them."""
TRANSLATIONS: Named[Translation] = Named("translations of the ONNX operator")


def translates(*names: str) -> Callable[[Translation], Translation]:
    """Enter a translation into the table.

    Args:
        names: Operators; `domain::name` outside of the domain of ONNX.

    Raises:
        PluginError: An operator has a translation.
    """

    def enter(function: Translation) -> Translation:
        TRANSLATIONS.add(function, *names)
        return function

    return enter


def unknown(op: str, location: Location) -> UnsupportedError:
    """The error for an operator without a translation."""
    near = TRANSLATIONS.near(op)
    hint = f" There are translations of {near}." if near else ""
    return UnsupportedError(
        f"the ONNX operator {op!r} is not read",
        where=str(location),
        fix=f"Export the model without it, or register a translation with frontends.onnx.translates.{hint}",
    )


def sizes_of(items: Sequence[Whole], *, scalar: bool = False) -> Held:
    """Whole numbers as a known tensor if all are known, otherwise as sizes."""
    known = [item for item in items if isinstance(item, int)]
    if len(known) == len(items):
        found = torch.tensor(known, dtype=torch.int64)
        return found[0] if scalar else found
    array = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        array[index] = item
    return array.reshape(()) if scalar else array

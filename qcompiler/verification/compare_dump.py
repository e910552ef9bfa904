"""The results of a device compared with the integer program, step by step.

Each step is computed twice: from the inputs of the device, as the whole program computes it, and from the operands that
the device itself had. A step that differs in the second way is wrong by itself; one that differs only in the first way
has inherited the difference. Where a layer is wrong by itself, every rounding mode is tried on its accumulators.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from qcompiler.backends.integer import Executor, Sums
from qcompiler.errors import InputError, QCompilerError
from qcompiler.program.files import ProgramFiles
from qcompiler.quant.requant import RequantMode, prepare_requantization, real_multiplier
from qcompiler.verification.layer_outputs import FLOAT, SIMULATED

__all__ = ["Comparison", "Difference", "compare_dump", "read_dump"]

Array: TypeAlias = npt.NDArray[Any]
WIDE = 2**31
"""Codes before they are clamped are below this magnitude."""


@dataclass(frozen=True)
class Difference:
    """One tensor of a dump.

    Args:
        tensor: Name of the tensor.
        elements: Number of elements.
        differing: Elements that differ from the program on the inputs of the device.
        largest: Largest such difference in steps.
        own: Elements that differ from the program on the operands of the device.
        own_largest: Largest such difference in steps.
        rounding: Rounding mode that gives all codes of the device from the same accumulators; empty if there is none.
    """

    tensor: str
    elements: int
    differing: int
    largest: int
    own: int
    own_largest: int
    rounding: str = ""

    def __str__(self) -> str:
        if not self.differing and not self.own:
            return f"{self.tensor}: equal in {self.elements} elements"
        text = f"{self.tensor}: {self.differing} of {self.elements} elements differ by up to {self.largest}"
        if not self.own:
            return f"{text}, all inherited from earlier steps"
        text += f"; {self.own} of them arise here, by up to {self.own_largest}"
        return f"{text}, and the rounding mode {self.rounding!r} explains all" if self.rounding else text


@dataclass(frozen=True)
class Comparison:
    """A dump compared with an integer program.

    Args:
        tensors: One entry per tensor that both have, in the order of the program.
        missing: Tensors of the program that the dump lacks.
        unknown: Arrays of the dump that are no tensors of the program.
    """

    tensors: tuple[Difference, ...]
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether all compared elements are equal."""
        return not any(item.differing or item.own for item in self.tensors)

    @property
    def first(self) -> Difference | None:
        """The first tensor whose difference arises in its own step; None if all are equal."""
        return next((item for item in self.tensors if item.own), None)

    def to_dict(self) -> dict[str, object]:
        """The result as data for JSON."""
        return {
            "equal": self.equal,
            "first": None if self.first is None else self.first.tensor,
            "tensors": [vars(item) for item in self.tensors],
            "missing": list(self.missing),
            "unknown": list(self.unknown),
        }

    def __str__(self) -> str:
        wrong = [item for item in self.tensors if item.differing or item.own]
        head = f"{len(self.tensors) - len(wrong)} of {len(self.tensors)} tensors are equal"
        lines = [head if self.first is None else f"{head}; the first difference arises in {self.first.tensor}"]
        lines += map(str, wrong)
        lines += [f"not in the dump: {', '.join(self.missing)}"] if self.missing else []
        lines += [f"not in the program: {', '.join(self.unknown)}"] if self.unknown else []
        return "\n".join(lines)


def read_dump(path: str | Path) -> dict[str, Array]:
    """The arrays of a dump.

    Args:
        path: File of NumPy, `.npz`.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as found:
            return {name: np.asarray(found[name]) for name in found.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise InputError(f"the dump {Path(path).name!r} cannot be read: {error}", expected="a file .npz") from error
    except Exception as error:  # zipfile raises errors of its own
        raise InputError(f"the dump {Path(path).name!r} cannot be read: {error}", expected="a file .npz") from error


def compare_dump(dump: Mapping[str, Array], program: ProgramFiles) -> Comparison:
    """Compare the results of a device with an integer program.

    Args:
        dump: Codes by name of tensor, with those of the inputs.
        program: Integer program.

    Raises:
        InputError: The dump lacks an input, or an array has another shape than its tensor, or no integers.
    """
    return _Comparison(dump, program).result()


class _Comparison:
    def __init__(self, dump: Mapping[str, Array], program: ProgramFiles) -> None:
        self.executor, self.program = Executor(program), program.program
        tensors = self.program.tensors
        self.dump = {name: array for name, array in dump.items() if name in tensors and tensors[name].scale}
        named = (name for name in dump if not name.startswith((SIMULATED, FLOAT)))
        self.unknown = tuple(name for name in named if name not in self.dump)
        self.given = list(dict.fromkeys(self.executor.core.given))
        for name in self.given:
            if name not in self.dump:
                raise InputError(
                    f"the dump lacks the input {name!r}",
                    expected=f"codes of {', '.join(self.given)}",
                    fix="Write the codes of the inputs, as NAME_dump.c does.",
                )
        for name, array in self.dump.items():
            self._check(name, array)

    def _check(self, name: str, array: Array) -> None:
        shape = self.program.tensors[name].shape
        fits = len(shape) == array.ndim and all(
            want in (-1, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype.kind not in "iu":
            raise InputError(
                f"the dump has {array.dtype}{list(array.shape)} for {name!r}",
                expected=f"integers {[size if size >= 0 else 'N' for size in shape]} in the order N, C, H, W",
            )

    def result(self) -> Comparison:
        whole, own = self._run(frozenset(self.given)), self._run(frozenset(self.dump))
        steps = [name for name in whole if name in self.dump and name not in self.given]
        found = [self._difference(name, whole[name], own[name]) for name in steps]
        inside = {item.inputs[0] for item in self.program.instructions if item.op == "int_clamp"}
        missing = [n for n in whole if n not in self.dump and n not in inside and self.program.tensors[n].scale]
        return Comparison(tuple(found), tuple(missing), self.unknown)

    def _run(self, given: frozenset[str]) -> dict[str, Array]:
        """The results of all steps, of which later steps read `given` as the device had them."""
        found: dict[str, Array] = {}

        def replace(name: str, array: Array) -> Array:
            return self.dump[name].astype(array.dtype) if name in given else array

        batch = next((len(self.dump[name]) for name in self.given if self.dump[name].ndim), 1)
        inputs = []
        for name, inner in zip(self.program.inputs, self.executor.core.given, strict=True):
            tensor = self.program.tensors[name]
            shape = [batch if size < 0 else size for size in tensor.shape]
            inputs.append(np.zeros(shape, np.float32) if name != inner else self.dump[name])
        self.executor.run(inputs, lambda name, array: found.__setitem__(name, np.array(array)), replace)
        return found

    def _difference(self, name: str, whole: Array, own: Array) -> Difference:
        device = self.dump[name].astype(np.int64)
        apart, alone = np.abs(device - whole.astype(np.int64)), np.abs(device - own.astype(np.int64))
        count = int((alone > 0).sum())
        rounding = next(self._roundings(name, device), "") if count else ""
        return Difference(
            name,
            device.size,
            int((apart > 0).sum()),
            int(apart.max(initial=0)),
            count,
            int(alone.max(initial=0)),
            rounding,
        )

    def _roundings(self, name: str, device: Array) -> Iterator[str]:
        """Rounding modes that give the codes of the device from the accumulators of a layer."""
        clamped = {item.output: item.inputs[0] for item in self.program.instructions if item.op == "int_clamp"}
        sums = self.executor.sums(clamped.get(name, name), self.dump)
        if sums is None:
            return
        for mode in RequantMode:
            codes = _rounded(sums, mode)
            if codes is None:
                continue
            found = sums.logical(codes)
            if name in clamped:
                found = self.executor.clamped(name, found)
            if np.array_equal(found, device):
                yield str(mode)


def _rounded(sums: Sums, mode: RequantMode) -> Array | None:
    """Codes of a layer with another rounding mode; None if the mode cannot hold its multipliers."""
    x, weight = sums.call.inputs[:2]
    scales = [torch.tensor(tensor.scale, dtype=torch.float32) for tensor in (x, weight, sums.call.output)]
    try:
        spec = prepare_requantization(real_multiplier(scales[0], scales[1], scales[2], mode), mode)
        axis = sums.sums.ndim - 1 if len(weight.scale) > 1 else None
        found = spec.apply(
            torch.from_numpy(np.asarray(sums.sums, order="C")),
            zero_point=sums.call.output.zero_point[0],
            qmin=-WIDE,
            qmax=WIDE - 1,
            axis=axis,
        )
    except QCompilerError:
        return None
    return np.clip(found.numpy().astype(np.int64), *map(np.asarray, sums.call.limits))

"""Runs an integer program in NumPy, independently of the graph, its interpreter and torch: all but float islands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qcompiler.backends.integer import islands
from qcompiler.backends.integer.islands import Island
from qcompiler.backends.integer.kernels import KERNELS, Call
from qcompiler.backends.integer.program import ProgramFiles, Tensor
from qcompiler.errors import ArtifactError, InputError

Array: TypeAlias = npt.NDArray[Any]
Observe: TypeAlias = Callable[[str, Array], None]
Replace: TypeAlias = Callable[[str, Array], Array]

_NUMPY = {"i4": "i1", "u4": "u1", "i8": "i1", "u8": "u1", "i16": "i2", "u16": "u2", "i32": "i4", "f32": "f4"}
_NUMPY |= {"i64": "i8", "f16": "f2", "f64": "f8", "bool": "?"}  # of islands
_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


class Executor:
    """A loaded program.

    Args:
        files: The program and its constants.

    Raises:
        ArtifactError: An instruction or element type is unknown.
    """

    def __init__(self, files: ProgramFiles) -> None:
        self.files = files
        self.program = program = files.program
        self._constants = {name: self._logical_weight(name, array) for name, array in files.constants.items()}
        self._calls: list[Call] = []
        self._islands: dict[str, Island] = {}
        self._last_use: dict[str, int] = {}
        for position, instruction in enumerate(program.instructions):
            if instruction.op == "call":
                name = str(instruction.attributes["graph"])
                self._islands[name] = islands.load(files, name)
            elif instruction.op not in KERNELS:
                raise ArtifactError(f"the instruction {instruction.op!r} is unknown", where=instruction.output)
            inputs = tuple(program.tensors[name] for name in instruction.inputs)
            for name in instruction.outputs:
                if program.tensors[name].dtype not in _NUMPY:
                    raise ArtifactError(f"the element type {program.tensors[name].dtype!r} is unknown", where=name)
            self._calls.append(Call(instruction, inputs, program.tensors[instruction.output]))
            self._last_use.update(dict.fromkeys(instruction.inputs, position))

    def run(
        self, inputs: Sequence[Array], observe: Observe | None = None, replace: Replace | None = None
    ) -> list[Array]:
        """Run on one batch of any size.

        Args:
            inputs: Arrays of the declared types and logical shapes.
            observe: Called with the name and the codes, in logical order, of each result.
            replace: Gives what later instructions read in place of each result.

        Returns:
            The outputs in logical order.

        Raises:
            InputError: An input does not fit its declaration.
        """
        if len(inputs) != len(self.program.inputs):
            raise InputError(f"{len(inputs)} inputs were given", expected=str(len(self.program.inputs)))
        memory: dict[str, Array] = {}
        for name, array in zip(self.program.inputs, inputs, strict=True):
            _check(name, array, self.program.tensors[name])
            memory[name] = self._store(array)
        for position, call in enumerate(self._calls):
            names = call.instruction.inputs
            operands = [self._constants[n] if n in self._constants else self._load(memory[n]) for n in names]
            results = self._compute(call, operands)
            for name in dict.fromkeys(names):
                if self._last_use[name] == position and name not in self.program.outputs:
                    memory.pop(name, None)
            for name, result in zip(call.instruction.outputs, results, strict=True):
                if observe is not None:
                    observe(name, result)
                memory[name] = self._store(result if replace is None else replace(name, result))
        return [
            np.ascontiguousarray(self._load(memory[name]) if name in memory else self._constants[name])
            for name in self.program.outputs
        ]

    def _compute(self, call: Call, operands: Sequence[Array]) -> list[Array]:
        if call.instruction.op == "call":
            return self._islands[str(call["graph"])](operands)
        return [KERNELS[call.instruction.op](call, operands).astype(_NUMPY[call.output.dtype])]

    def run_integer(self, codes: Sequence[Array]) -> list[Array]:
        """Run from codes to codes: what lies between the quantizers of the inputs and the dequantized outputs.

        Args:
            codes: For each input, its codes in the element type that its quantizer gives, in logical order; real
                numbers for one that a float island reads.

        Returns:
            For each output, its codes in logical order; real numbers where it has none.

        Raises:
            InputError: The number of inputs, a shape, an element type or a code does not fit.
        """
        program = self.program
        quantizers = {call.instruction.inputs[0]: call for call in self._calls if call.instruction.op == "quantize"}
        for call in self._calls:  # an input that an island reads is given as it is
            if call.instruction.op != "quantize":
                for name in call.instruction.inputs:
                    quantizers.pop(name, None)
        if len(codes) != len(program.inputs):
            raise InputError(f"{len(codes)} inputs were given", expected=str(len(program.inputs)))
        given: dict[str, Array] = {}
        stand_ins: list[Array] = []
        for name, array in zip(program.inputs, codes, strict=True):
            quantizer = quantizers.get(name)
            inner = name if quantizer is None else quantizer.instruction.output
            _check(inner, array, program.tensors[inner])
            if quantizer is not None:
                _check_codes(inner, array, *quantizer.limits)
            given[inner] = array
            stand_ins.append(np.zeros(array.shape, _NUMPY[program.tensors[name].dtype]) if inner != name else array)
        wanted = {i.output: i.inputs[0] for i in program.instructions if i.op == "dequantize"}
        seen: dict[str, Array] = {}
        keep = set(wanted.values())
        outputs = self.run(
            stand_ins,
            lambda name, array: seen.__setitem__(name, array) if name in keep else None,
            given.get,
        )
        return [
            np.ascontiguousarray(seen[wanted[name]]) if name in wanted else array
            for name, array in zip(program.outputs, outputs, strict=True)
        ]

    def _store(self, array: Array) -> Array:
        """Into physical order."""
        if array.ndim == 4 and self.program.layout == "NHWC":
            array = array.transpose(_TO_NHWC)
        return np.ascontiguousarray(array)

    def _load(self, array: Array) -> Array:
        """A view in logical order."""
        return array.transpose(_TO_NCHW) if array.ndim == 4 and self.program.layout == "NHWC" else array

    def _logical_weight(self, name: str, array: Array) -> Array:
        kernels = {i.inputs[1] for i in self.program.instructions if i.op == "int_conv2d"}
        return array.transpose(_TO_NCHW) if self.program.weight_layout == "OHWI" and name in kernels else array


def _check_codes(name: str, array: Array, low: int, high: int) -> None:
    """Tables end, and accumulators are proven, where the quantizer of an input clamps."""
    if array.size and not low <= int(array.min()) <= int(array.max()) <= high:
        raise InputError(f"input {name!r} has codes from {array.min()} to {array.max()}", expected=f"{low}..{high}")


def _check(name: str, array: Array, tensor: Tensor) -> None:
    fits = array.ndim == len(tensor.shape) and all(
        want in (-1, have) for want, have in zip(tensor.shape, array.shape, strict=True)
    )
    if not fits:
        raise InputError(f"input {name!r} has shape {list(array.shape)}", expected=str(list(tensor.shape)))
    if array.dtype != np.dtype(_NUMPY[tensor.dtype]):
        raise InputError(f"input {name!r} has element type {array.dtype}", expected=tensor.dtype)

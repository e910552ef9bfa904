"""Runs an integer program in NumPy, independently of the graph, its interpreter and torch, except float islands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from qcompiler.backends.integer.planned import Arena, Plan
from qcompiler.errors import ArtifactError, InputError
from qcompiler.program import islands
from qcompiler.program.files import ProgramFiles
from qcompiler.program.islands import Island
from qcompiler.program.kernels import KERNELS, LAYERS, Call, channels_second, layer_multiplier, layer_reach
from qcompiler.program.liveness import NUMPY_TYPES, core_of
from qcompiler.program.program import Memory, Tensor
from qcompiler.storage.reading import machine_memory

Array: TypeAlias = npt.NDArray[Any]
Observe: TypeAlias = Callable[[str, Array], None]
Replace: TypeAlias = Callable[[str, Array], Array]

KERNEL_BYTES = 8
"""Bytes of one element during a computation: kernels work on int64 and float64."""
_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


class Storage(Protocol):
    """The tensors of a run in their physical order. Instructions go by the name of their first result."""

    def begin(self, instruction: str) -> None:
        """Before an instruction reads."""

    def read(self, name: str) -> Array:
        """A tensor."""

    def write(self, name: str, array: Array) -> None:
        """Keep a tensor."""

    def end(self, instruction: str) -> None:
        """After an instruction has written."""


class _Separate:
    """Separate memory for each tensor, until its last reader has run."""

    def __init__(self, freed: Mapping[str, Sequence[str]]) -> None:
        self.freed = freed
        self.arrays: dict[str, Array] = {}

    def begin(self, instruction: str) -> None:
        pass

    def read(self, name: str) -> Array:
        return self.arrays[name]

    def write(self, name: str, array: Array) -> None:
        self.arrays[name] = array

    def end(self, instruction: str) -> None:
        for name in self.freed.get(instruction, ()):
            self.arrays.pop(name, None)


@dataclass(frozen=True)
class Sums:
    """The state of a layer before requantization.

    Args:
        call: Instruction of the layer, with the types of its operands and result.
        sums: The accumulators, int64, channels last.
        multiplier: One, or one per channel; None for modes that only shift.
        exponent: The same; None for float multipliers.
        terms: Products of one sum, and its bias.
        magnitude: Bound on the sum of the magnitudes of these terms.
    """

    call: Call
    sums: Array
    multiplier: Array | None
    exponent: Array | None
    terms: int
    magnitude: int

    def logical(self, array: Array) -> Array:
        """Something in the shape of `sums` in the logical order of the result."""
        return channels_second(self.call, array)


class Executor:
    """A loaded program.

    Args:
        files: The program and its constants.
        memory: A plan of its memory: all tensors of the core lie in one array of bytes then, in which freed ranges are
            overwritten, see `planned`. None: separate memory for each tensor.

    Raises:
        ArtifactError: An instruction or element type is unknown.
    """

    def __init__(self, files: ProgramFiles, memory: Memory | None = None) -> None:
        self.files = files
        self.program = program = files.program
        self.core = core_of(program)
        self._plan = None if memory is None else Plan(program, memory)
        self._constants = {name: files.logical(name) for name in files.constants}
        self._calls: list[Call] = []
        self._islands: dict[str, Island] = {}
        readers: dict[str, str] = {}
        for instruction in program.instructions:
            if instruction.op == "call":
                name = instruction.text("graph")
                self._islands[name] = islands.load(files.program, files.constants, name)
            elif instruction.op not in KERNELS:
                raise ArtifactError(f"the instruction {instruction.op!r} is unknown", where=instruction.output)
            inputs = tuple(program.tensors[name] for name in instruction.inputs)
            for name in instruction.outputs:
                if program.tensors[name].dtype not in NUMPY_TYPES:
                    raise ArtifactError(f"the element type {program.tensors[name].dtype!r} is unknown", where=name)
            self._calls.append(Call(instruction, inputs, program.tensors[instruction.output]))
            readers.update(dict.fromkeys(instruction.inputs, instruction.output))
        self._makers = {call.instruction.output: call for call in self._calls}
        self._freed: dict[str, list[str]] = {}
        """By the first result of an instruction, what nothing reads after it."""
        for name, reader in readers.items():
            if name not in program.outputs:
                self._freed.setdefault(reader, []).append(name)

    def run(
        self, inputs: Sequence[Array], observe: Observe | None = None, replace: Replace | None = None
    ) -> list[Array]:
        """Run on one batch of any size, or of that of the plan.

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
        for name, array in zip(self.program.inputs, inputs, strict=True):
            _check(name, array, self.program.tensors[name])
        self._check_memory(inputs)
        memory: Storage = _Separate(self._freed) if self._plan is None else Arena(self._plan)
        for name, inner, array in zip(self.program.inputs, self.core.given, inputs, strict=True):
            if self._plan is not None and array.shape != self._plan.tensors.shapes[inner]:
                expected = str(list(self._plan.tensors.shapes[inner]))
                raise InputError(f"input {name!r} has shape {list(array.shape)}", expected=f"{expected}, as planned")
            memory.write(name, self._store(array))
        for call in self._calls:
            names, first = call.instruction.inputs, call.instruction.output
            memory.begin(first)
            operands = [self._constants[n] if n in self._constants else self._load(memory.read(n)) for n in names]
            results = self._compute(call, operands)
            for name, result in zip(call.instruction.outputs, results, strict=True):
                if observe is not None:
                    observe(name, result)
                memory.write(name, self._store(result if replace is None else replace(name, result)))
            memory.end(first)
        return [
            np.asarray(self._constants[n] if n in self._constants else self._load(memory.read(n)), order="C")
            for n in self.program.outputs
        ]

    def _check_memory(self, inputs: Sequence[Array]) -> None:
        """Refuse a batch of which one tensor alone does not fit this machine, before any of it is computed.

        Raises:
            InputError: A tensor is too large.
        """
        names = zip(self.program.inputs, inputs, strict=True)
        free = [math.prod(array.shape) for name, array in names if -1 in self.program.tensors[name].shape]
        counts = [math.prod(abs(n) for n in self.program.tensors[name].shape) for name in self.program.inputs]
        batch = max((size // max(count, 1) for size, count in zip(free, counts, strict=False)), default=1)
        for name, tensor in self.program.tensors.items():
            size = math.prod(abs(n) for n in tensor.shape) * (batch if -1 in tensor.shape else 1) * KERNEL_BYTES
            if size > machine_memory():
                raise InputError(
                    f"the tensor {name!r} needs {size} bytes while it is computed",
                    expected=f"at most the {machine_memory()} bytes of memory of this machine",
                    fix="Use fewer samples at a time.",
                )

    def _compute(self, call: Call, operands: Sequence[Array]) -> list[Array]:
        try:
            if call.instruction.op == "call":
                return self._islands[str(call["graph"])](operands)
            return [KERNELS[call.instruction.op](call, operands).astype(NUMPY_TYPES[call.output.dtype])]
        except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ArtifactError(
                f"the instruction {call.instruction.op} cannot be run: {reason}", where=call.instruction.output
            ) from error

    def run_integer(self, codes: Sequence[Array]) -> list[Array]:
        """Run the part from the quantized inputs to the outputs before dequantization, from codes to codes.

        Args:
            codes: For each input, its codes in the element type that its quantizer gives, in logical order; real
                numbers for one that a float island reads.

        Returns:
            For each output, its codes in logical order; real numbers where it has none.

        Raises:
            InputError: The number of inputs, a shape, an element type or a code does not fit.
        """
        program, core = self.program, self.core
        entry = {instruction.output for instruction in core.entry}
        limits = {call.instruction.output: call.limits for call in self._calls if call.instruction.output in entry}
        if len(codes) != len(program.inputs):
            raise InputError(f"{len(codes)} inputs were given", expected=str(len(program.inputs)))
        given: dict[str, Array] = {}
        stand_ins: list[Array] = []
        for name, inner, array in zip(program.inputs, core.given, codes, strict=True):
            _check(inner, array, program.tensors[inner])
            if inner in limits:
                _check_codes(inner, array, *limits[inner])
            given[inner] = array
            outer = np.zeros(array.shape, NUMPY_TYPES[program.tensors[name].dtype]) if inner != name else array
            stand_ins.append(outer)
        seen: dict[str, Array] = {}
        keep = set(core.taken)
        outputs = self.run(
            stand_ins,
            lambda name, array: seen.__setitem__(name, array) if name in keep else None,
            given.get,
        )
        found = {**self._constants, **seen, **given}
        return [
            array if name == inner else np.asarray(found[inner], order="C")
            for name, inner, array in zip(program.outputs, core.taken, outputs, strict=True)
        ]

    def sums(self, name: str, codes: Mapping[str, Array]) -> Sums | None:
        """The accumulators of a layer.

        Args:
            name: Name of the result.
            codes: Operands of the instruction, by name, in logical order.

        Returns:
            None if `name` is not the result of a layer, or if an operand is missing.
        """
        call = self._makers.get(name)
        if call is None or call.instruction.op not in LAYERS:
            return None
        found = {**self._constants, **codes}
        if any(operand not in found for operand in call.instruction.inputs):
            return None
        arrays = [found[operand] for operand in call.instruction.inputs]
        sums = LAYERS[call.instruction.op](call, arrays)
        return Sums(call, sums, *layer_multiplier(call, arrays), *layer_reach(call, arrays))

    def clamped(self, name: str, codes: Array) -> Array:
        """The result of the instruction `int_clamp` named `name` on `codes`."""
        return KERNELS["int_clamp"](self._makers[name], [codes])

    def _store(self, array: Array) -> Array:
        """Into physical order."""
        if array.ndim == 4 and self.program.layout == "NHWC":
            array = array.transpose(_TO_NHWC)
        return np.asarray(array, order="C")

    def _load(self, array: Array) -> Array:
        """A view in logical order."""
        return array.transpose(_TO_NCHW) if array.ndim == 4 and self.program.layout == "NHWC" else array


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
    if array.dtype != np.dtype(NUMPY_TYPES[tensor.dtype]):
        raise InputError(f"input {name!r} has element type {array.dtype}", expected=tensor.dtype)

"""Collects the tensors and operators of a file while the instructions of a program are written.

Tensors of four axes are stored N, H, W, C; all others in their logical order. The first size is the batch: it is 1 in
the shape and open in the signature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from qcompiler.backends.tflite.flatbuffer import Field, Table, serialized
from qcompiler.backends.tflite.schema import ACTIVATIONS, IDENTIFIER, OPERATORS, TYPES, VERSION, options
from qcompiler.errors import UnsupportedError
from qcompiler.ir.types import DType
from qcompiler.program.files import ProgramFiles
from qcompiler.program.program import Array, Instruction, Tensor

__all__ = ["CODES", "NCHW", "NHWC", "Rule", "Writer"]

NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
"""Orders of axes: of a stored image by its logical axes, and the reverse."""
DESCRIPTION = "qcompiler"


class Writer:
    """The parts of a file.

    Args:
        files: Program with constants.
        name: Name of the model.
    """

    def __init__(self, files: ProgramFiles, name: str) -> None:
        self.files, self.name = files, name
        self.places: dict[str, int] = {}
        """Stored tensors of the program by name."""
        self._logical: dict[int, int] = {}
        self._tensors: list[Table] = []
        self._shapes: list[tuple[int, ...]] = []
        self._buffers: list[Table] = [{}]
        self._codes: dict[tuple[int, int], int] = {}
        self._operators: list[Table] = []
        self._own: list[str] = []
        self._held: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def declared(self, name: str) -> Tensor:
        """A tensor of the program."""
        return self.files.program.tensors[name]

    def new(self, name: str, dtype: str, shape: Sequence[int], like: Tensor | None = None) -> int:
        """A tensor that an operator writes, or an input.

        Args:
            name: Name, unless it is a tensor of the program.
            dtype: Element type.
            shape: Stored sizes; -1 is the batch.
            like: Tensor of the program whose grid it has.
        """
        return self._add(name, dtype, shape, 0, like, 0)

    def result(self, item: Instruction) -> int:
        """The stored result of an instruction."""
        tensor = self.declared(item.output)
        self.places[item.output] = self.new(item.output, tensor.dtype, stored(tensor.shape), tensor)
        return self.places[item.output]

    def constant(self, name: str, array: Array, like: Tensor | None = None, axis: int = 0) -> int:
        """A tensor with numbers, the same one for equal numbers without a grid."""
        dtype = _SHORT[array.dtype.name]
        data = np.asarray(array, order="C").tobytes()
        key = (dtype, array.shape, data)
        if like is None and key in self._held:
            return self._held[key]
        self._buffers.append({0: Field("bytes", data)})
        place = self._add(name, dtype, array.shape, len(self._buffers) - 1, like, axis)
        if like is None:
            self._held[key] = place
        return place

    def numbers(self, values: Sequence[int]) -> int:
        """A list of whole numbers."""
        return self.constant("numbers", np.array(values, np.int32))

    def stored(self, name: str) -> int:
        """A tensor of the program as it is stored: an activation, or a constant that is read like one."""
        if name not in self.places:
            array = self.files.logical(name)
            tensor = self.declared(name)
            self.places[name] = self.constant(name, array.transpose(NHWC) if array.ndim == 4 else array, tensor)
        return self.places[name]

    def logical(self, name: str) -> int:
        """A tensor of the program in the logical order of its axes."""
        place, tensor = self.stored(name), self.declared(name)
        if len(tensor.shape) != 4:
            return place
        if place not in self._logical:
            self._logical[place] = self.transposed(place, NCHW, f"{name}.nchw", tensor)
        return self._logical[place]

    def from_logical(self, item: Instruction, place: int) -> None:
        """Make a tensor in logical order the result of an instruction."""
        tensor = self.declared(item.output)
        if len(tensor.shape) == 4:
            self.operator("TRANSPOSE", [place, self.numbers(NHWC)], [self.result(item)], "TransposeOptions")
            self._logical[self.places[item.output]] = place
        else:
            self.places[item.output] = place

    def transposed(self, place: int, axes: Sequence[int], name: str, like: Tensor) -> int:
        """A tensor with its axes in another order."""
        shape = [self._shapes[place][axis] for axis in axes]
        result = self.new(name, like.dtype, shape, like)
        self.operator("TRANSPOSE", [place, self.numbers(axes)], [result], "TransposeOptions")
        return result

    def reshaped(self, place: int, shape: Sequence[int], name: str, like: Tensor) -> int:
        """A tensor with other sizes."""
        result = self.new(name, like.dtype, shape, like)
        self.operator("RESHAPE", [place, self.numbers(shape)], [result], "ReshapeOptions", shape=list(shape))
        return result

    def shape(self, place: int) -> tuple[int, ...]:
        """The stored sizes of a tensor; -1 is the batch."""
        return self._shapes[place]

    def operator(
        self, code: str, inputs: Sequence[int], outputs: Sequence[int], kind: str = "", **fields: object
    ) -> None:
        """Append an operator.

        Args:
            code: Name of the operator.
            inputs: Tensors that it reads; -1 for one that is left out.
            outputs: Tensors that it writes.
            kind: Table of its options.
            fields: Fields of the table.
        """
        number = self._codes.setdefault(OPERATORS[code], len(self._codes))
        table: dict[int, Field] = {
            0: Field("u32", number),
            1: Field("i32s", list(inputs)),
            2: Field("i32s", list(outputs)),
        }
        if kind:
            union, content = options(kind, fields)
            table |= {3: Field("u8", union), 4: Field("table", content)}
        self._operators.append(table)

    def limited(self, item: Instruction, emit: Callable[[int, int], None], *, fused: bool = True) -> None:
        """Write an operator whose activation is that of the limits of its codes, or with limits after it.

        Args:
            item: Instruction with `qmin` and `qmax`.
            emit: Function of the result and the number of the activation.
            fused: Whether the operator has activations.
        """
        tensor = self.declared(item.output)
        lowest, highest = DType(tensor.dtype).limits
        low, high = item.attributes.get("qmin"), item.attributes.get("qmax")
        low, high = lowest if low is None else low, highest if high is None else high
        activation = self._activation(tensor, (low, high))
        if activation is not None and (fused or activation == ACTIVATIONS["none"]):
            emit(self.result(item), activation)
            return
        shape = stored(tensor.shape)
        free = self.new(f"{item.output}.free", tensor.dtype, shape, tensor)
        emit(free, ACTIVATIONS["none"])
        self.clamped(item, free, low, high)

    def clamped(self, item: Instruction, place: int, low: object, high: object) -> None:
        """Make a tensor with limits the result of an instruction; limits are numbers, or one per channel."""
        tensor = self.declared(item.output)
        lowest, highest = DType(tensor.dtype).limits
        steps = [("MAXIMUM", low, lowest), ("MINIMUM", high, highest)]
        wanted = [(code, ends) for code, ends, free in steps if not np.array_equal(ends, free)]  # type: ignore[arg-type]
        for index, (code, ends) in enumerate(wanted):
            codes = np.asarray(ends, np.dtype(CODES[tensor.dtype]))
            codes = codes.reshape(1, 1, 1, -1) if codes.ndim and len(tensor.shape) == 4 else codes.reshape(-1)
            limit = self.constant(f"{item.output}.limit", codes, _plain(tensor))
            last = index == len(wanted) - 1
            result = self.result(item) if last else self.new(item.output, tensor.dtype, stored(tensor.shape), tensor)
            self.operator(code, [place, limit], [result], "MaximumMinimumOptions")
            place = result
        if not wanted:
            self.places[item.output] = place

    def _activation(self, tensor: Tensor, limits: tuple[object, object]) -> int | None:
        """The number of the activation with these limits of codes; None if there is none."""
        if any(isinstance(end, tuple | list) for end in limits):
            return None
        lowest, highest = DType(tensor.dtype).limits
        zero, scale = tensor.zero_point[0], np.float32(tensor.scale[0])
        six = math.floor(float(np.float32(6.0) / scale) + 0.5) + zero
        known = {
            "none": (lowest, highest),
            "relu": (max(lowest, zero), highest),
            "relu6": (max(lowest, zero), min(highest, six)),
        }
        return next((ACTIVATIONS[name] for name, ends in known.items() if ends == limits), None)

    def _add(self, name: str, dtype: str, shape: Sequence[int], buffer: int, like: Tensor | None, axis: int) -> int:
        if dtype not in TYPES:
            raise UnsupportedError(f"a TensorFlow Lite file has no {dtype}", where=f"%{name}")
        self._own.append(name)
        table: dict[int, Field] = {
            0: Field("i32s", [abs(size) for size in shape]),
            1: Field("i8", TYPES[dtype]),
            2: Field("u32", buffer),
        }
        if like is not None and like.scale:
            zero = like.zero_point or (0,)
            table[4] = Field(
                "table",
                {
                    2: Field("f32s", like.scale),
                    3: Field("i64s", zero if len(zero) == len(like.scale) else zero * len(like.scale)),
                    6: Field("i32", axis),
                },
            )
        if any(size < 0 for size in shape):
            table[7] = Field("i32s", list(shape))
        self._tensors.append(table)
        self._shapes.append(tuple(shape))
        return len(self._tensors) - 1

    def finish(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> bytes:
        """The file; tensors of the program have their own names.

        Args:
            inputs: Tensors by name in the signature.
            outputs: The same.
        """
        named: dict[int, str] = {}
        for name, place in self.places.items():
            named.setdefault(place, name)
        taken = set(named.values())
        tensors = []
        for place, (table, own) in enumerate(zip(self._tensors, self._own, strict=True)):
            name = named.get(place, own if own not in taken else f"{own}.{place}")
            taken.add(name)
            tensors.append({**table, 3: Field("text", name)})
        codes = [
            {0: Field("i8", min(number, 127)), 2: Field("i32", version), 3: Field("i32", number)}
            for number, version in self._codes
        ]
        graph: Table = {
            0: Field("tables", tensors),
            1: Field("i32s", list(inputs.values())),
            2: Field("i32s", list(outputs.values())),
            3: Field("tables", self._operators),
            4: Field("text", self.name),
        }
        signature: Table = {
            0: Field("tables", [_mapped(name, place) for name, place in inputs.items()]),
            1: Field("tables", [_mapped(name, place) for name, place in outputs.items()]),
            2: Field("text", "serving_default"),
            4: Field("u32", 0),
        }
        root: Table = {
            0: Field("u32", VERSION),
            1: Field("tables", codes),
            2: Field("tables", [graph]),
            3: Field("text", DESCRIPTION),
            4: Field("tables", self._buffers),
            7: Field("tables", [signature]),
        }
        return serialized(root, IDENTIFIER)


Rule: TypeAlias = Callable[[Writer, Instruction], None]
"""Writes the operators of an instruction."""
CODES = {"i8": "int8", "i16": "int16", "u8": "uint8", "i32": "int32", "i64": "int64", "f32": "float32"}
_SHORT = {name: short for short, name in CODES.items()}


def stored(shape: Sequence[int]) -> list[int]:
    """Sizes in the order in which they are stored."""
    return [shape[axis] for axis in NHWC] if len(shape) == 4 else list(shape)


def _plain(tensor: Tensor) -> Tensor:
    """The grid of a tensor without its sizes."""
    return Tensor(dtype=tensor.dtype, shape=(), scale=tensor.scale, zero_point=tensor.zero_point)


def _mapped(name: str, place: int) -> Table:
    return {0: Field("text", name), 1: Field("u32", place)}

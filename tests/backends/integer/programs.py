"""Programs made without a graph: some that run, with random instructions, and some that only have shapes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st

from qcompiler.program.constants import constants_of
from qcompiler.program.files import ProgramFiles
from qcompiler.program.program import Instruction, Program, Tensor

Shape = tuple[int, ...]
HALF_OF_SUM: dict[str, Any] = {
    "mode": "single",
    "shift": 10,
    **{f"{side}_multiplier": 2**30 for side in ("left", "right", "out")},
    "left_exponent": 0,
    "right_exponent": 0,
    "out_exponent": -9,
}
"""Attributes of an `int_add` of two tensors of one grid."""
LIMITS = {"i8": (-128, 127), "i16": (-(2**15), 2**15 - 1)}


class Builder:
    """Adds instructions one by one."""

    def __init__(self, layout: Literal["NHWC", "NCHW"] = "NHWC") -> None:
        self.layout: Literal["NHWC", "NCHW"] = layout
        self.tensors: dict[str, Tensor] = {}
        self.constants: dict[str, np.ndarray[Any, Any]] = {}
        self.instructions: list[Instruction] = []
        self.inputs: list[str] = []

    def input(self, shape: Shape, dtype: str = "i8") -> str:
        """Add an input of the program; the batch is not part of `shape`."""
        self.inputs.append(self._tensor((-1, *shape), dtype))
        return self.inputs[-1]

    def constant(self, array: np.ndarray[Any, Any], dtype: str) -> str:
        """Numbers of the program."""
        name = self._tensor(array.shape, dtype)
        self.constants[name] = array
        return name

    def add(self, op: str, inputs: Sequence[str], shape: Shape, dtype: str = "i8", **attributes: Any) -> str:
        """An instruction; the batch is not part of `shape`."""
        name = self._tensor((-1, *shape), dtype)
        self.instructions.append(Instruction(op=op, inputs=tuple(inputs), outputs=(name,), attributes=attributes))
        return name

    def shape(self, name: str) -> Shape:
        """Shape of a tensor, without the batch."""
        return self.tensors[name].shape[1:]

    def dtype(self, name: str) -> str:
        """Type of a tensor."""
        return self.tensors[name].dtype

    def program(self, *outputs: str) -> Program:
        """The program as built."""
        return Program(
            layout=self.layout,
            inputs=tuple(self.inputs),
            outputs=outputs,
            tensors=self.tensors,
            constants=constants_of(
                self.constants, self.tensors, self.instructions, "OHWI" if self.layout == "NHWC" else "OIHW"
            ),
            instructions=tuple(self.instructions),
        )

    def files(self, *outputs: str) -> ProgramFiles:
        """The program as built, with its constants."""
        return ProgramFiles(self.program(*outputs), self.constants)

    def _tensor(self, shape: Shape, dtype: str) -> str:
        name = f"t{len(self.tensors)}"
        tensor = Tensor(dtype=dtype, shape=shape)
        self.tensors[name] = (
            tensor if dtype == "f32" else tensor.model_copy(update={"scale": (0.5,), "zero_point": (0,)})
        )
        return name


def random_files(draw: st.DrawFn, most: int = 14) -> ProgramFiles:
    """A program that runs, of at most `most` random instructions between its ends."""
    layout: Literal["NHWC", "NCHW"] = draw(st.sampled_from(("NHWC", "NCHW")))
    made = _Random(Builder(layout), random.Random(draw(st.integers(0, 2**32))))
    return made.files(draw(st.integers(1, most)))


@st.composite
def runnable(draw: st.DrawFn, most: int = 14) -> ProgramFiles:
    """`random_files` as a strategy."""
    return random_files(draw, most)


class _Random:
    """Random instructions on images of a few pixels, often in place or views."""

    def __init__(self, builder: Builder, generator: random.Random) -> None:
        self.builder, self.random = builder, generator
        self.codes: list[str] = []

    def files(self, count: int) -> ProgramFiles:
        builder = self.builder
        for _ in range(self.random.choice((1, 1, 2))):
            shape = tuple(self.random.choice(sizes) for sizes in ((1, 3, 16), (1, 2, 4, 5), (1, 3, 4)))
            if self.random.random() < 0.5:
                self.codes.append(builder.input(shape))
            else:
                self.codes.append(builder.add("quantize", [builder.input(shape, "f32")], shape, rounding="rne"))
        makers = (
            self.lookup, self.clamp, self.rescale, self.sum, self.product, self.extreme, self.pool, self.mean,
            self.reshape, self.permute, self.slice, self.concat, self.pad,
        )  # fmt: skip
        for _ in range(count):
            name = self.random.choice(makers)(self.recent())
            if name is not None:
                self.codes.append(name)
        read = {name for item in builder.instructions for name in item.inputs}
        ends = [name for name in self.codes if name not in read] or self.codes[-1:]
        ends += self.random.sample(self.codes, min(len(self.codes), self.random.choice((0, 0, 1, 2))))
        outputs = [
            name if self.random.random() < 0.5 else builder.add("dequantize", [name], builder.shape(name), "f32")
            for name in dict.fromkeys(ends)
        ]
        return builder.files(*outputs)

    def recent(self) -> str:
        """One of the last, that chains are long and branches are many."""
        return self.random.choice(self.codes[-4:] if self.random.random() < 0.8 else self.codes)

    def of_shape(self, *shapes: Shape) -> str:
        """The latest but one of such a shape, if there is one: it is read later, too."""
        found = [name for name in self.codes if self.builder.shape(name) in shapes]
        return self.random.choice(found[-3:])

    def lookup(self, x: str) -> str | None:
        if self.builder.dtype(x) != "i8":
            return None
        dtype = self.random.choice(("i8", "i8", "i16"))
        low, high = LIMITS[dtype]
        table = np.array(
            [self.random.randint(low, high) for _ in range(256)],
            np.dtype(dtype.replace("i8", "i1").replace("i16", "i2")),
        )
        return self.builder.add(
            "lookup", [x, self.builder.constant(table, dtype)], self.builder.shape(x), dtype, offset=-128
        )

    def clamp(self, x: str) -> str:
        channels = self.builder.shape(x)[0]
        low = tuple(self.random.randint(-90, 0) for _ in range(channels))
        high = tuple(self.random.randint(1, 90) for _ in range(channels))
        return self.builder.add(
            "int_clamp", [x], self.builder.shape(x), self.builder.dtype(x), axis=1, qmin=low, qmax=high
        )

    def multiplier(self, exponent: int) -> list[str]:
        """2^(exponent - 1), as multiplier and exponent."""
        parts = ((2**30, np.int32, "i32"), (exponent, np.int8, "i8"))
        return [self.builder.constant(np.array([value], dtype), name) for value, dtype, name in parts]

    def rescale(self, x: str) -> str:
        old, new = self.builder.dtype(x), self.random.choice(("i8", "i8", "i16"))
        exponent = 1 + (7 if new == "i16" else 0) - (7 if old == "i16" else 0)
        return self.builder.add("rescale", [x, *self.multiplier(exponent)], self.builder.shape(x), new, mode="single")

    def sum(self, x: str) -> str:
        other = self.of_shape(self.builder.shape(x))
        return self.builder.add("int_add", [x, other], self.builder.shape(x), **HALF_OF_SUM)

    def extreme(self, x: str) -> str:
        shape = self.builder.shape(x)
        other = self.random.choice([name for name in self.codes if self.builder.shape(name) == shape] or [x])
        same = other if self.builder.dtype(other) == self.builder.dtype(x) else x
        op = self.random.choice(("maximum", "minimum"))
        return self.builder.add(op, [x, same], shape, self.builder.dtype(x))

    def product(self, x: str) -> str:
        shape = self.builder.shape(x)
        other = self.of_shape(shape, (shape[0], 1, 1)) if len(shape) == 3 else x
        pair = [x, other] if self.random.random() < 0.5 else [other, x]
        return self.builder.add("int_mul", pair, shape, mode="single", product_multiplier=2**30, product_exponent=-4)

    def pool(self, x: str) -> str | None:
        if len(self.builder.shape(x)) != 3:
            return None
        window = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
        return self.builder.add("max_pool2d", [x], self.builder.shape(x), self.builder.dtype(x), **window)

    def mean(self, x: str) -> str | None:
        shape = self.builder.shape(x)
        if len(shape) != 3:
            return None
        operands = [x, *self.multiplier(-1)]
        return self.builder.add("int_mean", operands, (shape[0], 1, 1), axes=(2, 3), keepdim=True, mode="single")

    def reshape(self, x: str) -> str:
        shape = self.builder.shape(x)
        size = int(np.prod(shape))
        first, second = self.factor(size), self.factor(size)
        crossing = (first, size // first), (second, size // second, 1), (first, 1, size // first)
        new = self.random.choice(((size,), (1, 1, size), (size, 1, 1), (shape[0], size // shape[0], 1), *crossing))
        return self.builder.add("reshape", [x], new, self.builder.dtype(x))

    def factor(self, size: int) -> int:
        """A number that divides `size`: sizes of different factors cross."""
        return self.random.choice([number for number in range(1, size + 1) if size % number == 0])

    def permute(self, x: str) -> str | None:
        shape = self.builder.shape(x)
        if len(shape) != 3:
            return None
        axes = self.random.choice(((0, 2, 3, 1), (0, 3, 1, 2), (0, 1, 3, 2)))
        return self.builder.add("permute", [x], tuple(shape[a - 1] for a in axes[1:]), self.builder.dtype(x), axes=axes)

    def slice(self, x: str) -> str:
        shape = list(self.builder.shape(x))
        axis = self.random.randrange(len(shape))
        start = self.random.randrange(shape[axis])
        stop = self.random.randint(start + 1, shape[axis])
        step = self.random.choice((1, 1, 2))
        shape[axis] = -(-(stop - start) // step)
        where = {"axis": axis + 1, "start": start, "stop": stop, "step": step}
        return self.builder.add("slice", [x], tuple(shape), self.builder.dtype(x), **where)

    def concat(self, x: str) -> str:
        shape = list(self.builder.shape(x))
        axis = self.random.randrange(len(shape))
        fitting = [
            name
            for name in self.codes
            if self.builder.dtype(name) == self.builder.dtype(x)
            and len(self.builder.shape(name)) == len(shape)
            and all(a == b or i == axis for i, (a, b) in enumerate(zip(self.builder.shape(name), shape, strict=True)))
        ]
        names = [x, *(self.random.choice(fitting) for _ in range(self.random.choice((1, 1, 2))))]
        self.random.shuffle(names)
        shape[axis] = sum(self.builder.shape(name)[axis] for name in names)
        return self.builder.add("concat", names, tuple(shape), self.builder.dtype(x), axis=axis + 1)

    def pad(self, x: str) -> str | None:
        shape = list(self.builder.shape(x))
        axis = self.random.randrange(len(shape))
        amounts = [0] * (2 * len(shape) + 2)
        amounts[axis + 1], amounts[axis + 2 + len(shape)] = self.random.choice(((1, 0), (0, 2), (1, 1)))
        shape[axis] += sum(amounts)
        return self.builder.add("pad", [x], tuple(shape), self.builder.dtype(x), pad=tuple(amounts), value=7)


def inputs_of(files: ProgramFiles, batch: int, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """Random arrays for the inputs of a program."""
    generator = np.random.default_rng(seed)
    arrays: list[np.ndarray[Any, Any]] = []
    for name in files.program.inputs:
        shape = tuple(batch if size == -1 else size for size in files.program.tensors[name].shape)
        if files.program.tensors[name].dtype == "f32":
            arrays.append(generator.standard_normal(shape).astype(np.float32) * 30)
        else:
            arrays.append(generator.integers(-128, 128, shape).astype(np.int8))
    return arrays

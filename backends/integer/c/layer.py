"""A layer that sums products: its weights, types and requantization, before its kernel is chosen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcompiler.backends.integer.c.library import mode_of
from qcompiler.backends.integer.c.memory import NUMPY
from qcompiler.backends.integer.c.scales import accumulator, scale_of
from qcompiler.backends.integer.c.text import Value, sizes
from qcompiler.backends.integer.c.writer import Step, Writer
from qcompiler.errors import UnsupportedError
from qcompiler.program.kernels import Call
from qcompiler.program.kernels.call import largest_step, limits_of
from qcompiler.program.program import Array

Int = npt.NDArray[np.int64]


class Mac:
    """A layer that sums products, before its kernel is chosen.

    Args:
        writer: Collects the C.
        step: The instruction.
        transposed: Whether the first axis of the weight is that of the input channels.
    """

    def __init__(self, writer: Writer, step: Step, *, transposed: bool = False) -> None:
        self.writer, self.step, self.item = writer, step, step.item
        self.call: Call = writer.call_of(step.item)
        self.weight_name, self.bias_name = step.item.inputs[1:3]
        self.bias: Int = writer.operand(step.item, 2).astype(np.int64)
        logical = writer.operand(step.item, 1)
        tensor = self.call.inputs[1]
        zeros = np.array(tensor.zero_point or (0,), np.int64)
        shape = [1] * logical.ndim
        shape[tensor.axis or 0] = -1
        self.weight: Int = logical.astype(np.int64) - zeros.reshape(shape)
        """[out, in / groups, kernel...], or [in, out / groups, kernel...] where transposed; zero points removed, and
        times the factors of its blocks of inputs."""
        self.block: int | None = self.call.get("block")
        if self.block is not None:
            self._expand(self.block, tensor.axis or 0)
        if transposed:
            groups = int(self.call["groups"])
            inputs, per_group, *kernel = self.weight.shape
            split = self.weight.reshape(groups, inputs // groups, per_group, *kernel)
            order = (0, 2, 1, *range(3, 3 + len(kernel)))
            self.weight = split.transpose(order).reshape(groups * per_group, inputs // groups, *kernel)

    def _expand(self, block: int, axis: int) -> None:
        """Multiply each weight by the factor of its block, which the last operand holds: [channels, blocks]."""
        factors = self.writer.operand(self.item, len(self.item.inputs) - 1).astype(np.int64)
        size = self.weight.shape[1 - axis]
        each = factors[:, np.arange(size) // block]
        each = each if axis == 0 else each.T
        self.weight = self.weight * each.reshape(*each.shape, *[1] * (self.weight.ndim - 2))

    @property
    def channels(self) -> int:
        """The number of channels of the result."""
        return len(self.weight)

    def types(self, *, folded: bool) -> dict[str, str]:
        """The parameters of the kernel template.

        Args:
            folded: Whether it multiplies codes, with their zero point in the bias, or codes less their zero point.
        """
        x = self.call.inputs[0]
        largest = max(map(abs, limits_of(x.dtype))) if folded else largest_step(x)
        rows = np.abs(self.weight).reshape(self.channels, -1).sum(axis=1)
        start = self.folded_bias() if folded else self.bias
        bound = max((int(row) * largest + abs(int(b)) for row, b in zip(rows, start, strict=True)), default=0)
        return {
            "X": self.writer.ctype(self.item.inputs[0]),
            "Y": self.writer.ctype(self.item.output),
            "W": self._weight_type(),
            "ACC": accumulator(bound),
            "MODE": str(self.call["mode"]),
        }

    def _weight_type(self) -> str:
        for ctype in ("int8_t", "int16_t", "int32_t"):
            limits = np.iinfo(NUMPY[ctype])
            if limits.min <= self.weight.min(initial=0) and self.weight.max(initial=0) <= limits.max:
                return ctype
        raise UnsupportedError("a weight minus its zero point exceeds 32 bits", where=f"%{self.item.output}")

    def folded_bias(self) -> Int:
        """The bias of a kernel that multiplies raw codes."""
        folded: Int = self.bias - self.call.zero_point(0) * self.weight.reshape(self.channels, -1).sum(axis=1)
        return folded

    def weights(self, packed: Array, types: dict[str, str], order: str) -> str:
        """The symbol of the packed weights, with a note on their contents."""
        declared = self.call.inputs[1]
        blocks = "" if self.block is None else f", a factor per {self.block} inputs"
        self.step.notes.append(f"weight {declared.dtype}{sizes(declared.shape)}{blocks}")
        return self.writer.constant(self.weight_name, packed, types["W"], f"{order} weights of %{self.item.output}")

    def biases(self, types: dict[str, str], *, folded: bool) -> str:
        """The symbol of the bias."""
        bias = self.folded_bias() if folded else self.bias
        what = "bias with the zero point of the input" if folded else "bias"
        return self.writer.constant(self.bias_name, bias, types["ACC"], f"{what}, of %{self.item.output}")

    def requantizer(self) -> dict[str, Value]:
        """Members of the structure that requantizes channel by channel; notes the multipliers."""
        writer, item = self.writer, self.item
        scale = scale_of(writer, self.call, 3)
        self.step.notes.append(scale.text())
        parts: dict[str, Value] = {}
        if scale.multiplier is not None:
            ctype = mode_of(scale.mode).significand or "float"
            note = f"multipliers of %{item.output}"
            parts["multiplier"] = writer.constant(item.inputs[3], scale.multiplier, ctype, note)
        if scale.exponent is not None:
            source = item.inputs[3 if scale.multiplier is None else 4]
            parts["exponent"] = writer.constant(source, scale.exponent, "int8_t", f"exponents of %{item.output}")
        low, high = (np.broadcast_to(np.asarray(end, np.int64), (self.channels,)) for end in self.call.limits)
        each = any(isinstance(end, tuple | list) for end in self.call.limits)
        limits: dict[str, Value] = {"lows": "0", "highs": "0"}
        if each:
            for key, end in (("lows", low), ("highs", high)):
                limits[key] = writer.constant(f"{item.output}.{key}", end, "int32_t", f"{key} of %{item.output}")
        return {
            **parts,
            "next": int(any(part is not None and part.size > 1 for part in (scale.multiplier, scale.exponent))),
            "zero_point": self.call.output.zero_point[0],
            "low": int(low.min()),
            "high": int(high.max()),
            **limits,
        }

    def finish(
        self, template: str, types: dict[str, str], members: dict[str, Value], panels: tuple[int, int] | None = None
    ) -> None:
        """Write the call.

        Args:
            template: Template of the kernel.
            types: Parameters of the template.
            members: Members of the kernel's structure, except those for requantization.
            panels: Panels of a kernel with weights in vector order: number of panels, and bytes of their weights.
        """
        members["to"] = self.requantizer()
        if panels is not None:
            members = {"panels": self.writer.library.reserve_panels(*panels), "plain": members}
        self.writer.emit(self.step, template, types, self.item.inputs[:1], members)

"""Give the inputs and outputs of the program codes of one 8-bit type.

    x ─► fq(s, z) {s8} ─► ...        becomes        x ─► fq(s, z + 128) {u8} ─► fq(s, z) {s8} ─► ...
    ... ─► fq(s, z) {s8} ─► y        becomes        ... ─► fq(s, z) {s8} ─► fq(s, z + 128) {u8} ─► y

The second quantizer represents the same numbers, so it only shifts codes: no number changes. The integer program, the C
and the ONNX file then read and write codes of this type.

With unsigned codes, an input whose calibration data are pixels gets the grid of pixels: a code is then the byte of the
camera. Pixels are multiples of 1/255 from 0 to 1, or whole numbers from 0 to 255.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn

import torch
from torch import Tensor

from qcompiler.errors import PassError, UnsupportedError
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops.borders import border
from qcompiler.ops.quantizers import code_limits, grid, is_quantizer, leaf_tensor
from qcompiler.passes.base import Pass, PassContext
from qcompiler.quant.spec import ScaleKind
from qcompiler.validation.contracts import THRESHOLDS, Contract

External = Literal["uint8", "int8"]

PIXELS = Sentence("grid-of-pixels", "its codes are pixels: scale {scale}, zero point 0")
NO_PIXELS = Sentence(
    "inputs-are-no-pixels", "its samples are no pixels, so its codes are those of the calibrated range"
)
OTHER_GRID = Sentence(
    "grid-cannot-be-of-pixels", "the target or other tensors with its scale do not allow the grid of pixels"
)
SHIFTED = Sentence("external-codes", "codes of {io} for the caller of the program")

_SHIFT = 128
_PIXELS = {1.0 / 255.0: 1.0, 1.0: 255.0}
"""Scale of pixels, and the largest pixel."""
_TOLERANCE = 1e-3
"""Distance of a pixel from a whole number, in codes: float32 arithmetic of 255 levels is off by less than 1e-4."""


@dataclass(frozen=True)
class ExternalTypes(Pass):
    """Inputs and outputs have codes of one type.

    Args:
        io: Type of the codes.

    Raises:
        UnsupportedError: An input or output is not quantized to 8 bits, or is used in float.
    """

    name: ClassVar[str] = "external-types"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"requantization-fused"})
    io: External = "uint8"

    def __post_init__(self) -> None:
        if self.io not in ("uint8", "int8"):
            raise PassError(f"the external type is {self.io!r}", expected='"uint8" or "int8"')

    @property
    def contract(self) -> Contract:
        """Pixels get their own grid, whose step may differ from that of the calibrated range."""
        return THRESHOLDS["calibrate"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        rewriter = context.rewriter(graph)
        for index, value in enumerate(graph.inputs):
            if value.type.dtype.is_float and (value.users or graph.is_output(value)):
                readers = list(value.users)
                other = next((node.op for node in readers if not is_quantizer(node)), "")
                if other or graph.is_output(value):
                    self._refuse(value, "input", f"{other or 'an output'} reads it in float")
                self._input(value, readers, [batch[index] for batch in context.samples], rewriter)
        graph.set_outputs(
            [self._output(value, rewriter) if value.type.dtype.is_float else value for value in graph.outputs]
        )

    def _input(self, value: Value, readers: list[Node], samples: Iterable[Tensor], rewriter: Rewriter) -> None:
        source = readers[0]
        if self.io == "uint8":
            self._set_pixels(source, samples, rewriter)
        if source.spec.signed == (self.io == "int8") and len(readers) == 1:
            self._check(source, value, "input")
            return
        first = self._shifted(value, source, value, "input", before=source, rewriter=rewriter)
        for node in readers:
            rewriter.replace_input(node, 0, first)

    def _output(self, value: Value, rewriter: Rewriter) -> Value:
        node = value.producer
        while node is not None and not is_quantizer(node) and _keeps_grid(node):
            node = node.inputs[0].producer
        if node is None or not is_quantizer(node):
            self._refuse(value, "output", "it is computed in float")
        if node.spec.signed == (self.io == "int8"):
            self._check(node, value, "output")
            return value
        return self._shifted(value, node, value, "output", before=None, rewriter=rewriter)

    def _set_pixels(self, quantizer: Node, samples: Iterable[Tensor], rewriter: Rewriter) -> None:
        """Give a quantizer the grid of pixels if the samples are pixels and no other tensor has its grid."""
        params, spec = grid(quantizer)
        tensors = list(samples)
        scale = next((scale for scale, most in _PIXELS.items() if tensors and _are_pixels(tensors, scale, most)), None)
        # Scales of biases are products with the scale, and change with it.
        users = [user for user in quantizer.inputs[1].users if is_quantizer(user) and user is not quantizer]
        shared = not all(_holds_pixels(user, quantizer, scale or 0.0) for user in users)
        plain = spec.bits == 8 and not spec.symmetric and not spec.narrow and params.axis is None
        if scale is None or shared or not plain or spec.scale_kind is not ScaleKind.FLOAT:
            reason = NO_PIXELS() if scale is None else OTHER_GRID()
            rewriter.refuse(quantizer, reason)
            return
        zero_point = -_SHIFT if spec.signed else 0
        rewriter.write_tensor(quantizer.inputs[1], torch.tensor(scale))
        rewriter.write_tensor(quantizer.inputs[2], torch.tensor(zero_point, dtype=torch.int32))
        rewriter.note(quantizer, PIXELS(scale=f"{scale:.6g}"))

    def _shifted(
        self, value: Value, like: Node, named: Value, kind: str, *, before: Node | None, rewriter: Rewriter
    ) -> Value:
        """A quantizer of `value` whose codes are those of `like` on the other side of 0."""
        self._check(like, named, kind)
        shift = _SHIFT if self.io == "uint8" else -_SHIFT
        low, high = code_limits(like)
        spec = dataclasses.replace(like.spec, signed=self.io == "int8", symmetric=False, narrow=False)
        anchor = before if before is not None else like
        scale = like.inputs[1]
        zero_point = leaf_tensor(like.inputs[2]) + shift
        leaf = rewriter.leaf("constant", zero_point, ref=f"{named.name}.io.zero_point", before=anchor, like=like)
        shifted = rewriter.insert(
            "fake_quantize",
            [value, scale, leaf],
            {"spec": spec, "qmin": low + shift, "qmax": high + shift},
            before=before,
            like=like,
            name=f"{named.name}.io",
        )
        rewriter.note(shifted, SHIFTED(io=self.io))
        return shifted.output

    def _check(self, quantizer: Node, value: Value, kind: str) -> None:
        if quantizer.spec.bits != 8 or quantizer.spec.axis is not None:
            self._refuse(value, kind, f"it has {quantizer.spec.bits} bits")

    def _refuse(self, value: Value, kind: str, why: str) -> NoReturn:
        raise UnsupportedError(
            f"the {kind} {value.name!r} has no codes of {self.io}: {why}",
            where=value.producer.where if value.producer is not None else f"%{value.name}",
            fix='Use io="float", or a target and overrides with 8 bits at inputs and outputs.',
        )


def _keeps_grid(node: Node) -> bool:
    return node.definition.has(Trait.MOVEMENT) or node.definition.has(Trait.AVERAGE)


def _holds_pixels(node: Node, source: Node, scale: float) -> bool:
    """Whether a quantizer gets elements of `source` and borders between 0 and the largest pixel, and nothing else."""
    while node is not source:
        producer = node.inputs[0].producer
        if producer is None:
            return False
        value = border(producer)
        if value is not None and not 0.0 <= value <= _PIXELS[scale] * (1 + 1e-6):
            return False
        if not is_quantizer(producer) and not (_keeps_grid(producer) and len(producer.inputs) == 1):
            return False
        node = producer
    return True


def _are_pixels(tensors: Iterable[Tensor], scale: float, most: float) -> bool:
    """Whether all numbers are multiples of `scale` from 0 to `most`, and some are above 0."""
    some = False
    for tensor in tensors:
        codes = tensor.detach().double() / scale
        whole = (codes - codes.round()).abs() < _TOLERANCE
        if not bool(whole.all()) or float(tensor.min()) < 0 or float(tensor.max()) > most * (1 + 1e-6):
            return False
        some |= float(tensor.max()) > 0
    return some

"""`memory_movement`: the bytes that each layer of a model moves with static and with dynamic quantization ranges."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from qcompiler.analysis.traffic import Direction, Memories, Movement, Traffic
from qcompiler.errors import InputError
from qcompiler.ir.dims import evaluate_dim, symbols_of
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.ops.quantizers import is_leaf, is_quantizer, quantizer_of
from qcompiler.passes.base import Override
from qcompiler.session.options import Options
from qcompiler.session.pipeline import structural_passes
from qcompiler.session.session import Session
from qcompiler.session.source import Model, load_model
from qcompiler.targets import Target
from qcompiler.targets.loader import load_hardware

__all__ = ["memory_movement"]

FLOAT_BITS = 32
"""Width of the gradient of a weight, which the optimizer reads."""
ACCUMULATORS = range(16, 65)
"""Possible widths of accumulators, as in a descriptor."""
GRADIENTS = range(2, 17)
"""Possible widths of gradients."""


def memory_movement(
    model: Model,
    target: str | Path | Target = "int8_dsp",
    *,
    example_inputs: object = None,
    fixed_inputs: Mapping[str, object] | None = None,
    batch: int = 1,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    gradient_bits: int | None = 8,
    accumulator_bits: int | None = None,
    overrides: Mapping[str, Override] | None = None,
    device: torch.device | str | None = None,
) -> Traffic:
    """Count the bytes that each layer of `model` moves in one step of inference or training.

    Nothing is calibrated or measured. Each operand is read once and each result is written once per product. Biases
    are not counted. Codes take whole bytes; 4-bit codes take half a byte if the target packs them. Additions, pooling
    and other operations between layers are counted forward only, because their backward pass stays in float.

    In the backward pass each layer computes the gradient of its input and of its weight. If the weights of the target
    have a scale per output channel, the gradient of the result is multiplied by these scales before it is quantized for
    the gradient of the input: this second copy is written in addition, and counted there. Inputs that depend on no
    weight get no gradient.

    Args:
        model: As for `compile`.
        target: As for `compile`. Its memories, if any, are filled as `[[memory]]` lists them.
        example_inputs: As for `compile`.
        fixed_inputs: Inputs of an ONNX file that become constants; see `compile`.
        batch: Number of samples per step.
        weight_bits: Width of weights; None: that of the target.
        activation_bits: Width of activations; None: that of the target.
        gradient_bits: Width of gradients; None leaves out the backward pass.
        accumulator_bits: Width of accumulators; None: that of the target.
        overrides: As for `compile`.
        device: Device for tracing the model.

    Returns:
        The bytes by layer and product; `print` shows a table, `plot` draws it.

    Raises:
        InputError: A number is out of range, or the model has another fixed batch size.
        CaptureError: The model cannot be traced.
        UnsupportedError: The target is for simulation only, or lacks an operator of the model.
    """
    widths = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    changes = {name: bits for name, bits in widths.items() if bits is not None}
    hardware = load_hardware(target)
    if changes:
        hardware = hardware.override(**changes)
    _check("batch", batch, range(1, 2**31))
    _check("gradient_bits", gradient_bits, GRADIENTS)
    _check("accumulator_bits", accumulator_bits, ACCUMULATORS)
    front, back = structural_passes()
    options = Options(example_inputs, fixed_inputs=fixed_inputs, overrides=overrides or {}, device=device)
    session = Session(load_model(model, options.fixed_inputs), hardware, options, (*front, *back))
    count = _Count(session.quantized.module.main, hardware, batch, gradient_bits, accumulator_bits)
    return count.result()


def _check(name: str, value: int | None, allowed: range) -> None:
    if value is not None and (isinstance(value, bool) or value not in allowed):
        raise InputError(f"{name} is {value!r}", expected=f"a whole number from {allowed[0]} to {allowed[-1]}")


class _Count:
    """One model on one target.

    Args:
        graph: At stage QUANTIZED; it need not be calibrated.
        target: Hardware target.
        batch: Samples per step.
        gradient_bits: Width of gradients; None without a backward pass.
        accumulator_bits: Width of accumulators; None: that of the target.
    """

    def __init__(
        self, graph: Graph, target: Target, batch: int, gradient_bits: int | None, accumulator_bits: int | None
    ) -> None:
        self.graph, self.target, self.batch = graph, target, batch
        self.gradient_bits, self.accumulator_bits = gradient_bits, accumulator_bits
        self.sizes = self._symbols()
        self.learned: set[Value] = set()
        """Values that depend on a parameter of the model, so that they have gradients."""

    def result(self) -> Traffic:
        found: list[Movement] = []
        islands = []
        for node in self.graph.nodes:
            if node.definition.has(Trait.LEAF):
                continue
            found += self._forward(node)
            if self.gradient_bits is not None and is_weighted(node):
                found += self._backward(node, self.gradient_bits)
            if node.callee is not None:
                islands.append(node.name)
            if any(value in self.learned for value in node.inputs) or _is_learned(node):
                self.learned.update(node.outputs)
        notes = [f"Not counted, because they run in float: {', '.join(islands)}."] if islands else []
        return Traffic(self.target.name, self.batch, tuple(map(self._placed, found)), tuple(notes))

    def _symbols(self) -> dict[str, int]:
        """The batch size as the value of the symbol of the first axis of the inputs.

        Raises:
            InputError: An input has another fixed batch size, or other free sizes.
        """
        found: dict[str, int] = {}
        for value in self.graph.inputs:
            for axis, dim in enumerate(value.type.shape):
                if axis == 0 and isinstance(dim, int) and dim != self.batch:
                    raise InputError(
                        f"the input {value.name} has a fixed batch size of {dim}",
                        expected=f"batch={dim}, or a free size",
                    )
                names = [] if isinstance(dim, int) else [symbol.name for symbol in symbols_of(dim)]
                if axis and any(name not in found for name in names):
                    raise InputError(
                        f"the size {dim} of the input {value.name} is free", fix="Export the model with fixed sizes."
                    )
                found.update(dict.fromkeys(names, self.batch))
        return found

    def _forward(self, node: Node) -> Iterator[Movement]:
        """The product of a layer, or another operation that computes codes from codes."""
        weight = node.inputs[1] if is_weighted(node) else None
        operands = node.inputs[:1] if weight else [value for value in node.inputs if not is_leaf(_real(value))]
        if not _computes(node) or not all(quantizer_of(value) is not None for value in operands):
            return  # in float, or the rest of a step that began before
        yield Movement(
            node.name,
            node.op,
            Direction.FORWARD,
            weights=0 if weight is None else self._bytes(weight, self._bits(weight)),
            read=sum(self._bytes(value, self._bits(value)) for value in dict.fromkeys(operands)),
            written=sum(self._bytes(value, self._result_bits(value)) for value in node.outputs),
            accumulators=sum(self._bytes(value, self._accumulator(node)) for value in node.outputs),
        )

    def _backward(self, node: Node, bits: int) -> Iterator[Movement]:
        """The gradients of the input and of the weight of a layer."""
        x, weight = node.inputs[:2]
        gradient = self._bytes(node.output, bits)
        if x in self.learned:
            copy = gradient if _scale_per_channel(node) else 0
            yield Movement(
                node.name,
                node.op,
                Direction.INPUT_GRADIENT,
                weights=self._bytes(weight, self._bits(weight)),
                read=gradient,
                written=self._bytes(x, bits) + copy,
                accumulators=self._bytes(x, self._accumulator(node)),
            )
        yield Movement(
            node.name,
            node.op,
            Direction.WEIGHT_GRADIENT,
            weights=0,
            read=gradient + self._bytes(x, self._bits(x)),
            written=self._bytes(weight, FLOAT_BITS),
            accumulators=0,
        )

    def _placed(self, item: Movement) -> Movement:
        if not self.target.descriptor.memory:
            return item
        memories = self._memories
        places = [memories.place(item, dynamic=dynamic) for dynamic in (False, True)]
        return dataclasses.replace(item, static_place=places[0], dynamic_place=places[1])

    @property
    def _memories(self) -> Memories:
        """The memories of the descriptor, and the first one with room for all weights."""
        described = self.target.descriptor.memory
        layers = [node for node in self.graph.nodes if is_weighted(node)]
        weights = {_real(node.inputs[1]): self._bytes(node.inputs[1], self._bits(node.inputs[1])) for node in layers}
        size = sum(weights.values())
        constants = next((item.name for item in described if "constants" in item.holds and item.bytes >= size), "")
        sizes = {item.name: item.bytes - (size if item.name == constants else 0) for item in described}
        figures = {item.name: (item.bytes_per_cycle, item.picojoules_per_byte) for item in described}
        return Memories(sizes, {item.name: item.holds for item in described}, figures, constants)

    def _bits(self, value: Value) -> int:
        """Width of the codes of an operand."""
        quantizer = quantizer_of(value)
        return self.target.activation_bits if quantizer is None else quantizer.spec.bits

    def _result_bits(self, value: Value) -> int:
        """Width of the codes of a result: of the quantizer that reads it, or the activation after it."""
        waiting = list(value.users)
        while waiting:
            user = waiting.pop(0)
            if is_quantizer(user):
                return user.spec.bits
            if user.definition.has(Trait.CLAMP):
                waiting += user.output.users
        return self.target.activation_bits

    def _accumulator(self, node: Node) -> int:
        """Width of the accumulators of a node, in whole bytes."""
        if self.accumulator_bits is not None:
            return self.accumulator_bits
        return self.target.arithmetic.at(node.op, self._bits(node.inputs[0])).accumulator_bits

    def _bytes(self, value: Value, bits: int) -> int:
        """Bytes of all elements of a value."""
        elements = math.prod(evaluate_dim(dim, self.sizes) for dim in value.type.shape)
        if bits == 4 and self.target.packing != "none":
            return -(-elements // 2)
        return elements * _whole_bytes(bits)


def _whole_bytes(bits: int) -> int:
    """Bytes of a number in memory: 1, 2, 4 or 8."""
    return next(size for size in (1, 2, 4, 8) if 8 * size >= bits)


def _computes(node: Node) -> bool:
    """Whether a node computes new numbers on the core, so that they get a range."""
    traits = (Trait.LEAF, Trait.QUANTIZER, Trait.BIAS_QUANTIZER, Trait.MOVEMENT)
    floats = bool(node.outputs) and all(value.type.dtype.is_float for value in node.outputs)
    return floats and node.callee is None and node.op != "scale_product" and not node.definition.has(*traits)


def _real(value: Value) -> Value:
    """The value before its quantizer."""
    return value.producer.inputs[0] if is_quantizer(value.producer) else value


def _is_learned(node: Node) -> bool:
    """Whether a node reads a parameter of the model; scales and zero points of quantizers are none."""
    if node.definition.has(Trait.QUANTIZER, Trait.BIAS_QUANTIZER):
        return False
    return any(is_leaf(_real(value)) for value in node.inputs)


def _scale_per_channel(node: Node) -> bool:
    """Whether the weight of a layer has a scale per output channel."""
    quantizer = Layer(node).quantizer
    return quantizer is not None and quantizer.spec.axis is not None

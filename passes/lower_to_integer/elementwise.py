"""Lower sums and products of two values, and activations."""

from __future__ import annotations

import dataclasses

import torch

from qcompiler.errors import PassError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.table import Table
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.ops.quantizers import channel_bounds, channel_limits
from qcompiler.passes.lower_to_integer.lowering import Lower, Lowering, Output
from qcompiler.quant.arithmetic import ELEMENTWISE_FLOAT32, add_parameters, mul_parameters
from qcompiler.quant.requant import Requantization

lowers: Table[Lower] = Table()


@lowers("add")
def add(lowering: Lowering, node: Node, out: Output) -> Value:
    """A sum."""
    return _sum(lowering, node, out, subtract=False)


@lowers("sub")
def sub(lowering: Lowering, node: Node, out: Output) -> Value:
    """A difference."""
    return _sum(lowering, node, out, subtract=True)


def _sum(lowering: Lowering, node: Node, out: Output, *, subtract: bool) -> Value:
    a, b = (lowering.lowered[value] for value in node.inputs)
    if lowering.proofs(node).arithmetic.elementwise == ELEMENTWISE_FLOAT32:
        parts = ("left", "right", "out")
        unused = dict.fromkeys(f"{name}_{part}" for name in parts for part in ("multiplier", "exponent"))
        offsets = dict.fromkeys(("offset", "scalar_left_offset"))
        said: dict[str, Attribute] = {"mode": ELEMENTWISE_FLOAT32, "shift": 0, "subtract": subtract}
        return lowering.insert("int_add", [a, b], {**said, **unused, **offsets}, out, node)
    largest = max(abs(step) for value in (a, b) for step in lowering.steps(value))
    grids = lowering.params(a), lowering.params(b)
    proofs = lowering.proofs(node)
    constants = add_parameters(*grids, out.params, proofs.arithmetic, largest=largest, subtract=subtract)
    # Requantizations of both operands and of their sum, each with a factor of at most 1/2.
    proofs.bounded(largest << constants.shift, constants.left, constants.right, constants.out)
    attributes: dict[str, Attribute] = {"mode": str(constants.left.mode), "shift": constants.shift}
    attributes["subtract"] = subtract
    for name, item in (("left", constants.left), ("right", constants.right), ("out", constants.out)):
        attributes.update(_scalar_multiplier(name, item))
    for name, offset in (("offset", constants.offset), ("scalar_left_offset", constants.scalar_left_offset)):
        attributes[name] = None if offset is None else float(offset)
    return lowering.insert("int_add", [a, b], attributes, out, node)


@lowers("mul")
def mul(lowering: Lowering, node: Node, out: Output) -> Value:
    """A product."""
    a, b = (lowering.lowered[value] for value in node.inputs)
    proofs = lowering.proofs(node)
    if proofs.arithmetic.elementwise == ELEMENTWISE_FLOAT32:
        unused = {"product_multiplier": None, "product_exponent": None}
        return lowering.insert("int_mul", [a, b], {"mode": ELEMENTWISE_FLOAT32, **unused}, out, node)
    constants = mul_parameters(lowering.params(a), lowering.params(b), out.params, proofs.arithmetic)
    products = torch.outer(*(torch.tensor(lowering.steps(value)) for value in (a, b)))
    # A single product is not a sum: it may have 33 bits if requantization multiplies in 64 bits.
    proofs.requantization(products.min(), products.max(), constants.product)
    attributes = {"mode": str(constants.product.mode), **_scalar_multiplier("product", constants.product)}
    return lowering.insert("int_mul", [a, b], attributes, out, node)


@lowers(Trait.ACTIVATION)
def activation(lowering: Lowering, node: Node, out: Output) -> Value:
    """Refuse an activation that was not absorbed by a quantizer."""
    raise PassError(f"{node.op} is before a quantizer", where=node.where, fix="Run fuse-requantization.")


@lowers("clamp_channels")
def clamp_channels(lowering: Lowering, node: Node, out: Output) -> Value:
    """Set limits per channel: in the requantization of a layer, or as a separate instruction after other ops."""
    source, axis = node.inputs[0], node.integer("axis")
    low, high = channel_limits(*channel_bounds(node), out.params, out.spec, out.qmin, out.qmax)
    whole = dataclasses.replace(out, qmin=min(low), qmax=max(high))
    limited = dataclasses.replace(whole, channels=(low, high))
    layer = source.producer
    if layer is not None and is_weighted(layer) and axis == Layer(layer).output_axis:
        return lowering.computed(source, limited)
    return lowering.insert("int_clamp", [lowering.computed(source, whole)], {"axis": axis}, limited, node)


def _scalar_multiplier(name: str, item: Requantization | None) -> dict[str, Attribute]:
    if item is None:
        return {f"{name}_multiplier": None, f"{name}_exponent": None}
    multiplier, exponent = (None if part is None else part.item() for part in (item.multiplier, item.exponent))
    return {f"{name}_multiplier": multiplier, f"{name}_exponent": exponent}

"""The target: a checked descriptor with the queries of the passes."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from qcompiler.errors import TargetError
from qcompiler.quant.spec import QuantSpec
from qcompiler.targets.descriptor import Descriptor
from qcompiler.targets.facts import facts, summary
from qcompiler.targets.findings import describe, nearest
from qcompiler.targets.limits import Geometry, beyond
from qcompiler.targets.lines import Spot
from qcompiler.targets.overrides import overridden
from qcompiler.targets.schema import Layout, NumberType, Onnx, OpRule, Packing, Simulation, Tables, Tie, Verification

if TYPE_CHECKING:
    from qcompiler.quant.arithmetic import Arithmetic


@dataclass(frozen=True)
class Target:
    """A hardware target."""

    descriptor: Descriptor

    def __repr__(self) -> str:
        return "\n".join([f"Target: {self.name}", *(f"  {name}: {value}" for name, value in self.summary())])

    @property
    def name(self) -> str:
        """Name, including overrides."""
        return self.descriptor.target.name

    @property
    def layout(self) -> Layout:
        """Physical order of axes."""
        return self.descriptor.layout

    @property
    def verify(self) -> Verification:
        """Bounds for ONNX Runtime."""
        return self.descriptor.verify

    @property
    def fallback(self) -> str:
        """Treatment of ops that the integer core lacks: `refuse` or `float`."""
        return self.descriptor.partition.fallback

    @property
    def onnx(self) -> Onnx:
        """Variant of the exported ONNX file."""
        return self.descriptor.onnx

    @property
    def table(self) -> Tables:
        """Limits of lookup tables."""
        return self.descriptor.table

    @property
    def packing(self) -> Packing:
        """Storage of 4-bit weights."""
        for name in (self.descriptor.defaults.weight, *self.descriptor.defaults.other_weights):
            if self.descriptor.dtypes[name].packing != "none":
                return self.descriptor.dtypes[name].packing
        return "none"

    @property
    def arithmetic(self) -> Arithmetic:
        """Arithmetic of the target; `at` returns the arithmetic of one op."""
        # Integer arithmetic loads torch, which must not be needed to read and list targets.
        from qcompiler.targets.arithmetic import arithmetic_of

        return arithmetic_of(self.descriptor)

    @property
    def simulation(self) -> Simulation | None:
        """Simulation scheme of a target that does not describe hardware; None for hardware."""
        return self.descriptor.simulation

    @property
    def per_channel_clamp(self) -> bool:
        """Whether an activation may clamp each channel between its own limits."""
        return self.supports("clamp_channels")

    def per_channel_table(self, function: str) -> bool:
        """Whether each channel may have its own table for `function`."""
        rule = self.op_rule(function)
        possible = rule is not None and rule.kind == "table" and bool(rule.per_channel)
        return possible and self.descriptor.table.per_channel

    def op_rule(self, op: str) -> OpRule | None:
        """The rule for an op, None when there is none."""
        if op == "clamp_channels" and not self.descriptor.requantize.per_channel_clamp:
            return None
        return next((rule for rule in self.descriptor.op if _named(op) in rule.names), None)

    def supports(self, op: str) -> bool:
        """Whether the integer core computes `op`."""
        rule = self.op_rule(op)
        return rule is not None and rule.kind != "float"

    def beyond(self, op: str, geometry: Geometry) -> str:
        """Description of the first size of an op beyond the core's limits; empty if every size is within."""
        rule = self.op_rule(op)
        return "" if rule is None or rule.limits is None else beyond(rule.limits, geometry)

    def absorbs(self, op: str, follower: str) -> bool:
        """Whether `follower` belongs to the same supergroup directly after `op`."""
        for group in self.descriptor.supergroup:
            for step, following in zip(group.steps, group.steps[1:], strict=False):
                if _named(op) in step and _named(follower) in following:
                    return True
        return False

    def tie(self, op: str) -> Tie | None:
        """The tie between the tensors of `op`."""
        return next((tie for tie in self.descriptor.tie if op in tie.ops), None)

    @property
    def per_channel(self) -> bool:
        """Whether weights have a scale per output channel."""
        return self.descriptor.dtypes[self.descriptor.defaults.weight].granularity != "per_tensor"

    @property
    def weight_bits(self) -> int:
        """Width of weights by default."""
        return self.descriptor.dtypes[self.descriptor.defaults.weight].bits

    @property
    def activation_bits(self) -> int:
        """Width of activations by default."""
        return self.activation_spec().bits

    def activation_spec(self, op: str | None = None, bits: int | None = None) -> QuantSpec:
        """The grid of activations.

        Raises:
            TargetError: The target has no activations of `bits` bits.
        """
        number = self._number("activation", bits)
        return self._spec(number, bits, None)

    def weight_spec(self, op: str, axis: int, bits: int | None = None) -> QuantSpec:
        """The grid of the weight of `op`, with output channels along `axis`.

        Raises:
            TargetError: The target has no weights of `bits` bits.
        """
        number = self._number("weight", bits)
        rule = self.op_rule(op)
        per_channel = number.granularity != "per_tensor"
        if rule is not None and rule.per_channel is not None:
            per_channel = rule.per_channel
        spec = self._spec(number, bits, axis if per_channel else None)
        if number.granularity != "per_block" or not per_channel:
            return spec
        return dataclasses.replace(spec, block=number.block, factor_bits=number.factor_bits)

    def gradient_spec(self, bits: int | None = None) -> QuantSpec:
        """The grid of gradients in quantized training.

        Raises:
            TargetError: The target has no gradients of `bits` bits.
        """
        gradient = self.descriptor.gradient
        widths = sorted({gradient.bits, *gradient.allowed_bits})
        if bits is not None and bits not in widths:
            raise TargetError(
                f"{self.name} has no gradients of {bits} bits",
                where="gradient.allowed_bits",
                expected="one of " + ", ".join(map(str, widths)) + " bits",
            )
        return QuantSpec(bits=bits or gradient.bits, symmetric=gradient.symmetric, narrow=gradient.symmetric)

    def multiplies_channels(self, op: str) -> bool:
        """Whether each channel of a result of `op` may have its own requantization multiplier."""
        rule = self.op_rule(op)
        return self.descriptor.requantize.per_channel and (rule is None or rule.per_channel is not False)

    def unmultiplied(self, op: str, activation_bits: int, weight_bits: int) -> str:
        """Why `op` does not multiply activations and weights of these widths; empty if it does."""
        rule = self.op_rule(op)
        if rule is None or not rule.combinations:
            return ""
        dtypes = self.descriptor.dtypes
        pairs = [(pair.activation, pair.weight) for pair in rule.combinations]
        if any(activation_bits in dtypes[a].widths and weight_bits in dtypes[w].widths for a, w in pairs):
            return ""
        known = ", ".join(f"{a} x {w}" for a, w in pairs)
        kind = "activations" if rule.kind == "product" else "weights"
        return (
            f"{op} of {activation_bits}-bit activations and {weight_bits}-bit {kind}, but {self.name} supports {known}"
        )

    def second_width(self, op: str, first_bits: int, second_bits: int) -> int | None:
        """Width in bits that the second operand of a product of two activations must have.

        Args:
            op: The product.
            first_bits: Width of the first operand.
            second_bits: Width of the second operand, which is kept if the core multiplies the pair.

        Returns:
            None if the core multiplies the first operand with no width.
        """
        rule = self.op_rule(op)
        if rule is None or not self.unmultiplied(op, first_bits, second_bits):
            return second_bits
        dtypes = self.descriptor.dtypes
        pairs = [pair for pair in rule.combinations if first_bits in dtypes[pair.activation].widths]
        return dtypes[pairs[0].weight].bits if pairs else None

    def _number(self, role: str, bits: int | None) -> NumberType:
        """The number type for activations, or weights, of a width."""
        defaults, dtypes = self.descriptor.defaults, self.descriptor.dtypes
        activation = role == "activation"
        name = defaults.activation if activation else defaults.weight
        others = defaults.other_activations if activation else defaults.other_weights
        if bits is None:
            return dtypes[name]
        for candidate in (name, *others):
            if bits in dtypes[candidate].widths:
                return dtypes[candidate]
        widths = sorted(width for candidate in (name, *others) for width in dtypes[candidate].widths)
        raise TargetError(
            f"{self.name} has no {role}s of {bits} bits",
            where=f"dtypes.{name}",
            expected="one of " + ", ".join(map(str, widths)) + " bits",
        )

    def _spec(self, number: NumberType, bits: int | None, axis: int | None) -> QuantSpec:
        return QuantSpec(
            bits=bits or number.bits,
            signed=number.signed,
            symmetric=number.symmetric,
            narrow=number.narrow,
            axis=axis,
            scale_kind=number.scale,
            rounding=self.descriptor.rounding.quantize,
        )

    def check_ops(self, kinds: Mapping[str, str], known: Collection[str]) -> None:
        """Refuse rules for unknown operators and rules of the wrong kind.

        Args:
            kinds: Kind of each operator that integer cores may have.
            known: All operators.

        Raises:
            TargetError: The first such rule.
        """
        for rule in self.descriptor.op:
            for op in rule.names:
                if rule.kind == "float":
                    continue  # float rules may name functions without an operator
                if op not in known or op not in kinds:
                    found = f"{self.name} has a rule for {op!r}, which is not a known operator"
                    if op in known:
                        found = f"{self.name} has a rule for {op}, which has no integer form"
                    raise TargetError(found, where="key op.names", fix=nearest(op, kinds) or "Remove it.")
                if rule.kind != kinds[op]:
                    raise TargetError(
                        f"the kind of {op} is {rule.kind!r} in {self.name}", where="key op.kind", expected=kinds[op]
                    )

    def override(self, **changes: object) -> Target:
        """A target that differs in some fields.

        Args:
            changes: Any of weight_bits, activation_bits, gradient_bits, symmetric_gradients, per_channel, block (inputs
                of a weight that share a factor),
                symmetric_activations, signed_activations, power_of_two (scales of weights and activations),
                requantize, per_channel_clamp, per_channel_tables (of functions without a fixed grid), layout, fallback.

        Returns:
            A target whose name lists the changes, such as `int8_dsp[weight_bits=4]`. Fixed grids of results keep their
            real numbers if codes become signed or unsigned. Fixed grids that are impossible for the new activations are
            dropped, and calibration finds them.

        Raises:
            TargetError: An unknown keyword, or a value that the target cannot have.
        """
        data = overridden(self.descriptor, changes)
        text = ", ".join(f"{key}={value}" for key, value in changes.items())
        data["target"]["name"] = (
            f"{self.name.removesuffix(']')}, {text}]" if "[" in self.name else f"{self.name}[{text}]"
        )
        return Target.of(data, f"{self.name}.override")

    @property
    def typed(self) -> str:
        """Python text that gives the target: `"int8_dsp"`, or `load_target("int8_dsp").override(weight_bits=4)`."""
        name, changes = changes_in(self.name)
        if not changes:
            return f'"{name}"'
        return f'load_target("{name}").override({", ".join(f"{key}={_literal(value)}" for key, value in changes)})'

    def summary(self) -> list[tuple[str, str]]:
        """Names and values of the arithmetic, as readable text."""
        return summary(self.descriptor)

    def facts(self) -> list[tuple[str, str]]:
        """Names and values that change no integer: memories, speed, sources, and unknowns."""
        return facts(self.descriptor)

    def to_json(self) -> str:
        """The whole descriptor, canonical: sorted keys, no blanks."""
        data = self.descriptor.model_dump(mode="json", by_alias=True)
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Target:
        """Read what `to_json` wrote.

        Raises:
            TargetError: The text is not a descriptor of `to_json`.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TargetError(f"the descriptor is not JSON: {error}") from error
        return cls.of(data, "JSON")

    @classmethod
    def of(cls, data: object, where: str, spot: Spot | None = None) -> Target:
        """Check plain data against the schema.

        Args:
            data: Data as read from TOML or JSON.
            where: Name of the source, for messages.
            spot: Positions of the keys.

        Raises:
            TargetError: The first error, with its key and the nearest known key.
        """
        try:
            return cls(Descriptor.model_validate(data))
        except ValidationError as error:
            raise describe(error, where, spot) from None

    def digest(self) -> str:
        """sha256 of `to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _named(op: str) -> str:
    """The op that supplies the rules and supergroups of `op`."""
    return "clamp" if op == "clamp_channels" else op


def changes_in(name: str) -> tuple[str, list[tuple[str, object]]]:
    """The name of a descriptor and the changes of `override` that a target's name lists.

    Examples:
        >>> changes_in("int8_dsp[weight_bits=4, layout=NCHW]")
        ('int8_dsp', [('weight_bits', 4), ('layout', 'NCHW')])
    """
    base, _, text = name.removesuffix("]").partition("[")
    pairs = (change.partition("=") for change in text.split(", ") if change)
    return base, [(key, _value(value)) for key, _, value in pairs]


def _value(text: str) -> object:
    """A number, True or None as it is; other text as text."""
    try:
        found: object = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return found


def _literal(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)

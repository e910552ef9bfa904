"""The target as the compiler sees it: a checked descriptor and the questions that passes ask of it."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from qcompiler.errors import TargetError
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.quant.requant import RequantMode
from qcompiler.quant.spec import QuantSpec
from qcompiler.targets.schema import (
    BLOCKS,
    Descriptor,
    FixedGrid,
    Layout,
    NumberType,
    Onnx,
    OpRule,
    Simulation,
    Tie,
    Verification,
)


@dataclass(frozen=True)
class Target:
    """A hardware target."""

    descriptor: Descriptor

    @property
    def name(self) -> str:
        """Its name, with the overrides that made it."""
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
        """What becomes of what the integer core does not have: `refuse` or `float`."""
        return self.descriptor.partition.fallback

    @property
    def onnx(self) -> Onnx:
        """Flavour of the exported file."""
        return self.descriptor.onnx

    @property
    def arithmetic(self) -> Arithmetic:
        """How it computes."""
        d = self.descriptor
        return Arithmetic(
            requant=d.requantize.mode,
            bias_rounding=d.rounding.bias,
            table_rounding=d.rounding.table,
            average_rounding=d.rounding.average,
            accumulator_bits=d.accumulator.bits,
            overflow=d.accumulator.overflow,
        )

    @property
    def simulation(self) -> Simulation | None:
        """The scheme of a target that is no hardware; None for hardware."""
        return self.descriptor.simulation

    @property
    def per_channel_clamp(self) -> bool:
        """Whether an activation may clamp each channel between limits of its own."""
        return self.supports("clamp_channels")

    def per_channel_table(self, function: str) -> bool:
        """Whether each channel may have a table of its own for `function`."""
        rule = self.op_rule(function)
        return rule is not None and rule.kind == "table" and bool(rule.per_channel)

    def op_rule(self, op: str) -> OpRule | None:
        """The rule for an op, None when the integer core does not have it."""
        if op == "clamp_channels" and not self.descriptor.requantize.per_channel_clamp:
            return None
        return next((rule for rule in self.descriptor.op if _named(op) in rule.names), None)

    def supports(self, op: str) -> bool:
        """Whether the integer core computes `op`."""
        return self.op_rule(op) is not None

    def absorbs(self, op: str, follower: str) -> bool:
        """Whether `follower` belongs to the same supergroup right behind `op`."""
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
        return self.descriptor.dtypes[self.descriptor.defaults.weight].granularity == "per_channel"

    @property
    def activation_bits(self) -> int:
        """Width of activations where nothing says otherwise."""
        return self.activation_spec().bits

    def activation_spec(self, op: str | None = None, bits: int | None = None) -> QuantSpec:
        """The grid of activations.

        Raises:
            TargetError: The target has no activations of `bits` bits.
        """
        return self._spec(self.descriptor.defaults.activation, bits, None)

    def weight_spec(self, op: str, axis: int, bits: int | None = None) -> QuantSpec:
        """The grid of the weight of `op`, whose output channels are along `axis`.

        Raises:
            TargetError: The target has no weights of `bits` bits.
        """
        number = self.descriptor.dtypes[self.descriptor.defaults.weight]
        rule = self.op_rule(op)
        per_channel = number.granularity == "per_channel"
        if rule is not None and rule.per_channel is not None:
            per_channel = rule.per_channel
        return self._spec(self.descriptor.defaults.weight, bits, axis if per_channel else None)

    def _spec(self, name: str, bits: int | None, axis: int | None) -> QuantSpec:
        number = self.descriptor.dtypes[name]
        if bits is not None:
            _check_bits(number, bits, f"dtypes.{name} of {self.name}")
        return QuantSpec(
            bits=bits or number.bits,
            signed=number.signed,
            symmetric=number.symmetric,
            narrow=number.narrow,
            axis=axis,
            scale_kind=number.scale,
            rounding=self.descriptor.rounding.quantize,
        )

    def override(self, **changes: object) -> Target:
        """A target that differs in some fields.

        Args:
            changes: Any of weight_bits, activation_bits, per_channel, symmetric_activations, signed_activations,
                power_of_two (scales of weights and activations), requantize, per_channel_clamp, per_channel_tables
                (of functions without a fixed grid), layout, fallback.

        Returns:
            A target whose name lists the changes, such as `int8_dsp[weight_bits=4]`. A grid that the target fixes for
            a result keeps its real numbers where codes become signed or unsigned; where it is no grid of the new kind,
            it is found by calibration.

        Raises:
            TargetError: An unknown keyword, or a value that the target cannot have.
        """
        data: dict[str, Any] = self.descriptor.model_dump(mode="json", by_alias=True)
        weight = data["dtypes"][data["defaults"]["weight"]]
        activation = data["dtypes"][data["defaults"]["activation"]]
        for key, value in changes.items():
            match key, value:
                case (("weight_bits" | "activation_bits"), int()) if not isinstance(value, bool):
                    name = getattr(self.descriptor.defaults, key.removesuffix("_bits"))
                    _check_bits(self.descriptor.dtypes[name], value, f"dtypes.{name} of {self.name}")
                    (weight if key == "weight_bits" else activation)["bits"] = value
                case "per_channel", bool():
                    weight["granularity"] = "per_channel" if value else "per_tensor"
                case "symmetric_activations", bool():
                    activation["symmetric"] = value
                case "signed_activations", bool():
                    _move_fixed_grids(data, int(activation["signed"]) - int(value))
                    activation["signed"] = value
                    activation["narrow"] = activation["narrow"] and value
                case "power_of_two", bool():
                    weight["scale"] = activation["scale"] = "pow2" if value else "float"
                case "requantize", str():
                    if value not in set(RequantMode):
                        raise TargetError(
                            f"the requantization mode is {value!r}", expected="one of " + ", ".join(RequantMode)
                        )
                    data["requantize"]["mode"] = value
                case "per_channel_clamp", bool():
                    data["requantize"]["per_channel_clamp"] = value
                case "per_channel_tables", bool():
                    for rule in data["op"]:
                        if rule["kind"] == "table" and rule["out_fixed"] is None:
                            rule["per_channel"] = value
                case "fallback", "refuse" | "float":
                    data["partition"]["fallback"] = value
                case "layout", "NHWC" | "NCHW":
                    data["layout"]["activations"] = value
                case _:
                    raise _bad_override(key, value)
        _drop_fixed_grids(data, activation)
        text = ", ".join(f"{key}={value}" for key, value in changes.items())
        data["target"]["name"] = (
            f"{self.name.removesuffix(']')}, {text}]" if "[" in self.name else f"{self.name}[{text}]"
        )
        return Target.of(data, f"{self.name}.override")

    def to_json(self) -> str:
        """The whole descriptor, canonical: sorted keys, no blanks."""
        data = self.descriptor.model_dump(mode="json", by_alias=True)
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Target:
        """Read what `to_json` wrote.

        Raises:
            TargetError: It is something else.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise TargetError(f"the descriptor is no JSON: {error}") from error
        return cls.of(data, "JSON")

    @classmethod
    def of(cls, data: object, where: str) -> Target:
        """Check plain data against the schema.

        Raises:
            TargetError: The first thing that is wrong, with its key and the nearest known one.
        """
        try:
            return cls(Descriptor.model_validate(data))
        except ValidationError as error:
            raise describe(error, where) from None

    def digest(self) -> str:
        """sha256 of `to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _named(op: str) -> str:
    """The op whose rules and supergroups are those of `op`."""
    return "clamp" if op == "clamp_channels" else op


_OVERRIDES = {
    "weight_bits": "a number of bits",
    "activation_bits": "a number of bits",
    "per_channel": "True or False",
    "symmetric_activations": "True or False",
    "signed_activations": "True or False",
    "power_of_two": "True or False",
    "requantize": "one of " + ", ".join(RequantMode),
    "per_channel_clamp": "True or False",
    "per_channel_tables": "True or False",
    "layout": "NHWC or NCHW",
    "fallback": "refuse or float",
}


def _move_fixed_grids(data: dict[str, Any], direction: int) -> None:
    """Shift the codes of fixed grids by half of their number: 1 as they become unsigned, -1 as they become signed."""
    for rule in data["op"]:
        if rule["out_fixed"] is not None:
            rule["out_fixed"]["zero_point"] += direction * 2 ** (rule["out_fixed"]["bits"] - 1)


def _drop_fixed_grids(data: dict[str, Any], activation: dict[str, Any]) -> None:
    """Leave to calibration what is no grid of the activations any more."""
    number = NumberType.model_validate(activation)
    for rule in data["op"]:
        if rule["out_fixed"] is not None and FixedGrid.model_validate(rule["out_fixed"]).misfit(number):
            rule["out_fixed"] = None


def _bad_override(key: str, value: object) -> TargetError:
    if key in _OVERRIDES:
        return TargetError(f"{key} is {value!r}", where="Target.override", expected=_OVERRIDES[key])
    if key == "block":
        return TargetError(BLOCKS, where="Target.override")
    near = difflib.get_close_matches(key, _OVERRIDES, n=1)
    return TargetError(
        f"there is no override {key!r}",
        expected="one of " + ", ".join(_OVERRIDES),
        fix=f"Did you mean {near[0]}?" if near else None,
    )


def _check_bits(number: NumberType, bits: int, where: str) -> None:
    allowed = sorted({number.bits, *number.allowed_bits})
    if bits not in allowed:
        raise TargetError(
            f"{bits} bits are asked for", where=where, expected="one of " + ", ".join(map(str, allowed)) + " bits"
        )


def describe(error: ValidationError, where: str) -> TargetError:
    """The first finding of pydantic as a sentence."""
    finding = error.errors()[0]
    key = ".".join(str(part) for part in finding["loc"])
    if finding["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(finding["loc"][-1]), _known_keys(), n=1)
        return TargetError(
            f"there is no key {key!r}", where=where, fix=f"Did you mean {near[0]!r}?" if near else "Remove it."
        )
    place = f"{where}, key {key}" if key else where
    return TargetError(finding["msg"].removeprefix("Value error, "), where=place)


def _known_keys() -> list[str]:
    schema = Descriptor.model_json_schema(by_alias=True)
    keys = set(schema["properties"])
    for definition in schema["$defs"].values():
        keys.update(definition.get("properties", {}))
    return sorted(keys)

"""`Target.override`: a descriptor with some fields changed by keyword."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from qcompiler.errors import TargetError
from qcompiler.quant.modes import RequantMode
from qcompiler.targets.consistency import fixed_grid_misfit
from qcompiler.targets.descriptor import Descriptor
from qcompiler.targets.schema import FixedGrid, NumberType

__all__ = ["overridden"]

_OVERRIDES = {
    "weight_bits": "a number of bits",
    "activation_bits": "a number of bits",
    "gradient_bits": "a number of bits",
    "symmetric_gradients": "True or False",
    "per_channel": "True or False",
    "symmetric_activations": "True or False",
    "signed_activations": "True or False",
    "power_of_two": "True or False",
    "block": "a number of inputs, or None",
    "requantize": "one of " + ", ".join(RequantMode),
    "per_channel_clamp": "True or False",
    "per_channel_tables": "True or False",
    "layout": "NHWC or NCHW",
    "fallback": "refuse or float",
}


def overridden(descriptor: Descriptor, changes: Mapping[str, object]) -> dict[str, Any]:
    """The content of `descriptor` with changes.

    Args:
        descriptor: Descriptor to change.
        changes: See `Target.override`.

    Raises:
        TargetError: An unknown keyword, or a value that the target cannot have.
    """
    data: dict[str, Any] = descriptor.model_dump(mode="json", by_alias=True)
    for key, value in changes.items():
        match key, value:
            case (("weight_bits" | "activation_bits"), int()) if not isinstance(value, bool):
                _set_bits(data, key.removesuffix("_bits"), value)
            case "gradient_bits", int() if not isinstance(value, bool):
                _set_gradient_bits(data, value)
            case "symmetric_gradients", bool():
                data["gradient"]["symmetric"] = value
            case (("per_channel" | "symmetric_activations" | "signed_activations" | "power_of_two"), bool()):
                _set_grids(data, key, value)
            case "block", int() | None if not isinstance(value, bool):
                _set_blocks(data, value)
            case "requantize", str():
                _set_mode(data, value)
            case "per_channel_clamp", bool():
                data["requantize"]["per_channel_clamp"] = value
            case "per_channel_tables", bool():
                _set_tables(data, value)
            case "fallback", "refuse" | "float":
                data["partition"]["fallback"] = value
            case "layout", "NHWC" | "NCHW":
                data["layout"]["activations"] = value
            case _:
                raise _bad_override(key, value)
    _drop_fixed_grids(data)
    return data


def _set_bits(data: dict[str, Any], role: str, bits: int) -> None:
    """Set the width of the default number type, or make another number type the default."""
    defaults, dtypes = data["defaults"], data["dtypes"]
    others = f"other_{'activations' if role == 'activation' else 'weights'}"
    names = [defaults[role], *defaults[others]]
    name = next((name for name in names if bits in (dtypes[name]["bits"], *dtypes[name]["allowed_bits"])), None)
    if name is None:
        widths = sorted({width for n in names for width in (dtypes[n]["bits"], *dtypes[n]["allowed_bits"])})
        raise TargetError(
            f"{data['target']['name']} has no {role}s of {bits} bits",
            where=f"dtypes.{names[0]}",
            expected="one of " + ", ".join(map(str, widths)) + " bits",
        )
    defaults[role], defaults[others] = name, [other for other in names if other != name]
    number = dtypes[name]
    number["allowed_bits"] = sorted({number["bits"], *number["allowed_bits"]})
    number["bits"] = bits
    if bits != 4:
        number["packing"] = "none"


def _set_gradient_bits(data: dict[str, Any], bits: int) -> None:
    gradient = data["gradient"]
    widths = sorted({gradient["bits"], *gradient["allowed_bits"]})
    if bits not in widths:
        raise TargetError(
            f"{data['target']['name']} has no gradients of {bits} bits",
            where="gradient.allowed_bits",
            expected="one of " + ", ".join(map(str, widths)) + " bits",
        )
    gradient |= {"bits": bits, "allowed_bits": widths}


def _set_grids(data: dict[str, Any], key: str, value: bool) -> None:
    """Change the grids of all number types of activations, of weights, or of both."""
    defaults, dtypes = data["defaults"], data["dtypes"]
    activations = [dtypes[name] for name in (defaults["activation"], *defaults["other_activations"])]
    weights = [dtypes[name] for name in (defaults["weight"], *defaults["other_weights"])]
    if key == "per_channel":
        for weight in weights:
            weight |= {"granularity": "per_channel" if value else "per_tensor", "block": None}
    elif key == "symmetric_activations":
        for activation in activations:
            activation["symmetric"] = value
    elif key == "power_of_two":
        for number in (*activations, *weights):
            number["scale"] = "pow2" if value else "float"
    else:
        _move_fixed_grids(data, int(activations[0]["signed"]) - int(value))
        for activation in activations:
            activation["signed"] = value
            activation["narrow"] = activation["narrow"] and value


def _set_blocks(data: dict[str, Any], block: int | None) -> None:
    """Give weights a factor per `block` inputs; None means one scale per channel."""
    defaults = data["defaults"]
    for name in (defaults["weight"], *defaults["other_weights"]):
        data["dtypes"][name] |= {"granularity": "per_channel" if block is None else "per_block", "block": block}


def _set_tables(data: dict[str, Any], value: bool) -> None:
    for rule in data["op"]:
        if rule["kind"] == "table" and rule["out_fixed"] is None:
            rule["per_channel"] = value


def _set_mode(data: dict[str, Any], mode: str) -> None:
    """Set one mode, with its widest multipliers, for all ops."""
    if mode not in set(RequantMode):
        raise TargetError(f"there is no requantization mode {mode!r}", expected="one of " + ", ".join(RequantMode))
    kept = {key: data["requantize"][key] for key in ("per_channel", "per_channel_clamp")}
    data["requantize"] = {"mode": mode, **kept}
    for rule in data["op"]:
        rule["requantize"] = None
        for pair in rule["combinations"]:
            pair["requantize"] = None


def _move_fixed_grids(data: dict[str, Any], direction: int) -> None:
    """Shift the codes of fixed grids by half of their number: 1 as they become unsigned, -1 as they become signed."""
    for rule in data["op"]:
        if rule["out_fixed"] is not None:
            rule["out_fixed"]["zero_point"] += direction * 2 ** (rule["out_fixed"]["bits"] - 1)


def _drop_fixed_grids(data: dict[str, Any]) -> None:
    """Drop fixed grids that the activations no longer allow; calibration finds them."""
    names = (data["defaults"]["activation"], *data["defaults"]["other_activations"])
    numbers = [NumberType.model_validate(data["dtypes"][name]) for name in names]
    for rule in data["op"]:
        if rule["out_fixed"] is None:
            continue
        grid = FixedGrid.model_validate(rule["out_fixed"])
        number = next((number for number in numbers if grid.bits in number.widths), numbers[0])
        if fixed_grid_misfit(grid, number):
            rule["out_fixed"] = None
    data["op"] = [rule for rule in data["op"] if rule["kind"] != "float" or rule["out_fixed"] is not None]


def _bad_override(key: str, value: object) -> TargetError:
    if key in _OVERRIDES:
        return TargetError(f"{key} is {value!r}", where="Target.override", expected=_OVERRIDES[key])
    near = difflib.get_close_matches(key, _OVERRIDES, n=1)
    return TargetError(
        f"there is no override {key!r}",
        expected="one of " + ", ".join(_OVERRIDES),
        fix=f"Did you mean {near[0]}?" if near else None,
    )

"""Facts about a target that change no integer, for the report, the command line and estimates."""

from __future__ import annotations

from collections.abc import Iterator

from qcompiler.quant.modes import RequantMode
from qcompiler.quant.spec import ScaleKind
from qcompiler.targets.descriptor import Descriptor
from qcompiler.targets.schema import Memory, Multiplier, NumberType

__all__ = ["facts", "summary"]


def summary(descriptor: Descriptor) -> list[tuple[str, str]]:
    """Names and values of the arithmetic of a target.

    Args:
        descriptor: Descriptor of the target.
    """
    d = descriptor
    names = {"activations": (d.defaults.activation, *d.defaults.other_activations)}
    names["weights"] = (d.defaults.weight, *d.defaults.other_weights)
    rows = [(role, "; ".join(grid_text(d.dtypes[name]) for name in group)) for role, group in names.items()]
    rows.append(("requantization", multiplier_text(d.requantize)))
    special: dict[str, list[str]] = {}
    for rule in d.op:
        if rule.requantize is not None:
            special.setdefault(multiplier_text(rule.requantize), []).extend(rule.names)
        for pair in rule.combinations:
            if pair.requantize is not None:
                special.setdefault(f"{multiplier_text(pair.requantize)} for {pair.activation}", []).extend(rule.names)
    rows += [(f"requantization of {', '.join(dict.fromkeys(ops))}", text) for text, ops in special.items()]
    rows.append(("accumulator", f"{d.accumulator.bits} bits, overflow: {d.accumulator.overflow}"))
    rows.append(("bias", f"{d.bias.bits} bits"))
    return rows


def grid_text(number: NumberType) -> str:
    """A number type in words: `s8, asymmetric, one scale per channel`."""
    parts = [f"{'s' if number.signed else 'u'}{number.bits}", "symmetric" if number.symmetric else "asymmetric"]
    parts += ["narrow"] * number.narrow
    parts += ["one scale per channel"] * (number.granularity == "per_channel")
    if number.block is not None:
        parts.append(f"one scale per channel and a {number.factor_bits}-bit factor per {number.block} inputs")
    parts += ["power-of-two scales"] * (number.scale is ScaleKind.POW2)
    parts += ["two per byte"] * (number.packing != "none")
    return ", ".join(parts)


def multiplier_text(item: Multiplier) -> str:
    """A requantization in words: `single, 16-bit multipliers, right shift at most 31`."""
    parts = [str(item.mode)]
    if item.multiplier_bits is not None:
        parts.append(f"{item.multiplier_bits}-bit multipliers")
    if item.max_left_shift is not None:
        parts.append(f"left shift at most {item.max_left_shift}" if item.max_left_shift else "no left shift")
    if item.max_right_shift is not None:
        parts.append(f"right shift at most {item.max_right_shift}")
    if item.multiplier_precision == "float32" and item.mode is not RequantMode.FLOAT32_RNE:
        parts.append("computed in float32")
    return ", ".join(parts)


def facts(descriptor: Descriptor) -> list[tuple[str, str]]:
    """Names and values as readable text, without entries that the descriptor omits.

    Args:
        descriptor: Descriptor of the target.
    """
    return [(name, value) for name, value in _facts(descriptor) if value]


def _facts(d: Descriptor) -> Iterator[tuple[str, str]]:
    yield "vendor", d.target.vendor
    yield "version", d.target.version
    if d.layout.alignment > 1:
        yield "alignment", f"{d.layout.alignment} bytes"
    if d.layout.channel_multiple > 1:
        yield "channels at a time", str(d.layout.channel_multiple)
    for memory in d.memory:
        yield f"memory {memory.name}", _memory(memory)
    compute = d.compute
    if compute.clock_hz is not None:
        yield "clock", f"{compute.clock_hz / 1e6:g} MHz"
    # Sorted by width, because sorting keys in a file loses the original order.
    for widths, count in sorted(compute.macs_per_cycle.items(), key=lambda item: tuple(map(int, item[0].split("x")))):
        yield f"multiply-accumulates per cycle, {widths} bits", str(count)
    if compute.elementwise_per_cycle is not None:
        yield "other elements per cycle", str(compute.elementwise_per_cycle)
    if compute.picojoules_per_mac is not None:
        yield "energy of a multiply-accumulate", f"{compute.picojoules_per_mac:g} pJ"
    for source in d.target.sources:
        yield "source", source
    for item in d.target.unknown:
        yield "unknown", item


def _memory(memory: Memory) -> str:
    parts = [f"{memory.bytes} bytes for {' and '.join(memory.holds)}"]
    if memory.bytes_per_cycle is not None:
        parts.append(f"{memory.bytes_per_cycle:g} bytes per cycle")
    if memory.latency_cycles is not None:
        parts.append(f"{memory.latency_cycles} cycles of latency")
    if memory.burst_bytes is not None:
        parts.append(f"bursts of {memory.burst_bytes} bytes")
    if memory.picojoules_per_byte is not None:
        parts.append(f"{memory.picojoules_per_byte:g} pJ per byte")
    return ", ".join(parts)

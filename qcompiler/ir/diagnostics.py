"""Diagnostics: facts for the user, as records whose sentences are made when they are printed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SUMMARY", "Diagnostic", "decibels", "note"]

SHOWN = 4
"""Names that a sentence lists."""

SUMMARY = ("forms", "outputs", "losses")
"""Codes of the three diagnostics that every compile has; the others occur only with a cause."""


@dataclass(frozen=True)
class Diagnostic:
    """One fact about a compile.

    Args:
        code: Kind of fact, such as `clipped-input`.
        data: Facts by name, as plain data for JSON. `fix` is the remedy, as text that can be typed.
        where: Place in the model: name, module path and source line; empty if the fact concerns the whole model.
    """

    code: str
    data: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    def __str__(self) -> str:
        make = _SENTENCES.get(self.code)
        if make is None:  # from an artifact of a later release
            return f"{self.code}: {', '.join(f'{key} {value}' for key, value in self.data.items())}."
        return make(self.data, self.where)

    def plain(self) -> dict[str, Any]:
        """The record as plain data for JSON."""
        return {"code": self.code, "data": dict(self.data), "where": self.where}


def note(text: str) -> Diagnostic:
    """A diagnostic that already is a sentence, as artifacts of the first schema hold."""
    return Diagnostic("note", {"text": text})


def decibels(ratio: float) -> float | None:
    """A ratio in dB for the data of a diagnostic: two digits, None for an exact tensor, -99 dB at least."""
    return None if ratio == math.inf or math.isnan(ratio) else float(f"{max(ratio, -99.0):.2f}")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _ratio(ratio: float | None) -> str:
    return "exact" if ratio is None else f"{ratio:.1f} dB"


def _at(where: str) -> str:
    return f", computed at {where}," if where else ""


def _forms(data: Mapping[str, Any], where: str) -> str:
    del where
    target = data["target"]
    if not data["samples"]:
        return f"{target}: not verified."
    compared = f"the {data['reference']} on {data['samples']} samples"
    absent = [f"{name} ({reason})" for name, reason in sorted(data["not_run"].items())]
    rest = f" Not run: {_listed(absent)}." if absent else ""
    if data["differing"]:
        return f"{target}: {_listed(data['differing'])} differ from {compared}.{rest}"
    return f"{target}: {data['agreeing']} comparisons of forms agree with {compared}.{rest}"


def _outputs(data: Mapping[str, Any], where: str) -> str:
    del where
    if not data["db"]:
        return "Signal to noise of the outputs: no float model to compare with."
    # The order may not depend on that of the entries, which a file does not keep.
    lowest = sorted(data["db"].items(), key=lambda item: (math.inf if item[1] is None else item[1], item[0]))
    shown = _listed([f"{name} {_ratio(ratio)}" for name, ratio in lowest])
    return f"Signal to noise of the outputs against the float model: {shown}."


def _losses(data: Mapping[str, Any], where: str) -> str:
    del where
    if not data["losses"]:
        return "No tensor loses anything by itself."
    shown = _listed([f"{item['tensor']} {_ratio(item['db'])}" for item in data["losses"]])
    return f"Tensors that lose most by themselves (outputs if only this tensor is quantized): {shown}."


def _constant_output(data: Mapping[str, Any], where: str) -> str:
    found = f"{data['output'].capitalize()}{_at(where)} is constant: {data['value']:.6g} for all samples"
    if data["in_float"]:
        return f"{found}, in the float model, too. {data['fix']}"
    return f"{found}, while the float model gives {data['low']:.6g} to {data['high']:.6g}. {data['fix']}"


def _constant_channels(data: Mapping[str, Any], where: str) -> str:
    count = len(data["places"])
    index, verb = ("index", "is") if count == 1 else ("indices", "are")
    what = f"{index} {_runs(data['places'])} of {data['size']} along axis {data['axis']}"
    return (
        f"{data['output'].capitalize()}{_at(where).rstrip(',')}: {what} {verb} constant for all samples, "
        f"while the float model gives {data['low']:.6g} to {data['high']:.6g}. {data['fix']}"
    )


def _runs(places: Sequence[int]) -> str:
    """Numbers as ranges: 2, 4 to 7."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    return _listed([str(first) if first == last else f"{first} to {last}" for first, last in runs])


def _poor_output(data: Mapping[str, Any], where: str) -> str:
    found = f"{data['output'].capitalize()}{_at(where)} has {_ratio(data['db'])} against the float model"
    return f"{found}, below {data['least']:g} dB. {data['fix']}"


def _weak_part(data: Mapping[str, Any], where: str) -> str:
    others = data["others"]
    also = f" (and of {_listed(others)} less than 10 dB)" if others else ""
    return (
        f"{where or data['concat']} leaves {_ratio(data['db'])} of its part {data['part']}{also}: its grid goes from "
        f"{data['low']:.6g} to {data['high']:.6g}; a grid of its own gives it {_ratio(data['own_db'])}. {data['fix']}"
    )


def _refused_override(data: Mapping[str, Any], where: str) -> str:
    override = f"overrides={{{data['pattern']!r}: {data['override']}}}"
    return f"{override} has no effect on {where or data['node']}: {data['reason']}. {data['fix']}"


def _untrained(data: Mapping[str, Any], where: str) -> str:
    del where
    found = "Batch norms that never saw data, with means of 0 and variances of 1"
    return f"{found}: {_listed(data['nodes'])}. {data['fix']}"


def _clipped_input(data: Mapping[str, Any], where: str) -> str:
    return (
        f"{where or data['input']}: {100 * data['share']:.2f} % of the verified numbers are clipped: they reach "
        f"{data['seen_low']:.6g} to {data['seen_high']:.6g}, and the range is {data['low']:.6g} to {data['high']:.6g}. "
        f"{data['fix']}"
    )


def _unlike(data: Mapping[str, Any], where: str) -> str:
    if "mean" in data:
        seen = f"mean {data['seen_mean']:.6g} and deviation {data['seen_deviation']:.6g}"
        known = f"mean {data['mean']:.6g} and deviation {data['deviation']:.6g}"
        name = where or data["input"]
        return f"{name}: the verified numbers, {seen}, are unlike the calibration, {known}. {data['fix']}"
    return (
        f"{where or data['input']}: the verified numbers, {data['seen_low']:.6g} to {data['seen_high']:.6g}, are "
        f"unlike the calibration, whose range is {data['low']:.6g} to {data['high']:.6g}. {data['fix']}"
    )


def _unknown_operator(data: Mapping[str, Any], where: str) -> str:
    del where
    ops, nodes = ", ".join(data["ops"]), _listed(data["nodes"])
    return f"{data['target']} is uncertain about {ops} ({nodes}): {data['text']}. {data['fix']}"


def _runtime(data: Mapping[str, Any], where: str) -> str:
    del where
    kernels = f" Kernels: {_listed(data['kernels'])}." if data["kernels"] else ""
    return f"{data['form']}: {data['found']}.{kernels} {data['fix']}"


def _encodings_set(data: Mapping[str, Any], where: str) -> str:
    del where
    return f"Encodings set {data['given']} tensors; {data['calibrated']} quantizers are calibrated."


def _float_islands(data: Mapping[str, Any], where: str) -> str:
    del where
    names = data["names"]
    what = "One float island has" if len(names) == 1 else f"{len(names)} float islands have"
    listed = ", ".join(f"@{name}" for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    shares = (
        f"{100 * data['macs']:.2f} % of the multiply-accumulates and {100 * data['elements']:.2f} % of the elements"
    )
    return f"{what} {shares}: {listed}."


def _lowest_weights(data: Mapping[str, Any], where: str) -> str:
    del where
    count = data["count"]
    found = "1 weight is" if count == 1 else f"{count} weights are"
    grid = f"code {data['code']} of the encoding; {data['target']} begins at {data['first']}"
    return f"%{data['quantizer']}: {found} on {grid}."


def _second_capture(data: Mapping[str, Any], where: str) -> str:
    how = "with torch.export because torch.fx" if data["route"] == "export" else "with another graph because the first"
    return f"Captured {how} failed: {data['refused']}{f', at {where}' if where else ''}."


def _fixed_batch(data: Mapping[str, Any], where: str) -> str:
    del where
    size = "" if data["size"] is None else f" to {data['size']}"
    return f"The batch size is fixed{size}: the model does not run at other batch sizes ({data['reason']})."


def _omitted_writes(data: Mapping[str, Any], where: str) -> str:
    del where
    names = ", ".join(map(repr, data["names"]))
    return f"The forward writes to {names}; no result depends on the writes, so they are omitted."


def _other_types(data: Mapping[str, Any], where: str) -> str:
    del where
    kinds = " and ".join(data["types"])
    return f"The model computes in {kinds}; it is compiled in float32, and inputs and outputs keep their types."


def _host_steps(data: Mapping[str, Any], where: str) -> str:
    parts = [f"{', '.join(data[side])} {side} the network" for side in ("before", "after") if data[side]]
    return f"Host: {'; '.join(parts)}. Your program computes these steps in float, with the code of {where}."


_SENTENCES: Mapping[str, Callable[[Mapping[str, Any], str], str]] = {
    "note": lambda data, where: str(data["text"]),
    "forms": _forms,
    "outputs": _outputs,
    "losses": _losses,
    "constant-output": _constant_output,
    "constant-channels": _constant_channels,
    "poor-output": _poor_output,
    "weak-part": _weak_part,
    "refused-override": _refused_override,
    "untrained-batch-norm": _untrained,
    "clipped-input": _clipped_input,
    "unlike-calibration": _unlike,
    "unknown-operator": _unknown_operator,
    "runtime": _runtime,
    "no-memory-plan": lambda data, where: "No memory plan: the model has no single image input.",
    "encodings-set": _encodings_set,
    "encodings-ignored": lambda data, where: f"Encodings that match no tensor are ignored: {data['names']}.",
    "quantizers-added": lambda data, where: (
        f"The quantized model has no quantizer here, so the range is calibrated: {data['names']}."
    ),
    "grids-lacking": lambda data, where: (
        f"The target lacks grids of the quantized model, so other ranges are found: {data['names']}."
    ),
    "quantizers-lost": lambda data, where: (
        f"Quantizers of the model have no counterpart in the program, so codes may differ: {data['names']}."
    ),
    "float-islands": _float_islands,
    "host-steps": _host_steps,
    "lowest-weights": _lowest_weights,
    "normalization-stays": lambda data, where: (
        f"The normalization of an input at {where or data['node']} is computed by itself: {data['reason']}."
    ),
    "second-capture": _second_capture,
    "fixed-batch": _fixed_batch,
    "omitted-writes": _omitted_writes,
    "other-types": _other_types,
    "wrapper-removed": lambda data, where: (
        f"{data['wrapper']} is removed: the wrapped model, a {data['model']}, is compiled."
    ),
    "batch-bounds": lambda data, where: (
        f"The graph is valid for batch sizes from {data['low']} to {data['high']}, as the model is."
    ),
    "constant-parameters": lambda data, where: (
        f"{data['function']} of parameters became a constant (at {where}); training the graph does not change it."
    ),
}
"""The sentence of each code, from data and place."""

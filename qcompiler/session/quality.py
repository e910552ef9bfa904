"""The summary of quality after a compile: what is lost, where, and what to do."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qcompiler.ir import tree
from qcompiler.ir.diagnostics import Diagnostic, decibels
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import interpret
from qcompiler.ir.registry import Trait
from qcompiler.ir.types import Stage
from qcompiler.ops import SCALED
from qcompiler.ops.quantizers import is_leaf, is_quantizer, leaf_tensor
from qcompiler.passes.base import Override
from qcompiler.quant.affine import channel_rows
from qcompiler.session.refused_overrides import refused_overrides
from qcompiler.session.stages import Captured, State
from qcompiler.session.weak_parts import weak_part_diagnostics
from qcompiler.targets import Target
from qcompiler.targets.uncertain import uncertain
from qcompiler.validation.layers import compare_layers
from qcompiler.validation.own_losses import Loss, own_losses

__all__ = ["Quality", "measure", "unlike_batches"]

LEAST_DB = 10.0
"""Signal-to-noise ratio below which an output is reported: a tenth of its power is noise."""
FEW_NUMBERS = 64
"""Smallest number of elements whose mean and deviation are compared."""
BATCHES = 8
"""Largest number of batches of calibration data that are compared with the verified inputs."""
FAR_MEAN, FAR_DEVIATION = 2.0, 4.0
"""Distance of means in standard deviations, and ratio of deviations, above which inputs are unlike the calibration."""
MOST_EQUAL = 0.5
"""Share of elements that differ from the median, above which a channel varies."""
NAMED = 3
"""Tensors of the largest losses that the summary names."""


@dataclass(frozen=True)
class Quality:
    """The measured quality of a compile.

    Args:
        diagnostics: The summary, then one diagnostic for each problem.
        sqnr: Signal-to-noise ratio of each tensor and output, dB; see `validation.layers`.
    """

    diagnostics: tuple[Diagnostic, ...]
    sqnr: Mapping[str, float] = field(default_factory=dict)


def measure(
    captured: Captured,
    canonical: State,
    quantized: State,
    *,
    target: Target,
    samples: Sequence[Tensor],
    overrides: Mapping[str, Override],
    batches: Iterable[Sequence[Tensor]] | None = None,
) -> Quality:
    """Measure a quantized graph on some samples.

    Args:
        captured: The captured model; its outputs are the reference.
        canonical: The state before the quantizers.
        quantized: The calibrated state.
        target: Hardware target.
        samples: Flat inputs.
        overrides: Widths that the caller chose.
        batches: Calibration data as flat batches; None without data.
    """
    graph, first = quantized.module.main, canonical.module.main
    if captured.module.main.stage is Stage.QUANTIZED or first.stage is not Stage.CANONICAL:
        # The weights were trained with quantization: the graph has no float model.
        return Quality((Diagnostic("outputs", {"db": {}}),))
    with torch.no_grad():
        wanted, _ = interpret(captured.module.main, list(samples), captured.module.tensors)
    compared = compare_layers(first, graph, samples, target.arithmetic, wanted)
    losses = own_losses(first, graph, samples, wanted)
    ratios = {name: ratio for name, ratio in compared.sqnr.items() if name.startswith("output ")}
    labels = _labels(graph.output_tree)
    summary = (
        Diagnostic("outputs", {"db": {labels[name]: decibels(ratio) for name, ratio in ratios.items()}}),
        Diagnostic("losses", {"losses": [_plain(loss) for loss in losses[:NAMED]]}),
    )
    weak = tuple(weak_part_diagnostics(first, graph, samples, target))
    remedies = {item.data["concat"]: str(item.data["fix"]) for item in weak}
    fixes = [_nearest(value, remedies) or _remedy(losses, first, target) for value in graph.outputs]
    problems = (
        *_outputs(graph, wanted, compared.outputs, ratios, fixes),
        *weak,
        *refused_overrides(overrides, first, graph, target),
        *_untrained(captured.module.main),
        *(() if batches is None else unlike_batches(captured.module.main, captured.trial or samples, batches)),
        *_uncertain(first, target),
    )
    return Quality((*summary, *problems), compared.sqnr)


def _plain(loss: Loss) -> dict[str, object]:
    return {"tensor": loss.tensor, "where": loss.where, "db": decibels(loss.sqnr_db)}


def _labels(outputs: tree.Tree) -> dict[str, str]:
    """Names for messages by name: `output 1 (scores)` where the model names its outputs."""
    found: dict[str, str] = {}

    def visit(node: tree.Tree, path: tuple[str, ...]) -> None:
        inner = tree.children(node)
        for key, child in inner:
            visit(child, (*path, key))
        if not inner:
            for leaf in tree.leaves(node):
                named = any(not key.isdigit() for key in path)
                found[f"output {leaf}"] = f"output {leaf}" + (f" ({'.'.join(path)})" if named else "")

    visit(outputs, ())
    return found


def _remedy(losses: Sequence[Loss], canonical: Graph, target: Target) -> str:
    """Text that can be typed to raise the accuracy of a poor output."""
    operators = {node.name for node in canonical.nodes if not node.definition.has(Trait.LEAF)}
    numbers = target.descriptor
    names = (numbers.defaults.activation, *numbers.defaults.other_activations)
    widest = max(width for name in names for width in numbers.dtypes[name].widths)
    worst = next((loss for loss in losses if not loss.parameter), None)
    if worst is not None and worst.tensor in operators and widest > target.activation_bits:
        return f"Try overrides={{{worst.tensor!r}: {widest}}}, or effort='best'."
    if losses and losses[0].parameter and not target.per_channel:
        return "Try effort='best', or target.override(per_channel=True) if the hardware has a scale per channel."
    return "Try effort='best' with calibration_data, or train with qcompiler.prepare_qat."


def _nearest(value: Value, remedies: Mapping[str, str]) -> str | None:
    """The remedy of the nearest concat with a weak part on the way to an output, by name; None without one."""
    waiting, seen = [value], {value}
    while remedies and waiting:
        producer = waiting.pop(0).producer
        if producer is None:
            continue
        if producer.name in remedies:
            return remedies[producer.name]
        new = [item for item in producer.inputs if item not in seen]
        seen.update(new)
        waiting += new
    return None


def _outputs(
    graph: Graph, wanted: Sequence[Tensor], found: Sequence[Tensor], ratios: Mapping[str, float], fixes: Sequence[str]
) -> Iterator[Diagnostic]:
    """Outputs that are constant or have little signal, with the remedy of each output."""
    labels = _labels(graph.output_tree)
    for index, (value, expected, result, fix) in enumerate(zip(graph.outputs, wanted, found, fixes, strict=True)):
        ratio = ratios.get(f"output {index}")
        if ratio is None or not _computed(value):
            continue
        name, where = labels[f"output {index}"], _place(value)
        if _is_constant(result):
            same = _is_constant(expected)
            data = {"output": name, "value": _number(result.reshape(-1)[0]), "in_float": same}
            data |= {"low": _number(expected.min()), "high": _number(expected.max())}
            data["fix"] = "Inspect this branch of the model, or do not return it." if same else fix
            yield Diagnostic("constant-output", data, where)
            continue
        yield from _constant_channels(name, where, expected, result, fix)
        if ratio < LEAST_DB:
            data = {"output": name, "db": decibels(ratio), "least": LEAST_DB, "fix": fix}
            yield Diagnostic("poor-output", data, where)


def _constant_channels(name: str, where: str, wanted: Tensor, found: Tensor, fix: str) -> Iterator[Diagnostic]:
    """The places along an axis at which an output has one value, which varies in the float model: scores next to boxes.

    The axis that loses the largest share of its places is told, and among equal ones axis 1, then the last.
    """
    rank = wanted.dim()
    if rank < 2 or len(wanted) < 2:
        return
    losses: dict[int, list[int]] = {}
    for axis in dict.fromkeys((1, rank - 1, *range(2, rank - 1))):
        rows, results = (channel_rows(tensor, axis) for tensor in (wanted, found))
        # Few small numbers among zeros, as after a ReLU, may well become zeros.
        varies = (rows != rows.median(1, keepdim=True).values).double().mean(1) > MOST_EQUAL
        lost = ((results == results[:, :1]).all(1) & varies).nonzero().flatten().tolist()
        if lost:
            losses[axis] = lost
    if not losses:
        return
    axis = max(losses, key=lambda axis: len(losses[axis]) / wanted.shape[axis])
    lost = losses[axis]
    reach = wanted.index_select(axis, torch.tensor(lost, device=wanted.device))
    data = {"output": name, "axis": axis, "places": lost, "size": wanted.shape[axis]}
    data |= {"low": _number(reach.min()), "high": _number(reach.max()), "fix": fix}
    yield Diagnostic("constant-channels", data, where)


def _is_constant(output: Tensor) -> bool:
    """Whether an output is the same for all samples; with one sample, whether all its elements are equal."""
    if output.numel() < 2 or not output.dim():
        return False
    first = output[:1] if len(output) > 1 else output.reshape(-1)[:1]
    return bool((output == first).all())


def _number(element: Tensor) -> float:
    return float(f"{float(element):.6g}") if bool(torch.isfinite(element)) else 0.0


def _computed(value: Value) -> bool:
    """Whether an output depends on an input of the model."""
    waiting, seen = [value], {value}
    while waiting:
        producer = waiting.pop().producer
        if producer is None:
            return True
        new = [item for item in producer.inputs if item not in seen and not is_leaf(item)]
        seen.update(new)
        waiting += new
    return False


def _place(value: Value) -> str:
    """The operator that computes a value, without its quantizer."""
    node = value.producer
    while node is not None and is_quantizer(node) and node.inputs[0].producer is not None:
        node = node.inputs[0].producer
    return "" if node is None else node.where


def unlike_batches(
    graph: Graph, verified: Sequence[Tensor], batches: Iterable[Sequence[Tensor]]
) -> Iterator[Diagnostic]:
    """Inputs whose verified numbers have another mean or deviation than later batches, as in sorted data.

    Args:
        graph: The captured graph.
        verified: Flat inputs of the verification, from the first batch.
        batches: Flat batches of calibration data; at most `BATCHES` are read.
    """
    read = list(itertools.islice(batches, 1, BATCHES))
    for index, value in enumerate(graph.inputs):
        if not value.type.dtype.is_float or not read or verified[index].numel() < FEW_NUMBERS:
            continue
        seen_mean, seen_deviation = _moments([verified[index]])
        mean, deviation = _moments([batch[index] for batch in read])
        apart = abs(seen_mean - mean) > deviation * FAR_MEAN
        wide = seen_deviation > deviation * FAR_DEVIATION or deviation > seen_deviation * FAR_DEVIATION
        if apart or wide:
            fix = "Shuffle calibration_data, as DataLoader(..., shuffle=True) does: its first batch is unlike the rest."
            found = {"seen_mean": seen_mean, "seen_deviation": seen_deviation, "mean": mean, "deviation": deviation}
            data = {name: float(f"{number:.6g}") for name, number in found.items()}
            yield Diagnostic("unlike-calibration", {"input": value.name, **data, "fix": fix}, value.name)


def _moments(tensors: Sequence[Tensor]) -> tuple[float, float]:
    """Mean and standard deviation of all finite numbers."""
    numbers = torch.cat([tensor.detach().double().cpu().flatten() for tensor in tensors])
    numbers = numbers[torch.isfinite(numbers)]
    if not numbers.numel():
        return 0.0, 0.0
    return float(numbers.mean()), float(numbers.std(correction=0))


def _untrained(graph: Graph) -> Iterator[Diagnostic]:
    """Batch norms whose statistics are those of a new module."""
    nodes = [
        node
        for node in graph.nodes
        if node.op == "batch_norm"
        and all(is_leaf(value) for value in node.inputs[3:])
        and bool((leaf_tensor(node.inputs[3]) == 0.0).all() and (leaf_tensor(node.inputs[4]) == 1.0).all())
    ]
    if nodes:
        names = [node.location.path or node.name for node in nodes]
        fix = "Load the weights of a trained model, or run model.train() on data before compiling."
        yield Diagnostic("untrained-batch-norm", {"nodes": names, "fix": fix}, nodes[0].where)


def _uncertain(graph: Graph, target: Target) -> Iterator[Diagnostic]:
    """Operators of the model for which the descriptor of the target says that something is not known."""
    nodes: dict[str, list[str]] = {}
    for node in graph.nodes:  # islands are in float
        if not node.definition.has(Trait.LEAF):
            name = node.text("function") if node.op == SCALED else node.op
            nodes.setdefault(name, []).append(node.where)
    for text, ops in uncertain(target, tuple(nodes)):
        places = [place for op in ops for place in nodes[op]]
        fix = "Compare a dump of the device with compiled.save(FOLDER): qcompiler compare DUMP.npz FOLDER."
        data = {"target": target.name, "ops": list(ops), "nodes": places, "text": text, "fix": fix}
        yield Diagnostic("unknown-operator", data, places[0])

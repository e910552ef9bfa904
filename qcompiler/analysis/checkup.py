"""Before any work: what will become of each node of a model on a target, why, and what would serve it better.

The passes that only look at structure run on a copy: what they fold, what the target has, where quantizers go. Nothing
is calibrated and nothing is written, so that a look at a large network takes seconds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Graph, Module, Node
from qcompiler.ir.registry import Trait
from qcompiler.ops import SCALED, UNARY
from qcompiler.ops.custom import function_name
from qcompiler.ops.exact import computes_exactly
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.ops.quantizers import is_leaf, is_quantizer
from qcompiler.ops.work import elements, multiply_accumulates
from qcompiler.passes import Pass
from qcompiler.passes.base import Override
from qcompiler.passes.common.overrides import Overrides
from qcompiler.passes.fold_batch_norm import AFFINE, FoldBatchNorm
from qcompiler.passes.partition import why_float
from qcompiler.session.options import Options
from qcompiler.session.pipeline import structural_passes
from qcompiler.session.session import Session
from qcompiler.session.source import Model, load_model
from qcompiler.targets import Target, load_target

Fate = Literal["quantized", "fused", "folded", "moved", "exact", "removed", "float", "refused"]

LANES = 32
"""Channels per vector operation; other numbers of channels leave a part of the vector unit idle."""

SPREAD = 16.0
"""Ratio of the largest to the median channel range of a weight at which one common scale loses four bits."""


@dataclass(frozen=True)
class NodeFate:
    """The fate of one captured node.

    Args:
        name: Name of the node.
        op: Operator, or function of torch without an operator.
        where: Module path and source line.
        fate: `quantized`: computed in integers and followed by a quantizer. `fused`: computed in integers in one step
            with the following node. `folded`: merged into another node. `moved`: moves codes without computing.
            `exact`: integers or booleans without a grid, such as token ids and masks, computed exactly.
            `removed`: removed without replacement. `float`: in a float island. `refused`: missing from the target.
        detail: The grid, the other node, or the reason.
    """

    name: str
    op: str
    where: str
    fate: Fate
    detail: str


@dataclass(frozen=True)
class Advice:
    """A recommendation for a model.

    Args:
        rule: Short name of the subject.
        nodes: Names of the nodes concerned.
        text: The finding and the recommendation.
    """

    rule: str
    nodes: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Checkup:
    """The predicted result of a compile.

    Args:
        target: Name of the target.
        nodes: One entry per captured node, in order.
        advice: Recommendations, the most important first.
        diagnostics: Notes of the capture.
    """

    target: str
    nodes: tuple[NodeFate, ...]
    advice: tuple[Advice, ...]
    diagnostics: tuple[Diagnostic, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing would be refused."""
        return not self.of("refused")

    def of(self, fate: Fate) -> tuple[NodeFate, ...]:
        """The nodes of one fate."""
        return tuple(node for node in self.nodes if node.fate == fate)

    def to_dict(self) -> dict[str, object]:
        """The result as data for JSON."""
        return {
            "target": self.target,
            "passed": self.passed,
            "nodes": [dataclasses.asdict(node) for node in self.nodes],
            "advice": [dataclasses.asdict(item) for item in self.advice],
            "diagnostics": [item.plain() for item in self.diagnostics],
        }

    def __str__(self) -> str:
        lines = [f"{node.fate:9} %{node.name} {node.op}: {node.detail}" for node in self.nodes]
        lines += [f"note: {text}" for text in self.diagnostics]
        lines += [f"advice, {item.rule} ({_listed(item.nodes)}): {item.text}" for item in self.advice]
        return "\n".join(lines)


def check(
    model: Model,
    target: str | Path | Target = "int8_dsp",
    *,
    example_inputs: object = None,
    fixed_inputs: Mapping[str, object] | None = None,
    overrides: Mapping[str, Override] | None = None,
    device: torch.device | str | None = None,
) -> Checkup:
    """Predict what `compile` would do with each node of `model`.

    The model is not changed. A compile may still refuse a model that passes, because the proofs for accumulators and
    biases need real ranges; `advice` lists layers that are close to the limits.

    Args:
        model: As for `compile`.
        target: As for `compile`. All nodes that it would refuse are listed, not only the first.
        example_inputs: As for `compile`.
        fixed_inputs: Inputs of an ONNX file that become constants; see `compile`.
        overrides: As for `compile`.
        device: Device for tracing the model.

    Raises:
        CaptureError: The model cannot be traced.
        UnsupportedError: The model calls something that a graph cannot represent.
        InputError: The inputs or an override do not fit.
    """
    hardware = load_target(target)
    lenient = hardware if hardware.fallback == "float" else hardware.override(fallback="float")
    options = Options(example_inputs, fixed_inputs=fixed_inputs, overrides=overrides or {}, device=device)
    front, back = structural_passes()
    unpartitioned: list[Graph] = []

    def between(_: Pass | None, module: Module, after: Pass | None) -> None:
        if after is back[0]:
            unpartitioned.append(module.clone().main)

    session = Session(load_model(model, options.fixed_inputs), lenient, options, (*front, *back), between=between)
    captured = session.captured
    names = [node for node in captured.module.main.nodes if not node.definition.has(Trait.LEAF)]
    seen = {node.name: (function_name(node), str(node.location)) for node in names}
    module, records = session.quantized.module, session.quantized.records[: len(front)]
    (canonical,) = unpartitioned
    chosen = Overrides.resolve(session.context.overrides, canonical)
    outside = {node.name: why for node in canonical.nodes if (why := why_float(node, hardware, chosen))}
    whole = {node.name: (multiply_accumulates(node), elements(node)) for node in canonical.nodes}
    fates = _fates(module.main, seen, records, outside, refused=hardware.fallback == "refuse")
    nodes = tuple(NodeFate(name, *seen[name], *fates[name]) for name in seen)
    advice = _advice(canonical, module.main, hardware, records, outside, whole)
    return Checkup(hardware.name, nodes, tuple(advice), tuple(captured.diagnostics))


def _fates(
    graph: Graph,
    seen: Mapping[str, tuple[str, str]],
    records: Sequence[Record],
    outside: Mapping[str, str],
    *,
    refused: bool,
) -> dict[str, tuple[Fate, str]]:
    """Fate and detail of each captured node, by name."""
    fates: dict[str, tuple[Fate, str]] = {name: ("removed", _last_word(name, records)) for name in seen}
    for node in graph.nodes:
        if node.definition.has(Trait.LEAF, Trait.QUANTIZER, Trait.BIAS_QUANTIZER) or node.op == "scale_product":
            continue
        if node.callee is not None:
            for member in node.callee.nodes:
                if not member.definition.has(Trait.LEAF):
                    why = outside.get(member.name, "between parts of a float island")
                    fate: Fate = "refused" if refused and member.name in outside else "float"
                    _assign(fates, member, seen, (fate, why), records)
            continue
        _assign(fates, node, seen, _integer_fate(node), records)
    return fates


def _assign(
    fates: dict[str, tuple[Fate, str]],
    node: Node,
    seen: Mapping[str, tuple[str, str]],
    fate: tuple[Fate, str],
    records: Sequence[Record],
) -> None:
    """Set the fate of the captured node that `node` computes; other captured nodes were folded into it."""
    origins = [name for name in node.origins if name in seen]
    if not origins:
        return
    main = next((name for name in origins if seen[name][0] == function_name(node)), origins[0])
    for name in origins:
        if name == main:
            fates[name] = fate
        elif fates[name][0] == "removed":
            fates[name] = ("folded", f"into %{node.name}: {_last_word(name, records)}")


def _integer_fate(node: Node) -> tuple[Fate, str]:
    if computes_exactly(node):
        return "exact", "integers or booleans without a grid"
    if node.definition.has(Trait.MOVEMENT):
        return "moved", "moves codes on the grid of its input"
    users = [user for value in node.outputs for user in value.users]
    quantizer = next(filter(is_quantizer, users), None)
    details = [] if quantizer is None else [f"to {quantizer.spec}"]
    if quantizer is None:
        details.append(f"fused with %{users[0].name}" if users else "an output of the model")
    weight = Layer(node).quantizer if is_weighted(node) else None
    if weight is not None:
        spec = weight.spec
        details.append(f"weight {spec}" + ("" if spec.axis is None else " per channel"))
    return "fused" if quantizer is None else "quantized", ", ".join(details)


def _last_word(name: str, records: Sequence[Record]) -> str:
    """The last event about the captured node `name`."""
    words = [e.detail for r in records for e in r.events if e.kind == "rewrite" and name in (e.node, *e.origins)]
    return words[-1] if words else "its result is unused"


def _advice(
    canonical: Graph,
    quantized: Graph,
    target: Target,
    records: Sequence[Record],
    outside: Mapping[str, str],
    whole: Mapping[str, tuple[int, int]],
) -> Iterator[Advice]:
    """All findings; see the functions."""
    nodes = list(canonical.nodes)
    yield from _not_integer(nodes, target, outside, whole)
    yield from _wide_spread(nodes, target)
    yield from _long_sums(nodes, target)
    yield from _unfolded(records)
    if not any("statistics" in node.attributes and node.attributes["statistics"] for node in nodes):
        macs = tuple(_captured(node) for node in nodes if node.definition.has(Trait.MAC))
        if macs:
            yield Advice("ranges", macs, "No batch norm gives the ranges of activations: pass calibration_data.")
    yield from _shared(nodes)
    yield from _channels(nodes)
    yield from _tables(nodes)
    yield from _padding(nodes)


def _not_integer(
    nodes: Sequence[Node], target: Target, outside: Mapping[str, str], whole: Mapping[str, tuple[int, int]]
) -> Iterator[Advice]:
    strange = [node for node in nodes if node.name in outside]
    if not strange:
        return
    shares = [
        100 * sum(whole[node.name][k] for node in strange) / max(1, sum(item[k] for item in whole.values()))
        for k in (0, 1)
    ]
    text = f"{shares[0]:.2f} % of the multiply-accumulates and {shares[1]:.2f} % of the elements are not integer. "
    if target.fallback == "refuse":
        text += f'Replace them, or run them in float: load_target("{target.name}").override(fallback="float").'
    else:
        text += "Each island costs a dequantize and a quantize: keep such operators next to each other."
    yield Advice("not integer", tuple(map(_captured, strange)), text)


def _wide_spread(nodes: Sequence[Node], target: Target) -> Iterator[Advice]:
    """Layers with such different channel ranges that one common scale is too coarse for the small channels."""
    found: dict[str, float] = {}
    for node in _layers(nodes):
        layer = Layer(node)
        if target.weight_spec(node.op, layer.weight_axis).axis is not None:
            continue
        ranges = layer.weight_tensor().abs().transpose(0, layer.weight_axis).flatten(1).amax(1)
        ranges = ranges[ranges > 0]
        if ranges.numel() > 1 and float(ranges.max() / ranges.median()) >= SPREAD:
            found[_captured(node)] = float(ranges.max() / ranges.median())
    if found:
        worst = max(found, key=found.__getitem__)
        bits = math.log2(found[worst])
        text = (
            f"The largest channel range of the weight of %{worst} is {found[worst]:.0f} times the median: with one "
            f"common scale, the median channel loses {bits:.1f} bits. Use one scale per channel, "
            f'load_target("{target.name}").override(per_channel=True), or equalize the layers.'
        )
        yield Advice("channel ranges", tuple(found), text)


def _long_sums(nodes: Sequence[Node], target: Target) -> Iterator[Advice]:
    """Layers whose sums could overflow with the worst weights and inputs."""
    arithmetic = target.arithmetic
    found: dict[str, int] = {}
    for node in _layers(nodes):
        terms = Layer(node).terms
        bits = target.weight_spec(node.op, 0).bits + target.activation_spec(op=node.op).bits
        width = arithmetic.at(node.op, target.activation_bits).accumulator_bits
        if terms * 2 ** (bits - 1) >= 2 ** (width - 1):
            found[_captured(node)] = width
    if found:
        text = (
            f"With the worst weights and inputs, the sum exceeds the {min(found.values())}-bit accumulator. The proof "
            "at compile time uses the real weights; if it fails, use fewer bits in these layers."
        )
        yield Advice("long sums", tuple(found), text)


def _unfolded(records: Sequence[Record]) -> Iterator[Advice]:
    events = [event for record in records if record.pass_name == FoldBatchNorm.name for event in record.events]
    names = tuple(event.origins[0] for event in events if event.code == AFFINE.code)
    if names:
        why = "; ".join(dict.fromkeys(event.detail for event in events if event.kind == "refusal"))
        text = "They become separate layers. Put a batch norm directly after a layer that has no other users."
        yield Advice("batch norm", names, f"{text} Refused: {why}." if why else text)


def _shared(nodes: Sequence[Node]) -> Iterator[Advice]:
    """Weights that several nodes use."""
    readers: dict[str, list[str]] = {}
    for node in _layers(nodes):
        leaf = node.inputs[1].producer
        if leaf is not None:
            readers.setdefault(str(leaf.attributes["ref"]), []).append(_captured(node))
    names = tuple(name for group in readers.values() if len(group) > 1 for name in group)
    if names:
        text = (
            "Several calls use one weight. Each call has its own activation ranges, but rescaling the weight for one "
            "call would change all of them, so equalization skips these layers."
        )
        yield Advice("shared weights", names, text)


def _channels(nodes: Sequence[Node]) -> Iterator[Advice]:
    layers = [node for node in _layers(nodes) if node.definition.has(Trait.CONVOLUTION)]
    found = tuple(_captured(node) for node in layers if node.output.type.size(1) % LANES)
    if found:
        text = f"The number of output channels is not a multiple of {LANES}, so vector units are partly idle."
        yield Advice("channels", found, text)


def _tables(nodes: Sequence[Node]) -> Iterator[Advice]:
    found = tuple(_captured(node) for node in nodes if node.op in (*UNARY, SCALED, "prelu"))
    if found:
        text = (
            "These activations need a lookup table, which reads and writes the tensor once more. A relu or a clamp is "
            "free, because it is part of the preceding layer."
        )
        yield Advice("activations", found, text)


def _padding(nodes: Sequence[Node]) -> Iterator[Advice]:
    padded = [_captured(node) for node in _layers(nodes) if Layer(node).pads and not _reads_an_input(node)]
    if padded:
        text = "They pad with zeros, so a bias that is absorbed from the preceding layer is wrong at the border."
        yield Advice("padding", tuple(padded), text)


def _reads_an_input(node: Node) -> bool:
    return node.inputs[0].producer is None


def _layers(nodes: Sequence[Node]) -> Iterator[Node]:
    """Convolutions and linear layers with a weight of the model."""
    return (node for node in nodes if is_weighted(node) and is_leaf(node.inputs[1]))


def _captured(node: Node) -> str:
    """The name of the captured node that `node` computes."""
    return node.origins[0] if node.origins else node.name


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"%{name}" for name in names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"

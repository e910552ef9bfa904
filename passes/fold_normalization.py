"""Fold the normalization of a model's inputs into the layers that read them.

    y = g x + h per channel, such as (x - mean) / std and x / 255, or a batch norm of the input:

    conv(g x + h, W, b)             ->  conv(x, g W, b + sum W h)                   without padding
    conv(g x + h, W, b), padding    ->  conv(pad(x, c), g W, b + sum W h)           c = -h / g, which g x + h maps to 0
    conv(g x + h, W, b), padding    ->  conv(x - c, g W, b)                         where no border of c is possible

In integers the layer then reads the codes of the input as they are: nothing is rounded between a sensor and the first
sum of products. The second line is exact in real numbers. A border has codes, so c is rounded there, by half a step of
the input at most; channels with different c get borders of their own and are joined again. Without such borders the
subtraction stays, an operator with a rounding of its own.

After rounding, (g W)^ x has the error of the weights times x, which is larger than times x - c. `correct-bias` makes up
for the part at c with the attribute `center` of the layer, so that the noise of the weights stays what it was.

With a target, a normalization is folded only where the expected noise does not rise: channels with very different g,
such as columns of a table, would get weights of very different sizes on one grid. The noise of both is in
`passes.common.normalization_noise`.

Source: Nagel et al. 2021, arXiv:2106.08295, section 3.1, folds affine functions that follow a layer in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qcompiler.calibration.statistics import set_center
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import Evaluation, interpret_with
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.normalization_noise import noise_apart, noise_folded
from qcompiler.passes.common.normalizations import Normalization, normalization_of
from qcompiler.validation.contracts import THRESHOLDS, Contract
from qcompiler.validation.noise import decibels

FOLDED = Sentence("normalization-folded", "includes the normalization {nodes: and } of {source}")
BORDER = Sentence(
    "normalization-has-border",
    "its padding is a border of {values}, which the normalization maps to 0, rounded to codes of {source}",
)
SHIFT_STAYS = Sentence("subtraction-stays", "the subtraction stays an integer operator, because {why}")
MORE_NOISE = Sentence(
    "normalization-has-less-noise", "folded into {layer}, it would raise the expected noise by {decibels:.1f} dB"
)

MOST_RISE = 0.3
"""Largest rise of the expected noise, dB: less than chance, for operators that need not run."""
MOST_BORDERS = 8
"""Number of borders with different values for one layer, each of which copies its channels."""
_SAME = 1e-6
"""Share of the largest border by which borders of one value differ at most."""

Way = Literal["bias", "border", "subtraction"]


@dataclass(frozen=True)
class FoldNormalization(Pass):
    """Layers that read the inputs of the model as they are.

    Refuses: a normalization with more expected noise in the weights of the layer than by itself.
    """

    name: ClassVar[str] = "fold-normalization"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.CANONICAL})
    requires: ClassVar[frozenset[str]] = frozenset({"batch-norm-folded"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"weight-ranges", "activation-ranges"})

    @property
    def contract(self) -> Contract:
        """Sums of products are computed in another order, of larger numbers."""
        return THRESHOLDS[self.name]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        if context.target is not None and context.target.simulation is not None:
            return
        found = [item for node in graph.nodes if (item := normalization_of(node)) is not None]
        samples = _samples(graph, context, found)
        rewriter = context.rewriter(graph)
        for item in found:
            _fold(item, samples.get(item.source), context, rewriter)


def _samples(graph: Graph, context: PassContext, found: Iterable[Normalization]) -> dict[Value, Tensor]:
    """Samples of what the normalizations read."""
    wanted = {item.source for item in found}
    seen: dict[Value, Tensor] = {value: torch.empty(0) for value in wanted}
    if not wanted or not context.samples:
        return {}

    def observe(value: Value, tensor: Tensor) -> None:
        if value in wanted:
            seen[value] = tensor.detach()

    interpret_with(graph, context.samples[0], Evaluation(graph.module.tensors), observe)
    return seen


def _fold(found: Normalization, x: Tensor | None, context: PassContext, rewriter: Rewriter) -> None:
    way, why = _way(found, x, context)
    node, target = found.layer.node, context.target
    if target is not None and x is not None:
        apart = noise_apart(found, x, target)
        folded = noise_folded(found, x, target, shift_stays=way == "subtraction")
        rise = decibels(apart) - decibels(folded)
        if rise > MOST_RISE:
            rewriter.refuse(found.steps[-1].node, MORE_NOISE(layer=node.name, decibels=rise))
            return
    if way == "subtraction" and len(found.steps) == 1:
        rewriter.refuse(found.steps[0].node, SHIFT_STAYS(why=why))
        return  # nothing but the subtraction
    value = _moved(found, rewriter)
    if way == "subtraction":
        value = _subtracted(found, value, rewriter)
        rewriter.note(node, SHIFT_STAYS(why=why))
    elif way == "border":
        value = _bordered(found, value, rewriter)
    _set_parameters(found, rewriter, shifted=way != "subtraction")
    rewriter.replace_input(node, 0, value)
    if way == "border":
        _remove_padding(node, rewriter)
    names = tuple(dict.fromkeys(step.node.name for step in found.steps))
    node.origins = tuple(dict.fromkeys([*node.origins, *(o for step in found.steps for o in step.node.origins)]))
    rewriter.note(node, FOLDED(nodes=names, source=found.source.name))


def _way(found: Normalization, x: Tensor | None, context: PassContext) -> tuple[Way, str]:
    """The place of the shift, and why it stays if it does."""
    layer, center, target = found.layer, found.center, context.target
    if not bool(found.shift.any()):
        return "bias", ""
    if layer.transposed:
        return "subtraction", f"border positions of the transposed convolution {layer.node.name} sum fewer taps"
    if not layer.pads:
        return "bias", ""
    pads = f"{layer.node.name} pads, and "
    if x is None:
        return "subtraction", pads + "there are no samples of its input"
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    if float(center.min()) < low or float(center.max()) > high:
        return "subtraction", pads + f"a border of {_listed(center)} is outside of the range of {found.source.name}"
    if len(_runs(found)) > MOST_BORDERS:
        return "subtraction", pads + f"{len(_runs(found))} borders would differ"
    lacking = [op for op in ("pad", "slice", "concat") if target is not None and not target.supports(op)]
    needed = lacking if len(_runs(found)) > 1 else [op for op in lacking if op == "pad"]
    if needed:
        return "subtraction", pads + f"the target has no integer {needed[0]}"
    return "border", ""


def _runs(found: Normalization) -> list[tuple[int, int, float]]:
    """Adjacent channels with one center: begin, end and value."""
    tolerance = _SAME * float(found.center.abs().max())
    runs: list[tuple[int, int, float]] = []
    for place, value in enumerate(map(float, found.center)):
        if runs and abs(value - runs[-1][2]) <= tolerance:
            runs[-1] = (runs[-1][0], place + 1, runs[-1][2])
        else:
            runs.append((place, place + 1, value))
    return runs


def _listed(values: Tensor) -> str:
    return ", ".join(f"{float(item):.4g}" for item in values.unique())


def _moved(found: Normalization, rewriter: Rewriter) -> Value:
    """x after the movements that were between the normalization and the layer."""
    value, node = found.source, found.layer.node
    for item in found.moves:
        value = rewriter.insert(item.op, [value], item.attributes, before=node, like=item).output
    return value


def _subtracted(found: Normalization, value: Value, rewriter: Rewriter) -> Value:
    node, layer = found.layer.node, found.layer
    shape = [-1 if axis == layer.input_axis else 1 for axis in range(value.type.rank)]
    center = found.center.to(torch.float32).reshape(shape)
    leaf = rewriter.leaf("constant", center, ref=f"{node.name}.center", before=node, like=node)
    step = found.steps[0].node
    return rewriter.insert("sub", [value, leaf], before=node, like=step).output


def _bordered(found: Normalization, value: Value, rewriter: Rewriter) -> Value:
    """The value with a border of the center of each channel, as wide as the padding of the layer."""
    node, padding = found.layer.node, found.layer.padding
    half = len(padding) // 2
    amounts = (0, 0, *padding[:half], 0, 0, *padding[half:])
    runs, parts, name = _runs(found), list[Value](), f"{node.name}.border"
    for begin, end, border in runs:
        part = value
        if len(runs) > 1:
            place = {"axis": 1, "start": begin, "stop": end}
            part = rewriter.insert("slice", [value], place, before=node, like=node, name=f"{name}.channels").output
        edge = {"pad": amounts, "value": border, "inside": True}
        parts.append(rewriter.insert("pad", [part], edge, before=node, like=node, name=name).output)
    rewriter.note(node, BORDER(values=", ".join(f"{border:.4g}" for *_, border in runs), source=found.source.name))
    if len(parts) == 1:
        return parts[0]
    return rewriter.insert("concat", parts, {"axis": 1}, before=node, like=node, name=name).output


def _remove_padding(node: Node, rewriter: Rewriter) -> None:
    rewriter.set_attributes(node, padding=(0,) * len(node.integers("padding")))


def _set_parameters(found: Normalization, rewriter: Rewriter, *, shifted: bool) -> None:
    """g W, and with `shifted` b + sum W h."""
    layer = found.layer
    node, rows = layer.node, layer.rows().to(torch.float64)
    gain = found.gain.reshape(layer.groups, 1, -1, 1)
    weight = layer.from_rows(rows * gain).to(torch.float32)
    bias = layer.bias_tensor()
    moved = (rows * found.shift.reshape(layer.groups, 1, -1, 1)).sum((2, 3)).reshape(-1)
    rewriter.replace_input(node, 1, rewriter.set_tensor(node.inputs[1], weight, before=node, like=node))
    if not shifted or not bool(found.shift.any()):
        return
    rewriter.set_attributes(node, center=node.graph.module.unique_tensor_name(f"{node.name}.center"))
    set_center(node, found.center)
    if bias is None:
        leaf = rewriter.leaf("parameter", moved.to(torch.float32), ref=f"{node.name}.bias", before=node, like=node)
        rewriter.add_input(node, leaf)
        return
    total = (bias.to(torch.float64) + moved).to(torch.float32)
    rewriter.replace_input(node, 2, rewriter.set_tensor(node.inputs[2], total, before=node, like=node))

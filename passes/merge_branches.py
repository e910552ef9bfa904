"""Merge parallel layers whose results are added into one layer.

    conv3x3(x, W3, b3) + conv1x1(x, W1, b1) + g x + h        becomes        conv3x3(x, W, b3 + b1 + h)

The kernels are padded with zeros to one window and added: W = W3, with W1 and the diagonal of g added to its middle
tap. Re-parameterized networks (RepVGG, MobileOne) train such branches, each with a batch norm, and deploy one layer.
After `fold-batch-norm` a branch is a layer, a factor per channel (a batch norm of the input, as a depthwise 1x1 layer),
or the input itself.

A constant of the sum goes into the bias.

In integers each branch and each partial sum would be rounded; the merged layer is rounded once, and there is one layer
to compute. The weights of all branches get one grid, though: a large factor of the identity may take the resolution of
the other weights. With a target, branches are merged only where the expected noise does not rise. For inputs of equal
power, in units of that power, with the rows w of the weights,

    merged      sum over the weights that are not 0 of step^2 / 12
    apart       the same with the steps of each branch, plus step_y^2 / 12 for each result and partial sum,
                for a range of +-(4 |w| + |b|)

Source: Ding et al. 2021, arXiv:2101.03697, section 3.3; Vasu et al. 2023, arXiv:2206.04040, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qcompiler.calibration.gaussian import Gaussian
from qcompiler.calibration.statistics import set_statistics, statistics_of
from qcompiler.ir.events import Message, Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops.layers import Layer
from qcompiler.ops.quantizers import is_leaf, leaf_tensor
from qcompiler.passes.base import Pass, PassContext, only_user
from qcompiler.passes.common.branch_noise import noise_apart, noise_merged
from qcompiler.passes.common.branches import Branch, Merged, branch_of, identity, layers_of, merged
from qcompiler.passes.common.equalization import SHARED_PARAMETERS, parameter_readers
from qcompiler.validation.contracts import THRESHOLDS, Contract

MERGED = Sentence("branches-merged", "includes {branches: and }, which read the same input and are added")
OTHER_READERS = Sentence("branch-has-other-readers", "{layer} has other readers than the sum")
NOT_ALIGNED = Sentence("branches-not-aligned", "the windows of {layers: and } do not fit into one window")
MORE_WORK = Sentence("branches-need-more-work", "one layer for {layers: and } would have more weights than all of them")
MORE_NOISE = Sentence(
    "branches-have-less-noise",
    "one grid for the weights of {layers: and } would raise the expected noise by {decibels:.1f} dB",
)


@dataclass(frozen=True)
class MergeBranches(Pass):
    """One layer in place of several that read one input and are added.

    Refuses: layers with other readers or shared parameters; windows with different dilations or ends; a merged layer
    with more weights than its branches; and, with a target, a merged layer with more expected noise.
    """

    name: ClassVar[str] = "merge-branches"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.CANONICAL})
    requires: ClassVar[frozenset[str]] = frozenset({"batch-norm-folded"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"weight-ranges", "activation-ranges"})

    @property
    def contract(self) -> Contract:
        """Sums of products are computed in another order, and weights are rounded once more."""
        return THRESHOLDS[self.name]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        rewriter = context.rewriter(graph)
        readers = parameter_readers(graph)
        roots = [node for node in graph.nodes if _is_sum(node) and not _continues(node)]
        for root in roots:
            sums, terms = _terms(root)
            for branches in _parallel(root, terms, readers, rewriter):
                constants = _constants(terms, branches[0])
                if len(branches) > 1 or constants:
                    _merge_all(branches, constants, sums, context, rewriter)
                    terms = [value for value in terms if value not in constants]
        context.record.metrics.update(merged=sum(event.code == MERGED.code for event in context.record.events))


def _is_sum(node: Node) -> bool:
    """Whether `node` adds two tensors of one shape, or a constant to a tensor."""
    if node.op != "add" or all(map(is_leaf, node.inputs)):
        return False
    return all(is_leaf(value) or value.type == node.output.type for value in node.inputs)


def _continues(node: Node) -> bool:
    """Whether the only reader of a sum is another one."""
    user = only_user(node)
    return user is not None and _is_sum(user) and user.inputs.count(node.output) == 1


def _terms(root: Node) -> tuple[set[Node], list[Value]]:
    """The additions that end in `root`, and the values that they add up, from left to right."""
    sums, found = {root}, list[Value]()
    waiting = list(reversed(root.inputs))
    while waiting:
        value = waiting.pop()
        producer = value.producer
        if producer is not None and _is_sum(producer) and _continues(producer):
            sums.add(producer)
            waiting += reversed(producer.inputs)
        else:
            found.append(value)
    return sums, found


def _parallel(
    root: Node, terms: Sequence[Value], readers: Mapping[Value, int], rewriter: Rewriter
) -> Iterator[list[Branch]]:
    """The branches of a sum, by input and kind, those with the largest weights first."""
    found: dict[tuple[object, ...], list[Branch]] = {}
    for value in terms:
        branch = branch_of(value) if terms.count(value) == 1 else None
        if branch is not None:
            found.setdefault((branch.source, len(branch.taps), branch.stride), []).append(branch)
    for branches in found.values():
        usable = []
        for branch in branches:
            reason = _reason(branch, readers)
            if reason is None:
                usable.append(branch)
            elif len(branches) > 1 or branch.source in terms:
                assert branch.node is not None, "only a layer is refused"
                rewriter.refuse(branch.node, reason)
        layers = [branch for branch in usable if Layer.of(branch.node) is not None]
        if not layers:
            continue
        layers.sort(key=lambda branch: -branch.kernel.numel())  # stable
        along_first = Layer(_node(layers[0])).input_axis == 1
        factors = [branch for branch in usable if Layer.of(branch.node) is None and along_first]
        source = layers[0].source
        plain = terms.count(source) == 1 and source.type == root.output.type and set(layers[0].stride) <= {1}
        yield [*layers, *factors, *([identity(source, layers[0])] if plain else [])]


def _constants(terms: Sequence[Value], branch: Branch) -> dict[Value, Tensor]:
    """The constants of a sum with one number, or one per channel of a layer: float64 [channels]."""
    layer = Layer(_node(branch))
    found: dict[Value, Tensor] = {}
    for value in terms:
        if not is_leaf(value) or terms.count(value) > 1:
            continue
        tensor = leaf_tensor(value).to(torch.float64)
        shape = [1] * (layer.node.output.type.rank - tensor.dim()) + list(tensor.shape)
        if all(size == 1 or axis == layer.output_axis for axis, size in enumerate(shape)):
            found[value] = tensor.reshape(-1).expand(layer.outputs)
    return found


def _reason(branch: Branch, readers: Mapping[Value, int]) -> Message | None:
    """The reason why a branch cannot be merged."""
    for node in layers_of(branch):
        if only_user(node) is None:
            return OTHER_READERS(layer=node.name)
        if any(is_leaf(value) and readers.get(value, 0) > 1 for value in node.inputs[1:]):
            return SHARED_PARAMETERS(layer=node.name)
    return None


def _node(branch: Branch) -> Node:
    assert branch.node is not None, "the branch is a layer"
    return branch.node


def _merge_all(
    branches: Sequence[Branch],
    constants: Mapping[Value, Tensor],
    sums: Collection[Node],
    context: PassContext,
    rewriter: Rewriter,
) -> None:
    """Merge branches, as many as possible into each layer, and add the constants to the bias of the first."""
    waiting = list(branches)
    while waiting and Layer.of(waiting[0].node) is not None:
        chosen, others = [waiting[0]], []
        for branch in waiting[1:]:
            reason = _declined([*chosen, branch], context)
            if reason is None:
                chosen.append(branch)
            else:
                others.append(branch)
                rewriter.refuse(_node(chosen[0]), reason)
        whole = merged(chosen)
        if whole is not None and (len(chosen) > 1 or constants):
            _replace(chosen, whole, constants, sums, rewriter)
            constants = {}
        waiting = others


def _declined(branches: Sequence[Branch], context: PassContext) -> Message | None:
    """The reason why branches stay apart."""
    names = tuple(branch.name for branch in branches)
    whole = merged(branches)
    if whole is None:
        return NOT_ALIGNED(layers=names)
    if whole.kernel.numel() > sum(branch.kernel.numel() for branch in branches):
        return MORE_WORK(layers=names)
    target, op = context.target, _node(branches[0]).op
    if target is None or not target.supports(op):
        return None
    together, apart = noise_merged(whole, op, target), noise_apart(branches, op, target)
    if together > apart > 0.0:
        return MORE_NOISE(layers=names, decibels=10.0 * math.log10(together / apart))
    return None


def _replace(
    branches: Sequence[Branch],
    whole: Merged,
    constants: Mapping[Value, Tensor],
    sums: Collection[Node],
    rewriter: Rewriter,
) -> None:
    """Put the sum of the branches into the first, and remove the others from the sum."""
    first = branches[0]
    node = _node(first)
    layer = Layer(node)
    moments = [None if branch.node is None else statistics_of(branch.node) for branch in branches]
    names = (*(branch.name for branch in branches[1:]), *(value.name for value in constants))
    origins = list(node.origins)
    for branch in branches[1:]:
        origins += _remove(branch.value, sums, rewriter)
        origins += _erase(layers_of(branch), rewriter)
    for value in constants:
        origins += _remove(value, sums, rewriter)
        if value.producer is not None and not value.users and not rewriter.graph.is_output(value):
            rewriter.erase(value.producer)
    kernel = whole.kernel.flatten(3) if layer.kernel else whole.kernel.unsqueeze(3)
    weight = kernel.flatten(0, 1).reshape(layer.outputs, -1, *whole.kernel.shape[3:]).to(torch.float32)
    rewriter.replace_input(node, 1, rewriter.set_tensor(node.inputs[1], weight, before=node, like=node))
    bias = sum(constants.values(), whole.bias).to(torch.float32)
    if len(node.inputs) > 2:
        rewriter.replace_input(node, 2, rewriter.set_tensor(node.inputs[2], bias, before=node, like=node))
    elif bool(bias.any()):
        rewriter.add_input(node, rewriter.leaf("parameter", bias, ref=f"{node.name}.bias", before=node, like=node))
    if layer.kernel:
        rewriter.set_attributes(node, padding=whole.padding, dilation=whole.dilation, groups=whole.kernel.shape[0])
    known = [item for item in moments if item is not None]
    if len(known) == len(branches):
        # Results of the branches as if they were independent, as other rules for sums take them.
        variance = torch.stack([item.std.square() for item in known]).sum(0)
        # Another name than that of a batch norm: training does not unfold a batch norm from several branches.
        name = rewriter.graph.module.unique_tensor_name(f"{node.name}.merged.statistics")
        rewriter.set_attributes(node, statistics=name)
        mean = sum(constants.values(), torch.stack([item.mean for item in known]).sum(0).to(torch.float64))
        set_statistics(node, Gaussian(mean, variance.sqrt()))
    elif moments[0] is not None:
        rewriter.set_attributes(node, statistics=None)
    node.origins = tuple(dict.fromkeys(origins))
    rewriter.note(node, MERGED(branches=names))


def _remove(value: Value, sums: Collection[Node], rewriter: Rewriter) -> tuple[str, ...]:
    """Remove a term from its sum; return the origins of the addition."""
    add = next(user for user in value.users if user in sums)
    rewriter.replace(add, next(item for item in add.inputs if item is not value))
    return add.origins


def _erase(nodes: Iterable[Node], rewriter: Rewriter) -> Iterator[str]:
    """Erase nodes and the tensors that only they read; return their origins."""
    for node in nodes:
        leaves = [item.producer for item in node.inputs if is_leaf(item)]
        rewriter.erase(node)
        for leaf in dict.fromkeys(leaves):
            if leaf is not None and not leaf.output.users and not rewriter.graph.is_output(leaf.output):
                rewriter.erase(leaf)
        yield from node.origins

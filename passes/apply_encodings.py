"""Set the scales and zero points of quantizers from encodings; calibration does not change them.

    fq(x, NaN, 0) {s8}, "x.q": 8 bits, scale s, offset o        becomes        fq(x, s, -o - 128) {s8}

The width of an encoding replaces the width of the quantizer if the target supports it. A moved value, such as the
result of a max pooling, has the grid of its source. If its encoding has another grid, a quantizer is inserted after it,
which lowers to a rescale:

    max_pool2d(fq(x, s, z))        becomes        fq(max_pool2d(fq(x, s, z)), s', z')

A concat may read copies of its operands on another grid; see `unify-scales`. The encodings of this package name them:

    concat(fq(x, s, z), ...), "concat.input0.q"        becomes        concat(fq(fq(x, s, z), s', z'), ...)

A model that has been quantized already brings quantizers of its own, where the target may have none: any node may read
such a copy, and between the members of a supergroup a quantizer is inserted, unless the next one has the same grid:

    fq(relu(conv(x)))        becomes        fq(relu(fq(conv(x), s, z)))

A grid of such a model that the target lacks is left out and listed; `check-encodings` refuses it, or calibrates the
tensor.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qcompiler.errors import EncodingsError, TargetError
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops.movement import joins
from qcompiler.ops.quantizers import leaf_tensor, quantizer_of, quantizes_parameter
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.encoding_names import Names, Role
from qcompiler.passes.common.fixed_grids import fixed_grid, is_dictated
from qcompiler.passes.common.own_grids import name_of_copy, put_quantizer_after, put_quantizer_before
from qcompiler.quant.affine import along_axis
from qcompiler.quant.encoding import Encoding, Encodings
from qcompiler.quant.spec import QuantSpec
from qcompiler.targets import Target
from qcompiler.validation.contracts import THRESHOLDS, Contract

APPLIED = Sentence("encoding-applied", "uses the encoding of {tensor!r}")
APPLIED_TO_ALL = Sentence(
    "encoding-applied-to-all-channels", "uses the encoding of {tensor!r}, one scale for all channels"
)
OWN_GRID = Sentence("own-grid", "the encodings give this value its own grid")
GIVEN_COPY = Sentence("given-copy", "the encodings give {reader} a copy with its own grid")
INSERTED = Sentence("own-quantizer", "the model has a quantizer here")
SAME_GRID = Sentence("same-grid", "the quantizer of {tensor!r} in the model has the grid of the next one")
NO_GRID = Sentence("grid-left-out", "the encoding of {tensor!r} has {found}; expected {expected}")
CHANGED = "weights that a pass has changed, such as the folding of a batch norm"
ON_GRID = 1e-2
"""Largest distance of a weight from a code, in steps: float32 numbers of up to 16 bits are within 2^-8."""
LOWEST_WEIGHTS = Sentence(
    "lowest-weights", "weights on code {code} of the encoding: {count}; {target} begins at {first}"
)


@dataclass(frozen=True)
class ApplyEncodings(Pass):
    """Grids from the encodings of the context, by name. Tensors without an encoding are unchanged.

    Biases are unchanged: their scale is the product of input and weight scales. `check-encodings` compares biases, and
    lists the names that match no tensor.

    Raises:
        EncodingsError: Two encodings of one tensor differ, or the target has no such grid.
    """

    name: ClassVar[str] = "apply-encodings"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"quantizers"})
    establishes: ClassVar[frozenset[str]] = frozenset({"encodings"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"fixed-ranges", "ties"})

    @property
    def contract(self) -> Contract:
        """Values are rounded to the given grids."""
        return THRESHOLDS["calibrate"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        target = context.require_target(self.name)
        encodings = context.require_encodings(self.name)
        _Application(graph, encodings, target, context.rewriter(graph)).run()


class _Application:
    def __init__(self, graph: Graph, encodings: Encodings, target: Target, rewriter: Rewriter) -> None:
        self.graph = graph
        self.target = target
        self.rewriter = rewriter
        self.given: dict[Node, Encoding] = {}
        """The encoding of each quantizer."""
        self.moved: dict[Node, Encoding] = {}
        self.after: dict[Node, Encoding] = {}
        self._insert_copies(encodings)
        names = Names(graph, encodings.by_name)
        self.places = [(item, place) for item in encodings.tensors for place in names.find(item.name)]
        self.own = encodings.own
        if encodings.own:
            self._insert_hidden(encodings, names)

    def run(self) -> None:
        for item, place in self.places:
            if place.role in (Role.ACTIVATION, Role.PARAMETER):
                self._give_if_held(place.node, item)
            elif place.role in (Role.MOVED, Role.AFTER):
                table = self.moved if place.role is Role.MOVED else self.after
                _check_same(table.setdefault(place.node, item), item)
        for node in self.graph.nodes:
            if node.definition.has(Trait.MOVEMENT):
                self._move(node)

    def _insert_copies(self, encodings: Encodings) -> None:
        """Insert the copies that the encodings name."""
        given = encodings.by_name
        known = {node.name for node in self.graph.nodes}
        for node in self.graph.nodes:
            if not joins(node) and not encodings.own:
                continue
            for index, value in enumerate(node.inputs):
                name = name_of_copy(node, index)
                if name in given and name not in known and quantizer_of(value) is not None:
                    copy = put_quantizer_before(node, index, self.target.activation_spec(), self.rewriter)
                    self.rewriter.note(copy, GIVEN_COPY(reader=node.name))

    def _insert_hidden(self, encodings: Encodings, names: Names) -> None:
        """Insert the quantizers of the model within supergroups."""
        nodes = {node.name: node for node in self.graph.nodes}
        given = encodings.by_name
        for item in encodings.tensors:
            node = nodes.get(item.name)
            if node is None or names.find(item.name) or len(node.output.users) != 1:
                continue
            follower = next(iter(node.output.users))
            following = given.get(follower.name)
            if not follower.definition.has(Trait.ACTIVATION):
                continue
            if following is not None and following.same_grid(item):
                self.rewriter.note(node, SAME_GRID(tensor=item.name))
                continue
            quantizer = put_quantizer_after(node, self.target.activation_spec(), self.rewriter)
            self.rewriter.note(quantizer, INSERTED())
            self._give_if_held(quantizer, item)

    def _give_if_held(self, quantizer: Node, item: Encoding) -> None:
        """Put `quantizer` on the grid of `item`; leave out a grid of the model itself that the target lacks."""
        if not self.own:
            self._give(quantizer, item)
            return
        try:
            self._give(quantizer, item)
        except EncodingsError as error:
            self.given.pop(quantizer, None)
            found = error.found.partition(" has ")[2] or error.found
            self.rewriter.refuse(quantizer, NO_GRID(tensor=item.name, found=found, expected=str(error.expected)))

    def _move(self, node: Node) -> None:
        """Give a moved value the grid of its source, or its own grid."""
        if node in self.after:
            self._insert(node, self.after[node])
            return
        item = self.moved.get(node)
        if item is None:
            return
        sources = list(dict.fromkeys(filter(None, (quantizer_of(value) for value in node.inputs))))
        loose = [source for source in sources if not is_dictated(source, self.target)]
        for source in loose:
            if source not in self.given:
                self._give_if_held(source, item)
        # Operands with a grid fixed by the target are rescaled to the others; see `unify-scales`.
        grids = [self.given[source] for source in loose if source in self.given] or [
            self._dictated(source) for source in sources
        ]
        if any(not grid.same_grid(item) for grid in grids):
            self._insert(node, item)

    def _dictated(self, quantizer: Node) -> Encoding:
        """The grid that the target fixes for `quantizer`."""
        fixed, spec = fixed_grid(quantizer, self.target), quantizer.spec
        assert fixed is not None, "the target fixes no grid here"
        zero_point = fixed.zero_point - spec.qmin + int(spec.narrow)
        return Encoding(quantizer.name, spec.bits, (fixed.scale,), (zero_point,))

    def _insert(self, node: Node, item: Encoding) -> None:
        """Insert a quantizer after `node` for all its users."""
        spec = self._in_width(item, self.target.activation_spec(), weight_of=None)
        quantizer = put_quantizer_after(node, spec, self.rewriter)
        self.rewriter.note(quantizer, OWN_GRID())
        self._give_if_held(quantizer, item)

    def _give(self, quantizer: Node, item: Encoding) -> None:
        """Put `quantizer` on the grid of `item`."""
        if quantizer in self.given:
            _check_same(self.given[quantizer], item)
            return
        self.given[quantizer] = item
        value, layer = quantizer.inputs[0], _layer(quantizer)
        spec = self._in_width(item, quantizer.spec, layer.op if layer else None)
        channels = None if spec.axis is None else value.type.size(spec.axis)
        if item.axis is not None:
            item = dataclasses.replace(item, axis=item.axis % max(value.type.rank, 1))
        scale, zero_point = item.on(spec, channels, self.target.name)
        if self.own and layer is not None and not _is_on_grid(leaf_tensor(value), scale, spec):
            raise item.misfit(CHANGED, "the weights of the file")
        self.rewriter.set_attributes(quantizer, spec=spec)
        self.rewriter.write_tensor(quantizer.inputs[1], scale)
        self.rewriter.write_tensor(quantizer.inputs[2], zero_point)
        if spec.block and channels is not None:
            factors = quantizer.inputs[3]
            sizes = (channels, factors.type.size(1))
            self.rewriter.write_tensor(factors, item.factors_on(spec, sizes, self.target.name))
        sentence = APPLIED_TO_ALL if channels is not None and not item.per_channel else APPLIED
        self.rewriter.note(quantizer, sentence(tensor=item.name))
        if spec.narrow and not item.narrow and layer is not None:
            self._count_lowest(quantizer, spec)

    def _in_width(self, item: Encoding, own: QuantSpec, weight_of: str | None) -> QuantSpec:
        """The grid of the quantizer with the width of the encoding.

        Raises:
            EncodingsError: The target has no such width, or an override selects another one.
        """
        if item.bits == own.bits:
            return own
        default = self.target.activation_spec() if weight_of is None else self.target.weight_spec(weight_of, 0)
        if own.bits != default.bits:
            raise item.misfit(f"{item.bits} bits", f"{own.bits} bits, as the override says")
        try:
            if weight_of is None:
                self.target.activation_spec(bits=item.bits)
            else:
                self.target.weight_spec(weight_of, 0, bits=item.bits)
        except TargetError as error:
            raise item.misfit(f"{item.bits} bits", f"{error.expected}, the widths of {self.target.name}") from None
        return dataclasses.replace(own, bits=item.bits)

    def _count_lowest(self, quantizer: Node, spec: QuantSpec) -> None:
        """Report the number of weights with a code that the file's grid has but the target's grid lacks."""
        weight, scale = leaf_tensor(quantizer.inputs[0]), leaf_tensor(quantizer.inputs[1])
        steps = weight.to(torch.float64) / along_axis(scale.to(torch.float64), weight.dim(), spec.axis)
        count = int((steps < spec.qmin - 0.5).sum())
        if count:
            message = LOWEST_WEIGHTS(count=count, code=spec.qmin - 1, target=self.target.name, first=spec.qmin)
            self.rewriter.refuse(quantizer, message)


def _check_same(first: Encoding, second: Encoding) -> None:
    if not first.same_grid(second):
        raise EncodingsError(
            f"the encodings of {first.name!r} and {second.name!r} belong to one tensor but differ",
            expected="one grid",
            fix="Remove one of them.",
        )


def _is_on_grid(weight: Tensor, scale: Tensor, spec: QuantSpec) -> bool:
    """Whether all weights are codes."""
    steps = weight.to(torch.float64) / along_axis(scale.to(torch.float64), weight.dim(), spec.axis)
    return bool(((steps - steps.floor() - 0.5).abs() >= 0.5 - ON_GRID).all())


def _layer(quantizer: Node) -> Node | None:
    """The layer whose weight is quantized; None for other tensors."""
    reader = next(iter(quantizer.output.users), None)
    is_weight = reader is not None and reader.definition.has(Trait.MAC) and reader.inputs[1] is quantizer.output
    return reader if is_weight and quantizes_parameter(quantizer) else None

"""Build the training module of a calibrated QUANTIZED graph: place its tensors and create its quantizers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from qcompiler.calibration.observers import make_observer
from qcompiler.errors import CalibrationError, InputError
from qcompiler.ir.dims import Dim, evaluate_dim, symbols_of
from qcompiler.ir.graph import Module, Node, Value
from qcompiler.ir.homes import home_of
from qcompiler.ir.interpret import LEAVES
from qcompiler.ir.registry import Trait
from qcompiler.ir.to_fx import Source
from qcompiler.ops.dropout import drop
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.ops.quantization import is_calibrated
from qcompiler.ops.quantizers import is_leaf, is_quantizer, leaf_tensor, quantizer_of, quantizes_parameter
from qcompiler.quant.affine import channel_rows, qparams_from_range
from qcompiler.quant.spec import QuantSpec, ScaleKind
from qcompiler.training.batch_norm import BatchNorm, Style
from qcompiler.training.deploy import QuantizedActivation, QuantizedWeight, deployable
from qcompiler.training.gradients import Gradients, check_shared_grids, product_modules
from qcompiler.training.methods import Methods, Role, check_names, is_named, resolve
from qcompiler.training.program import Multiplied, Normalized, Places, Program, write_plain_program, write_program
from qcompiler.training.quantizer import Quantizer
from qcompiler.training.range_estimators import RangeEstimator
from qcompiler.training.ranges import FixedRange, Ranges
from qcompiler.training.tracked import TrackedQuantizer, TrackedRange
from qcompiler.training.unfold import FoldedNorm, norms_of, output_axis, unfold

__all__ = ["Blueprint", "Dropout", "build", "build_plain"]


class Dropout(nn.Module):
    """Dropout in train mode, identity in eval mode; see `ops.dropout`.

    Args:
        p: Probability of an element being zeroed.
        mode: One of `DROPOUT_MODES`.
    """

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout to x, [N, ...]."""
        return drop(x, self.p, self.mode) if self.training and self.p else x

    def gain(self) -> float:
        """The factor by which elements that are kept grow."""
        return 1.0 / (1.0 - self.p) if self.training and self.p < 1.0 else 1.0

    def extra_repr(self) -> str:
        """One line for `repr`."""
        return f"p={self.p}, mode={self.mode}"


@dataclass(frozen=True, eq=False)
class Blueprint:
    """The immutable description of the graph of a module that learns, shared by copies of the module.

    Args:
        graph: Shipped graph at stage QUANTIZED, without dropouts and without tensors, which the module holds.
        fixed: Tensors outside the module.
        paths: Paths of all other tensors in the module, by name in the graph.
        weights: Weight quantizers.
        activations: Activation quantizers.
        source: Text of the forward as torch calls.
        program: The forward as a function.
        products: Paths of the modules of layers with quantized gradients, by name of the layer.
    """

    graph: Module
    fixed: Mapping[str, Tensor]
    paths: Mapping[str, str]
    weights: tuple[QuantizedWeight, ...]
    activations: tuple[QuantizedActivation, ...]
    source: Source
    program: Program
    products: Mapping[str, str] = field(default_factory=dict)

    def __deepcopy__(self, memo: object) -> Blueprint:
        return self

    def __getstate__(self) -> dict[str, object]:
        # A function compiled from text cannot be pickled; `__setstate__` compiles the text again.
        return {name: item for name, item in vars(self).items() if name != "program"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, program=cast("Source", state["source"]).function())


def build(
    root: nn.Module,
    module: Module,
    methods: Methods,
    style: Style,
    norms: Sequence[FoldedNorm],
    *,
    dictated: Collection[str] = (),
    still: Collection[str] = (),
    float_norms: bool = False,
    multiplies_channels: Callable[[str], bool] | None = None,
    ranges: RangeEstimator | None = None,
    starts: bool = True,
    gradients: Gradients | None = None,
) -> Blueprint:
    """Give `root` the tensors and quantizers of a graph.

    Args:
        root: Module without parameters and buffers.
        module: Calibrated module at stage QUANTIZED, with dropouts and with activations before their quantizers.
        methods: Training methods of the quantizers.
        style: Treatment of batch norms.
        norms: Batch norms of the model before folding.
        dictated: Names of quantizers whose scale and zero point the target fixes; these never learn.
        still: Names of model parameters with `requires_grad=False`.
        float_norms: Whether `keep` leaves batch norms in float permanently, so that weights may have one scale.
        multiplies_channels: Whether the target has a multiplier per channel for an op, so that `keep` may fold batch
            norms into the scales of weights that share one scale in training; None: it may not.
        ranges: Estimator of the ranges of activations; None: the methods decide.
        starts: Whether such ranges start as calibrated; otherwise the first batch gives them. Grids that several
            tensors share always start as calibrated.
        gradients: Settings of quantized gradients; None: gradients are in float.

    Raises:
        CalibrationError: A quantizer has no range.
        InputError: A method is unknown or does not fit a quantizer, or `keep` is used with one scale per weight.
        UnsupportedError: An estimator of ranges, or products on codes, cannot serve the graph.
    """
    builder = _Builder(root, module, methods, style, dictated, still, float_norms)
    builder.multiplies_channels, builder.gradients = multiplies_channels, gradients
    builder.ranges = None if ranges is None else TrackedRange(ranges, starts)
    return builder.run(norms)


def build_plain(root: nn.Module, module: Module) -> Blueprint:
    """Give `root` the tensors of a graph under their own names.

    Scales are parameters with `requires_grad=False`: without a training method nothing keeps an optimizer from moving a
    scale to 0 or below, where no code has a value. `prepare_qat` gives scales a method.

    Args:
        root: Module without parameters and buffers.
        module: Calibrated module at stage QUANTIZED.
    """
    graph = module.clone({})
    # A tensor without a reader, such as a scale that unify-scales replaced, never gets a gradient: it must not be a
    # parameter.
    learns = {
        node.text("ref"): not any(is_quantizer(user) and user.inputs[1] is node.output for user in node.output.users)
        for called in graph.graphs.values()
        for node in called.nodes
        if node.op == "parameter" and (node.output.users or called.is_output(node.output))
    }
    paths = {
        name: _register(root, name, tensor, module.tensors, learns=learns.get(name))
        for name, tensor in module.tensors.items()
    }
    calls, program = write_plain_program(graph.main, paths)
    return Blueprint(graph, {}, paths, (), (), Source.of(calls), program)


@dataclass
class _Weight:
    """A weight quantizer in the graph."""

    quantizer: Node
    layer: Node
    normalized: Normalized | None = None
    own_bias: str | None = None

    @property
    def spec(self) -> QuantSpec:
        return self.quantizer.spec

    @property
    def ref(self) -> str:
        """Name of the weight."""
        return _ref(self.quantizer.inputs[0])

    @property
    def bias(self) -> Value | None:
        """The bias that the bias quantizer reads."""
        maker = self.layer.inputs[2].producer if len(self.layer.inputs) > 2 else None
        if maker is not None and maker.definition.has(Trait.BIAS_QUANTIZER):
            return maker.inputs[0]
        return self.layer.inputs[2] if len(self.layer.inputs) > 2 and is_leaf(self.layer.inputs[2]) else None


class _Builder:
    def __init__(
        self,
        root: nn.Module,
        module: Module,
        methods: Methods,
        style: Style,
        dictated: Collection[str],
        still: Collection[str],
        float_norms: bool,
    ) -> None:
        self.root, self.module, self.graph = root, module, module.main
        self.methods, self.style, self.float_norms = methods, style, float_norms
        self.dictated, self.still = frozenset(dictated), frozenset(still)
        self.taken = set(module.tensors)
        self.paths: dict[str, str] = {}
        """Paths of tensors in the root module, by name."""
        self.absorbed: set[str] = set()
        """Names of biases that are computed from batch norms."""
        self.grids: dict[str, Tensor] = {}
        """Scales that replace those of the graph, by name."""
        self.tracked: set[str] = set()
        """Names of the scales whose quantizers collect statistics."""
        self.multiplies_channels: Callable[[str], bool] | None = None
        self.ranges: TrackedRange | None = None
        self.gradients: Gradients | None = None

    def run(self, norms: Sequence[FoldedNorm]) -> Blueprint:
        quantizers = [node for node in self.graph.nodes if is_quantizer(node)]
        weights = self._weights()
        if self.style != "fold":
            self._take_out_all(weights, norms)
        paths = self._quantizers(quantizers, weights)
        # Quantizers hold scales, zero points and factors.
        holders = [*quantizers, *(node for node in self.graph.nodes if node.op == "quantize_gradient")]
        grids = {_ref(value) for node in holders for value in node.inputs[1:]}
        self._tensors(grids)
        normalized = {item.layer.name: item.normalized for item in weights.values() if item.normalized is not None}
        products = self._products()
        places = Places(self.paths, paths, self._dropouts(), normalized, frozenset(self.tracked), products)
        calls, program = write_program(self.graph, places)

        widened = {
            node.name: item.normalized.axis
            for node, item in weights.items()
            if item.normalized is not None and self._widens(item)
        }
        shipped = deployable(self.module, widened)
        own = {node.name: node for node in shipped.main.nodes if quantizes_parameter(node)}
        quantized = tuple(self._quantized(item, own[node.name], paths) for node, item in weights.items())
        activations = {
            _ref(node.inputs[1]): QuantizedActivation(
                paths[_ref(node.inputs[1])], _ref(node.inputs[1]), _ref(node.inputs[2])
            )
            for node in quantizers
            if node not in weights
        }
        made = {item.weight for item in quantized} | self.absorbed
        grids |= {name for item in quantized for name in (item.scale, item.zero_point)}
        kept = {name: path for name, path in self.paths.items() if name in shipped.tensors and name not in made}
        known = {*made, *kept, *grids}
        fixed = {name: tensor for name, tensor in shipped.tensors.items() if name not in known}
        source = Source.of(calls)
        modules = {name: item.path for name, item in products.items()}
        return Blueprint(
            shipped.clone({}), fixed, kept, quantized, tuple(activations.values()), source, program, modules
        )

    def _weights(self) -> dict[Node, _Weight]:
        """Weight quantizers and their layers, by quantizer node."""
        found = {}
        for node in self.graph.nodes:
            quantizer = Layer(node).quantizer if is_weighted(node) else None
            if quantizes_parameter(quantizer):
                found[quantizer] = _Weight(quantizer, node)
        return found

    def _take_out_all(self, weights: Mapping[Node, _Weight], norms: Sequence[FoldedNorm]) -> None:
        """Unfold batch norms from the layers that share neither weight nor bias."""
        layers = {item.layer: item for item in weights.values()}
        for layer, norm in norms_of(self.graph, norms).items():
            item = layers.get(layer)
            if item is None or item.bias is None:
                continue
            if any(sum(value.users.values()) != 1 for value in (item.quantizer.inputs[0], item.bias)):
                continue
            if self.style == "keep":
                self._check_keep(item)
            self._take_out(item, norm)

    def _check_keep(self, item: _Weight) -> None:
        if self.float_norms or self._widens(item):
            return
        if item.spec.axis is None:
            expected = "a scale per output channel, into which the batch norm is folded after training"
        elif item.spec.scale_kind is ScaleKind.POW2:
            expected = "float scales, because the folded batch norm makes a scale other than a power of two"
        else:
            return
        raise InputError(
            f"batch_norm='keep' is not possible for the weight quantizer '{item.spec}'",
            where=item.quantizer.where,
            expected=expected,
            fix="Use another target, such as one with per_channel=True, or batch_norm='fold'.",
        )

    def _widens(self, item: _Weight) -> bool:
        """Whether a batch norm makes the one scale of a trained weight a scale per channel of the shipped weight.

        The codes stay, and the gains of the batch norm become part of the multipliers of the channels.
        """
        fits = item.spec.axis is None and item.spec.scale_kind is ScaleKind.FLOAT
        if self.style != "keep" or self.float_norms or not fits or self.multiplies_channels is None:
            return False
        return self.multiplies_channels(item.layer.op)

    def _take_out(self, item: _Weight, norm: FoldedNorm) -> None:
        assert item.bias is not None
        axis, bias_ref, tensors = cast("int", output_axis(item.layer)), _ref(item.bias), self.module.tensors
        parts = unfold(item.layer, norm, tensors[item.ref], tensors[bias_ref], axis)
        self._hold(item.ref, parts.weight, "parameter")
        self.absorbed.add(bias_ref)
        if norm.bias is not None:
            item.own_bias = self._hold(bias_ref, norm.bias, "parameter")
        if self.style == "keep":
            self.grids[_ref(item.quantizer.inputs[1])] = self._grid_of(item, parts.weight, parts.gain)
        module = BatchNorm(
            parts.gamma, parts.beta, parts.mean, parts.variance, norm.eps, norm.momentum, learns=norm.learns
        )
        item.normalized = Normalized(self._place(norm.name, module), self.style, axis)

    def _grid_of(self, item: _Weight, weight: Tensor, gain: Tensor) -> Tensor:
        """The scale of a weight after unfolding its batch norm; with a scale per channel the codes stay the same."""
        if item.spec.axis is None:
            observer = make_observer("mse", item.spec, item.quantizer.name)
            observer.update(weight, index=0)
            return qparams_from_range(*observer.range(), item.spec)[0]
        scale = leaf_tensor(item.quantizer.inputs[1]).to(torch.float64)
        largest = channel_rows(weight, item.spec.axis).abs().amax(1).to(torch.float64)
        spare = torch.where(largest > 0, largest / item.spec.qmax, torch.ones_like(largest))
        size = gain.abs()
        return torch.where(size > 0, scale / size.clamp(min=torch.finfo(torch.float32).tiny), spare).to(torch.float32)

    def _quantizers(self, nodes: Sequence[Node], weights: Mapping[Node, _Weight]) -> dict[str, str]:
        """Create one quantizer per scale; returns their paths by name of the scale."""
        groups: dict[str, list[Node]] = {}
        for node in nodes:
            groups.setdefault(_ref(node.inputs[1]), []).append(node)
        names_of = {
            ref: tuple(dict.fromkeys(name for node in members for name in _names(node, weights.get(node))))
            for ref, members in groups.items()
        }
        check_names(self.methods, names_of.values())
        paths = {}
        for ref, members in groups.items():
            first, names = members[0], names_of[ref]
            scale = self.grids.get(ref, leaf_tensor(first.inputs[1]))
            if not is_calibrated(scale):
                raise CalibrationError(
                    "the quantizer has no range yet",
                    where=first.where,
                    fix="Pass calibration_data, and use passes that find ranges.",
                )
            role: Role = "weights" if first in weights else "activations"
            method = resolve(self.methods, role, names)
            ranges = self._range_of(members, names, method.ranges, role)
            kind = Quantizer
            if isinstance(ranges, TrackedRange):
                check_shared_grids(members, ranges.estimator)
                self.tracked.add(ref)
                kind = TrackedQuantizer
            quantizer = kind(
                first.spec,
                ranges,
                method.estimator,
                scale,
                leaf_tensor(first.inputs[2]),
                gradient_scale=method.gradient_scale,
                shared=_shared(members),
                factors=leaf_tensor(first.inputs[3]) if len(first.inputs) > 3 else None,
            )
            paths[ref] = self._place(self._quantizer_name(ref), quantizer)
        return paths

    def _range_of(self, members: Sequence[Node], names: Sequence[str], own: Ranges, role: Role) -> Ranges:
        """The range of quantizers with one grid, for which the method has `own`."""
        if any(node.name in self.dictated for node in members):
            return FixedRange()  # a grid fixed by the target never moves
        if is_named(self.methods, names):
            return own
        if self.ranges is not None and role == "activations":
            return dataclasses.replace(self.ranges, starts=self.ranges.starts or len(members) > 1)
        # The grid of a model input learns only if a method names it.
        return FixedRange() if _reads_the_model_input(members) else own

    def _products(self) -> dict[str, Multiplied]:
        """Create the modules of layers whose gradients are quantized; returns their places by name of the layer."""
        if self.gradients is None:
            return {}
        place = next((tensor.device for tensor in self.module.tensors.values()), torch.device("cpu"))
        found = {}
        for node, module, reads_x, reads_w in product_modules(self.graph, self.gradients, place):
            found[node.name] = Multiplied(self._place(f"{node.name}.products", module), reads_x, reads_w)
        return found

    def _quantizer_name(self, ref: str) -> str:
        """`conv.weight.scale` -> `conv.weight_quantizer`; `conv.scale_1` -> `conv.quantizer_1`."""
        stem, _, rest = ref.rpartition(".scale")
        return f"{stem}_quantizer{rest}" if stem in self.taken else f"{stem}.quantizer{rest}"

    def _tensors(self, grids: Collection[str]) -> None:
        for graph in self.module.graphs.values():
            for node in graph.nodes:
                # Leaves without users remain, such as scales that unify-scales replaced.
                is_read = node.op in LEAVES and (node.output.users or graph.is_output(node.output))
                ref = _ref(node.output) if is_read else ""
                if ref and ref not in grids and ref not in self.paths and ref not in self.absorbed:
                    self._hold(ref, self.module.tensors[ref], node.op)

    def _hold(self, ref: str, tensor: Tensor, op: str) -> str:
        """Register `tensor` as a parameter or buffer under its own name; returns its path."""
        learns = ref not in self.still if op == "parameter" else None
        self.paths[ref] = _register(self.root, ref, tensor, self.taken, learns=learns)
        return self.paths[ref]

    def _place(self, name: str, module: nn.Module) -> str:
        """Add `module` to the root under `name` or a similar free name; returns its path."""
        home, leaf = home_of(self.root, name, self.taken)
        while hasattr(home, leaf):
            leaf = f"{leaf}_"
        home.add_module(leaf, module)
        return _path_of(self.root, home, leaf)

    def _dropouts(self) -> dict[str, str]:
        found = {}
        for graph in self.module.graphs.values():
            for node in graph.nodes:
                if node.op == "dropout":
                    p, mode = node.number("p"), node.text("mode")
                    found[node.name] = self._place(node.name, Dropout(p, mode))
        return found

    def _quantized(self, item: _Weight, shipped: Node, quantizers: Mapping[str, str]) -> QuantizedWeight:
        scale = _ref(item.quantizer.inputs[1])
        source = quantizer_of(item.layer.inputs[0])
        return QuantizedWeight(
            item.layer.name,
            quantizers[scale],
            self.paths[item.ref],
            _ref(shipped.inputs[0]),
            _ref(shipped.inputs[1]),
            _ref(shipped.inputs[2]),
            _ref(item.quantizer.inputs[3]) if len(item.quantizer.inputs) > 3 else None,
            output_axis(item.layer),
            None if source is None else _ref(source.inputs[1]),
            None if item.bias is None else _ref(item.bias),
            item.own_bias,
            item.normalized,
        )


def _shared(members: Sequence[Node]) -> int:
    """The number of elements of one sample that share one scale of these quantizers.

    LSQ counts the weights of a layer, or the features of its input for one sample (Esser et al. 2020,
    arXiv:1902.08153, section 2.2). Tensors with one common scale, such as the parts of a concatenation, are counted
    together.
    """
    axis = members[0].spec.axis
    batch = _fixed_batch(members[0])
    count = 0
    for value in {id(node.inputs[0]): node.inputs[0] for node in members}.values():
        shape = [_at_one_sample(dim) for dim in value.type.shape]
        if batch > 1 and not is_leaf(value) and shape and shape[0] % batch == 0:
            shape[0] //= batch
        count += math.prod(shape) // (1 if axis is None else shape[axis])
    return max(1, count)


def _fixed_batch(node: Node) -> int:
    """The batch size of a model captured for a fixed batch size; 1 where the batch axis is symbolic."""
    shapes = [value.type.shape for value in node.graph.inputs]
    if any(symbols_of(dim) for shape in shapes for dim in shape):
        return 1
    leading = {_at_one_sample(shape[0]) for shape in shapes if shape}
    return leading.pop() if len(leading) == 1 else 1


def _at_one_sample(dim: Dim) -> int:
    return max(1, evaluate_dim(dim, {item.name: 1 for item in symbols_of(dim)}))


def _ref(value: Value) -> str:
    leaf = value.producer
    assert leaf is not None
    return leaf.text("ref")


FINE_BITS = 8
"""Width from which the range of a model input stays as calibrated.

The inputs of a model do not change during training, and learning this range would need the gradient of the input: on
images of 224 x 224 that costs a tenth of a step of ResNet-18.
"""


def _reads_the_model_input(members: Sequence[Node]) -> bool:
    """Whether all of these quantizers read model inputs and have at least `FINE_BITS` bits."""
    return all(node.inputs[0].producer is None and node.spec.bits >= FINE_BITS for node in members)


def _names(quantizer: Node, weight: _Weight | None) -> list[str]:
    """Names by which the user can choose a method for the quantizer."""
    source = weight.layer if weight is not None else quantizer.inputs[0].producer
    own = [quantizer.name, quantizer.inputs[0].name]
    if source is None:
        return own
    found = [source.name, *source.origins, source.location.path, *(() if weight is None else (weight.ref,))]
    return [name for name in (*found, *own) if name]


def _register(root: nn.Module, ref: str, tensor: Tensor, taken: Container[str], *, learns: bool | None) -> str:
    """Register a copy of `tensor` under its own name; returns its path.

    Args:
        root: Module that gets the tensor.
        ref: Name of the tensor.
        tensor: The tensor.
        taken: Names of all tensors.
        learns: Whether the parameter requires a gradient; None: the tensor is a buffer, as integers always are.
    """
    home, leaf = home_of(root, ref, taken)
    value = tensor.detach().clone()
    if learns is not None and value.is_floating_point():
        home.register_parameter(leaf, nn.Parameter(value, requires_grad=learns))
    else:
        home.register_buffer(leaf, value)
    return _path_of(root, home, leaf)


def _path_of(root: nn.Module, home: nn.Module, leaf: str) -> str:
    name = next(name for name, module in root.named_modules() if module is home)
    return f"{name}.{leaf}" if name else leaf

"""A quantized graph as a torch module.

In train mode a forward computes in float with fake quantization, differentiable in every weight and every range. In
eval mode a forward computes on integer codes with the target's arithmetic on the shipped graph, and equals the compiled
module bit for bit. Parameters and buffers keep their names in the model.

The graph itself never changes: both evaluations are functions of it, of the inputs and of the tensors of the module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from qcompiler.errors import InputError, UnsupportedError
from qcompiler.ir import calls
from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Graph, Module
from qcompiler.ir.settings import own_defaults
from qcompiler.ops.biases import fitted
from qcompiler.quant.affine import along_axis
from qcompiler.targets import Target
from qcompiler.training.batch_norm import BatchNorm, Style, batch_norms, process_count, sum_over_processes
from qcompiler.training.build import build, build_plain
from qcompiler.training.deploy import QuantizedWeight, check_scales, deployed_tensors, tensor_at
from qcompiler.training.finite import check_finite
from qcompiler.training.freezing import Freezing, Tracking, freeze
from qcompiler.training.gradients import Gradients
from qcompiler.training.groups import ParameterGroup, parameter_groups
from qcompiler.training.methods import Methods
from qcompiler.training.oscillations import Oscillations
from qcompiler.training.products import LayerProducts
from qcompiler.training.quantizer import Quantizer
from qcompiler.training.range_estimators import RangeEstimator
from qcompiler.training.ranges import hold_signs
from qcompiler.training.regularizers import Latent, Weighted
from qcompiler.training.schedules import as_schedule
from qcompiler.training.tracked import check_known
from qcompiler.training.tracker import RangeTracker, move
from qcompiler.training.unfold import FoldedNorm
from qcompiler.validation.exact import Codes, simulate

__all__ = ["Preparation", "QATModule", "Recipe"]


OPERANDS = ("weights", "activations", "gradients")
"""Operands that quantized training quantizes."""


UNTOLD = 2
"""Changes of the parameters between forwards without a call of `step` from which a loop is warned."""


@dataclass(frozen=True)
class Recipe:
    """The training settings of a module.

    Args:
        method: Training methods of the quantizers; see `training.methods.resolve`.
        batch_norm: Treatment of batch norms after layers; see `training.batch_norm`. `fold`: part of the weights.
        regularizers: Penalties on weights.
        freezing: Settings for freezing oscillating codes; None: no freezing.
        tracking: Settings for tracking oscillations without freezing.
        total_steps: Total number of optimizer steps, for schedules.
        ranges: Estimator of the ranges of activations; None: the method decides.
        starts: Whether these ranges start as calibrated; otherwise the first batch gives them.
        gradients: Settings of quantized gradients; None: gradients are in float.
        widens: Whether a batch norm after a weight with one scale may become multipliers of channels after training,
            where the target has them.
        operands: Quantized operands; without weights or activations there is no integer program.
    """

    method: Methods = "lsq"
    batch_norm: Style = "fold"
    regularizers: tuple[Weighted, ...] = ()
    freezing: Freezing | None = None
    tracking: Tracking | None = None
    total_steps: int | None = None
    ranges: RangeEstimator | None = None
    starts: bool = True
    gradients: Gradients | None = None
    widens: bool = False
    operands: tuple[str, ...] = OPERANDS

    def __post_init__(self) -> None:
        if self.batch_norm not in ("fold", "double", "keep"):
            raise InputError(f"batch_norm is {self.batch_norm!r}", expected='"fold", "double" or "keep"')
        _check_kind("freezing", self.freezing, Freezing, "Freezing(threshold=0.01)")
        _check_kind("tracking", self.tracking, Tracking, "Tracking()")
        for item in self.regularizers:
            _check_kind("regularizers", item, Weighted, "Weighted(regularizer, strength)")
        if self.total_steps is not None and self.total_steps < 1:
            raise InputError(f"total_steps={self.total_steps}", expected="at least 1")


def _check_kind(name: str, item: object, kind: type, example: str) -> None:
    if item is not None and not isinstance(item, kind):
        raise InputError(
            f"{name} has a {type(item).__name__}: {item!r}", expected=f"a {kind.__name__}", fix=f"Write {example}."
        )


@dataclass(frozen=True)
class Preparation:
    """The way of a model to its quantized graph, for `compile`.

    Args:
        records: Records of the passes.
        pipeline: These passes as text.
        samples: Flat inputs on which the forms are compared, on the CPU.
        diagnostics: Notes for the user.
        name: Name of the model.
    """

    records: tuple[Record, ...]
    pipeline: str
    samples: tuple[Tensor, ...]
    diagnostics: tuple[Diagnostic, ...] = ()
    name: str = "model"


@dataclass(frozen=True)
class _Hook:
    """A callback that is not copied or pickled with its module."""

    call: Callable[[], object] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return _Hook, ()


class QATModule(nn.Module):
    """A quantized model that is trainable in train mode and exact in eval mode.

    Made by `prepare_qat`, whose modules `compile` accepts, and by `Compiled.module()`.
    Any training loop works: call `step()` after each optimizer step, and add `regularization()` to the loss if the
    recipe has regularizers. To resume, load the `state_dict` into a module made by the same call.

    Args:
        module: Calibrated module at stage QUANTIZED; to learn its ranges, with dropouts and with activations before
            their quantizers.
        target: Target of the module. If it is for simulation only, eval mode computes in float.
        recipe: Training settings; None: the graph is unchanged, and its scales are parameters that do not learn.
        norms: Batch norms before folding; see `training.unfold.norms_after_layers`.
        dictated: Names of quantizers whose scale and zero point the target fixes.
        still: Names of parameters with `requires_grad=False`.
        preparation: The way of the model to this graph; None: `compile` does not accept the module.

    Attributes:
        target: Target of the module.
        recipe: Training settings.
        preparation: The way of the model to this graph.
        exact: Whether eval mode computes on integer codes. False: in float as in train mode, which is faster but may
            differ by single steps.
        steps: Number of optimizer steps so far, int64 [].
    """

    # Declared, so that a model may have modules of these names; see `ir.homes`.
    target: Target
    recipe: Recipe
    preparation: Preparation | None
    exact: bool
    steps: Tensor

    def __init__(
        self,
        module: Module,
        target: Target,
        recipe: Recipe | None,
        norms: Sequence[FoldedNorm] = (),
        *,
        dictated: Collection[str] = (),
        still: Collection[str] = (),
        preparation: Preparation | None = None,
    ) -> None:
        super().__init__()
        self.target, self.recipe, self.preparation = target, recipe or Recipe(), preparation
        self.exact = target.simulation is None and {"weights", "activations"} <= {*self.recipe.operands}
        if recipe is None:
            self._blueprint = build_plain(self, module)
        else:
            self._blueprint = build(
                self,
                module,
                recipe.method,
                recipe.batch_norm,
                norms,
                dictated=dictated,
                still=still,
                float_norms=target.simulation is not None,
                multiplies_channels=target.multiplies_channels if recipe.widens else None,
                ranges=recipe.ranges,
                starts=recipe.starts,
                gradients=recipe.gradients,
            )
        graph = self._blueprint.graph.main
        self._expected = tuple(
            (value.name, value.type.dtype.torch, tuple(d if isinstance(d, int) else None for d in value.type.shape))
            for value in graph.inputs
        )
        # Without a recipe the state_dict holds the tensors of the graph alone.
        steps = torch.zeros((), dtype=torch.int64, device=_device(self))
        self.register_buffer("steps", steps, persistent=recipe is not None)
        self._steps_are_told = False
        self._changes = UNTOLD if recipe is None else 0
        self._versions: dict[int, int] = {}
        self._tracked: tuple[QuantizedWeight, ...] = ()
        self._track()
        self._before = _Hook()
        self._unseen = True
        self._float_blocks = 0

    def forward(self, *arguments: object, **keywords: object) -> object:
        """The model's outputs in its own output tree.

        Args:
            arguments: The model's arguments, by position.
            keywords: The model's arguments, by name.

        Raises:
            InputError: The arguments do not fit the model.
        """
        call = self._bound(arguments, keywords)
        if self.training:
            if not self._steps_are_told:
                self._move_ranges()
                self._notice_changes()
            return self._nested(call, self._blueprint.program(self, *call.tensors))
        return self._evaluated(call)

    def _notice_changes(self) -> None:
        """Warn a loop that changes the parameters and does not call `step`, at its third forward."""
        if self._changes >= UNTOLD or torch.compiler.is_compiling():
            return
        # Each change in place counts the version of a tensor up.
        versions = {id(item): item._version for item in self.parameters()}  # noqa: SLF001  # it has no other name
        if versions.keys() == self._versions.keys() and versions != self._versions:
            self._changes += 1
            if self._changes == UNTOLD:
                warnings.warn(
                    "the parameters change, but step() of the module was not called: schedules, freezing, tracking and "
                    "the search for numbers that are not finite stand still. Call step() after each optimizer.step().",
                    stacklevel=3,
                )
        self._versions = versions

    def fake_quantized(self, *arguments: object, **keywords: object) -> object:
        """Evaluate in float with fake quantization in any mode; dropouts and batch norms follow their own modes."""
        call = self._bound(arguments, keywords)
        return self._nested(call, self._blueprint.program(self, *call.tensors))

    @contextmanager
    def in_float(self) -> Iterator[None]:
        """Evaluate in float in eval mode, whatever `exact` says, for callers that run the module through a function.

        A caller that runs the module itself calls `fake_quantized`.
        """
        self._float_blocks += 1
        try:
            yield
        finally:
            self._float_blocks -= 1

    def quantized(self) -> Module:
        """The shipped graph at stage QUANTIZED with the current learned state.

        Raises:
            UnsupportedError: The target is for simulation only.
            CalibrationError: A range is not known yet, or a scale is 0 or not finite.
        """
        if self.target.simulation is not None:
            raise UnsupportedError(
                f"there is no integer program: {self.target.simulation.reason}",
                expected="a target that describes hardware",
                fix="Train for the target for which you compile.",
            )
        self._before_a_look()
        if not {"weights", "activations"} <= {*self.recipe.operands}:
            raise UnsupportedError(
                f"there is no integer program: only {' and '.join(self.recipe.operands)} are quantized",
                expected="quantized weights and activations",
                fix="Leave operands= as it is.",
            )
        check_known(self)
        blueprint, tensors = self._blueprint, self._deployed()
        check_scales(tensors, blueprint.weights, blueprint.activations)
        return blueprint.graph.clone(self._fitted(tensors))

    def regularization(self) -> Tensor:
        """The term to add to the loss, float32 []: the sum over weights and regularizers of strength times penalty."""
        total = torch.zeros((), device=self.steps.device)
        step = int(self.steps)
        for weighted in self.recipe.regularizers:
            strength = weighted.at(step, self.recipe.total_steps)
            if strength:
                parts = [weighted.regularizer(self.latent(item)) for item in self._blueprint.weights]
                total = total + strength * sum(parts, torch.zeros_like(total))
        return total

    def latent(self, weight: QuantizedWeight) -> Latent:
        """A weight as regularizers see it; see `weights`."""
        quantizer, tensor = self._quantizer(weight), self._quantized_tensor(weight)
        scale, _ = quantizer.grid(tensor)
        scale = along_axis(scale, tensor.dim(), quantizer.spec.axis)
        factors, oscillation = quantizer.steps_per_code(tensor), quantizer.oscillation
        return Latent(
            tensor,
            scale if factors is None else scale * factors,
            quantizer.codes(tensor),
            quantizer.spec.qmin,
            quantizer.spec.qmax,
            0 if weight.axis is None else weight.axis,
            quantizer.spec.bits,
            oscillation.frozen if oscillation is not None and oscillation.freezes else None,
        )

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Notes for the user about the preparation."""
        return () if self.preparation is None else self.preparation.diagnostics

    @property
    def records(self) -> tuple[Record, ...]:
        """Records of the passes before training."""
        return () if self.preparation is None else self.preparation.records

    @property
    def arguments(self) -> int:
        """Number of arguments of the model."""
        return len(self._blueprint.graph.main.input_names)

    @property
    def weights(self) -> dict[str, QuantizedWeight]:
        """The quantized weights by the name of their layer."""
        return {item.layer: item for item in self._blueprint.weights}

    def quantizer(self, layer: str) -> Quantizer:
        """The quantizer of the weight of a layer; see `weights`."""
        return self._quantizer(self.weights[layer])

    @torch.no_grad()
    def put_on_codes(self, layer: str, mask: Tensor, codes: Tensor) -> int:
        """Set latent weights of a layer to the values of given codes.

        Args:
            layer: Name of the layer; see `weights`.
            mask: Weights to set, bool in the shape of the weight.
            codes: Codes, float32 integers in the shape of the weight; only those inside the mask are used.

        Returns:
            The number of codes that changed.

        Raises:
            InputError: The range of the weight follows its values, so that other weights would change their codes.
        """
        item = self.weights[layer]
        quantizer, latent = self._quantizer(item), tensor_at(self, item.source)
        tensor = self._quantized_tensor(item)
        before, kept = quantizer.codes(tensor), latent.clone()
        wanted = torch.where(mask, codes, before)
        scale, _ = quantizer.grid(tensor)
        middle = codes * along_axis(scale, latent.dim(), quantizer.spec.axis)
        gain = self._gain(item)
        middle = middle if gain is None else middle / gain
        latent.copy_(torch.where(mask, middle, latent))
        if not torch.equal(quantizer.codes(self._quantized_tensor(item)), wanted):
            latent.copy_(kept)
            raise InputError(
                f"codes of the weight of {layer!r} cannot be chosen: its range follows its values, or they are frozen",
                expected="a learned or constant range",
                fix="Use method='lsq', or freezing.",
            )
        return int((wanted != before).sum())

    def oscillations(self) -> dict[str, Oscillations]:
        """Oscillation states by the name of the layer; empty if oscillations are not tracked."""
        found = {item.layer: self._quantizer(item).oscillation for item in self._tracked}
        return {layer: item for layer, item in found.items() if item is not None}

    @torch.no_grad()
    def step(self) -> None:
        """Finish an optimizer step; call it after each one, in every process of a distributed run.

        Counts the step, keeps scales above 0, updates the oscillation states of tracked weights, freezes oscillating
        codes, averages batch-norm statistics over all processes, and moves ranges that follow statistics.

        Raises:
            CalibrationError: A scale, a weight or a running statistic is NaN or infinite.
        """
        check_finite(self, int(self.steps) + 1)
        hold_signs([(item, item.ranges) for item in self.modules() if isinstance(item, Quantizer)])
        recipe, now = self.recipe, int(self.steps)
        threshold = as_schedule(recipe.freezing.threshold)(now, recipe.total_steps) if recipe.freezing else 0.0
        for item in self._tracked:
            quantizer = self._quantizer(item)
            if quantizer.oscillation is not None:
                quantizer.oscillation.update(quantizer.codes(self._quantized_tensor(item)))
                freeze(quantizer.oscillation, threshold)
        self.steps.add_(1)
        self._move_ranges()
        self._steps_are_told = True
        self._unseen = True
        self._agree()
        for norm in batch_norms(self).values():
            norm.refresh()

    def parameter_groups(
        self, lr: float = 0.01, *, scale_lr: float | None = None, weight_decay: float = 2.5e-5
    ) -> list[ParameterGroup]:
        """Parameter groups for optimizers; see `training.groups.parameter_groups`."""
        return parameter_groups(self, lr, scale_lr=scale_lr, weight_decay=weight_decay)

    def before_evaluation(self, call: Callable[[], object] | None) -> None:
        """Set a callback that runs before the first evaluation after a step or `train()`, in eval mode or by `compile`.

        Args:
            call: Callback, usually one that re-estimates batch norms; None removes it. Copies of the module do not have
                it. If it communicates with other processes of a distributed run, all of them must evaluate.
        """
        self._before = _Hook(call)

    def train(self, mode: bool = True) -> QATModule:
        """Set train or eval mode."""
        self._unseen = self._unseen or mode
        super().train(mode)
        return self

    def extra_repr(self) -> str:
        """One line for `repr`."""
        return f"{self.recipe}"

    def _bound(self, arguments: tuple[object, ...], keywords: dict[str, object]) -> calls.Call:
        graph = self._blueprint.graph.main
        call = calls.bind(graph.input_tree, graph.input_names, arguments, keywords)
        for tensor, (name, dtype, shape) in zip(call.tensors, self._expected, strict=True):
            fits = tensor.dim() == len(shape) and all(
                size is None or size == found for size, found in zip(shape, tensor.shape, strict=True)
            )
            if not fits or (tensor.dtype != dtype and not tensor.is_floating_point()):
                expected = ", ".join("any" if size is None else str(size) for size in shape)
                raise InputError(
                    f"input {name!r} has shape {list(tensor.shape)} and element type {tensor.dtype}",
                    expected=f"[{expected}] of {dtype}",
                )
        return call

    def _nested(self, call: calls.Call, results: Sequence[object]) -> object:
        return call.results(self._blueprint.graph.main.output_tree, results)

    def _evaluated(self, call: calls.Call) -> object:
        """Evaluate in eval mode on the current tensors."""
        self._before_a_look()
        if not self.exact or self._float_blocks:
            return self._nested(call, self._blueprint.program(self, *call.tensors))
        if torch.compiler.is_compiling():
            # Here, and not as a decorator, which would import torch's compiler with this module.
            return torch.compiler.disable(self._exactly)(call)
        return self._exactly(call)

    def _before_a_look(self) -> None:
        """Run the callback of `before_evaluation` once per change of the learned state."""
        if self._unseen and self._before.call is not None:
            self._unseen = False
            self._before.call()

    def _exactly(self, call: calls.Call) -> object:
        check_known(self)
        graph, leaves = self._blueprint.graph.main, call.tensors
        with torch.no_grad(), own_defaults(), torch.autocast(leaves[0].device.type, enabled=False):
            # Recomputed for each call, so that any change of a weight takes effect.
            tensors = self._fitted(self._deployed())
            results, _ = simulate(graph, leaves, tensors, self.target.arithmetic)
        return self._nested(call, [item.real() if isinstance(item, Codes) else item for item in results])

    def _deployed(self) -> dict[str, Tensor]:
        blueprint = self._blueprint
        return deployed_tensors(self, blueprint.fixed, blueprint.paths, blueprint.weights, blueprint.activations)

    def _fitted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """`tensors` as lowering gets them: scales that have learned must let biases fit, as in every compile."""
        blueprint = self._blueprint
        return fitted(blueprint.graph.main, tensors, self.target.arithmetic) if blueprint.weights else tensors

    def _quantizer(self, item: QuantizedWeight) -> Quantizer:
        return cast("Quantizer", self.get_submodule(item.quantizer))

    def _quantized_tensor(self, item: QuantizedWeight) -> Tensor:
        """The tensor that the quantizer of a weight reads, with gradients."""
        tensor, gain = tensor_at(self, item.source), self._gain(item)
        return tensor if gain is None else tensor * gain

    def _gain(self, item: QuantizedWeight) -> Tensor | None:
        """The factor between a latent weight and its quantizer, broadcastable; None for 1."""
        if item.normalized is None or item.normalized.style == "keep":
            return None
        norm = cast("BatchNorm", self.get_submodule(item.normalized.norm))
        return along_axis(norm.gain, tensor_at(self, item.source).dim(), item.normalized.axis)

    @property
    def shipped_graph(self) -> Graph:
        """The shipped graph at stage QUANTIZED, for reports; its tensors are those of this module."""
        return self._blueprint.graph.main

    def products(self) -> dict[str, LayerProducts]:
        """The layers with quantized gradients, by name of the layer in the graph."""
        found = {name: self.get_submodule(path) for name, path in self._blueprint.products.items()}
        return {name: item for name, item in found.items() if isinstance(item, LayerProducts)}

    def trackers(self) -> dict[str, RangeTracker]:
        """The ranges that follow statistics, by the path of their quantizer in this module."""
        return {name: item for name, item in self.named_modules() if isinstance(item, RangeTracker)}

    def _move_ranges(self) -> None:
        """Begin a step of the ranges that follow statistics."""
        move([item for item in self.modules() if isinstance(item, RangeTracker)])
        for products in self.products().values():
            products.calls.zero_()

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:  # noqa: ANN401  # torch's own signature
        super()._load_from_state_dict(*arguments, **keywords)
        self._steps_are_told = bool(self.steps)

    def _track(self) -> None:
        """Add oscillation states to the quantizers of weights with few bits."""
        freezing = self.recipe.freezing
        tracking = freezing.tracking if freezing is not None else self.recipe.tracking
        if tracking is None:
            return
        chosen = []
        for item in self._blueprint.weights:
            quantizer = self._quantizer(item)
            if quantizer.spec.bits <= tracking.largest_bits:
                codes = quantizer.codes(self._quantized_tensor(item))
                quantizer.oscillation = Oscillations(codes, tracking.momentum)
                quantizer.oscillation.freezes = freezing is not None
                chosen.append(item)
        self._tracked = tuple(chosen)

    def _agree(self) -> None:
        """Replace running statistics by their mean over all processes."""
        tensors = [t for norm in batch_norms(self).values() for t in (norm.running_mean, norm.running_var)]
        count = process_count()
        if count == 1 or not tensors:
            return
        for tensor, total in zip(tensors, sum_over_processes(tensors), strict=True):
            tensor.copy_(total / count)


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))

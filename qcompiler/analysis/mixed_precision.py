"""`mixed_precision`: the widths of each layer for every budget of cost.

    1. quantize once per width; the model of noise gives the effect of every group on the outputs from few passes
    2. an integer program assigns widths for a budget: least expected noise, conversions counted
    3. the groups that cause most of the noise of these assignments are measured, and 2 is repeated
    4. up to twelve of these assignments are measured on the integer program

Source: van Baalen et al. 2022, A Practical Mixed Precision Algorithm for Post-Training Quantization, for the phases
(groups, sensitivities, front); integer programming in place of its greedy search.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from qcompiler.analysis.assignment import Operator, Problem, Widths
from qcompiler.analysis.evaluation import exact_model, first_samples, scored
from qcompiler.analysis.expected_widths import owners_of, quantizer_noise
from qcompiler.analysis.front import Choice, Front, Point, merged_overrides, overrides_of
from qcompiler.analysis.measured_noise import Entry, Noise, corrected, measured_alone
from qcompiler.analysis.parts import Group, groups_of
from qcompiler.analysis.requests import check_count, load_float
from qcompiler.analysis.width_costs import UNITS, CostKind, operators_of
from qcompiler.calibration.store import DEFAULT_MEMORY
from qcompiler.errors import InputError, QCompilerError, UnsupportedError
from qcompiler.ir.graph import Node
from qcompiler.ir.interpret import interpret
from qcompiler.ir.settings import own_defaults
from qcompiler.ops.quantizers import is_quantizer
from qcompiler.passes.base import Override
from qcompiler.passes.common.overrides import Overrides
from qcompiler.session.batches import Forward
from qcompiler.session.options import Effort, Options
from qcompiler.session.progress import Steps, steps
from qcompiler.session.session import Session
from qcompiler.session.source import Model
from qcompiler.targets import Target
from qcompiler.targets.loader import load_hardware
from qcompiler.validation.noise import decibels
from qcompiler.validation.partial import noise_decibels, relative_noise

__all__ = ["mixed_precision"]

POINTS = 12
"""Assignments that are measured by default."""
SAMPLES = 32
"""Samples on which the score is measured."""
MEASURED = 4
"""Groups per point whose noise is measured: each computes a part of the graph on the samples, on average half of it."""
WIDTHS = {"activation": (8, 16), "weight": (4, 8)}
"""Widths of the default candidates, where the target has them."""

Pair = tuple[int, int]
Score = Callable[[nn.Module], float | tuple[float, float]]


@own_defaults()
def mixed_precision(
    model: Model,
    target: str | Path | Target,
    calibration_data: Iterable[object],
    candidates: Iterable[Pair] | None = None,
    cost: CostKind = "bit_operations",
    evaluate: Score | None = None,
    *,
    points: int = POINTS,
    samples: int = SAMPLES,
    example_inputs: object = None,
    fixed_inputs: Mapping[str, object] | None = None,
    forward: Forward | None = None,
    effort: Effort = "default",
    overrides: Mapping[str, Override] | None = None,
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
    device: torch.device | str | None = None,
) -> Front:
    """Find the widths of each layer for every budget of cost.

    The model is captured once and quantized once per width. All groups of quantizers that must share a width get their
    expected effect on the outputs from few passes; the effect of groups that cause most of the noise is measured. An
    integer program assigns the widths. Some assignments are measured by the exact simulation, which the integer program
    equals.

    Args:
        model: As for `compile`.
        target: As for `compile`.
        calibration_data: As for `compile`.
        candidates: Pairs of activation bits and weight bits that a layer may have, such as `[(8, 8), (16, 8)]`. By
            default all pairs of 8- and 16-bit activations and 4- and 8-bit weights that the target has. Inputs of the
            model and layers of `overrides` keep their widths.
        cost: `bit_operations`: products times both widths. `bytes`: bytes moved. `cycles`, `energy`: from the figures
            of the descriptor. All for one sample.
        evaluate: Function that returns a score of its argument, larger is better, or a pair of a score and its standard
            error. The argument is called like the model. It is called once per measured point. For a plain score from
            0 to 1 the standard error is that of a share of the samples that the model got.
        points: Largest number of measured assignments, at least 2.
        samples: Samples on which the signal-to-noise ratio of the outputs is measured.
        example_inputs: As for `compile`.
        fixed_inputs: Inputs of an ONNX file that become constants; see `compile`.
        forward: As for `compile`.
        effort: Effort of the compiles.
        overrides: As for `compile`; these layers keep their widths.
        seed: As for `compile`.
        memory: As for `compile`.
        device: As for `compile`.

    Returns:
        The front. `front.at(cost=...)` and `front.at(score=...)` give `overrides` for `compile` with the same target,
        data and effort.

    Raises:
        InputError: An argument is out of range, there is no data, or there is only one width for each group.
        TargetError: The target has no such widths, or no figures for this kind of cost.
        UnsupportedError: The target is for simulation only, the model was prepared for training, or no output depends
            on its inputs through differentiable functions.
        QCompilerError: The model cannot be compiled; see `compile`.
    """
    if cost not in UNITS:
        raise InputError(f"cost is {cost!r}", expected=f"one of {', '.join(UNITS)}")
    check_count("points", points, 2)
    check_count("samples", samples)
    hardware = load_hardware(target)
    pairs = _pairs(hardware, candidates)
    options = Options(
        example_inputs=example_inputs,
        fixed_inputs=fixed_inputs,
        calibration_data=calibration_data,
        forward=forward,
        effort=effort,
        overrides=overrides or {},
        seed=seed,
        memory=memory,
        device=device,
    )
    source = load_float("mixed_precision", model, options)
    with steps(points + len(pairs) + 1) as progress:
        session = Session(source, hardware, options, options.deployment_passes(hardware))
        return _Run(session, evaluate, pairs, candidates is not None, cost, points, samples, progress).result()


def _pairs(target: Target, candidates: Iterable[object] | None) -> tuple[Pair, ...]:
    """Pairs of activation and weight bits without repetition, each of which the target has.

    Raises:
        InputError: A candidate is no pair of numbers, or there is none.
        TargetError: The target has no such width.
    """
    if candidates is None:
        found = {"activation": [target.activation_bits], "weight": [target.weight_bits]}
        for role, widths in WIDTHS.items():
            found[role] += [bits for bits in widths if _has(target, role, bits)]
        return tuple(itertools.product(dict.fromkeys(found["activation"]), dict.fromkeys(found["weight"])))
    pairs = []
    for item in candidates:
        pair: tuple[object, ...] = tuple(item) if isinstance(item, Iterable) else (item,)
        numbers = [bits for bits in pair if isinstance(bits, int) and not isinstance(bits, bool)]
        if len(pair) != 2 or len(numbers) != 2:
            raise InputError(
                f"a candidate is {item!r}", expected="a pair of activation bits and weight bits, such as (16, 8)"
            )
        target.activation_spec(bits=numbers[0])
        target.weight_spec("conv2d", 0, bits=numbers[1])
        pairs.append((numbers[0], numbers[1]))
    if not pairs:
        raise InputError("candidates is empty", expected="pairs of activation bits and weight bits")
    return tuple(dict.fromkeys(pairs))


def _has(target: Target, role: str, bits: int) -> bool:
    try:
        target.activation_spec(bits=bits) if role == "activation" else target.weight_spec("conv2d", 0, bits=bits)
    except QCompilerError:
        return False
    return True


class _Run:
    """One search for widths."""

    def __init__(
        self,
        session: Session,
        evaluate: Score | None,
        pairs: tuple[Pair, ...],
        restricted: bool,
        cost: CostKind,
        points: int,
        samples: int,
        progress: Steps,
    ) -> None:
        self.session, self.evaluate, self.pairs, self.restricted = session, evaluate, pairs, restricted
        self.kind, self.count, self.progress = cost, points, progress
        captured = session.captured.module.main
        batches = session.context.calibration_data
        assert batches is not None
        self.samples = first_samples(captured, batches, samples)
        with torch.no_grad():
            self.wanted = interpret(captured, self.samples, captured.module.tensors)[0]
        self.notes: list[str] = []
        self.sources: dict[Entry, Session] = {}  # where a group has a width, with the least expected noise
        if cost == "cycles" and not session.target.descriptor.memory:
            self.notes.append("the descriptor has no memory, so that cycles are those of computation alone")

    def result(self) -> Front:
        """Sensitivities, assignments, and measurements."""
        graph = self.session.quantized.module.main
        groups = groups_of(graph)
        choices = self._choices(groups)
        now = tuple(group.quantizers[0].spec.bits for group in groups)
        widths = [tuple(item.noise) for item in choices]
        allowed = frozenset(self.pairs) if self.restricted else None
        operators = operators_of(graph, groups, widths, self.session.target, self.kind, allowed)
        choices = self._corrected(groups, choices, operators)
        problem = Problem(tuple(item.noise for item in choices), operators)
        self.progress.finished("sensitivities")
        base = sum(operator.of(now) for operator in operators_of(graph, groups, _single(now), *self._target(None)))
        found = [self._measured(problem, choices, now, widths) for widths in self._assignments(problem)]
        measured = tuple(sorted(found, key=lambda point: (point.cost, -(point.score or -math.inf))))
        return Front(
            self.session.captured.name,
            self.session.target.name,
            self.kind,
            choices,
            _undominated(measured),
            measured,
            base,
            _correlation(measured),
            problem,
            dict(self.session.options.overrides),
            now,
            tuple(self.notes),
            dict(self.progress.seconds),
        )

    def _target(self, pairs: frozenset[Pair] | None) -> tuple[Target, CostKind, frozenset[Pair] | None]:
        return self.session.target, self.kind, pairs

    def _choices(self, groups: Sequence[Group]) -> tuple[Choice, ...]:
        """The groups with the expected noise of each width that they can have.

        Raises:
            InputError: No group has a choice.
        """
        fixed = self._fixed(groups)
        noises = [(self.session, self._noise(groups, self.session))]
        activations, weights = (tuple(dict.fromkeys(pair[side] for pair in self.pairs)) for side in (0, 1))
        noises += [
            self._uniform(groups, fixed, activation or activations[-1], weight or weights[-1])
            for activation, weight in itertools.zip_longest(activations, weights)
        ]
        choices = []
        for index, group in enumerate(groups):
            wanted = weights if group.is_weight else activations
            now = group.quantizers[0].spec.bits
            known: dict[int, float] = {}
            for session, noise in noises:
                for bits, value in noise[index].items():
                    # The ranges of an activation are worse where narrow weights changed it.
                    if value < known.get(bits, math.inf):
                        known[bits], self.sources[index, bits] = value, session
            free = group not in fixed and any(bits in wanted for bits in known)
            kept = {bits: known[bits] for bits in sorted(known) if (bits in wanted if free else bits == now)}
            names = tuple(owner.name for owner in owners_of(group))
            choices.append(Choice(group.name, names, "weight" if group.is_weight else "activation", kept))
        if all(len(item.noise) == 1 for item in choices):
            raise InputError(
                "each layer has only one width to choose", expected="candidates with several widths that the target has"
            )
        return tuple(choices)

    def _corrected(
        self, groups: Sequence[Group], choices: tuple[Choice, ...], operators: tuple[Operator, ...]
    ) -> tuple[Choice, ...]:
        """The groups, with measured noise where the model of noise decides."""
        names = [[node.name for node in group.quantizers] for group in groups]

        def assigned(noise: Noise) -> list[Widths]:
            return self._assignments(Problem(noise, operators))

        def measured(entries: Sequence[Entry]) -> list[float]:
            return measured_alone(entries, names, self.sources, self.samples, self.wanted)

        noise = corrected(
            tuple(item.noise for item in choices),
            [item.kind for item in choices],
            assigned,
            measured,
            MEASURED * self.count,
        )
        return tuple(dataclasses.replace(item, noise=found) for item, found in zip(choices, noise, strict=True))

    def _fixed(self, groups: Sequence[Group]) -> set[Group]:
        """Groups without a choice: inputs of the model, and groups to which the caller gives a width."""
        bits = Overrides.resolve(self.session.options.overrides, self.session.canonical.module.main).bits
        given = {
            False: {name for name, item in bits.items() if item.is_float or item.activation},
            True: {name for name, item in bits.items() if item.is_float or item.weight},
        }

        def is_given(group: Group) -> bool:
            owners = owners_of(group)
            names = {node.name for node in owners}
            if not group.is_weight:  # or to another member of the supergroup
                names |= {node.name for item in group.quantizers for node in _between(item, owners)}
            return not owners or not names.isdisjoint(given[group.is_weight])

        return {group for group in groups if is_given(group)}

    def _uniform(
        self, groups: Sequence[Group], fixed: set[Group], activation: int, weight: int
    ) -> tuple[Session, list[dict[int, float]]]:
        """A session with the same widths for all groups that have a choice, and the noise of each group in it."""
        options = self.session.options
        every: dict[str, dict[str, int]] = {}
        for group in groups:
            for owner in [] if group in fixed else owners_of(group):
                role, bits = ("weight_bits", weight) if group.is_weight else ("activation_bits", activation)
                every.setdefault(owner.name, {})[role] = bits
        changed = dataclasses.replace(options, overrides=merged_overrides(options.overrides, every))
        try:
            passes = changed.deployment_passes(self.session.target)
            session = self.session.with_passes(passes, options=changed)
            return session, self._noise(groups, session)
        except QCompilerError as error:
            self.notes.append(f"{activation}-bit activations with {weight}-bit weights are left out: {error}")
            return self.session, [{} for _ in groups]

    def _noise(self, groups: Sequence[Group], session: Session) -> list[dict[int, float]]:
        """Width and expected noise of each group in a session; empty for groups whose quantizers differ in width."""
        try:
            noise = quantizer_noise(session, self.samples)
        except RuntimeError as error:
            raise UnsupportedError(
                f"the sensitivity of the outputs is unknown: {error}", fix="Keep functions without derivative in float."
            ) from None
        by_name = {node.name: node for node in session.quantized.module.main.nodes if is_quantizer(node)}
        found = []
        for group in groups:
            nodes = [by_name[item.name] for item in group.quantizers if item.name in by_name]
            bits = {node.spec.bits for node in nodes}
            whole = len(nodes) == len(group.quantizers) and len(bits) == 1
            found.append({bits.pop(): sum(noise.get(node, 0.0) for node in nodes)} if whole else {})
        self.progress.finished("sensitivities")
        return found

    def _assignments(self, problem: Problem) -> list[Widths]:
        """The cheapest and the most accurate assignment, and the best ones for budgets in between."""
        low, high = problem.cheapest(), problem.best()
        assert high is not None, "the cheapest one is possible"
        least, most = problem.cost(low), problem.cost(high)
        start = problem.best(least) or low
        found = {start: None, high: None}
        for step in range(1, self.count - 1):
            budget = least * (most / least) ** (step / (self.count - 1)) if least > 0 else most * step / self.count
            widths = problem.best(budget)
            if widths is not None:
                found[widths] = None
        return list(found)

    def _measured(self, problem: Problem, choices: tuple[Choice, ...], now: Widths, widths: Widths) -> Point:
        """An assignment with its measured scores; its error if it cannot be compiled."""
        options = self.session.options
        overrides = overrides_of(choices, widths, now, options.overrides)
        point = Point(widths, overrides, problem.cost(widths), decibels(problem.expected(widths)), None)
        changed = dataclasses.replace(options, overrides=overrides)
        try:
            session = self.session.with_passes(changed.deployment_passes(self.session.target), options=changed)
            model = exact_model(session.quantized.module.main, session.target.arithmetic)
            _ = session.integer  # accumulators and biases must fit, too
        except QCompilerError as error:
            return dataclasses.replace(point, error=f"{type(error).__name__}: {' '.join(str(error).split())}")
        with torch.no_grad():
            outputs = [x for x in model.run(list(self.samples)) if isinstance(x, Tensor)]
        score = noise_decibels(relative_noise(self.wanted, outputs))
        accuracy, spread = (None, None) if self.evaluate is None else _accuracy(self.evaluate, session)
        self.progress.finished("measurements")
        return dataclasses.replace(point, score=score, accuracy=accuracy, accuracy_error=spread)


def _accuracy(evaluate: Score, session: Session) -> tuple[float, float | None]:
    """The score of the caller, and its standard error if it is known."""
    model = exact_model(session.quantized.module.main, session.target.arithmetic)
    seen: list[int] = []
    errors: list[float] = []
    run = model.run

    def counted(inputs: list[Tensor]) -> Sequence[object]:
        seen.append(len(inputs[0]) if inputs[0].dim() else 1)
        return run(inputs)

    def plain(given: nn.Module) -> float:
        result = evaluate(given)
        if isinstance(result, tuple):
            errors.append(float(result[1]))
            return float(result[0])
        return result

    model.run = counted
    score = scored(plain, model)
    if errors:
        return score, errors[0]
    share = 0.0 <= score <= 1.0 and sum(seen) > 0
    return score, math.sqrt(score * (1.0 - score) / sum(seen)) if share else None


def _between(quantizer: Node, owners: Sequence[Node]) -> Iterator[Node]:
    """The operators of a supergroup before a quantizer, up to their owner."""
    node = quantizer.inputs[0].producer
    while node is not None and node not in owners and node.inputs:
        yield node
        node = node.inputs[0].producer


def _single(widths: Widths) -> list[tuple[int]]:
    return [(bits,) for bits in widths]


def _undominated(points: Sequence[Point]) -> tuple[Point, ...]:
    """Points that are better than all cheaper ones, by rising cost."""
    best, found = -math.inf, []
    for point in points:
        if point.score is not None and point.score > best:
            best = point.score
            found.append(point)
    return tuple(found)


def _correlation(points: Sequence[Point]) -> float | None:
    pairs = [(point.expected_db, point.score) for point in points if point.score is not None]
    if len(pairs) < 3:
        return None
    found = float(spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic)
    return found if math.isfinite(found) else None

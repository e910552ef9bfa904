"""The candidate with the least noise at the outputs is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from qcompiler import frontends
from qcompiler.errors import InputError, PassError
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Graph, Module
from qcompiler.ir.types import Stage
from qcompiler.ops.layers import Layer
from qcompiler.passes import Pass, PassContext, PassManager
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.passes.correct_bias import CorrectBias
from qcompiler.passes.start_candidate import StartCandidate
from qcompiler.passes.weigh_candidates import WeighCandidates
from qcompiler.session.pipeline import default_pipeline, parse_pipeline, print_pipeline, structural_passes
from qcompiler.targets import Target, load_target, targets
from qcompiler.validation.contracts import THRESHOLDS, Contract
from qcompiler.validation.exact import Codes, simulate
from qcompiler.validation.noise import float_outputs, squared_errors
from tests.support.declared import check_declared
from tests.support.equalized import FRONT, QUANTIZED, Net, measured

RANGES: tuple[Pass, ...] = (CalibrateWeights(), CalibrateActivations())
HARDWARE = [name for name in targets() if load_target(name).simulation is None]


@dataclass(frozen=True)
class Spoil(Pass):
    """Add to the biases of all layers: worse the more it is."""

    name = "spoil"
    amount: float = 0.5

    def run(self, graph: Graph, context: PassContext) -> None:
        rewriter = context.rewriter(graph)
        for node in graph.nodes:
            layer = Layer.of(node)
            bias = None if layer is None else layer.bias_tensor()
            if layer is not None and layer.bias is not None and bias is not None:
                rewriter.write_tensor(layer.bias, bias + self.amount)

    @property
    def contract(self) -> Contract:
        return THRESHOLDS["calibrate"]


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 8, 3, groups=8), c=nn.Linear(8, 5),
    )  # fmt: skip
    return net.eval(), torch.randn(32, 3, 8, 8)


def run(passes: list[Pass], target: Target | None = None) -> tuple[Module, list[Record], PassContext]:
    net, x = network()
    module = frontends.capture(net, x).module
    context = PassContext(target or load_target("int8_dsp"), [[x[:4]]], [[x[:16]], [x[16:]]])
    return module, PassManager([*FRONT, *QUANTIZED[:-1], *passes]).run(module, context), context


START, WEIGH = StartCandidate(), WeighCandidates()


@pytest.mark.parametrize("order", [(0.0, 0.5), (0.5, 0.0), (0.3, 0.0, 0.5), (1.0, 0.5, 0.0)])
def test_the_candidate_with_the_least_noise_is_kept(order: tuple[float, ...]) -> None:
    alone, *_ = run([*RANGES])
    passes: list[Pass] = []
    for amount in order:
        passes += [START, *RANGES, Spoil(amount)]
    module, records, _ = run([*passes, WEIGH])
    assert records[-1].metrics["kept"] == order.index(0.0)
    assert module.tensors.keys() == alone.tensors.keys()
    assert all(torch.equal(module.tensors[name], tensor) for name, tensor in alone.tensors.items())
    figures = [measured(records[-1], f"candidate_{number}_db") for number in range(len(order))]
    assert sorted(order, reverse=True) == [order[k] for k in sorted(range(len(order)), key=figures.__getitem__)]


def test_what_follows_builds_on_what_was_kept_and_may_be_refused_too() -> None:
    begin: list[Pass] = [START, *RANGES, Spoil(0.5), START, *RANGES, WEIGH]
    kept, *_ = run(begin)
    module, records, _ = run([*begin, Spoil(0.2), WEIGH])
    assert records[-1].metrics["kept"] == 0
    assert all(torch.equal(module.tensors[name], tensor) for name, tensor in kept.tensors.items())
    spoiled, *_ = run([START, *RANGES, Spoil(0.5), START, *RANGES, Spoil(0.4), WEIGH, Spoil(-0.4), WEIGH])
    for name, tensor in kept.tensors.items():
        torch.testing.assert_close(spoiled.tensors[name], tensor, rtol=1e-5, atol=1e-6)  # 0.4 was added and taken off


def test_a_margin_is_in_favour_of_what_came_first() -> None:
    passes: list[Pass] = [START, *RANGES, Spoil(0.02), START, *RANGES]
    _, records, _ = run([*passes, WEIGH])
    gained = measured(records[-1], "candidate_1_db") - measured(records[-1], "candidate_0_db")
    assert records[-1].metrics["kept"] == 1
    assert gained > 0.1
    _, records, _ = run([*passes, WeighCandidates(margin=gained + 0.1)])
    assert records[-1].metrics["kept"] == 0


def test_the_noise_is_that_of_the_integer_program_against_the_float_model() -> None:
    net, x = network()
    module, records, context = run([START, *RANGES, START, *RANGES, CorrectBias(), CalibrateActivations(), WEIGH])
    with torch.no_grad():
        wanted = net(x)
    graph, arithmetic = module.main, load_target("int8_dsp").arithmetic
    (found,), _ = simulate(graph, [x], module.tensors, arithmetic)
    assert isinstance(found, Codes)
    noise = float((found.real() - wanted).double().square().sum() / wanted.double().square().sum())
    kept = records[-1].metrics["kept"]
    assert -10 * math.log10(noise) == pytest.approx(measured(records[-1], f"candidate_{kept}_db"), abs=0.02)
    assert context.start is not None
    torch.testing.assert_close(float_outputs(graph, [x], context.start)[0], wanted, rtol=1e-4, atol=1e-5)


def test_elements_that_are_not_finite_and_integer_outputs_do_not_count() -> None:
    module, *_ = run([*RANGES])
    x, arithmetic = torch.randn(4, 3, 8, 8), load_target("int8_dsp").arithmetic
    wanted = float_outputs(module.main, [x], module.tensors)[0]
    (whole,) = squared_errors(module.main, [x], module.tensors, [wanted], arithmetic)
    holed = wanted.clone()
    holed[0] = -math.inf
    (part,) = squared_errors(module.main, [x], module.tensors, [holed], arithmetic)
    (rest,) = squared_errors(module.main, [x[1:]], module.tensors, [wanted[1:]], arithmetic)
    assert part == pytest.approx(rest)
    assert part < whole
    assert squared_errors(module.main, [x], module.tensors, [wanted.long()], arithmetic) == [0.0]


def test_misuse_is_refused() -> None:
    with pytest.raises(InputError, match="images=0"):
        WeighCandidates(images=0)
    with pytest.raises(InputError, match="margin=-1"):
        WeighCandidates(margin=-1)
    with pytest.raises(PassError, match="only one candidate"):
        run([START, *RANGES, WEIGH])
    with pytest.raises(PassError, match="graph was changed"):
        run([START, *RANGES, Grow(), START, *RANGES, WEIGH])
    module, *_ = run([*RANGES])
    with pytest.raises(PassError, match="needs calibration_data"):
        WEIGH.run(module.main, PassContext(load_target("int8_dsp")))


@dataclass(frozen=True)
class Grow(Pass):
    """Add a tensor to the module."""

    name = "grow"

    def run(self, graph: Graph, context: PassContext) -> None:
        graph.module.tensors["more"] = torch.zeros(1)


def test_the_best_effort_is_text_too() -> None:
    passes = default_pipeline("best")
    assert parse_pipeline(print_pipeline(passes)) == passes
    assert structural_passes()[0][0] == passes[0]


def exact_noise(passes: tuple[Pass, ...], target: Target, seed: int) -> float:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=bool(seed % 2)), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 12, 3, groups=12), nn.ReLU(), nn.Conv2d(12, 20, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(80, 10),
    ).eval()  # fmt: skip
    x = torch.randn(64, 3, 8, 8) * torch.tensor([3.0, 1.0, 0.1]).reshape(1, 3, 1, 1)
    module = frontends.capture(net, x).module
    context = PassContext(target, [[x[:4]]], [[part] for part in x.split(16)])
    quantized = [item for item in passes if item.name not in ("lower-to-integer", "fuse-requantization")][:-1]
    PassManager(quantized).run(module, context)
    with torch.no_grad():
        wanted = net(x)
    return squared_errors(module.main, [x], module.tensors, [wanted], target.arithmetic)[0] / float(
        wanted.square().sum()
    )


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        pytest.param(name, seed, marks=[] if seed == place % 2 else [pytest.mark.slow])
        for place, name in enumerate(HARDWARE)
        for seed in range(2)
    ],
)
def test_the_best_effort_is_never_below_the_default(name: str, seed: int) -> None:
    """On the data it was given, and on every target that is hardware, with blocks of weights and without."""
    target, noises = load_target(name), {}
    for effort in ("default", "best"):
        passes = default_pipeline(
            effort,
            per_channel=target.per_channel,
            weight_bits=target.weight_bits,
            activation_bits=target.activation_bits,
        )
        noises[effort] = exact_noise(passes, target, seed)
    # Replaced ReLU6 and equalization are the same for both; so is the float model, up to float32.
    assert noises["best"] <= noises["default"] * (1 + 1e-3)


def test_what_it_needs_and_establishes() -> None:
    check_declared(WeighCandidates(), {Stage.QUANTIZED}, requires={"weight-ranges", "activation-ranges"})

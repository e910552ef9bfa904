"""Smoothing of activations: what it makes of a graph by hand, its invariants, and what it is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler import frontends
from qcompiler.calibration import runner
from qcompiler.errors import InputError, PassError, PipelineError
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Graph, Module
from qcompiler.ir.interpret import Evaluation, interpret_with
from qcompiler.ir.types import Stage
from qcompiler.passes import Pass, PassContext, PassManager
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.passes.cross_layer_equalization import CrossLayerEqualization
from qcompiler.passes.fix_ranges import FixRanges
from qcompiler.passes.fuse_requantization import FuseRequantization
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.partition import Partition
from qcompiler.passes.smooth_activations import SmoothActivations
from qcompiler.passes.unify_scales import UnifyScales
from qcompiler.session.pipeline import parse_pipeline, structural_passes
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.equalized import PLACES, Net, measured, placed
from tests.support.golden import leaf, lines, module, refusals, run
from tests.support.running import outputs_of

FRONT = [item for item in structural_passes()[0] if item.name != "fold-normalization"]  # a product stays a product
PRODUCT = [
    leaf("k", "f32", 3),
    leaf("w", "f32", 2, 3),
    leaf("b", "f32", 2),
    "%m = mul(%x, %k) : f32[N, 3]",
    "%y = linear(%m, %w, %b) : f32[N, 2]",
    "%y",
]


def test_a_product_by_hand() -> None:
    """X is [1, 10, 100], the columns of W reach [4, 0.1, 1]: s is [1/2, 10, 10]."""
    tensors = {
        "k": torch.tensor([1.0, -10.0, 100.0]),
        "w": torch.tensor([[4.0, 0.1, 0.5], [-2.0, 0.05, -1.0]]),
        "b": torch.tensor([1.0, 2.0]),
    }
    subject = module("canonical", *PRODUCT, inputs="%x : f32[N, 3]", tensors=tensors)
    record = run(
        SmoothActivations(), subject, PassContext(calibration_data=[[torch.ones(1, 3)], [-torch.ones(2, 3) / 2]])
    )
    assert lines(subject) == ["%m = mul(%x, %k) : f32[N, 3]", "%y = linear(%m, %w, %b) : f32[N, 2]", "return %y"]
    assert [(event.kind, event.node, event.detail) for event in record.events] == [
        ("refusal", "y", "%y is an output of the model"),
        ("rewrite", "m", "its channels are divided by 0.5 to 10 for y"),
    ]
    torch.testing.assert_close(subject.tensors["k"], torch.tensor([2.0, -1.0, 10.0]), rtol=1e-6, atol=0)
    expected = torch.tensor([[2.0, 1.0, 5.0], [-1.0, 0.5, -10.0]])
    torch.testing.assert_close(subject.tensors["w"], expected, rtol=1e-6, atol=0)
    assert torch.equal(subject.tensors["b"], tensors["b"])
    assert (measured(record, "spread_before"), measured(record, "groups")) == (10.0, 1)
    assert measured(record, "spread_after") == pytest.approx(5.0)


def test_a_scale_goes_into_weight_and_bias_of_a_layer_norm() -> None:
    nodes = [
        leaf("g", "f32", 4),
        leaf("h", "f32", 4),
        leaf("w", "f32", 2, 4),
        "%n = layer_norm(%x, %g, %h) : f32[N, 5, 4]",
        "%y = linear(%n, %w) : f32[N, 5, 2]",
        "%y",
    ]
    subject = module("canonical", *nodes, inputs="%x : f32[N, 5, 4]")
    before = dict(subject.tensors)
    run(SmoothActivations(alpha=0.0), subject, PassContext(calibration_data=[[torch.randn(3, 5, 4)]]))
    s = 1 / before["w"].abs().amax(0)  # without a part for the activation, weights alone decide
    torch.testing.assert_close(subject.tensors["g"], before["g"] / s, rtol=1e-6, atol=0)
    torch.testing.assert_close(subject.tensors["h"], before["h"] / s, rtol=1e-6, atol=0)
    torch.testing.assert_close(subject.tensors["w"], before["w"] * s, rtol=1e-6, atol=0)


def outliers(layer: nn.Module, axis: int = 0) -> nn.Module:
    """Every third output channel forty times as large."""
    parameters = [layer.weight, layer.bias]
    with torch.no_grad():
        for index, parameter in enumerate(parameters):
            if isinstance(parameter, Tensor):
                moved = parameter.transpose(0, axis if index == 0 else 0)
                moved[1::3] *= 40
    return layer


Forward = Callable[[Any, Tensor], Tensor]
CASES: dict[str, tuple[Forward, Callable[[], dict[str, nn.Module]], tuple[int, ...], set[str]]] = {
    "layer norm": (lambda m, x: m.b(m.n(x)), lambda: {"n": outliers(nn.LayerNorm(6)), "b": nn.Linear(6, 5)}, (2, 3, 6), {"n"}),
    "layer norm over two axes": (lambda m, x: m.b(m.n(x)), lambda: {"n": outliers(nn.LayerNorm((3, 6))), "b": nn.Linear(6, 5)}, (2, 3, 6), {"n"}),
    "three readers": (
        lambda m, x: torch.cat([m.a(y := m.n(x)), m.b(y), m.c(y)], -1),
        lambda: {"n": outliers(nn.LayerNorm(6)), "a": nn.Linear(6, 5), "b": nn.Linear(6, 4), "c": nn.Linear(6, 3)},
        (2, 3, 6),
        {"n"},
    ),
    "constant": (lambda m, x: m.b(x * m.n.weight), lambda: {"n": outliers(nn.LayerNorm(6)), "b": nn.Linear(6, 5)}, (2, 3, 6), {"mul"}),
    "constant of images": (
        lambda m, x: m.b(m.n.weight.reshape(6, 1, 1) * x),
        lambda: {"n": outliers(nn.LayerNorm(6)), "b": nn.Conv2d(6, 4, 2, groups=2)},
        (2, 6, 3, 3),
        {"mul"},
    ),
    "linear": (
        lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x))))),
        lambda: {"a": outliers(nn.Linear(6, 7)), "b": outliers(nn.Linear(7, 8)), "c": nn.Linear(8, 3)},
        (4, 6),
        {"a", "b"},
    ),
    "flattened": (
        lambda m, x: m.b(functional.max_pool2d(m.a(x), 2).flatten(1)),
        lambda: {"a": outliers(nn.Conv2d(3, 6, 3)), "b": nn.Linear(24, 4)},
        (2, 3, 6, 6),
        {"a"},
    ),
    "concat": (
        lambda m, x: m.c(torch.cat([torch.relu(m.a(x)), m.b(x)], 1)),
        lambda: {"a": outliers(nn.Conv2d(3, 4, 1)), "b": nn.Conv2d(3, 4, 1), "c": nn.ConvTranspose2d(8, 4, 2, groups=2)},
        (2, 3, 4, 4),
        {"a", "b"},
    ),
    "batch norm": (
        lambda m, x: m.b(m.n(torch.relu(x))),
        lambda: {"n": outliers(nn.BatchNorm2d(3)), "b": nn.Conv2d(3, 4, 3, padding=1)},
        (2, 3, 4, 4),
        {"n_1"},
    ),
}  # fmt: skip


def captured(name: str) -> tuple[Module, Tensor]:
    torch.manual_seed(0)
    function, make, shape, _ = CASES[name]
    x = torch.randn(*shape)
    subject = frontends.capture(Net(function, **make()).eval(), x).module
    PassManager(FRONT).run(subject, PassContext(samples=[[x]]))
    return subject, x


def groups_of(record: Record) -> dict[str, str]:
    return {event.node: event.detail for event in record.events if event.kind == "rewrite"}


@pytest.mark.parametrize("name", CASES)
def test_the_function_is_the_same_in_double_precision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, x = captured(name)
    subject.tensors.update({key: tensor.to(torch.float64) for key, tensor in subject.tensors.items()})
    monkeypatch.setattr(runner, "check_inputs", lambda graph, batch: {})  # a graph has no type for float64
    wide = x.to(torch.float64)
    before = interpret_with(subject.main, [wide], Evaluation(subject.tensors))
    tensors = dict(subject.tensors)
    context = PassContext(calibration_data=[[wide]])
    SmoothActivations(alpha=0.7).run(subject.main, context)
    record = context.record
    assert set(groups_of(record)) == CASES[name][3]
    assert any(not torch.equal(tensor, subject.tensors[key]) for key, tensor in tensors.items())
    after = interpret_with(subject.main, [wide], Evaluation(subject.tensors))
    for old, new in zip(before, after, strict=True):
        # Sums of products of up to forty times ten, each rounded to 53 bits.
        torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-12 * float(old.abs().max()))


def channel_ranges(graph: Graph, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """max|X| and max|W| of the channels that each layer reads after a layer norm or a layer."""
    values: dict[str, Tensor] = {}
    outputs_of(graph, [x], lambda value, tensor: values.update({value.name: tensor}))
    found = []
    for node in graph.nodes:
        if node.op == "linear":
            activation = values[node.inputs[0].name].flatten(0, -2).abs().amax(0)
            found.append((activation, graph.module.tensors[f"{node.name}.weight"].abs().amax(0)))
    return found


@given(seed=st.integers(0, 10**6), alpha=st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0]))
@settings(max_examples=15)
def test_what_is_left_of_each_range_is_what_alpha_says(seed: int, alpha: float) -> None:
    """X^(1 - a) W^(1 - a) for the activation and X^a W^a for the weight, along a whole chain."""
    torch.manual_seed(seed)
    layers = {f"l{i}": nn.Linear(6, 6) for i in range(3)}
    net = Net(lambda m, x: m.l2(torch.relu(m.l1(functional.leaky_relu(m.l0(m.n(x)))))), n=nn.LayerNorm(6), **layers)
    x = torch.randn(5, 4, 6)
    subject = frontends.capture(net.eval(), x).module
    PassManager(FRONT).run(subject, PassContext())
    run(SmoothActivations(alpha=alpha), subject, PassContext(calibration_data=[[x]]))
    for activation, weight in channel_ranges(subject.main, x):
        alive = activation > 0
        activation, weight = activation[alive], weight[alive]
        if alpha == 0.5:
            torch.testing.assert_close(activation, weight, rtol=1e-4, atol=0)
        elif alpha in (0.0, 1.0):
            torch.testing.assert_close(
                weight if alpha == 0.0 else activation, torch.ones_like(weight), rtol=1e-4, atol=0
            )
        else:
            torch.testing.assert_close(activation**alpha, weight ** (1 - alpha), rtol=1e-4, atol=0)


REFUSED: dict[str, tuple[Forward, Callable[[], dict[str, nn.Module]], str, str]] = {
    "a residual": (lambda m, x: m.a((y := m.n(x)) + m.b(y).sigmoid()), lambda: {"n": nn.LayerNorm(6), "a": nn.Linear(6, 6), "b": nn.Linear(6, 6)}, "n", "add is add, which does not commute with a factor per channel"),
    "an output": (lambda m, x: m.n(x), lambda: {"n": nn.LayerNorm(6)}, "n", "%n is an output of the model"),
    "a table": (lambda m, x: m.b(functional.gelu(m.a(x))), lambda: {"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)}, "a", "gelu is gelu, which does not commute with a factor per channel"),
    "a shared weight": (lambda m, x: m.a(torch.relu(m.a(m.n(x)))), lambda: {"n": nn.LayerNorm(6), "a": nn.Linear(6, 6)}, "n", "another layer uses the parameters of a"),
    "a shared constant": (lambda m, x: m.a(x * m.n.weight).relu() + m.n.weight, lambda: {"n": nn.LayerNorm(6), "a": nn.Linear(6, 6)}, "mul", "another layer uses the parameters of mul"),
    "one number": (lambda m, x: m.a(x * 3.0), lambda: {"a": nn.Linear(6, 6)}, "mul", "its constant does not have one number per channel"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_smoothed_is_left_alone_with_its_reason(name: str) -> None:
    function, make, node, reason = REFUSED[name]
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6)
    subject = frontends.capture(Net(function, **make()).eval(), x).module
    PassManager(FRONT).run(subject, PassContext())
    before = dict(subject.tensors)
    record = run(SmoothActivations(), subject, PassContext(calibration_data=[[x]]))
    assert (node, reason) in [(event.node, event.detail) for event in record.events if event.kind == "refusal"]
    assert all(torch.equal(tensor, subject.tensors[key]) for key, tensor in before.items())


def test_what_a_float_island_reads_too_is_left_alone() -> None:
    net = Net(
        lambda m, x: m.b(m.a(x)) + torch.atan2(torch.softmax(x, -1), m.b.weight), a=nn.Linear(6, 6), b=nn.Linear(6, 6)
    )
    x = torch.randn(2, 6, 6)
    subject = frontends.capture(net.eval(), x).module
    context = PassContext(load_target("int8_dsp").override(fallback="float"), [[x]], [[x]])
    record = PassManager([*FRONT, Partition(), InsertQuantizers(), SmoothActivations()]).run(subject, context)[-1]
    assert len(subject.graphs) == 2
    assert "another layer uses the parameters of b" in refusals(record)
    assert torch.equal(subject.tensors["b.weight"], net.b.weight)


def test_channels_that_are_always_zero_keep_their_numbers() -> None:
    torch.manual_seed(0)
    a, b = nn.Linear(4, 4), nn.Linear(4, 2)
    with torch.no_grad():
        a.weight[0], a.bias[0], b.weight[:, 1] = 0.0, 0.0, 0.0
    x = torch.randn(3, 4)
    subject = frontends.capture(Net(lambda m, x: m.b(m.a(x)), a=a, b=b).eval(), x).module
    PassManager(FRONT).run(subject, PassContext())
    run(SmoothActivations(), subject, PassContext(calibration_data=[[x]]))
    assert all(bool(tensor.isfinite().all()) for tensor in subject.tensors.values())
    assert torch.equal(subject.tensors["b.weight"][:, 0], b.weight[:, 0])
    assert torch.equal(subject.tensors["a.weight"][1], a.weight[1])


QUANTIZED = [Partition(), InsertQuantizers(), FixRanges(), UnifyScales()]
RANGES = [CalibrateWeights(), CalibrateActivations(method="min_max")]


class Block(nn.Module):
    """A transformer block whose input has a few channels that are far larger than the others."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm, self.second = outliers_in(nn.LayerNorm(width)), outliers_in(nn.LayerNorm(width))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        weights = torch.softmax(self.query(y) @ self.key(y).transpose(1, 2) / 6, -1)
        x = x + self.out(weights @ self.value(y))
        result: Tensor = x + self.down(functional.gelu(self.up(self.second(x))))
        return result


def outliers_in(norm: nn.LayerNorm) -> nn.LayerNorm:
    """One channel in sixteen is sixty times as large, and weighs no more than others: as in trained transformers."""
    with torch.no_grad():
        norm.weight[3::16] *= 60
    return norm


def block() -> tuple[Block, Tensor]:
    torch.manual_seed(0)
    net = Block().eval()
    with torch.no_grad():
        for layer in (net.query, net.key, net.value, net.up):
            layer.weight[:, 3::16] /= 60
    return net, torch.randn(8, 10, 32)


def noise(passes: Sequence[Pass], per_channel: bool) -> tuple[float, list[Record]]:
    """The noise of a block with 8 bits over the power of the signal, on new inputs."""
    net, x = block()
    subject = frontends.capture(net, x).module
    target = load_target("int8_dsp").override(fallback="float", per_channel=per_channel)
    records = PassManager([*FRONT, *passes]).run(subject, PassContext(target, [[x[:2]]], [[x[:4]], [x[4:]]]))
    unseen = torch.randn(8, 10, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = net(unseen)
    found = outputs_of(subject.main, [unseen])[0]
    return float((found - expected).square().mean() / expected.square().mean()), records


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_a_transformer_block_with_outlier_channels_loses_less(place: str, per_channel: bool) -> None:
    plain, _ = noise([*QUANTIZED, *RANGES], per_channel)
    before, behind = ([SmoothActivations()], []) if place == "canonical" else ([], [SmoothActivations()])
    smooth, records = noise([*before, *QUANTIZED[:2], *behind, *QUANTIZED[2:], *RANGES], per_channel)
    record = next(record for record in records if "spread_before" in record.metrics)
    assert measured(record, "groups") == 2
    assert measured(record, "spread_before") > 30
    assert measured(record, "spread_after") < 10
    # 21.3 dB became 35.4 dB and more: 26 times less noise.
    assert smooth < plain / 15


@pytest.mark.parametrize("place", PLACES)
def test_layers_are_smoothed_on_both_kinds_of_graphs(place: str) -> None:
    torch.manual_seed(0)
    net = Net(lambda m, x: m.b(torch.relu(m.a(x))), a=outliers(nn.Conv2d(3, 8, 1)), b=nn.Conv2d(8, 2, 1))
    x = torch.randn(2, 3, 5, 5)
    subject = frontends.capture(net.eval(), x).module
    passes = [*FRONT, *placed(place, SmoothActivations())]
    records = PassManager(passes).run(subject, PassContext(load_target("int8_dsp"), [[x]], [[x]]))
    assert list(groups_of(records[-1])) == ["a"]
    assert measured(records[-1], "max_difference") <= 1e-5 * float(net(x).detach().abs().max())


def test_ranges_on_the_way_are_lost_and_the_manager_knows() -> None:
    torch.manual_seed(0)
    net = Net(lambda m, x: m.b(x * m.n.weight), n=nn.LayerNorm(6), b=nn.Linear(6, 2))
    x = torch.randn(2, 3, 6)
    passes = [*FRONT, *QUANTIZED, *RANGES, SmoothActivations()]
    subject = frontends.capture(net.eval(), x).module
    PassManager(passes).run(subject, PassContext(load_target("int8_dsp"), [[x]], [[x]]))
    scales = {key: tensor for key, tensor in subject.tensors.items() if key.endswith(".scale")}
    lost = {key for key, tensor in scales.items() if bool(tensor.isnan().all())}
    assert lost == {"n.weight.scale", "mul.scale", "b.weight.scale"}
    with pytest.raises(PipelineError, match="needs activation-ranges"):
        PassManager([*passes, FuseRequantization()]).check_order(frontends.capture(net, x).module.main.stage)


def test_equalized_weights_and_smooth_activations_go_together() -> None:
    torch.manual_seed(0)
    net = Net(lambda m, x: m.b(torch.relu(m.a(x))), a=outliers(nn.Conv2d(3, 8, 1)), b=nn.Conv2d(8, 2, 1))
    x = torch.randn(2, 3, 5, 5)
    subject = frontends.capture(net.eval(), x).module
    passes = [*FRONT, CrossLayerEqualization(), SmoothActivations()]
    PassManager(passes).run(subject, PassContext(samples=[[x]], calibration_data=[[x]]))
    torch.testing.assert_close(outputs_of(subject.main, [x])[0], net(x).detach(), rtol=1e-4, atol=1e-5)


def test_options_and_missing_data_are_refused() -> None:
    for alpha in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="alpha="):
            SmoothActivations(alpha=alpha)
    assert parse_pipeline("smooth-activations{alpha=0.8}") == (SmoothActivations(alpha=0.8),)
    subject = module("canonical", *PRODUCT, inputs="%x : f32[N, 3]")
    with pytest.raises(PassError, match="without calibration_data"):
        run(SmoothActivations(), subject)


@pytest.mark.parametrize("shape", [(5, 32), (2, 1)])
def test_the_axes_of_a_layer_norm_before_its_channels_share_a_factor(shape: tuple[int, int]) -> None:
    """Noise decides over factors of channels, not of elements."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(shape)
    with torch.no_grad():
        norm.weight[:, 3::16] *= 60
    net, x = nn.Sequential(norm, nn.Linear(shape[1], 4)), torch.randn(64, *shape)
    compiled = qcompiler.compile(net.eval(), "int8_dsp", calibration_data=[x])
    plain = qcompiler.compile(net, "int8_dsp", calibration_data=[x], effort="fast")
    with torch.no_grad():
        noises = [float((item.run(x) - net(x)).square().mean()) for item in (compiled, plain)]
    assert noises[0] <= noises[1] * (0.7 if shape[1] > 1 else 1.05)


def test_a_whole_compile_is_exact() -> None:
    net, x = block()
    target = load_target("int8_dsp_per_channel").override(fallback="float")
    text = (
        "canonicalize, eliminate-dead-code, fold-constants, fold-batch-norm, fuse-activations, smooth-activations, "
        "partition, insert-quantizers, fix-ranges, unify-scales, calibrate-weights, calibrate-activations, "
        "fuse-requantization, lower-to-integer, eliminate-dead-code"
    )
    compiled = qcompiler.compile(net, target, calibration_data=[x[:4], x[4:]], example_inputs=(x,), pipeline=text)
    report = compiled.verify(x)
    assert [report.form(name).differing for name in ("integer graph", "integer program")] == [0, 0]


def test_what_it_needs_and_establishes() -> None:
    check_declared(
        SmoothActivations(),
        {Stage.CANONICAL, Stage.QUANTIZED},
        requires={"batch-norm-folded"},
        invalidates={"weight-ranges", "activation-ranges"},
    )

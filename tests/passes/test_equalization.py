"""Equalization, absorption of biases, ReLU6 and bias correction: the invariants of each, on both kinds of graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from qcompiler import frontends
from qcompiler.errors import InputError, PassError, PipelineError
from qcompiler.ir.graph import Graph, Module, Value
from qcompiler.ir.interpret import evaluate_node
from qcompiler.ir.rewrite import Record
from qcompiler.ops.layers import leaf_of
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes import Pass, PassContext, PassManager
from qcompiler.passes.absorb_bias import AbsorbBias
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.passes.correct_bias import CorrectBias
from qcompiler.passes.cross_layer_equalization import CrossLayerEqualization
from qcompiler.passes.fix_ranges import FixRanges
from qcompiler.passes.fuse_requantization import FuseRequantization
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.partition import Partition
from qcompiler.passes.replace_relu6 import ReplaceRelu6
from qcompiler.passes.unify_scales import UnifyScales
from qcompiler.quant.spec import QuantSpec
from qcompiler.targets import load_target
from tests.support.equalized import FRONT, PLACES, QUANTIZED, Net, depthwise, image, measured, placed, wide
from tests.support.running import outputs_of


def run(model: nn.Module, passes: Sequence[Pass], x: Tensor, *, calibrate: bool = True) -> tuple[Module, list[Record]]:
    """On a target that clamps all channels alike; for others see test_channel_limits.py."""
    module = frontends.capture(model.eval(), x).module
    target = load_target("int8_dsp").override(fallback="float", per_channel_clamp=False, per_channel_tables=False)
    context = PassContext(target, [[x]], [[x]] if calibrate else None)
    return module, PassManager([*FRONT, *passes]).run(module, context)


def ranges(graph: Graph, name: str, axis: int) -> Tensor:
    weight = graph.module.tensors[f"{name}.weight"]
    return weight.abs().transpose(0, axis).flatten(1).amax(1)


@pytest.mark.parametrize("place", PLACES)
def test_both_ranges_of_a_pair_become_one(place: str) -> None:
    torch.manual_seed(0)
    net = Net(lambda m, x: m.b(torch.relu(m.a(x))), a=wide(nn.Conv2d(3, 16, 3)), b=nn.Conv2d(16, 4, 3))
    module, records = run(net, placed(place, CrossLayerEqualization()), image())
    torch.testing.assert_close(ranges(module.main, "a", 0), ranges(module.main, "b", 1), rtol=1e-5, atol=0)
    assert measured(records[-1], "max_difference") <= 1e-5 * float(net(image()).detach().abs().max())


def test_all_three_ranges_around_a_depthwise_layer_become_their_cube_root() -> None:
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x))))),
        a=wide(nn.Conv2d(3, 16, 1), 1),
        b=wide(nn.Conv2d(16, 16, 3, groups=16), 2),
        c=nn.Conv2d(16, 8, 1),
    )
    m0, m1, m2 = (
        layer.weight.abs().transpose(0, axis).flatten(1).amax(1) for layer, axis in ((net.a, 0), (net.b, 0), (net.c, 1))
    )
    module, _ = run(net, [CrossLayerEqualization(tolerance=1e-6, rounds=500)], image())
    expected = (m0 * m1 * m2) ** (1 / 3)
    for name, axis in (("a", 0), ("b", 0), ("c", 1)):
        torch.testing.assert_close(ranges(module.main, name, axis), expected, rtol=1e-4, atol=0)


THROUGH: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[], dict[str, nn.Module]]]] = {
    "leaky_relu": (lambda m, x: m.b(functional.leaky_relu(m.a(x), 0.2)), lambda: {"b": nn.Conv2d(16, 4, 1)}),
    "prelu": (lambda m, x: m.b(m.p(m.a(x))), lambda: {"b": nn.Conv2d(16, 4, 1), "p": nn.PReLU(16)}),
    "nothing": (lambda m, x: m.b(m.a(x)), lambda: {"b": nn.Conv2d(16, 4, 1)}),
    "max_pool": (lambda m, x: m.b(functional.max_pool2d(m.a(x), 3, 2, 1)), lambda: {"b": nn.Conv2d(16, 4, 1)}),
    "avg_pool": (lambda m, x: m.b(functional.avg_pool2d(m.a(x), 3, 2, 1)), lambda: {"b": nn.Conv2d(16, 4, 1)}),
    "resize": (lambda m, x: m.b(functional.interpolate(m.a(x), (9, 7), mode="bilinear")), lambda: {"b": nn.Conv2d(16, 4, 1)}),
    "flatten": (lambda m, x: m.b(functional.max_pool2d(m.a(x), 2).flatten(1)), lambda: {"b": nn.Linear(16 * 9, 4)}),
    "mean": (lambda m, x: m.b(torch.relu(m.a(x)).mean((2, 3))), lambda: {"b": nn.Linear(16, 4)}),
    "shuffle": (lambda m, x: m.b(functional.channel_shuffle(m.a(x), 4)), lambda: {"b": nn.Conv2d(16, 4, 1)}),
    "channels last": (lambda m, x: m.b(torch.relu(m.a(x)).permute(0, 2, 3, 1)), lambda: {"b": nn.Linear(16, 4)}),
    "two readers": (
        lambda m, x: torch.cat([m.b(torch.relu(y := m.a(x))), m.c(y)], 1),
        lambda: {"b": nn.Conv2d(16, 4, 1), "c": nn.Conv2d(16, 4, 1)},
    ),
    "a part": (lambda m, x: m.b(torch.relu(m.a(x))[:, 4:12]), lambda: {"b": nn.Conv2d(8, 4, 1)}),
    "groups": (lambda m, x: m.b(torch.relu(m.a(x))), lambda: {"b": nn.Conv2d(16, 8, 3, groups=4)}),
    "transposed": (lambda m, x: m.b(torch.relu(m.a(x))), lambda: {"b": nn.ConvTranspose2d(16, 8, 2, groups=2)}),
    "a gate": (
        lambda m, x: m.b((y := torch.relu(m.a(x))) * torch.sigmoid(m.g(y.mean((2, 3), keepdim=True)))),
        lambda: {"b": nn.Conv2d(16, 4, 1), "g": nn.Conv2d(16, 16, 1)},
    ),
    "the small side of a product": (
        lambda m, x: m.b(x[:, :1] * torch.relu(m.a(x)).mean((2, 3), keepdim=True)),
        lambda: {"b": nn.Conv2d(16, 4, 1)},
    ),
    "one channel times many": (
        lambda m, x: m.c(x * m.b(torch.relu(m.a(x))).mean((2, 3), keepdim=True)),
        lambda: {"b": nn.Conv2d(16, 1, 1), "c": nn.Conv2d(3, 4, 1)},
    ),
    "a factor per channel": (lambda m, x: m.b(m.a(x) * torch.linspace(-1, 2, 16).reshape(16, 1, 1)), lambda: {"b": nn.Conv2d(16, 4, 1)}),
    "padding": (lambda m, x: m.b(functional.pad(torch.relu(m.a(x)), (1, 2))), lambda: {"b": nn.Conv2d(16, 4, 3, padding=1)}),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", THROUGH)
def test_factors_go_through_what_commutes_with_them(name: str, place: str) -> None:
    torch.manual_seed(0)
    function, make = THROUGH[name]
    net = Net(function, a=wide(nn.Conv2d(3, 16, 3)), **make())
    _, records = run(net, placed(place, CrossLayerEqualization()), image())
    record = records[-1]
    assert "a" in {event.node for event in record.events if event.kind == "rewrite"}
    assert measured(record, "spread_after") < measured(record, "spread_before") / 2


@pytest.mark.parametrize("place", PLACES)
def test_the_parts_of_a_concat_are_rescaled_apart(place: str) -> None:
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.c(torch.cat([torch.relu(m.a(x)), functional.max_pool2d(torch.relu(m.b(x)), 3, 1, 1)], 1)),
        a=wide(nn.Conv2d(3, 8, 1), 1),
        b=wide(nn.Conv2d(3, 8, 1), 2),
        c=nn.Conv2d(16, 4, 3),
    )
    module, records = run(net, placed(place, CrossLayerEqualization()), image())
    both = torch.cat([ranges(module.main, name, 0) for name in ("a", "b")])
    torch.testing.assert_close(both, ranges(module.main, "c", 1), rtol=1e-5, atol=0)
    assert measured(records[-1], "pairs") == 2


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "nobody": (lambda m, x: m.a(x), "is an output of the model"),
    "a residual": (lambda m, x: m.b(torch.relu(m.a(x) + x.mean((1, 2, 3), keepdim=True))), "is add, which does not commute"),
    "relu6": (lambda m, x: m.b(functional.relu6(m.a(x))), r"clamps to 0..6"),
    "a table": (lambda m, x: m.b(functional.silu(m.a(x))), "is silu, and the target has no table per channel"),
    "a function between bounds": (lambda m, x: m.b(torch.sigmoid(m.a(x))), "is sigmoid, which does not commute"),
    "a square": (lambda m, x: m.b((y := torch.relu(m.a(x))) * y), "multiplies channels with each other"),
    "a border": (lambda m, x: m.b(functional.pad(m.a(x), (1, 1), value=1.0)), "pads with 1.0"),
    "mixed channels": (lambda m, x: m.b(torch.relu(m.a(x)).reshape(-1, 8, 12, 6).permute(0, 2, 1, 3).reshape(-1, 16, 6, 6)), "several channels as one"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_commute_is_refused_with_its_reason(name: str) -> None:
    function, reason = REFUSED[name]
    net = Net(function, a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(16, 16, 1))
    module, records = run(net, [CrossLayerEqualization()], image())
    found = {event.node: event.detail for event in records[-1].events if event.kind == "refusal"}
    assert torch.equal(module.tensors["a.weight"], net.a.weight)
    assert any(word in found["a"] for word in (reason, reason.replace("\\", "")))


def test_shared_weights_are_left_alone() -> None:
    net = Net(lambda m, x: m.b(torch.relu(m.b(x))), b=nn.Conv2d(3, 3, 1))
    module, records = run(net, [CrossLayerEqualization()], image())
    assert torch.equal(module.tensors["b.weight"], net.b.weight)
    assert any("another layer uses the parameters" in event.detail for event in records[-1].events)


def test_dead_channels_keep_their_numbers() -> None:
    torch.manual_seed(0)
    a, b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
    with torch.no_grad():
        a.weight[0], b.weight[:, 1] = 0.0, 0.0
    module, _ = run(Net(lambda m, x: m.b(torch.relu(m.a(x))), a=a, b=b), [CrossLayerEqualization()], image())
    for name in ("a.weight", "b.weight", "a.bias", "b.bias"):
        assert bool(module.tensors[name].isfinite().all())
    assert torch.equal(module.tensors["b.weight"][:, 0], b.weight[:, 0])
    assert torch.equal(module.tensors["a.weight"][1], a.weight[1])


def test_calibrated_quantizers_on_the_way_lose_their_ranges_and_the_manager_knows() -> None:
    torch.manual_seed(0)
    net = Net(lambda m, x: m.b(torch.relu(m.a(x))), a=wide(nn.Conv2d(3, 8, 1)), b=nn.Conv2d(8, 2, 1))
    passes = [Partition(), InsertQuantizers(), FixRanges(), UnifyScales(), CalibrateWeights(), CalibrateActivations()]
    module, _ = run(net, [*passes, CrossLayerEqualization()], image())
    scales = {name: tensor for name, tensor in module.tensors.items() if name.endswith(".scale")}
    lost = {name for name, tensor in scales.items() if bool(tensor.isnan().all())}
    assert lost == {"a.weight.scale", "b.weight.scale", "relu.scale"}
    with pytest.raises(PipelineError, match="needs activation-ranges"):
        run(net, [*passes, CrossLayerEqualization(), FuseRequantization()], image())


@given(seed=st.integers(0, 10**6), channels=st.integers(1, 12), kernel=st.integers(1, 3))
@settings(max_examples=25)
def test_the_function_stays_what_it_is(seed: int, channels: int, kernel: int) -> None:
    torch.manual_seed(seed)
    net = Net(
        lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x))))),
        a=wide(nn.Conv2d(3, channels, kernel), seed),
        b=nn.Conv2d(channels, channels, kernel, groups=channels),
        c=nn.Conv2d(channels, 2, 1),
    )
    module, _ = run(net, [CrossLayerEqualization()], image())
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = net(x)
    torch.testing.assert_close(
        outputs_of(module.main, [x])[0], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
    )


def test_relu6_is_replaced_behind_layers_only() -> None:
    torch.manual_seed(0)
    net = Net(lambda m, x: functional.relu6(m.a(functional.relu6(x)) * 5), a=nn.Conv2d(3, 4, 1))
    _, records = run(net, [ReplaceRelu6()], image())
    assert [event.detail for event in records[-1].events] == ["no layer directly before it"] * 2
    net = Net(lambda m, x: m.b(functional.relu6(m.a(x))), a=wide(nn.Conv2d(3, 8, 1)), b=nn.Conv2d(8, 2, 1))
    _, records = run(net, [ReplaceRelu6(), CrossLayerEqualization()], image())
    assert [event.detail for event in records[-2].events] == ["is not limited above 6"]
    assert measured(records[-1], "pairs") == 1


def biased(seed: int = 0, padding: int = 0) -> Net:
    """A batch norm whose channels lie far above zero."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(8)
    with torch.no_grad():
        norm.bias.copy_(torch.linspace(-2, 12, 8))
        norm.weight.copy_(torch.linspace(0.5, 2, 8))
    net = Net(
        lambda m, x: m.b(torch.relu(m.n(m.a(x)))), a=nn.Conv2d(3, 8, 3), n=norm, b=nn.Conv2d(8, 4, 3, padding=padding)
    )
    with torch.no_grad():
        for _ in range(60):
            net.train()(torch.randn(16, 3, 8, 8))
    return net


@pytest.mark.parametrize("place", PLACES)
def test_three_deviations_below_the_mean_go_into_the_next_bias(place: str) -> None:
    net = biased()
    module, records = run(net, placed(place, AbsorbBias()), image())
    mean, std = net.n.bias.detach(), net.n.weight.detach()
    c = (mean - 3 * std).clamp(min=0)
    assert measured(records[-1], "channels") == int((c > 0).sum()) > 2
    assert measured(records[-1], "border") == 0.0
    assert measured(records[-1], "sqnr_db") > 40, "but for the few numbers below c the function is the same"
    layer = next(node for node in module.main.nodes if node.name == "a")
    new_mean, new_std = module.tensors[str(layer.attributes["statistics"])]
    torch.testing.assert_close(new_mean, mean - c)
    assert torch.equal(new_std, std)


def test_the_smallest_values_of_data_are_absorbed_exactly() -> None:
    torch.manual_seed(0)
    a = nn.Conv2d(3, 8, 1)
    with torch.no_grad():
        nn.init.uniform_(a.weight, -0.2, 0.2)
        a.bias = nn.Parameter(torch.linspace(-5, 15, 8))
    net = Net(lambda m, x: m.b(functional.max_pool2d(torch.relu(m.a(x)), 2)), a=a, b=nn.Conv2d(8, 4, 3))
    _, records = run(net, [AbsorbBias()], image())
    assert measured(records[-1], "channels") > 2
    assert measured(records[-1], "sqnr_db") > 110


def test_the_border_is_measured_or_refused() -> None:
    net = biased(padding=1)
    _, records = run(net, [AbsorbBias()], image())
    assert measured(records[-1], "border") > 0.1
    _, records = run(net, [AbsorbBias(padded=False)], image())
    assert measured(records[-1], "channels") == 0
    assert any(event.detail == "b pads" for event in records[-1].events)


def test_without_statistics_and_data_there_is_nothing_to_absorb() -> None:
    net = Net(lambda m, x: m.b(torch.relu(m.a(torch.log(x)))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    with pytest.raises(PassError, match=r"no range of a layer is known: log has no finite .*calibration_data"):
        run(net, [AbsorbBias()], image().abs() + 1.0, calibrate=False)


def test_without_a_batch_norm_what_the_layers_before_say_is_absorbed() -> None:
    net = Net(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        net.a.bias.add_(20.0)
    _, records = run(net, [AbsorbBias()], image(), calibrate=False)
    assert measured(records[-1], "channels") == 8
    assert 10.0 < measured(records[-1], "largest") < 21.0


def test_a_negative_number_of_deviations_is_refused() -> None:
    with pytest.raises(InputError, match="sigmas=-1"):
        AbsorbBias(sigmas=-1.0)


def test_an_average_over_padding_keeps_no_shift() -> None:
    net = Net(
        lambda m, x: m.b(functional.avg_pool2d(torch.relu(m.a(x)), 3, 1, 1)), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1)
    )
    _, records = run(net, [AbsorbBias()], image())
    assert any("does not keep a shift" in event.detail for event in records[-1].events)


def test_means_on_the_calibration_batch_are_those_of_the_float_model() -> None:
    """White paper, 3.3: the invariant of the empirical correction, with 3-bit weights."""
    net, x = depthwise(), torch.randn(32, 3, 8, 8)
    means: list[Tensor] = []
    for passes in ([], [CorrectBias(method="empirical")]):
        module = frontends.capture(net.eval(), x).module
        context = PassContext(load_target("int8_dsp").override(weight_bits=3), [[x[:4]]], [[x[:16]], [x[16:]]])
        PassManager([*FRONT, *QUANTIZED, *passes]).run(module, context)
        last = next(node for node in module.main.nodes if node.name == "c4")
        seen: dict[str, Tensor] = {}
        with torch.no_grad():
            outputs_of(module.main, [x], _recorder(seen))
        means.append(seen[last.name].mean((0, 2, 3)))
    expected = torch.zeros(())
    with torch.no_grad():
        y = x
        for index in range(5):
            y = getattr(net, f"n{index}")(getattr(net, f"c{index}")(y))
            expected = y.mean((0, 2, 3))
            y = torch.relu(y)
    assert float((means[0] - expected).abs().max()) > 0.05
    torch.testing.assert_close(means[1], expected, rtol=0, atol=1e-4)


def _recorder(seen: dict[str, Tensor]) -> Callable[[Value, Tensor], None]:
    return lambda value, tensor: seen.update({value.name: tensor})


def test_the_analytic_correction_is_the_mean_of_the_error_of_the_weights() -> None:
    """(W^ - W) E[x] with E[x] from batch norms, against the mean measured on many inputs of the float model."""
    net, x = depthwise(), torch.randn(256, 3, 8, 8)
    found: dict[str, dict[str, Tensor]] = {}
    module = Module()
    for passes in ([], [CorrectBias(method="analytic")]):
        module = frontends.capture(net.eval(), x).module
        context = PassContext(load_target("int8_dsp").override(weight_bits=4), [[x[:4]]], None)
        PassManager([*FRONT, *QUANTIZED, *passes]).run(module, context)
        found[str(len(passes))] = {name: t for name, t in module.tensors.items() if name.endswith("bias")}
    plain = frontends.capture(net.eval(), x).module
    PassManager(FRONT).run(plain, PassContext(samples=[[x[:4]]]))
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        outputs_of(plain.main, [x], _recorder(seen))
    quantized = {node.name: node for node in module.main.nodes if node.op == "fake_quantize"}
    for name in ("c2", "c4"):  # without padding, where the analytic form is complete
        layer = next(node for node in plain.main.nodes if node.name == name)
        weight = plain.tensors[f"{name}.weight"]
        quantizer = quantized[f"{name}.weight.q"]
        operands = [weight, *(leaf_tensor(value) for value in quantizer.inputs[1:])]
        error = evaluate_node(quantizer, operands)[0] - weight
        wanted = functional.conv2d(seen[layer.inputs[0].name], error).mean((0, 2, 3))
        shift = found["0"][f"{name}.bias"] - found["1"][f"{name}.bias"]
        assert float((shift - wanted).norm()) < 0.3 * float(wanted.norm()), (
            "what is left of it; inputs are not quite normal"
        )


def test_options_and_missing_data_of_the_correction_are_refused() -> None:
    with pytest.raises(InputError, match="method='guess'"):
        CorrectBias(method="guess")
    with pytest.raises(InputError, match="images=0"):
        CorrectBias(images=0)
    with pytest.raises(PassError, match="empirical bias correction needs"):
        run(depthwise(), [*QUANTIZED, CorrectBias(method="empirical")], image(), calibrate=False)


def test_the_parameter_behind_a_quantizer_is_found() -> None:
    module, _ = run(Net(lambda m, x: m.a(x), a=nn.Conv2d(3, 4, 1)), [Partition(), InsertQuantizers()], image())
    layer = next(node for node in module.main.nodes if node.op == "conv2d")
    assert [leaf_of(value).name for value in layer.inputs[1:]] == ["a.weight", "a.bias"]
    quantizer = layer.inputs[1].producer
    assert quantizer is not None
    assert isinstance(quantizer.attributes["spec"], QuantSpec)

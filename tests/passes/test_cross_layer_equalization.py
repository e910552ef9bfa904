"""Cross-layer equalization: equal ranges and the same function, on both kinds of graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from qcompiler.errors import InputError, PipelineError
from qcompiler.ir.graph import Graph
from qcompiler.ir.types import Stage
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.passes.cross_layer_equalization import CrossLayerEqualization
from qcompiler.passes.fix_ranges import FixRanges
from qcompiler.passes.fuse_requantization import FuseRequantization
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.partition import Partition
from qcompiler.passes.unify_scales import UnifyScales
from tests.support.declared import check_declared
from tests.support.equalized import PLACES, Net, image, measured, placed, run_alike, wide
from tests.support.golden import leaf, lines, module
from tests.support.golden import run as run_alone
from tests.support.running import outputs_of


def ranges(graph: Graph, name: str, axis: int) -> Tensor:
    weight = graph.module.tensors[f"{name}.weight"]
    return weight.abs().transpose(0, axis).flatten(1).amax(1)


@pytest.mark.parametrize("place", PLACES)
def test_both_ranges_of_a_pair_become_one(place: str) -> None:
    torch.manual_seed(0)
    net = Net(lambda m, x: m.b(torch.relu(m.a(x))), a=wide(nn.Conv2d(3, 16, 3)), b=nn.Conv2d(16, 4, 3))
    module, records = run_alike(net, placed(place, CrossLayerEqualization()), image())
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
    module, _ = run_alike(net, [CrossLayerEqualization(tolerance=1e-6, rounds=500)], image())
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
    _, records = run_alike(net, placed(place, CrossLayerEqualization()), image())
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
    module, records = run_alike(net, placed(place, CrossLayerEqualization()), image())
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
    module, records = run_alike(net, [CrossLayerEqualization()], image())
    found = {event.node: event.detail for event in records[-1].events if event.kind == "refusal"}
    assert torch.equal(module.tensors["a.weight"], net.a.weight)
    assert any(word in found["a"] for word in (reason, reason.replace("\\", "")))


def test_shared_weights_are_left_alone() -> None:
    net = Net(lambda m, x: m.b(torch.relu(m.b(x))), b=nn.Conv2d(3, 3, 1))
    module, records = run_alike(net, [CrossLayerEqualization()], image())
    assert torch.equal(module.tensors["b.weight"], net.b.weight)
    assert any("another layer uses the parameters" in event.detail for event in records[-1].events)


def test_dead_channels_keep_their_numbers() -> None:
    torch.manual_seed(0)
    a, b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
    with torch.no_grad():
        a.weight[0], b.weight[:, 1] = 0.0, 0.0
    module, _ = run_alike(Net(lambda m, x: m.b(torch.relu(m.a(x))), a=a, b=b), [CrossLayerEqualization()], image())
    for name in ("a.weight", "b.weight", "a.bias", "b.bias"):
        assert bool(module.tensors[name].isfinite().all())
    assert torch.equal(module.tensors["b.weight"][:, 0], b.weight[:, 0])
    assert torch.equal(module.tensors["a.weight"][1], a.weight[1])


def test_calibrated_quantizers_on_the_way_lose_their_ranges_and_the_manager_knows() -> None:
    torch.manual_seed(0)
    net = Net(lambda m, x: m.b(torch.relu(m.a(x))), a=wide(nn.Conv2d(3, 8, 1)), b=nn.Conv2d(8, 2, 1))
    passes = [Partition(), InsertQuantizers(), FixRanges(), UnifyScales(), CalibrateWeights(), CalibrateActivations()]
    module, _ = run_alike(net, [*passes, CrossLayerEqualization()], image())
    scales = {name: tensor for name, tensor in module.tensors.items() if name.endswith(".scale")}
    lost = {name for name, tensor in scales.items() if bool(tensor.isnan().all())}
    assert lost == {"a.weight.scale", "b.weight.scale", "relu.scale"}
    with pytest.raises(PipelineError, match="needs activation-ranges"):
        run_alike(net, [*passes, CrossLayerEqualization(), FuseRequantization()], image())


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
    module, _ = run_alike(net, [CrossLayerEqualization()], image())
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = net(x)
    torch.testing.assert_close(
        outputs_of(module.main, [x])[0], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
    )


def test_a_pair_by_hand() -> None:
    """Ranges 4 and 1 of one channel, 1 and 4 of the other: s is 2 and 1/2."""
    text = [
        *[leaf("w1", "f32", 2, 1), leaf("b1", "f32", 2), leaf("w2", "f32", 1, 2)],
        "%a = linear(%x, %w1, %b1) : f32[N, 2]",
        "%r = relu(%a) : f32[N, 2]",
        "%b = linear(%r, %w2) : f32[N, 1]",
        "%b",
    ]
    tensors = {
        "w1": torch.tensor([[4.0], [-1.0]]),
        "b1": torch.tensor([1.0, 1.0]),
        "w2": torch.tensor([[-1.0, 4.0]]),
    }
    subject = module("canonical", *text, inputs="%x : f32[N, 1]", tensors=tensors)
    before = lines(subject)
    record = run_alone(CrossLayerEqualization(), subject)
    torch.testing.assert_close(subject.tensors["w1"], torch.tensor([[2.0], [-2.0]]))
    torch.testing.assert_close(subject.tensors["b1"], torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(subject.tensors["w2"], torch.tensor([[-2.0, 2.0]]))
    assert lines(subject) == before
    assert (measured(record, "pairs"), measured(record, "rounds")) == (1, 2)
    assert [(event.node, event.detail) for event in record.events if event.kind == "rewrite"] == [
        ("a", "its channels are rescaled with the inverse in b")
    ]


@pytest.mark.parametrize(
    "options", [{"tolerance": 0.0}, {"tolerance": -1.0}, {"tolerance": float("nan")}, {"rounds": 0}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    (name, value), *_ = options.items()
    with pytest.raises(InputError, match=f"{name}={value}.*a tolerance above 0 and at least 1 round"):
        CrossLayerEqualization(**options)


def test_what_it_needs_and_invalidates() -> None:
    check_declared(
        CrossLayerEqualization(),
        {Stage.CANONICAL, Stage.QUANTIZED},
        requires={"batch-norm-folded"},
        invalidates={"weight-ranges", "activation-ranges"},
    )

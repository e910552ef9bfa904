"""Tables through equalization: the function stays what it is, every form computes it, and targets without them refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler.backends.onnx_qdq import integer_weights
from qcompiler.errors import UnsupportedError
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Module, Node
from qcompiler.ir.text import parse_module, print_module
from qcompiler.ops import UNARY
from qcompiler.passes import Pass, PassContext, PassManager
from qcompiler.passes.absorb_bias import AbsorbBias
from qcompiler.passes.adaptive_rounding.activation import activation_after
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.cross_layer_equalization import CrossLayerEqualization
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.lower_to_integer import LowerToInteger
from qcompiler.passes.partition import Partition
from qcompiler.passes.smooth_activations import SmoothActivations
from qcompiler.program.files import ProgramFiles
from qcompiler.session.pipeline import quantization_passes, structural_passes
from qcompiler.targets import Target, load_target
from tests.reference.maker import check as check_against_loops
from tests.support.equalized import PLACES, Net, computed, expected, image, measured, placed, run_exactly, wide
from tests.support.forms import onnx_of
from tests.support.golden import leaf, lines, module, refusals
from tests.support.golden import run as run_alone

TARGET = load_target("int8_dsp")
ALIKE = TARGET.override(per_channel_tables=False)
STRAIGHT = sorted(name for name, function in UNARY.items() if function.straight)


def run(model: nn.Module, passes: Sequence[Pass], x: Tensor, target: Target = TARGET) -> tuple[Module, list[Record]]:
    return run_exactly(model, passes, x, target)


def functions(subject: Module) -> list[Node]:
    return [node for node in subject.main.nodes if node.op == "scaled_unary" or node.op in UNARY]


class Excite(nn.Module):
    """x * sigmoid(W2 silu(W1 mean(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.expand(functional.silu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


Forward = Callable[[Any, Tensor], Tensor]
THROUGH: dict[str, tuple[Forward, Callable[[], dict[str, nn.Module]]]] = {
    "silu": (lambda m, x: m.b(functional.silu(m.a(x))), lambda: {"b": nn.Conv2d(16, 4, 1)}),
    "pooled": (lambda m, x: m.b(functional.silu(m.a(x)).mean((2, 3))), lambda: {"b": nn.Linear(16, 4)}),
    "flat": (
        lambda m, x: m.b(functional.gelu(functional.max_pool2d(m.a(x), 2)).flatten(1)),
        lambda: {"b": nn.Linear(16 * 9, 4)},
    ),
    "flat before": (lambda m, x: m.b(functional.mish(m.a(x).mean((2, 3)))), lambda: {"b": nn.Linear(16, 4)}),
    "channels last": (
        lambda m, x: m.b(functional.silu(m.a(x).permute(0, 2, 3, 1))),
        lambda: {"b": nn.Linear(16, 4)},
    ),
    "with a parameter": (lambda m, x: m.b(functional.elu(m.a(x), 0.3)), lambda: {"b": nn.Conv2d(16, 4, 1)}),
    "with a word": (
        lambda m, x: m.b(functional.gelu(m.a(x), approximate="tanh")),
        lambda: {"b": nn.Conv2d(16, 4, 1)},
    ),
    "two in a row": (
        lambda m, x: m.b(functional.hardswish(functional.softplus(m.a(x)))),
        lambda: {"b": nn.Conv2d(16, 4, 1)},
    ),
    "a cap behind": (
        lambda m, x: m.b(functional.silu(m.a(x)).clamp(max=0.5)),
        lambda: {"b": nn.Conv2d(16, 4, 1)},
    ),
    "two readers": (
        lambda m, x: torch.cat([m.b(functional.silu(y := m.a(x))), m.c(y)], 1),
        lambda: {"b": nn.Conv2d(16, 4, 1), "c": nn.Conv2d(16, 4, 1)},
    ),
    "depthwise": (
        lambda m, x: m.c(functional.silu(m.b(functional.silu(m.a(x))))),
        lambda: {"b": wide(nn.Conv2d(16, 16, 3, padding=1, groups=16), 1), "c": nn.Conv2d(16, 4, 1)},
    ),
    "excited": (
        lambda m, x: m.b(m.e(functional.silu(m.a(x)))),
        lambda: {"b": nn.Conv2d(16, 4, 1), "e": Excite(16)},
    ),
    "a shared table": (
        lambda m, x: m.c(functional.silu(torch.cat([m.a(x), m.b(x)], 1))),
        lambda: {"b": wide(nn.Conv2d(3, 8, 3), 5), "c": nn.Conv2d(24, 4, 1)},
    ),
    "half a shared table": (
        lambda m, x: m.b(functional.silu(torch.cat([m.a(x), x[:, :, 1:7, 1:7]], 1))),
        lambda: {"b": nn.Conv2d(19, 4, 1)},
    ),
}  # fmt: skip


def network(name: str) -> Net:
    torch.manual_seed(0)
    function, make = THROUGH[name]
    net = Net(function, a=wide(nn.Conv2d(3, 16, 3)), **make())
    return net.eval()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", THROUGH)
def test_in_real_numbers_nothing_changes(name: str, place: str) -> None:
    """In float64, where rounding cannot conceal a mistake."""
    net, x = network(name).double(), image().double()
    subject, records = run(net, placed(place, CrossLayerEqualization()), x)
    record = records[-1]
    assert "a" in {event.node for event in record.events if event.kind == "rewrite"}
    assert measured(record, "spread_after") < measured(record, "spread_before")
    assert any(node.op == "scaled_unary" for node in subject.main.nodes)
    result, wanted = computed(subject, x), expected(net, x)
    torch.testing.assert_close(result, wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", THROUGH)
def test_a_second_equalization_multiplies_the_scales(name: str) -> None:
    net, x = network(name).double(), image().double()
    subject, _ = run(net, [CrossLayerEqualization(rounds=1)], x)
    once = [node.name for node in functions(subject) if node.op == "scaled_unary"]
    generator = torch.Generator().manual_seed(7)
    factors = (torch.rand(16, generator=generator, dtype=torch.float64) * 4 - 2).exp()
    subject.tensors["a.weight"] *= factors.reshape(-1, 1, 1, 1)  # other channels are wide now
    subject.tensors["a.bias"] *= factors
    wanted = computed(subject, x)
    PassManager([CrossLayerEqualization()], {"batch-norm-folded"}).run(subject, PassContext(TARGET, [[x]]))
    twice = [node for node in functions(subject) if node.op == "scaled_unary"]
    assert [node.name for node in twice] == once
    assert len({node.inputs[1] for node in twice}) == len(twice)
    torch.testing.assert_close(computed(subject, x), wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))


@given(seed=st.integers(0, 10**6), channels=st.integers(1, 8), function=st.sampled_from(STRAIGHT))
@settings(max_examples=30)
def test_any_function_with_a_straight_end_stays_what_it_is(seed: int, channels: int, function: str) -> None:
    torch.manual_seed(seed)
    net = Net(
        lambda m, x: m.c(UNARY[function].torch(m.b(UNARY[function].torch(m.a(x))))),
        a=wide(nn.Conv2d(3, channels, 1), seed),
        b=nn.Conv2d(channels, channels, 3, groups=channels),
        c=nn.Conv2d(channels, 2, 1),
    ).double()
    x = torch.randn(3, 3, 5, 5, dtype=torch.float64)
    subject, _ = run(net, [CrossLayerEqualization()], x)
    wanted = expected(net, x)
    torch.testing.assert_close(computed(subject, x), wanted, rtol=1e-12, atol=1e-12 * float(wanted.abs().max()))


@pytest.mark.parametrize("function", UNARY)
def test_functions_with_a_straight_end_say_so(function: str) -> None:
    """Far from 0 these functions are as large as their argument; the others are not, or commute with a factor."""
    defaults = UNARY[function].attributes
    far = [float(abs(UNARY[function].numpy(np.asarray([x]), **defaults)[0])) for x in (-500.0, 500.0)]
    commutes = function in ("abs", "leaky_relu")
    assert UNARY[function].straight is (400 < max(far) < 1000 and not commutes)


X = "%x : f32[N, 2, 6, 6]"
TEXT = [
    leaf("a.weight", "f32", 2, 2, 1, 1),
    leaf("b.weight", "f32", 3, 2, 1, 1),
    "%a = conv2d(%x, %a.weight) : f32[N, 2, 6, 6]",
    "%r = celu(%a) {alpha = 0.5} : f32[N, 2, 6, 6]",
    "%b = conv2d(%r, %b.weight) : f32[N, 3, 6, 6]",
    "%b",
]
GIVEN = {
    "a.weight": torch.tensor([[8.0, 0.0], [0.0, 2.0]]).reshape(2, 2, 1, 1),
    "b.weight": torch.tensor([[0.5, 0.0], [0.0, 2.0], [0.0, 0.0]]).reshape(3, 2, 1, 1),
}
"""Ranges 8 and 2 against 0.5 and 2: factors 4 and 1."""
SCALED = '%r = scaled_unary(%a, %r.scales) {function = "celu", parameters = (0.5,), axis = 1} : f32[N, 2, 6, 6]'


def small(text: Sequence[str] = TEXT, changes: Mapping[str, Tensor] | None = None) -> Module:
    return module("canonical", *text, inputs=X, tensors={**GIVEN, **(changes or {})})


def test_a_function_gets_scales() -> None:
    subject = small()
    record = run_alone(CrossLayerEqualization(), subject, PassContext(TARGET))
    assert lines(subject)[1] == SCALED
    assert subject.tensors["r.scales"].tolist() == [4.0, 1.0]
    notes = {event.node: event.detail for event in record.events if event.kind == "rewrite"}
    assert notes["r"] == "its channels are multiplied by 0.25 to 1, with one table per channel"
    text = print_module(subject)
    assert print_module(parse_module(text, subject.tensors)) == text


def test_scales_that_are_one_again_leave_the_function() -> None:
    subject = small()
    run_alone(CrossLayerEqualization(), subject, PassContext(TARGET))
    subject.tensors["a.weight"] *= torch.tensor([1 / 4, 1.0]).reshape(2, 1, 1, 1)  # ranges 1/2, 2 and 8, 2
    subject.tensors["b.weight"] *= torch.tensor([4.0, 1.0]).reshape(1, 2, 1, 1)
    run_alone(CrossLayerEqualization(), subject, PassContext(TARGET))
    assert lines(subject)[1] == TEXT[3]
    assert not [node for node in subject.main.nodes if node.name.startswith("r.")], (
        "the scales of the function are gone"
    )
    run_alone(CrossLayerEqualization(), subject, PassContext(TARGET))
    assert lines(subject)[1] == TEXT[3]


@pytest.mark.parametrize(("scales", "plain"), [((1.0, 1.0), True), ((2.0, 2.0), False), ((1.0, 2.0), False)])
def test_canonicalize_writes_scales_that_are_one_as_none(scales: tuple[float, float], plain: bool) -> None:
    text = [leaf("r.scales", "f32", 2, kind="constant"), SCALED.replace("%a", "%x"), "%r"]
    subject = module("canonical", *text, inputs=X, tensors={"r.scales": torch.tensor(scales)})
    run_alone(Canonicalize(), subject)
    assert lines(subject)[0] == (TEXT[3].replace("%a", "%x") if plain else text[1])


def test_factors_are_rounded_so_that_channels_share_tables() -> None:
    torch.manual_seed(0)
    net = Net(lambda m, x: m.b(functional.silu(m.a(x))), a=wide(nn.Conv2d(3, 128, 1)), b=nn.Conv2d(128, 4, 1))
    subject, _ = run(net, [CrossLayerEqualization()], image())
    (node,) = functions(subject)
    scales = subject.tensors[str(cast("Node", node.inputs[1].producer).attributes["ref"])].to(torch.float64)
    assert len(scales.unique()) <= 30 < len(scales)
    quarters = scales.log2() * 4
    torch.testing.assert_close(quarters, quarters.round(), rtol=0, atol=1e-6)
    first, second = (subject.tensors[f"{name}.weight"] for name in ("a", "b"))
    ratio = first.abs().amax((1, 2, 3)) / second.abs().amax((0, 2, 3))
    assert float(ratio.log2().abs().max()) <= 0.25 + 1e-3, "the two ranges differ by at most a quarter of an octave"


@pytest.mark.parametrize("place", PLACES)
def test_a_target_with_one_table_for_all_channels_stops_there(place: str) -> None:
    net = network("silu")
    subject, records = run(net, placed(place, CrossLayerEqualization()), image(), ALIKE)
    assert "silu, and the target has no table per channel" in refusals(records[-1])[0]
    assert torch.equal(subject.tensors["a.weight"], network("silu").a.weight)
    context = PassContext(ALIKE)
    scaled = small(
        [leaf("r.scales", "f32", 2, kind="constant"), *TEXT[:3], SCALED, *TEXT[4:]], {"r.scales": torch.ones(2)}
    )
    assert "no table per channel" in refusals(run_alone(CrossLayerEqualization(), scaled, context))[0]
    with pytest.raises(UnsupportedError, match=r"no table per channel for celu.*equalize for this target"):
        run_alone(Partition(), scaled, context)


@pytest.mark.parametrize("target", ["int8_dsp", "ort_cpu"])
def test_a_gate_keeps_its_range(target: str) -> None:
    """Channels of a sigmoid are alike already; factors would drive them apart."""
    net, x = network("excited"), image()
    subject, records = run(net, [CrossLayerEqualization()], x, load_target(target))
    assert "e.expand" not in {event.node for event in records[-1].events if event.kind == "rewrite"}
    assert [node.op for node in functions(subject)] == ["scaled_unary", "scaled_unary", "sigmoid"]


def test_what_lies_across_the_channels_is_refused() -> None:
    net = Net(
        lambda m, x: m.b(functional.silu(m.a(x).reshape(-1, 8, 12, 6)).reshape(-1, 16, 6, 6)),
        a=nn.Conv2d(3, 16, 3),
        b=nn.Conv2d(16, 16, 1),
    )
    _, records = run(net, [CrossLayerEqualization()], image())
    assert any("has one table for several channels" in reason for reason in refusals(records[-1]))


def test_bias_absorption_and_smoothing_stop_at_a_table() -> None:
    net, x = network("silu"), image()
    for equalized in ([], [CrossLayerEqualization()]):
        for item in (AbsorbBias(), SmoothActivations()):
            before, _ = run(net, equalized, x)
            after, _ = run(net, [*equalized, item], x)
            assert print_module(after) == print_module(before)
            assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())


def test_adaptive_rounding_sees_the_scaled_function() -> None:
    subject = small()
    run_alone(CrossLayerEqualization(), subject, PassContext(TARGET))
    layer = next(node for node in subject.main.nodes if node.name == "a")
    x = torch.tensor([-9.0, -0.5, 0.0, 9.0]).reshape(1, 1, 2, 2).expand(1, 2, 2, 2)
    function = activation_after(layer)
    assert function is not None
    wanted = torch.stack([functional.celu(x[0, 0] * 4, 0.5) / 4, functional.celu(x[0, 1], 0.5)])
    assert torch.equal(function(x, 1)[0], wanted)
    assert torch.equal(function(x.movedim(1, 3), 3).movedim(3, 1)[0], wanted)


def best() -> list[Pass]:
    """The pipeline of effort `best`, with equal ranges: whatever noise is expected, there are tables per channel."""
    passes = [*quantization_passes("best"), LowerToInteger(), *structural_passes()[0][1:2]]
    return [CrossLayerEqualization() if isinstance(item, CrossLayerEqualization) else item for item in passes]


FORMS = {
    "single": TARGET,
    "double": TARGET.override(requantize="double", layout="NCHW"),
    "half up": TARGET.override(requantize="double_hu", symmetric_activations=True),
    "runtime": load_target("ort_cpu"),
    "per channel": load_target("int8_dsp_per_channel"),
    "narrow": TARGET.override(activation_bits=6),
    "wide": TARGET.override(activation_bits=16),
}


@pytest.mark.parametrize(
    ("name", "target"),
    [
        *((name, "runtime" if index % 2 else "single") for index, name in enumerate(THROUGH)),
        *(("excited", target) for target in FORMS if target != "runtime"),
    ],
)
def test_all_forms_agree(name: str, target: str) -> None:
    """Simulation, integer graph, program in both layouts, plain loops: no element differs; ONNX Runtime as bounded."""
    net, x = network(name), image()
    compiled = qcompiler.compile(net, FORMS[target], calibration_data=[x], passes=best())
    report = compiled.verification
    assert report is not None
    assert report.passed
    assert [form.differing for form in report.forms[:2]] == [0, 0]
    check_against_loops(compiled.integer.main, [x[:1]])
    tables = [node for node in compiled.integer.main.nodes if node.op == "lookup" and node.attributes["scales"]]
    assert tables
    for node in tables:
        scales = cast("tuple[float, ...]", node.attributes["scales"])
        table, rows = (value.type.shape for value in node.inputs[1:])
        assert table[0] == len({*scales}) <= len(scales) == rows[0]
    program = compiled.artifact.program
    assert ProgramFiles.parse(program.program_json(), program.weights()).program == program.program
    if target in ("single", "runtime"):
        weights = {n.inputs[1].name for n in compiled.integer.main.nodes if n.op in ("int_conv2d", "int_linear")}
        onnx = onnx_of(compiled.artifact)
        assert onnx is not None
        assert integer_weights(onnx) == weights, "the layers stay in integer kernels"


def test_an_artifact_from_disk_has_the_tables(tmp_path: Path) -> None:
    net, x = network("excited"), image()
    compiled = qcompiler.compile(net, TARGET, calibration_data=[x], passes=best())
    compiled.save(tmp_path / "out")
    loaded = qcompiler.load(tmp_path / "out")
    assert loaded.verify().passed
    wanted, found = compiled.run(x), loaded.run(x)
    assert isinstance(wanted, Tensor)
    assert isinstance(found, Tensor)
    assert torch.equal(found, wanted)


def test_a_scaled_function_runs_in_an_island() -> None:
    net, x = network("excited"), image()
    target = TARGET.override(fallback="float")
    passes = [*quantization_passes(), LowerToInteger(), *structural_passes()[0][1:2]]
    passes = [CrossLayerEqualization() if isinstance(item, CrossLayerEqualization) else item for item in passes]
    compiled = qcompiler.compile(net, target, calibration_data=[x], passes=passes, overrides={"silu": "float"})
    islands = [graph for name, graph in compiled.integer.graphs.items() if name != "main"]
    assert [[node.op for node in island.nodes if node.op != "constant"] for island in islands] == [["scaled_unary"]]
    assert compiled.verification is not None
    assert compiled.verification.passed


def test_placement_reads_the_scales_as_they_are() -> None:
    subject, _ = run(network("silu"), [CrossLayerEqualization(), Partition(), InsertQuantizers()], image())
    (node,) = functions(subject)
    assert node.inputs[1].producer is not None
    assert node.inputs[1].producer.op == "constant"
    assert node.inputs[0].producer is not None
    assert node.inputs[0].producer.op == "fake_quantize"


def test_tables_per_channel_are_worth_their_place() -> None:
    """A depthwise layer with channels over three decades between two SiLUs, and a gate after them."""
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.c(m.e(functional.silu(m.b(functional.silu(m.a(x)))))),
        a=nn.Conv2d(3, 16, 1),
        b=wide(nn.Conv2d(16, 16, 3, groups=16)),
        e=Excite(16),
        c=nn.Conv2d(16, 4, 1),
    ).eval()
    with torch.no_grad():  # each channel counts as much as any other
        net.c.weight /= net.b.weight.abs().amax((1, 2, 3)).reshape(1, -1, 1, 1)
    x = image()
    wanted = expected(net, x)
    errors = {}
    for name, target in (("each", TARGET), ("one", ALIKE)):
        compiled = qcompiler.compile(net, target.override(weight_bits=4), calibration_data=[x], effort="best")
        result = compiled.run(x)
        assert isinstance(result, Tensor)
        errors[name] = float((result - wanted).norm() / wanted.norm())
    assert errors["each"] < errors["one"] / 2

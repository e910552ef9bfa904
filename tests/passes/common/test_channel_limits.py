"""Caps through equalization: the function stays what it is, every form computes it, and targets without them refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler import frontends
from qcompiler.backends.onnx_qdq import integer_weights
from qcompiler.calibration.data_free import describe
from qcompiler.calibration.distribution import Distribution
from qcompiler.errors import UnsupportedError
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Module, Node
from qcompiler.ir.text import parse_module, print_module
from qcompiler.passes import Pass, PassContext, PassManager
from qcompiler.passes.absorb_bias import AbsorbBias
from qcompiler.passes.adaptive_rounding.activation import activation_after
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.correct_bias import CorrectBias
from qcompiler.passes.cross_layer_equalization import CrossLayerEqualization
from qcompiler.passes.fix_ranges import FixRanges
from qcompiler.passes.fuse_activations import FuseActivations
from qcompiler.passes.fuse_requantization import FuseRequantization
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.lower_to_integer import LowerToInteger
from qcompiler.passes.partition import Partition
from qcompiler.passes.replace_relu6 import ReplaceRelu6
from qcompiler.passes.unify_scales import UnifyScales
from qcompiler.program.files import ProgramFiles
from qcompiler.session.pipeline import quantization_passes, structural_passes
from qcompiler.targets import Target, load_target
from qcompiler.validation.exact import output_codes
from tests.reference.maker import check as check_against_loops
from tests.support.equalized import (
    FRONT,
    PLACES,
    Net,
    computed,
    expected,
    image,
    measured,
    placed,
    run_exactly,
    wide,
)
from tests.support.forms import onnx_of
from tests.support.golden import leaf, lines, module, refusals
from tests.support.golden import run as run_alone
from tests.support.processors import exact_default_session
from tests.support.running import outputs_of

TARGET = load_target("int8_dsp")
ALIKE = TARGET.override(per_channel_clamp=False)


def run(
    model: nn.Module, passes: Sequence[Pass], x: Tensor, target: Target = TARGET, *, calibrate: bool = True
) -> tuple[Module, list[Record]]:
    return run_exactly(model, passes, x, target, calibrate=calibrate)


def clamps(subject: Module) -> list[Node]:
    return [node for node in subject.main.nodes if node.op in ("relu", "clamp", "clamp_channels")]


def limits(subject: Module, node: Node) -> tuple[Tensor, Tensor]:
    low, high = (subject.tensors[str(v.producer.attributes["ref"])] for v in node.inputs[1:] if v.producer is not None)
    return low, high


def loud(layer: nn.Module, gain: float = 8.0, seed: int = 0) -> nn.Module:
    """A layer whose results lie above a cap of 6 as often as below."""
    wide(layer, seed)
    assert isinstance(layer.weight, Tensor)
    with torch.no_grad():
        layer.weight *= gain
    return layer


Forward = Callable[[Any, Tensor], Tensor]
THROUGH: dict[str, tuple[Forward, Callable[[], dict[str, nn.Module]]]] = {
    "relu6": (lambda m, x: m.b(functional.relu6(m.a(x))), lambda: {"b": nn.Conv2d(16, 4, 1)}),
    "both ends": (lambda m, x: m.b(functional.hardtanh(m.a(x), -2, 3)), lambda: {"b": nn.Conv2d(16, 4, 1)}),
    "one end": (lambda m, x: m.b(m.a(x).clamp(max=2.5)), lambda: {"b": nn.Conv2d(16, 4, 1)}),
    "two in a row": (
        lambda m, x: m.b(functional.avg_pool2d(functional.hardtanh(m.a(x), -1, 5), 2).clamp(0, 3)),
        lambda: {"b": nn.Conv2d(16, 4, 1)},
    ),
    "behind a slope": (
        lambda m, x: m.b(functional.leaky_relu(m.a(x), 0.3).clamp(-0.5, 6)),
        lambda: {"b": nn.Conv2d(16, 4, 1)},
    ),
    "pooled": (lambda m, x: m.b(functional.relu6(m.a(x)).mean((2, 3))), lambda: {"b": nn.Linear(16, 4)}),
    "flat": (
        lambda m, x: m.b(functional.avg_pool2d(m.a(x), 2).flatten(1).clamp(0, 4)),
        lambda: {"b": nn.Linear(16 * 9, 4)},
    ),
    "channels last": (
        lambda m, x: m.b(functional.leaky_relu(m.a(x)).permute(0, 2, 3, 1).clamp(-1, 6)),
        lambda: {"b": nn.Linear(16, 4)},
    ),
    "a part": (lambda m, x: m.b(functional.relu6(m.a(x))[:, 4:12]), lambda: {"b": nn.Conv2d(8, 4, 1)}),
    "two readers": (
        lambda m, x: torch.cat([m.b(functional.relu6(y := m.a(x))), m.c(y)], 1),
        lambda: {"b": nn.Conv2d(16, 4, 1), "c": nn.Conv2d(16, 4, 1)},
    ),
    "depthwise": (
        lambda m, x: m.c(functional.relu6(m.b(functional.relu6(m.a(x))))),
        lambda: {"b": loud(nn.Conv2d(16, 16, 3, padding=1, groups=16), 4, 1), "c": nn.Conv2d(16, 4, 1)},
    ),
    "transposed": (
        lambda m, x: m.c(functional.relu6(m.b(functional.relu6(m.a(x))))),
        lambda: {"b": loud(nn.ConvTranspose2d(16, 8, 2), 2, 3), "c": nn.Conv2d(8, 4, 1)},
    ),
    "a shared cap": (
        lambda m, x: m.c(functional.leaky_relu(torch.cat([m.a(x), m.b(x)], 1), 0.1).clamp(-0.2, 6)),
        lambda: {"b": loud(nn.Conv2d(3, 8, 3), seed=5), "c": nn.Conv2d(24, 4, 1)},
    ),
    "half a shared cap": (
        lambda m, x: m.b(torch.cat([m.a(x), x[:, :, 1:7, 1:7]], 1).clamp(-0.2, 2)),
        lambda: {"b": nn.Conv2d(19, 4, 1)},
    ),
}  # fmt: skip


def network(name: str) -> Net:
    torch.manual_seed(0)
    function, make = THROUGH[name]
    net = Net(function, a=loud(nn.Conv2d(3, 16, 3)), **make())
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
    assert any(node.op == "clamp_channels" for node in subject.main.nodes)
    result, wanted = computed(subject, x), expected(net, x)
    torch.testing.assert_close(result, wanted, rtol=0, atol=1e-13 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", THROUGH)
def test_a_second_equalization_rescales_the_limits(name: str) -> None:
    net, x = network(name).double(), image().double()
    subject, _ = run(net, [CrossLayerEqualization(rounds=1)], x)
    once = [node for node in clamps(subject) if node.op == "clamp_channels"]
    generator = torch.Generator().manual_seed(7)
    for node in subject.main.nodes:  # other channels are wide now
        if node.name == "a":
            weight, bias = (subject.tensors[f"a.{part}"] for part in ("weight", "bias"))
            factors = (torch.rand(16, generator=generator, dtype=torch.float64) * 4 - 2).exp()
            subject.tensors["a.weight"] = weight * factors.reshape(-1, 1, 1, 1)
            subject.tensors["a.bias"] = bias * factors
    wanted = computed(subject, x)
    context = PassContext(TARGET, [[x]])
    PassManager([CrossLayerEqualization()], {"batch-norm-folded"}).run(subject, context)
    twice = [node for node in clamps(subject) if node.op == "clamp_channels"]
    assert [node.name for node in twice] == [node.name for node in once]
    assert len({str(v.producer.attributes["ref"]) for n in twice for v in n.inputs[1:] if v.producer}) == 2 * len(twice)
    torch.testing.assert_close(computed(subject, x), wanted, rtol=0, atol=1e-13 * float(wanted.abs().max()))


@given(seed=st.integers(0, 10**6), channels=st.integers(1, 10), kernel=st.integers(1, 3), cap=st.floats(0.1, 8))
@settings(max_examples=25)
def test_the_function_stays_what_it_is(seed: int, channels: int, kernel: int, cap: float) -> None:
    torch.manual_seed(seed)
    net = Net(
        lambda m, x: m.c(functional.hardtanh(m.b(functional.hardtanh(m.a(x), 0.0, cap)), -cap, 2 * cap)),
        a=loud(nn.Conv2d(3, channels, kernel), 2.0, seed),
        b=nn.Conv2d(channels, channels, kernel, groups=channels),
        c=nn.Conv2d(channels, 2, 1),
    )
    subject, _ = run(net, [CrossLayerEqualization()], image())
    x = torch.randn(3, 3, 8, 8)
    wanted = expected(net, x)
    torch.testing.assert_close(computed(subject, x), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


X = "%x : f32[N, 2, 6, 6]"
TEXT = [
    leaf("a.weight", "f32", 2, 2, 1, 1),
    leaf("b.weight", "f32", 3, 2, 1, 1),
    "%a = conv2d(%x, %a.weight) : f32[N, 2, 6, 6]",
    "%r = clamp(%a) {min = -1.0, max = 6.0} : f32[N, 2, 6, 6]",
    "%b = conv2d(%r, %b.weight) : f32[N, 3, 6, 6]",
    "%b",
]
GIVEN = {
    "a.weight": torch.tensor([[8.0, 0.0], [0.0, 2.0]]).reshape(2, 2, 1, 1),
    "b.weight": torch.tensor([[0.5, 0.0], [0.0, 2.0], [0.0, 0.0]]).reshape(3, 2, 1, 1),
}
"""Ranges 8 and 2 against 0.5 and 2: factors 4 and 1."""
CAPPED = [
    "%a = conv2d(%x, %a.weight) : f32[N, 2, 6, 6]",
    "%r = clamp_channels(%a, %r.low, %r.high) {axis = 1} : f32[N, 2, 6, 6]",
    "%b = conv2d(%r, %b.weight) : f32[N, 3, 6, 6]",
    "return %b",
]


def small(text: Sequence[str] = TEXT, changes: Mapping[str, Tensor] | None = None) -> Module:
    return module("canonical", *text, inputs=X, tensors={**GIVEN, **(changes or {})})


def test_a_clamp_becomes_one_per_channel() -> None:
    subject = small()
    record = run_alone(CrossLayerEqualization(), subject, PassContext(TARGET))
    assert lines(subject) == CAPPED
    assert subject.tensors["r.low"].tolist() == [-0.25, -1.0]
    assert subject.tensors["r.high"].tolist() == [1.5, 6.0]
    notes = {event.node: event.detail for event in record.events if event.kind == "rewrite"}
    assert notes["r"] == "its limits are multiplied by 0.25 to 1"
    text = print_module(subject)
    assert print_module(parse_module(text, subject.tensors)) == text


def test_factors_alike_leave_a_clamp() -> None:
    subject = small(changes={"b.weight": GIVEN["b.weight"] * torch.tensor([1.0, 1 / 16]).reshape(1, 2, 1, 1)})
    run_alone(CrossLayerEqualization(), subject, PassContext(TARGET))
    assert lines(subject)[1] == "%r = clamp(%a) {min = -0.25, max = 1.5} : f32[N, 2, 6, 6]"
    run_alone(CrossLayerEqualization(), subject, PassContext(TARGET))
    assert lines(subject)[1] == "%r = clamp(%a) {min = -0.25, max = 1.5} : f32[N, 2, 6, 6]"


def test_limits_that_meet_again_are_one_clamp() -> None:
    subject = small()
    run_alone(CrossLayerEqualization(), subject, PassContext(TARGET))
    subject.tensors["a.weight"] *= torch.tensor([4.0, 1.0]).reshape(2, 1, 1, 1)
    subject.tensors["b.weight"] *= torch.tensor([16.0, 1.0]).reshape(
        1, 2, 1, 1
    )  # ranges 8, 2 and 32, 2: factors 1/2, 1
    subject.tensors["r.low"], subject.tensors["r.high"] = torch.tensor([-0.5, -1.0]), torch.tensor([3.0, 6.0])
    run_alone(CrossLayerEqualization(), subject, PassContext(TARGET))
    assert lines(subject)[1] == "%r = clamp(%a) {min = -1.0, max = 6.0} : f32[N, 2, 6, 6]"
    assert not [name for name in subject.main.nodes if name.name.startswith("r.")], "the limits of the clamp are gone"


LEAVES = [leaf("low", "f32", 2, kind="constant"), leaf("high", "f32", 2, kind="constant")]
CHANNELS = "%r = clamp_channels(%x, %low, %high) {axis = 1} : f32[N, 2, 6, 6]"


@pytest.mark.parametrize(
    ("low", "high", "result"),
    [
        ((0.0, 0.0), (6.0, 6.0), "%r = clamp(%x) {min = 0.0, max = 6.0} : f32[N, 2, 6, 6]"),
        ((0.0, 0.0), (torch.inf, torch.inf), "%r = relu(%x) : f32[N, 2, 6, 6]"),
        ((0.0, 0.0), (6.0, 5.0), CHANNELS),
        ((0.0, -1.0), (6.0, 6.0), CHANNELS),
    ],
)
def test_canonicalize_writes_limits_that_are_alike_once(
    low: tuple[float, float], high: tuple[float, float], result: str
) -> None:
    tensors = {"low": torch.tensor(low), "high": torch.tensor(high)}
    subject = module("canonical", *LEAVES, CHANNELS, "%r", inputs=X, tensors=tensors)
    run_alone(Canonicalize(), subject)
    assert lines(subject) == [result, "return %r"]


MERGED = {"low": torch.tensor([-1.0, 1.0]), "high": torch.tensor([4.0, 9.0])}


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ("clamp_channels(%x, %low, %high) {axis = 1}", "relu(%a)", [0.0, 1.0], [4.0, 9.0]),
        ("relu(%x)", "clamp_channels(%a, %low, %high) {axis = 1}", [0.0, 1.0], [4.0, 9.0]),
        ("clamp_channels(%x, %low, %high) {axis = 1}", "clamp(%a) {min = 5.0, max = 6.0}", [5.0, 5.0], [5.0, 6.0]),
        ("clamp(%x) {min = 5.0, max = 6.0}", "clamp_channels(%a, %low, %high) {axis = 1}", [4.0, 5.0], [4.0, 6.0]),
    ],
)
def test_activations_in_a_row_merge(first: str, second: str, low: list[float], high: list[float]) -> None:
    text = [*LEAVES, f"%a = {first} : f32[N, 2, 6, 6]", f"%b = {second} : f32[N, 2, 6, 6]", "%b"]
    subject = module("canonical", *text, inputs=X, tensors=dict(MERGED))
    record = run_alone(FuseActivations(), subject)
    assert len(clamps(subject)) == 1
    assert record.events[-1].detail == "replaces a and b"
    found = limits(subject, clamps(subject)[0])
    assert [limit.tolist() for limit in found] == [low, high]
    x = torch.randn(2, 2, 6, 6) * 6
    before = module("canonical", *text, inputs=X, tensors=dict(MERGED))
    assert torch.equal(computed(subject, x), computed(before, x))


def test_clamps_along_two_axes_stay_two() -> None:
    text = [
        *LEAVES,
        leaf("rows", "f32", 6),
        "%a = clamp_channels(%x, %low, %high) {axis = 1} : f32[N, 2, 6, 6]",
        "%b = clamp_channels(%a, %rows, %rows) {axis = 2} : f32[N, 2, 6, 6]",
        "%b",
    ]
    subject = module("canonical", *text, inputs=X, tensors=dict(MERGED))
    record = run_alone(FuseActivations(), subject)
    assert len(clamps(subject)) == 2
    assert refusals(record) == ["a clamps along another axis"]


def test_an_activation_in_front_goes_into_the_limits_of_a_quantized_graph() -> None:
    """As it is where nothing merged them before quantizers were placed."""
    text = [
        leaf("s", "f32"),
        leaf("z", "i32", kind="state"),
        *LEAVES,
        '%q = fake_quantize(%x, %s, %z) {spec = spec"s8"} : f32[N, 2, 6, 6]',
        "%m = mul(%q, %q) : f32[N, 2, 6, 6]",
        "%a = clamp(%m) {min = 0.5, max = 7.0} : f32[N, 2, 6, 6]",
        "%b = clamp_channels(%a, %low, %high) {axis = 1} : f32[N, 2, 6, 6]",
        '%p = fake_quantize(%b, %s, %z) {spec = spec"s8"} : f32[N, 2, 6, 6]',
        "%p",
    ]
    scale = {"s": torch.tensor(0.1), "z": torch.tensor(-3, dtype=torch.int32)}
    subject = module("quantized", *text, inputs=X, tensors={**MERGED, **scale})
    x = torch.randn(3, 2, 6, 6) * 4
    wanted = output_codes(subject.main, [x], TARGET.arithmetic)[0]
    run_alone(FuseRequantization(), subject)
    assert [node.op for node in clamps(subject)] == ["clamp_channels"]
    assert [limit.tolist() for limit in limits(subject, clamps(subject)[0])] == [[0.5, 1.0], [4.0, 7.0]]
    assert torch.equal(output_codes(subject.main, [x], TARGET.arithmetic)[0], wanted)
    run_alone(LowerToInteger(), subject, PassContext(TARGET))
    assert [node.op for node in subject.main.nodes if node.op.startswith("int")] == ["int_mul", "int_clamp"]
    assert torch.equal(output_codes(subject.main, [x], TARGET.arithmetic)[0], wanted)
    check_against_loops(subject.main, [x])


@pytest.mark.parametrize("place", PLACES)
def test_a_target_without_limits_per_channel_stops_at_the_clamp(place: str) -> None:
    net = network("relu6")
    subject, records = run(net, placed(place, CrossLayerEqualization()), image(), ALIKE)
    assert "a clamps" not in refusals(records[-1])[0]
    assert "clamps to 0..6, which changes under a factor" in refusals(records[-1])[0]
    assert torch.equal(subject.tensors["a.weight"], network("relu6").a.weight)
    context = PassContext(ALIKE)
    capped = small([*LEAVES, *TEXT[:3], CHANNELS.replace("%x", "%a"), *TEXT[4:]])
    assert (
        "to its own limits, which the target does not support"
        in refusals(run_alone(CrossLayerEqualization(), capped, context))[0]
    )
    with pytest.raises(UnsupportedError, match=r"no integer clamp_channels.*equalize for this target"):
        run_alone(Partition(), capped, context)


def test_relu6_is_replaced_only_where_there_are_no_caps() -> None:
    net, x = network("relu6"), image()
    subject, records = run(net, [ReplaceRelu6()], x)
    assert refusals(records[-1]) == ["equalization keeps the cap of 6, because the target has limits per channel"]
    assert [node.op for node in clamps(subject)] == ["clamp"]
    subject, records = run(net, [ReplaceRelu6(), CrossLayerEqualization()], x, ALIKE)
    assert [node.op for node in clamps(subject)] == ["relu"]
    assert measured(records[-1], "pairs") == 1


def test_channels_that_are_clamped_as_one_are_refused() -> None:
    net = Net(
        lambda m, x: m.b(functional.leaky_relu(m.a(x).reshape(-1, 8, 12, 6)).clamp(0, 6).reshape(-1, 16, 6, 6)),
        a=nn.Conv2d(3, 16, 3),
        b=nn.Conv2d(16, 16, 1),
    )
    _, records = run(net, [CrossLayerEqualization()], image())
    assert any("has common limits for several channels" in reason for reason in refusals(records[-1]))


def test_a_clamp_per_channel_goes_along_with_the_island_in_front_of_it() -> None:
    net, x = network("depthwise"), image()
    target = TARGET.override(fallback="float")
    subject = frontends.capture(net.eval(), x).module
    passes = [*FRONT, CrossLayerEqualization(), Partition(), InsertQuantizers()]
    context = PassContext(target, [[x]], overrides={"b": "float"})
    PassManager(passes).run(subject, context)
    islands = [[node.op for node in graph.nodes] for name, graph in subject.graphs.items() if name != "main"]
    assert len(islands) == 1
    assert islands[0][-2:] == ["conv2d", "clamp_channels"] or "clamp_channels" in islands[0]
    assert sum(node.op == "clamp_channels" for node in subject.main.nodes) == 1
    compiled = qcompiler.compile(
        net, target, calibration_data=[x], passes=best(), overrides={"b": "float"}, example_inputs=x
    )
    assert compiled.verification is not None
    assert compiled.verification.passed


def best() -> list[Pass]:
    """The pipeline of effort `best`, with ranges that are found fast."""
    return [*quantization_passes("best"), LowerToInteger(), *structural_passes()[0][1:2]]


FORMS = {
    "single": TARGET,
    "double": TARGET.override(requantize="double", layout="NCHW"),
    "half up": TARGET.override(requantize="double_hu", symmetric_activations=True),
    "runtime": load_target("ort_cpu"),
    "narrow": TARGET.override(activation_bits=6),
    "wide": TARGET.override(activation_bits=16),
}


AVERAGES = ("flat", "two in a row")
"""With an average pooling, which ONNX Runtime rounds in its own way."""


@pytest.mark.parametrize(
    ("name", "target"),
    [
        *((name, "runtime" if index % 2 else "single") for index, name in enumerate(THROUGH)),
        *(("two in a row", target) for target in FORMS if target != "runtime"),
    ],
)
def test_all_forms_agree(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulation, integer graph, program in both layouts, plain loops: no element differs; ONNX Runtime as bounded."""
    exact_default_session(monkeypatch)
    net, x = network(name), image()
    compiled = qcompiler.compile(net, FORMS[target], calibration_data=[x], passes=best())
    report = compiled.verification
    assert report is not None
    assert report.passed
    assert [form.differing for form in report.forms[:2]] == [0, 0]
    check_against_loops(compiled.integer.main, [x[:1]])
    lists = [
        v for i in compiled.artifact.program.program.instructions for v in i.attributes.values() if isinstance(v, tuple)
    ]
    assert max(map(len, lists)) >= 8, "some limits are per channel"
    program = compiled.artifact.program
    assert ProgramFiles.parse(program.program_json(), program.weights()).program == program.program
    if target == "runtime" and name not in AVERAGES:
        runtime = [form for form in report.forms if form.name.startswith("onnxruntime")]
        assert [form.differing for form in runtime] == [0, 0, 0, 0, 0], "the same bits as ONNX Runtime"
    if target in ("single", "runtime") and name not in ("transposed", "channels last"):
        weights = {n.inputs[1].name for n in compiled.integer.main.nodes if n.op in ("int_conv2d", "int_linear")}
        onnx = onnx_of(compiled.artifact)
        assert onnx is not None
        assert integer_weights(onnx) == weights, "the layers stay in integer kernels"


def test_an_artifact_from_disk_knows_a_clamp_for_a_step_within_a_layer(tmp_path: Path) -> None:
    x = image()
    compiled = qcompiler.compile(network("two in a row"), TARGET, calibration_data=[x], passes=best())
    assert any(item.op == "int_clamp" for item in compiled.artifact.program.program.instructions)
    compiled.save(tmp_path / "out")
    report = qcompiler.load(tmp_path / "out").verify()
    assert report.passed
    assert report.form("onnxruntime, layer by layer").elements > 0


def test_a_cap_is_worth_more_than_none() -> None:
    torch.manual_seed(0)
    net, x = Net(THROUGH["relu6"][0], a=loud(nn.Conv2d(3, 16, 3), 1.5), b=nn.Conv2d(16, 4, 1)).eval(), image()
    wanted = expected(net, x)
    errors = {}
    for name, target in (("caps", TARGET), ("free", ALIKE)):
        compiled = qcompiler.compile(net, target, calibration_data=[x], effort="best")
        result = compiled.run(x)
        assert isinstance(result, Tensor)
        errors[name] = float((result - wanted).norm() / wanted.norm())
    assert errors["caps"] < 0.05 < 0.5 < errors["free"]


def biased(low: float, high: float) -> Net:
    """A batch norm whose channels lie far above zero; some of them mostly above `high`."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    with torch.no_grad():
        norm.bias.copy_(torch.linspace(-2, 12, 8))
        norm.weight.copy_(torch.linspace(0.5, 2, 8))
    net = Net(
        lambda m, x: m.b(functional.hardtanh(m.n(m.a(x)), low, high)),
        a=nn.Conv2d(3, 8, 3),
        n=norm,
        b=nn.Conv2d(8, 4, 3),
    )
    with torch.no_grad():
        for _ in range(60):
            net.train()(torch.randn(16, 3, 8, 8))
    return net


@pytest.mark.parametrize("place", PLACES)
def test_a_high_bias_below_a_cap_is_absorbed(place: str) -> None:
    net, x = biased(0.0, 6.0), image()
    subject, records = run(net, placed(place, AbsorbBias()), x)
    mean, std = net.n.bias.detach(), net.n.weight.detach()
    c = (mean - 3 * std).clamp(0, 6)
    assert float(c.max()) == 6.0, "a channel that is always above the cap is absorbed whole"
    assert measured(records[-1], "channels") == int((c > 0).sum()) > 3
    assert measured(records[-1], "sqnr_db") > 40, "except for the few numbers below c, the function is the same"
    low, high = limits(subject, clamps(subject)[0])
    assert low.tolist() == [0.0] * 8
    torch.testing.assert_close(high, 6 - c)


@pytest.mark.parametrize("low", [-1.0, -50.0])
def test_limits_on_both_sides_of_zero_move_along_exactly(low: float) -> None:
    net, x = biased(low, 6.0), image()
    subject, records = run(net, [AbsorbBias()], x)
    assert measured(records[-1], "channels") == 7, "all channels except the one with a mean of zero"
    found = limits(subject, clamps(subject)[0])
    c = net.n.bias.detach().clamp(max=6)
    torch.testing.assert_close(found[0], low - c, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], 6 - c, rtol=1e-6, atol=1e-6)
    assert measured(records[-1], "sqnr_db") > 110, "only float32 rounding"


def test_both_parts_of_a_shared_cap_give_their_biases_away() -> None:
    """From data, where c is below all that was seen: exact."""
    torch.manual_seed(0)
    layers = {name: nn.Conv2d(3, 8, 1) for name in ("a", "b")}
    with torch.no_grad():
        for layer in layers.values():
            layer.weight *= 0.1
            assert layer.bias is not None
            layer.bias.copy_(torch.linspace(-1, 9, 8))
    net = Net(
        lambda m, x: m.c(functional.leaky_relu(torch.cat([m.a(x), m.b(x)], 1), 0.5).clamp(0, 6)),
        c=nn.Conv2d(16, 4, 3),
        **layers,
    ).double()
    x = image().double()
    subject, records = run(net, [AbsorbBias()], x)
    assert measured(records[-1], "channels") > 8
    wanted = expected(net, x)
    torch.testing.assert_close(computed(subject, x), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_absorbing_stops_at_a_clamp_where_there_are_no_caps() -> None:
    _, records = run(biased(0.0, 6.0), [AbsorbBias()], image(), ALIKE)
    assert any("clamps to 0..6" in reason for reason in refusals(records[-1]))


def test_the_analytic_correction_sees_the_caps() -> None:
    """The mean after a cap follows from the batch norm of its channel, and is corrected, too."""
    net = biased(0.0, 6.0)
    x = torch.randn(256, 3, 8, 8)
    front = [CrossLayerEqualization(), Partition(), InsertQuantizers(), FixRanges(), UnifyScales(), CalibrateWeights()]
    subject, records = run(
        net, [*front, CorrectBias(method="analytic")], x, TARGET.override(weight_bits=4), calibrate=False
    )
    assert [event.node for event in records[-1].events if event.kind == "rewrite"] == ["a", "b"]
    clamp = clamps(subject)[0]
    known = describe(subject.main, (-3.0, 3.0))[clamp.output]
    assert isinstance(known, Distribution)
    assert clamp.op == "clamp_channels"
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        y = functional.relu6(net.n(net.a(x))).mean((0, 2, 3))
        outputs_of(subject.main, [x], lambda value, tensor: seen.update({value.name: tensor}))
    factors = limits(subject, clamp)[1].to(torch.float64) / 6
    torch.testing.assert_close(known.channels(1, len(factors)).mean / factors, y.to(torch.float64), rtol=0.1, atol=0.1)


def test_adaptive_rounding_sees_the_clamp_behind_a_layer() -> None:
    subject = small()
    run_alone(CrossLayerEqualization(), subject, PassContext(TARGET))
    layer = next(node for node in subject.main.nodes if node.name == "a")
    x = torch.tensor([-9.0, -0.5, 3.0, 9.0]).reshape(1, 1, 2, 2).expand(1, 2, 2, 2)
    function = activation_after(layer)
    assert function is not None
    found = function(x, 1)
    assert found.reshape(2, 4).tolist() == [[-0.25, -0.25, 1.5, 1.5], [-1.0, -0.5, 3.0, 6.0]]

"""Ranges of activations, from data and from what is known without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler import frontends
from qcompiler.calibration.observers import make_observer
from qcompiler.errors import CalibrationError, InputError, PassError
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Module
from qcompiler.ir.types import Stage
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.passes.unify_scales import UnifyScales
from qcompiler.quant.affine import qparams_from_range
from qcompiler.quant.spec import QuantSpec
from qcompiler.session.pipeline import quantization_passes
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.golden import leaf, lines, module, refusals, run

GRIDS = [part for name in "st" for part in (leaf(name, "f32"), leaf(f"{name}z", "i32", kind="state"))]
OPEN = {"s": torch.tensor(torch.nan), "t": torch.tensor(torch.nan)}
TYPE = "f32[N, 4]"


def quantizer(name: str, source: str, grid: str = "s", spec: str = "s8") -> str:
    return f'%{name} = fake_quantize({source}, %{grid}, %{grid}z) {{spec = spec"{spec}"}} : {TYPE}'


def built(*text: str, tensors: dict[str, Tensor] | None = None) -> Module:
    return module("quantized", *GRIDS, *text, inputs=f"%x : {TYPE}", tensors={**OPEN, **(tensors or {})})


CHAIN = [quantizer("q", "%x"), f"%r = relu(%q) : {TYPE}", f"%d = add(%r, %r) : {TYPE}", quantizer("p", "%d", "t"), "%p"]


def batches(*ends: tuple[float, float]) -> list[list[Tensor]]:
    """Batches of values between two ends, both of which occur."""
    return [[torch.linspace(low, high, 12).reshape(3, 4)] for low, high in ends]


def test_ranges_are_those_of_all_batches() -> None:
    subject = built(*CHAIN)
    before = lines(subject)
    context = PassContext(calibration_data=batches((-1.0, 2.0), (0.0, 3.0)))
    record = run(CalibrateActivations(method="min_max"), subject, context)
    tensors = subject.tensors
    assert float(tensors["s"]) == pytest.approx(4 / 255) and int(tensors["sz"]) == -64
    assert float(tensors["t"]) == pytest.approx(6 / 255) and int(tensors["tz"]) == -128
    assert (tensors["s"].dtype, tensors["sz"].dtype) == (torch.float32, torch.int32)
    assert [(event.kind, event.node, event.detail) for event in record.events] == [
        ("rewrite", "q", "range -1 to 3 from 2 batches by min_max"),
        ("rewrite", "p", "range 0 to 6 from 2 batches by min_max"),
    ]
    assert lines(subject) == before, "tensors are written, and no node changes"


def test_data_are_read_once() -> None:
    reads: list[int] = []

    class Counted(list[list[Tensor]]):
        def __iter__(self) -> Any:
            reads.append(1)
            return super().__iter__()

    run(CalibrateActivations(), built(*CHAIN), PassContext(calibration_data=Counted(batches((-1.0, 2.0)))))
    assert len(reads) == 1


def test_quantizers_of_one_scale_get_the_range_of_all_their_values() -> None:
    text = [quantizer("q", "%x"), f"%d = add(%q, %q) : {TYPE}", quantizer("p", "%d"), "%p"]
    subject = built(*text)
    record = run(CalibrateActivations(method="min_max"), subject, PassContext(calibration_data=batches((-1.0, 2.0))))
    assert float(subject.tensors["s"]) == pytest.approx(6 / 255)
    assert {event.detail for event in record.events} == {"range -2 to 4 from 1 batches by min_max"}
    assert [event.node for event in record.events] == ["q", "p"]


def test_a_percentile_gives_up_what_is_rare() -> None:
    x = torch.linspace(-1.0, 1.0, 4000)
    x[0] = 50.0
    data = [[part] for part in x.reshape(20, 50, 4)]
    for method, widest in (("percentile", 1.1), ("min_max", 50.0)):
        subject = built(quantizer("q", "%x"), "%q")
        run(CalibrateActivations(method=method, percentile=99.9), subject, PassContext(calibration_data=data))
        assert float(subject.tensors["s"]) == pytest.approx((1 + widest) / 255, rel=0.1)


def test_a_range_that_is_there_stays() -> None:
    subject = built(*CHAIN, tensors={"s": torch.tensor(0.5)})
    record = run(CalibrateActivations(), subject, PassContext(calibration_data=batches((-1.0, 2.0))))
    assert float(subject.tensors["s"]) == 0.5
    assert [event.node for event in record.events] == ["p"]


def test_without_data_an_input_has_the_assumed_range() -> None:
    subject = built(quantizer("q", "%x"), "%q")
    record = run(CalibrateActivations(), subject, PassContext(input_range=(-2.0, 6.0)))
    assert float(subject.tensors["s"]) == pytest.approx(8 / 255)
    assert [event.detail for event in record.events] == ["range -2 to 6 from the assumed input range"]


def test_without_data_quantizers_of_one_scale_get_the_range_of_all_their_values() -> None:
    text = [f"%r = relu(%x) : {TYPE}", quantizer("q", "%r"), quantizer("p", "%x"), f"%d = add(%q, %p) : {TYPE}", "%d"]
    subject = built(*text)
    record = run(CalibrateActivations(), subject, PassContext(input_range=(-1.0, 2.0)))
    assert float(subject.tensors["s"]) == pytest.approx(3 / 255)
    assert {event.detail for event in record.events} == {"range -1 to 2 from the assumed input range"}


@pytest.mark.parametrize("alpha", [6.0, 3.0])
def test_without_data_a_batch_norm_tells_the_range(alpha: float) -> None:
    text = [
        leaf("w", "f32", 4, 4),
        f'%c = linear(%x, %w) {{statistics = "n"}} : {TYPE}',
        quantizer("q", "%c"),
        "%q",
    ]
    moments = torch.tensor([[0.0, 1.0, -2.0, 0.5], [1.0, 0.5, 1.0, 0.1]])
    subject = built(*text, tensors={"n": moments})
    record = run(CalibrateActivations(alpha=alpha), subject)
    low, high = -2.0 - alpha, alpha
    assert float(subject.tensors["s"]) == pytest.approx((high - low) / 255)
    assert [event.detail for event in record.events] == [f"range {low:g} to {high:g} from batch-norm statistics"]


def unbounded(count: int) -> Module:
    """As many values of which nothing is known without data."""
    text = [quantizer("q", "%x")]
    text += [f"%r{index} = reciprocal(%q) : {TYPE}" for index in range(count)]
    text += [quantizer(f"p{index}", f"%r{index}", "t") for index in range(count)]
    return built(*text, ", ".join(f"%p{index}" for index in range(count)))


@pytest.mark.parametrize(
    ("count", "named", "more"), [(1, "this", ""), (2, "these 2", ""), (7, "these 7", "; and 2 more")]
)
def test_without_data_what_is_unknown_is_refused_with_its_place(count: int, named: str, more: str) -> None:
    with pytest.raises(PassError) as caught:
        run(CalibrateActivations(), unbounded(count), PassContext(input_range=(-1.0, 1.0)))
    message = str(caught.value)
    assert message.startswith(f"without calibration_data no range is known after {named}: reciprocal has")
    assert message.endswith(f"{more}. Pass calibration_data.")
    assert [f"(at %r{index}" in message for index in range(count)] == [index < 5 for index in range(count)]


BAD_DATA: dict[str, tuple[list[list[Tensor]], type[Exception], str]] = {
    "none": ([], CalibrationError, "empty"),
    "nan": ([[torch.full((2, 4), torch.nan)]], CalibrationError, "NaN"),
    "infinite": ([[torch.full((2, 4), torch.inf)]], CalibrationError, "inf"),
    "another shape": ([[torch.zeros(2, 5)]], InputError, "x"),
    "one input more": ([[torch.zeros(2, 4), torch.zeros(2, 4)]], InputError, "2"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_say_nothing_are_refused(case: str) -> None:
    data, kind, message = BAD_DATA[case]
    with pytest.raises(kind, match=message):
        run(CalibrateActivations(), built(*CHAIN), PassContext(calibration_data=data))


def test_values_that_a_grid_has_not_are_refused_with_the_place() -> None:
    subject = built(quantizer("q", "%x", spec="u8 symmetric"), "%q")
    with pytest.raises(CalibrationError, match=r"\(at %q.*signed or an asymmetric"):
        run(CalibrateActivations(method="min_max"), subject, PassContext(calibration_data=batches((-1.0, 1.0))))


class Heads(nn.Module):
    """Two layers and what becomes of their results."""

    def __init__(self, outputs: Callable[[Tensor, Tensor], object], classes: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.outputs = nn.Conv2d(3, 4, 1), nn.Conv2d(3, classes, 1), outputs

    def forward(self, x: Tensor) -> object:
        return self.outputs(self.a(x), self.b(x))


def calibrated(model: nn.Module, x: Tensor, item: CalibrateActivations) -> tuple[Module, Record]:
    module = frontends.capture(model.eval(), x).module
    passes = [item if isinstance(other, CalibrateActivations) else other for other in quantization_passes()]
    passes = [UnifyScales() if isinstance(other, UnifyScales) else other for other in passes]  # without copies
    records = PassManager(passes).run(module, PassContext(load_target("int8_dsp"), [[x]], [[x]]))
    return module, next(record for record in records if record.pass_name == item.name)


def by_cross_entropy(record: Record) -> set[str]:
    return {event.node for event in record.events if event.data.get("method") == "cross_entropy"}


LOGITS: dict[str, tuple[Callable[[Tensor, Tensor], object], set[str], str | None]] = {
    "directly": (lambda a, b: (a, torch.relu(b) + 1), {"a.q", "add.q"}, None),
    "through movement": (lambda a, b: (a.permute(0, 2, 3, 1).flatten(1, 2), b.relu().mean((1, 2, 3))), {"a.q"}, None),
    "also read by others": (lambda a, b: (a, (a * b).mean((1, 2, 3))), {"a.q"}, None),
    "a shared grid": (
        lambda a, b: (a, torch.cat([a, b], 1).mean((1, 2, 3))),
        set(),
        "it shares its grid with b.q, so sqnr replaces cross_entropy",
    ),
    "a concat of outputs": (lambda a, b: torch.cat([a, b], 1), set(), None),
}  # fmt: skip


@pytest.mark.parametrize("name", LOGITS)
def test_outputs_of_classes_get_a_range_of_their_own(name: str) -> None:
    outputs, found, refusal = LOGITS[name]
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    _, record = calibrated(Heads(outputs), x, CalibrateActivations(logits="cross_entropy"))
    assert by_cross_entropy(record) == found
    assert list(refusals(record)) == ([refusal] if refusal else [])


def test_sequences_of_a_linear_layer_have_their_classes_last() -> None:
    model = nn.Sequential(nn.Linear(6, 3))
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    module, record = calibrated(model, x, CalibrateActivations(logits="cross_entropy"))
    seen = make_observer("cross_entropy", QuantSpec.parse("s8"), "logits", options={"class_axis": 2})
    with torch.no_grad():
        seen.update(model(x))
    (name,) = by_cross_entropy(record)
    # Not to the bit: the layer that was seen has weights of 8 bits.
    scale = qparams_from_range(*seen.range(), QuantSpec.parse("s8"))[0]
    torch.testing.assert_close(module.tensors[name.replace(".q", ".scale")], scale, rtol=0.05, atol=0)


def test_a_method_for_logits_alone_and_none_without_data() -> None:
    model, x = Heads(lambda a, b: a.relu() + b), torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    plain, _ = calibrated(model, x, CalibrateActivations(method="min_max"))
    narrow, _ = calibrated(model, x, CalibrateActivations(method="min_max", logits="percentile", percentile=90.0))
    assert torch.equal(plain.tensors["x.scale"], narrow.tensors["x.scale"])
    assert float(narrow.tensors["add.scale"]) < float(plain.tensors["add.scale"])
    settled = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    module = frontends.capture(settled, x).module
    passes = quantization_passes()[:-3]
    records = PassManager([*passes, CalibrateActivations(logits="cross_entropy")]).run(
        module, PassContext(load_target("int8_dsp"), [[x]])
    )
    sources = {event.data["source"] for event in records[-1].events}
    assert sources == {"the assumed input range", "batch-norm statistics"}


class Joined(nn.Module):
    """A layer and a small constant, put together by `join`."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.join = nn.Conv2d(3, 4, 1), join
        self.register_buffer("table", torch.full((1, 4, 1, 6), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.table, Tensor)
        return self.join(self.layer(x), self.table)


@pytest.mark.parametrize("join", [lambda x, t: torch.cat([x, t], 2), lambda x, t: torch.cat([t, x], 2)])
@pytest.mark.parametrize("with_data", [True, False])
def test_a_constant_shares_the_range_of_activations(join: Callable[[Tensor, Tensor], Tensor], with_data: bool) -> None:
    torch.manual_seed(0)
    model, x = Joined(join).eval(), torch.randn(1, 3, 6, 6)
    compiled = qcompiler.compile(model, example_inputs=(x,), calibration_data=[x] if with_data else None)
    found = compiled.simulate(x)
    assert isinstance(found, Tensor)
    expected = model(x).detach()
    share = 0.05 if with_data else 0.2  # some inputs are beyond the range that is assumed without data
    assert float((found - expected).abs().max()) < share * float(expected.abs().max())


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no method": ({"method": "minmax"}, "minmax"),
    "for logits alone": ({"method": "cross_entropy"}, "not possible for all tensors"),
    "no method for logits": ({"logits": "cross_entropie"}, "Did you mean 'cross_entropy'"),
    "percentile": ({"percentile": 100.5}, "percentile=100.5"),
    "momentum": ({"method": "moving_average", "momentum": 1.0}, "momentum=1.0"),
    "bins": ({"bins": 0}, "a histogram of 0 bins"),
    "clipping": ({"method": "sqnr", "clipping": -1.0}, "clipping=-1.0"),
    "rows": ({"logits": "cross_entropy", "rows": 0}, "rows=0"),
    "alpha": ({"alpha": 0.0}, "alpha=0.0"),
    "no alpha": ({"alpha": float("nan")}, "alpha=nan"),
    "all of alpha": ({"alpha": float("inf")}, "alpha=inf"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_out_of_range_are_refused(case: str) -> None:
    options, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        CalibrateActivations(**options)


def test_the_noise_is_recorded() -> None:
    data = batches((-1.0, 2.0))
    context = PassContext(samples=data, calibration_data=data)
    facts = {"quantizers", "weight-ranges", "ties"}
    (record,) = PassManager([CalibrateActivations()], facts).run(built(*CHAIN), context)
    assert 30 < record.metrics["sqnr_db"] < 80  # type: ignore[operator]  # a number: the contract is lossy


def test_what_it_needs_and_establishes() -> None:
    check_declared(
        CalibrateActivations(),
        {Stage.QUANTIZED},
        requires={"quantizers", "weight-ranges", "ties"},
        establishes={"activation-ranges"},
    )

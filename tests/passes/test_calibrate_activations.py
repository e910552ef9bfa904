"""Ranges of activations, from data and from what is known without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qcompiler.errors import CalibrationError, InputError, PassError
from qcompiler.ir.graph import Module
from qcompiler.ir.types import Stage
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.calibrate_activations import CalibrateActivations
from tests.support.declared import check_declared
from tests.support.golden import leaf, lines, module, run

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

"""A session computes each stage once, and shares a captured model between quantizations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import InputError, PipelineError
from qcompiler.ir.graph import Graph, Module
from qcompiler.ir.hashing import module_hash
from qcompiler.ir.types import Stage
from qcompiler.passes import Pass, PassContext
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.session.options import Options
from qcompiler.session.pipeline import default_pipeline
from qcompiler.session.session import Session
from qcompiler.targets import load_target

TARGET = load_target("int8_dsp")


class Net(nn.Module):
    """A convolution, its batch norm, and a layer that reads the means of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return logits


def options(**others: object) -> Options:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(4, 3, 6, 6, generator=generator) for _ in range(2)]
    return Options(calibration_data=batches, **others)  # type: ignore[arg-type]


def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def test_each_pass_runs_once_and_no_stage_runs_what_it_does_not_need() -> None:
    borders: list[tuple[str | None, Stage, str | None]] = []

    def between(before: Pass | None, module: Module, after: Pass | None) -> None:
        names = (None if item is None else item.name for item in (before, after))
        borders.append((next(names), module.main.stage, next(names)))

    passes = default_pipeline()
    session = Session(model(), TARGET, options(), passes, between=between)
    assert not borders
    assert session.captured.module.main.stage is Stage.FLOAT
    assert not borders, "capture runs no pass"
    assert session.canonical.module.main.stage is Stage.CANONICAL
    assert borders[0] == (None, Stage.FLOAT, "canonicalize")
    assert borders[-1][2] == "insert-quantizers"
    assert session.quantized.module.main.stage is Stage.QUANTIZED
    assert borders[-1][2] == "lower-to-integer"
    assert "_build" not in vars(session), "nothing is emitted"
    assert session.integer is session.integer
    assert session.artifact().program is session.artifact().program, "a model is emitted once"
    names = [item.name for item in passes]
    assert [before for before, _, _ in borders] == [None, *names]
    assert [after for _, _, after in borders] == [*names, None]
    assert [record.pass_name for record in session.integer.records] == names
    assert session.captured.module.main.stage is Stage.FLOAT, "a stage does not change when the next is computed"
    assert session.canonical.module.main.stage is Stage.CANONICAL


def test_a_session_gives_what_compile_gives() -> None:
    session = Session(model(), TARGET, options(), default_pipeline())
    compiled = qcompiler.compile(model(), TARGET, calibration_data=options().calibration_data)
    assert module_hash(session.quantized.module) == module_hash(compiled.quantized)
    assert module_hash(session.integer.module) == module_hash(compiled.integer)
    files, others = session.artifact().files(), compiled.artifact.files()
    assert {name for name in files if files[name] != others[name]} <= {"manifest.json", "report.html"}


def with_method(method: str) -> tuple[Pass, ...]:
    return tuple(
        CalibrateActivations(method=method) if isinstance(item, CalibrateActivations) else item
        for item in default_pipeline()
    )


def test_one_capture_serves_many_quantizations() -> None:
    net = model()
    session = Session(net, TARGET, options(), default_pipeline())
    first = module_hash(session.quantized.module)
    other = session.with_passes(with_method("mse"))
    assert other.captured is session.captured
    assert other.canonical is session.canonical, "the passes before the quantizers are the same"
    assert module_hash(other.quantized.module) != first
    assert module_hash(session.quantized.module) == first
    alone = Session(net, TARGET, options(), with_method("mse"))
    assert module_hash(other.quantized.module) == module_hash(alone.quantized.module)


def test_another_target_or_width_shares_the_capture_alone() -> None:
    session = Session(model(), TARGET, options(), default_pipeline())
    assert session.quantized.module.main.stage is Stage.QUANTIZED
    wide = session.with_passes(default_pipeline(), options=options(overrides={"head": 16}))
    narrow = session.with_passes(default_pipeline(weight_bits=4), target=TARGET.override(weight_bits=4))
    for changed in (wide, narrow):
        assert changed.captured is session.captured
        assert changed.canonical is not session.canonical
        assert module_hash(changed.quantized.module) != module_hash(session.quantized.module)


def test_random_numbers_do_not_depend_on_which_stage_is_read_first() -> None:
    class Draw(Pass):
        name = "draw"
        stages: ClassVar[frozenset[Stage]] = frozenset(Stage)

        def run(self, graph: Graph, context: PassContext) -> None:
            context.record.metrics["drawn"] = int(torch.randint(2**31, (), generator=context.generator))

    passes: Sequence[Pass] = [item for real in default_pipeline() for item in (Draw(), real)]

    def drawn(session: Session) -> list[object]:
        return [record.metrics["drawn"] for record in session.integer.records if record.pass_name == Draw.name]

    straight = Session(model(), TARGET, options(), passes)
    branched = Session(model(), TARGET, options(), passes)
    assert branched.quantized.module.main.stage is Stage.QUANTIZED
    again = branched.with_passes(passes)
    assert again.quantized.module.main.stage is Stage.QUANTIZED
    assert drawn(straight) == drawn(branched) == drawn(again)
    assert len(set(drawn(straight))) == len(default_pipeline())


def test_an_end_that_passes_never_reach_is_refused_before_one_runs() -> None:
    ran: list[object] = []
    passes = default_pipeline()[:3]
    session = Session(model(), TARGET, options(), passes, between=lambda *_: ran.append(_))
    with pytest.raises(PipelineError, match=r"ends at stage canonical.*Add insert-quantizers"):
        session.quantized  # noqa: B018
    with pytest.raises(PipelineError, match=r"ends at stage canonical.*Add lower-to-integer"):
        session.integer  # noqa: B018
    assert not ran


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "the seed is -1"),
        ({"memory": -1}, "memory=-1"),
        ({"unmatched_encodings": "maybe"}, "unmatched_encodings is 'maybe'"),
        ({"effort": "more"}, "effort is 'more'"),
        ({"effort": "more", "passes": [Canonicalize()]}, "effort is 'more'"),
        ({"passes": [Canonicalize()], "pipeline": "canonicalize"}, "both passes= and pipeline= were passed"),
        ({"device": "tape"}, "the device is 'tape'"),
    ],
)
def test_options_out_of_range_are_refused_used_or_not(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Options(**wrong)  # type: ignore[arg-type]

"""A candidate begins with the tensors that the first one began with."""

from __future__ import annotations

import torch

from qcompiler.ir.graph import Module
from qcompiler.ir.types import Stage
from qcompiler.passes import Pass, PassContext, PassManager
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.start_candidate import StartCandidate
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.golden import PADDED, conv, lines, module, run

TEXT = [*conv("c", "%x", 8, "f32[N, 8, 6, 6]", PADDED), "%c"]


def placed() -> tuple[Module, PassContext]:
    subject, context = module("canonical", *TEXT), PassContext(load_target("int8_dsp"))
    run(InsertQuantizers(), subject, context)
    return subject, context


def begun(subject: Module, context: PassContext) -> tuple[bool, int]:
    """Whether something was removed, and the number of the candidate, as the manager calls the pass."""
    removed = StartCandidate().prepare(subject.main, context)
    candidate = run(StartCandidate(), subject, context).metrics["candidate"]
    assert isinstance(candidate, int)
    return removed, candidate


def test_the_first_remembers_and_changes_nothing() -> None:
    subject, context = placed()
    before, text = dict(subject.tensors), lines(subject)
    assert begun(subject, context) == (False, 0)
    assert context.start == before and context.candidates == []
    assert lines(subject) == text
    assert all(subject.tensors[name] is tensor for name, tensor in before.items())


def test_each_further_one_sets_the_tensors_aside_and_restores_the_first() -> None:
    subject, context = placed()
    begun(subject, context)
    weight = subject.tensors["c.weight"]
    for number in (1, 2):
        run(CalibrateWeights(), subject, context)
        subject.tensors["c.weight"] = weight + number
        text = lines(subject)
        assert begun(subject, context) == (True, number)
        assert torch.equal(subject.tensors["c.weight"], weight)
        assert bool(subject.tensors["c.weight.scale"].isnan()), "ranges are found anew"
        assert lines(subject) == text
    assert [torch.equal(kept["c.weight"], weight + number) for number, kept in enumerate(context.candidates, 1)] == [
        True,
        True,
    ]
    assert all(bool(kept["c.weight.scale"].isfinite()) for kept in context.candidates)


def test_what_a_candidate_did_is_no_change_of_the_next() -> None:
    """The contract is exact: outputs are compared after the tensors are back."""
    subject, context = placed()
    context.samples = [[torch.randn(2, 4, 6, 6)]]
    passes: list[Pass] = [StartCandidate(), CalibrateWeights(), StartCandidate(), CalibrateWeights()]
    records = PassManager(passes, {"quantizers"}).run(subject, context)
    assert [record.metrics.get("candidate") for record in records] == [0, None, 1, None]
    assert records[2].metrics["max_difference"] == 0.0
    assert not any(record.events for record in records[::2])


def test_what_it_needs_and_invalidates() -> None:
    check_declared(
        StartCandidate(),
        {Stage.QUANTIZED},
        requires={"quantizers"},
        invalidates={"weight-ranges", "activation-ranges", "biases-fit"},
    )

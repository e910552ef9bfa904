"""`qcompiler.analyze` with a work folder and a budget, and the divergence of the outputs of classifiers."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler import cli
from qcompiler.analysis import parts
from qcompiler.analysis.divergence import is_classifier, summed_divergence
from qcompiler.errors import ArtifactError, InputError
from tests.analysis.illnesses import CASES, Case, batches, digits, trained

HERE = "tests.analysis.test_analysis_work"


class Killed(BaseException):
    """Stands for the end of the process."""


@functools.cache
def case() -> Case:
    return CASES["saturating_sigmoid"]()


def analyzed(evaluate: Callable[[nn.Module], float], **options: Any) -> qcompiler.Analysis:
    arguments: dict[str, Any] = {**case().options, **options}
    return qcompiler.analyze(case().model, case().target, case().data, evaluate, **arguments)


def killed_after(calls: int) -> Callable[[nn.Module], float]:
    """An evaluation during which the process is killed."""
    done: list[int] = []

    def evaluate(model: nn.Module) -> float:
        done.append(1)
        if len(done) > calls:
            raise Killed
        return case().evaluate(model)

    return evaluate


def test_an_analysis_that_is_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, measure = tmp_path / "work", parts.measure_group
    measured: list[int] = []

    def counted(*arguments: Any) -> dict[str, Tensor]:
        measured.append(1)
        if len(measured) == 5:
            raise Killed
        return measure(*arguments)

    monkeypatch.setattr(parts, "measure_group", counted)
    with pytest.raises(Killed):  # within the table of parts
        analyzed(case().evaluate, work=work)
    for done in (1, 2, 2, 2):  # during the first score, after each of the three scores, and so during a remedy
        with pytest.raises(Killed):
            analyzed(killed_after(done), work=work)
    resumed = analyzed(case().evaluate, work=work)
    whole = analyzed(case().evaluate)
    assert json.dumps(resumed.to_dict()) == json.dumps(whole.to_dict())
    # Each part was measured once, but for the one of the kill; the uninterrupted analysis measured all again.
    assert len(measured) == 1 + 2 * len(whole.parts)
    # Only the float model is scored again: its score tells a changed evaluation.
    assert analyzed(killed_after(1), work=work).to_dict() == whole.to_dict()


def test_scores_of_another_evaluation_are_not_used(tmp_path: Path) -> None:
    analyzed(case().evaluate, work=tmp_path, budget=3)
    found = analyzed(lambda model: case().evaluate(model) / 100.0, work=tmp_path, budget=3)
    assert max(found.scores.values()) <= 1.0


def test_a_time_as_budget_scores_no_remedy_once_it_is_over() -> None:
    found = analyzed(case().evaluate, budget="0.001 s")
    assert found.evaluations == 1  # the analyzed model
    assert not any(item.measured for item in found.findings)
    with pytest.raises(InputError, match="budget is 'soon'"):
        analyzed(case().evaluate, budget="soon")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"notes\.txt"):
        analyzed(case().evaluate, work=tmp_path)
    with pytest.raises(ArtifactError, match="it is no folder"):
        analyzed(case().evaluate, work=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_divergence_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted, found = torch.randn(2, 7, 5, generator=generator)
    whole = functional.kl_div(found.log_softmax(1), wanted.log_softmax(1), reduction="sum", log_target=True)
    assert summed_divergence(wanted, found) == pytest.approx(float(whole), rel=1e-5)
    assert summed_divergence(wanted, wanted + 3.0) == pytest.approx(0.0, abs=1e-9)
    holes = wanted.clone()
    holes[2] = torch.inf
    rest = [0, 1, 3, 4, 5, 6]
    assert summed_divergence(holes, found) == pytest.approx(summed_divergence(wanted[rest], found[rest]))


def test_only_one_table_of_logits_is_a_classifier() -> None:
    logits = torch.zeros(4, 10)
    assert is_classifier([logits])
    for other in ([logits, logits], [logits[:, :1]], [logits[0]], [logits.long()], [torch.zeros(4, 3, 8, 8)]):
        assert not is_classifier(other)


def test_a_classifier_has_divergences_without_evaluate() -> None:
    found = qcompiler.analyze(trained(), "int8_dsp", batches(), overrides={"conv1": 2})
    assert list(found.divergences) == ["weights only", "activations only", "quantized"]
    assert found.divergences["weights only"] > found.divergences["activations only"] > 0.0
    assert "nats per sample): weights only" in str(found)
    images = batches()[0][:32]
    compiled = qcompiler.compile(
        trained(), "int8_dsp", calibration_data=batches(), overrides={"conv1": 2}, verify="off"
    )
    with torch.no_grad():
        wanted, output = trained()(images), compiled.simulate(images)
    assert isinstance(output, Tensor)
    mean = functional.kl_div(output.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
    assert found.divergences["quantized"] == pytest.approx(float(mean), rel=1e-3)
    assert analyzed(case().evaluate, budget=1).divergences == {}


def healthy() -> nn.Module:
    return trained()


def test_the_commands_take_a_work_folder_and_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", digits().calibration_images[:64].numpy())
    options = ["--calibration", str(tmp_path / "x.npy"), "--work", str(tmp_path / "work"), "--budget", "5 min"]
    assert cli.main(["analyze", f"{HERE}:healthy", *options]) == 0
    capsys.readouterr()
    before = sorted((tmp_path / "work").iterdir())
    assert before
    assert cli.main(["debug", f"{HERE}:healthy", *options]) == 0  # with the measurements of analyze
    assert set(before) <= set((tmp_path / "work").iterdir())

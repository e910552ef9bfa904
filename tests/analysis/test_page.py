"""The page of an analysis shows what was found, the worst first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.analysis.diagnosis import Diagnosis, Step
from qcompiler.errors import InputError
from qcompiler.pages import plots


@pytest.fixture(scope="module")
def analysis() -> qcompiler.Analysis:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        next(model.parameters())[0] *= 200
    return qcompiler.analyze(
        model, qcompiler.load_target("int8_dsp").override(weight_bits=4), [torch.randn(8, 3, 8, 8)]
    )


def test_the_page_has_all_parts_and_findings(analysis: qcompiler.Analysis, tmp_path: Path) -> None:
    text = analysis.report(tmp_path / "page.html").read_text()
    assert analysis.report(tmp_path / "again.html").read_text() == text
    rows = re.findall(r'<tr id="part-([^"]+)">', text)
    assert rows == [f"{part.kind}-{part.name}" for part in analysis.worst(len(analysis.parts))]
    assert analysis.findings
    for item in analysis.findings:
        assert str(item.cause) in text
        assert item.gain() in text
    assert "Debugging flow" not in text
    assert not re.search(r"(src|href)=\"https?:|url\((?!#)|@import", text)
    assert text.count("<script>") == 1
    assert text.count("stroke-dasharray") >= len(analysis.parts), "limits of the grids"


def test_the_path_of_a_diagnosis_is_drawn(analysis: qcompiler.Analysis, tmp_path: Path) -> None:
    steps = (
        Step("float model", "gives 0.9 & more", 0.9),
        Step("per channel", "weights", 0.8, kept=True),
        Step("none", "", 0.7, kept=False),
    )
    found = Diagnosis(steps, 0.7, 0.8, 0.9, True, {"effort": "best"}, "effort='best'")
    text = analysis.report(tmp_path / "page.html", found).read_text()
    flow = text.partition("<h2>Debugging flow</h2>")[2].partition("<h2>")[0]
    assert flow.index("gives 0.9 &amp; more") < flow.index("per channel") < flow.index("not kept")
    assert "effort=&#x27;best&#x27;" in flow
    assert "within the allowed drop" in flow


def test_the_page_without_matplotlib(
    analysis: qcompiler.Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(self: object) -> str:
        raise InputError("plots need matplotlib, which is not installed", fix="Run `pip install 'qcompiler[plots]'`.")

    monkeypatch.setattr(plots.Histograms, "svg", absent)
    assert "qcompiler[plots]" in analysis.report(tmp_path / "page.html").read_text()


def test_notebooks_show_the_findings(analysis: qcompiler.Analysis) -> None:
    shown = analysis._repr_html_()
    assert 'class="verdict"' in shown
    assert analysis.findings[0].keywords().replace("'", "&#x27;").replace('"', "&quot;") in shown
    assert len(shown) < 20_000

"""The report: complete, self-contained, and readable in a browser, where there is one."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.artifact import report
from qcompiler.artifact.drawing import draw
from qcompiler.artifact.report import report_html, verdict
from qcompiler.errors import InputError
from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.pages import plots

ARTEFACTS = Path(__file__).parents[2] / "out" / "tests"
"""Files that tests write for a person to look at; not part of the repository."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Branches(nn.Module):
    """A chain, a branch, a jump over several steps, and a float island."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.stem(x))
        z = torch.cat([self.left(y), torch.relu(self.right(torch.relu(self.right(y))))], 1)
        z = torch.sort(z[:, :8] + y, 1).values
        result: torch.Tensor = self.head(z.mean((2, 3)))
        return result


@pytest.fixture(scope="module")
def compiled() -> qcompiler.Compiled:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    target = qcompiler.load_target("int8_dsp").override(fallback="float")
    return qcompiler.compile(Branches().eval(), target, calibration_data=[x])


class _Reader(HTMLParser):
    """Checks that tags nest, and collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "path", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_holds_everything_and_needs_nothing(compiled: qcompiler.Compiled) -> None:
    page = compiled.artifact.report()
    reader = _Reader()
    reader.feed(page)
    assert not reader.open
    assert not reader.tags & {"script", "link", "img", "iframe"}
    assert not re.search(r"https?:|url\(|@import", page)
    text = " ".join(reader.text)
    for heading in ("Forms", "Outputs", "Float islands", "Program", "Tensors", "Passes", "Sizes"):
        assert heading in text
    for instruction in compiled.artifact.program.program.instructions:
        assert text.count(instruction.output) >= 2, "the name is in the drawing and in the table"
    for name, ratio in compiled.artifact.sqnr.items():
        assert name in text
        assert ratio == float("inf") or f"{ratio:.1f} dB" in text


def test_noise_is_that_of_each_tensor_against_the_float_model(compiled: qcompiler.Compiled) -> None:
    ratios = compiled.artifact.sqnr
    grids = {name for name, tensor in compiled.artifact.program.program.tensors.items() if tensor.scale}
    activations = grids - set(compiled.artifact.program.constants)
    assert activations <= set(ratios)
    assert all(ratio > 15 for ratio in ratios.values())
    (x,) = compiled.inputs
    with torch.no_grad():
        torch.manual_seed(0)
        torch.randn(4, 3, 8, 8)
        expected = Branches().eval()
        expected.load_state_dict({key: compiled.quantized.tensors[key] for key in expected.state_dict()})
        real = expected(x)
        noise = real - compiled.simulate(x)
    ratio = 10 * float(np.log10(float(real.square().sum()) / float(noise.square().sum())))
    assert abs(ratio - ratios["output 0"]) < 0.01


def test_boxes_do_not_overlap_and_lines_end_at_them(compiled: qcompiler.Compiled) -> None:
    drawing = draw(compiled.artifact.program.program, {}, str)
    boxes = [tuple(map(int, found)) for found in re.findall(r'<rect x="(\d+)" y="(\d+)"', drawing)]
    assert len(set(boxes)) == len(boxes)
    assert len(boxes) == len(compiled.artifact.program.program.instructions) + 1
    assert draw(compiled.artifact.program.program, {}, str) == drawing


def test_each_box_leads_to_its_row_and_back(compiled: qcompiler.Compiled) -> None:
    page = compiled.artifact.report()
    places = set(re.findall(r' id="([^"]+)"', page))
    links = re.findall(r'<a href="#([^"]+)"', page)
    assert set(links) <= places
    names = [item.output for item in compiled.artifact.program.program.instructions]
    assert all(links.count(f"{kind}-{name}") == 1 for kind in ("box", "tensor") for name in names)


def test_the_worst_tensors_are_first(compiled: qcompiler.Compiled) -> None:
    page = compiled.artifact.report()
    rows = re.findall(r'<tr id="tensor-([^"]+)">.*?</tr>', page)
    ratios = [compiled.artifact.sqnr[name] for name in rows if name in compiled.artifact.sqnr]
    assert ratios == sorted(ratios)
    assert len(ratios) > 5


def test_a_large_page_shows_less(compiled: qcompiler.Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compiled.artifact.report()
    every = sum(len(item.outputs) for item in compiled.artifact.program.program.instructions)
    assert len(whole.encode()) <= report.LARGEST_PAGE
    monkeypatch.setattr(report, "MOST_ROWS", (every, every - 1, 4))
    monkeypatch.setattr(report, "LARGEST_PAGE", len(whole.encode()) - 1)
    less = compiled.artifact.report()
    assert len(less.encode()) <= report.LARGEST_PAGE
    assert "too many to draw" in less
    assert f"The worst {every - 1} of {every}" in less
    monkeypatch.setattr(report, "LARGEST_PAGE", 100)
    assert f"The worst 4 of {every}" in compiled.artifact.report()
    assert "too many" not in report_html(compiled.artifact.page, sorts=True), "a page that sorts may be of any size"


def test_the_verdict_is_one_sentence(compiled: qcompiler.Compiled) -> None:
    page = compiled.artifact.page
    assert page.verification is not None
    clean = dataclasses.replace(page, diagnostics=[])
    assert verdict(clean) == "Verified: all forms agree, and nothing needs attention."
    found = Diagnostic("clipped-input", {"fix": "Calibrate again."})
    assert "one finding needs your attention" in verdict(dataclasses.replace(page, diagnostics=[found]))
    assert "2 findings need" in verdict(dataclasses.replace(page, diagnostics=[found, found]))
    assert verdict(dataclasses.replace(page, verification=None)).startswith("Not verified")
    forms = [{**page.verification["forms"][0], "status": "differs", "required": True}]
    wrong = dataclasses.replace(page, verification={**page.verification, "forms": forms})
    assert verdict(wrong).startswith(f"Do not ship this artifact: {forms[0]['name']} differ")


def test_the_page_for_reading_sorts_and_has_histograms(
    compiled: qcompiler.Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = compiled.report(tmp_path / "report.html").read_text()
    assert page.count("<script>") == 1
    assert not re.search(r"(src|href)=\"https?:|url\((?!#)|@import", page)
    assert '<g id="' in page.partition("<h2>Histograms</h2>")[2]
    assert compiled.report(tmp_path / "again.html").read_text() == page
    monkeypatch.setattr(plots.Histograms, "svg", lambda self: _no_plots())
    assert "qcompiler[plots]" in compiled.report(tmp_path / "plain.html").read_text()


def _no_plots() -> str:
    raise InputError("plots need matplotlib, which is not installed", fix="Run `pip install 'qcompiler[plots]'`.")


def test_notebooks_show_verdict_and_quality(compiled: qcompiler.Compiled) -> None:
    shown = compiled._repr_html_()
    assert "Branches for int8_dsp" in shown
    assert 'class="verdict"' in shown
    assert len(shown) < 5_000
    assert compiled.artifact._repr_html_() == shown


def test_model_and_versions_are_named(compiled: qcompiler.Compiled) -> None:
    made = compiled.artifact.versions
    assert set(made) == {"qcompiler", "torch", "onnx"}
    page = compiled.artifact.report()
    assert f"torch {torch.__version__.partition('+')[0]}" in page
    assert compiled.artifact.model == "Branches"


def test_a_browser_shows_it(compiled: qcompiler.Compiled) -> None:
    """Leaves the picture in `out/tests/report.png`."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no browser is installed: apt install chromium")
    image_module = pytest.importorskip("PIL.Image")
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page, picture = ARTEFACTS / "report.html", ARTEFACTS / "report.png"
    compiled.report(page)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1300,3000"]
    subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True, timeout=120)
    pixels = np.asarray(image_module.open(picture).convert("RGB"))
    assert pixels.shape == (3000, 1300, 3)
    green = (pixels[..., 1] > pixels[..., 0] + 20) & (pixels[..., 1] > pixels[..., 2] + 20)
    assert green.sum() > 10_000, "boxes of tensors that keep the signal"
    written = (pixels < 100).all(2).sum()
    assert written > 5_000, "lines of text"

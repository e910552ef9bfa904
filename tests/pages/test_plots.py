"""Pictures: that they show the numbers, and that they are the same each time."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.errors import InputError
from qcompiler.pages.plots import Bars, Curves, Histogram, Histograms, Points

SVG = "{http://www.w3.org/2000/svg}"
Point = tuple[float, float]


def outlines(drawing: str) -> dict[str, list[list[Point]]]:
    """The lines of each part that has an id, as points; y counts downwards."""
    found = {}
    for part in ET.fromstring(drawing).iter(f"{SVG}g"):  # noqa: S314
        paths = [path.get("d", "") for path in part.findall(f"{SVG}path")]
        lines = [line for path in paths for line in path.split("M")[1:]]
        found[part.get("id", "")] = [
            [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", line)] for line in lines
        ]
    return found


numbers = st.floats(-1e6, 1e6).filter(lambda value: value == 0.0 or abs(value) > 1e-6)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=20, unique_by=lambda point: point[0]))
@settings(max_examples=10)
def test_curves_stay_on_their_paper_and_rise_where_numbers_rise(points: list[Point]) -> None:
    curves = {"one": sorted(points), "two": [(0.0, 1.0), (1.0, math.inf), (2.0, 2.0), (3.0, 2.0), (4.0, math.nan)]}
    found = outlines(Curves("a < b & $c", "step", curves).svg())
    for line in (*found["one"], *found["two"]):
        assert all(0 <= x <= 640 and 0 <= y <= 260 for x, y in line)
    (drawn,) = found["one"]
    assert len(drawn) == len(points)
    for (_, before), (_, after), (_, y), (_, z) in zip(
        sorted(points), sorted(points)[1:], drawn, drawn[1:], strict=False
    ):
        assert before == after or (before < after) == (y > z) or y == pytest.approx(z, abs=0.01)


def test_what_is_not_finite_ends_a_line() -> None:
    curve = [(0.0, 1.0), (1.0, 2.0), (2.0, math.nan), (3.0, math.inf), (4.0, 2.0), (5.0, 1.0)]
    found = outlines(Curves("title", "step", {"one": curve}, numbered=False).svg())
    assert [len(line) for line in found["one"]] == [2, 2]


def test_bars_are_as_long_as_their_numbers() -> None:
    drawing = Bars("title", ("a", "b"), {"kind": (1.0, 2.0), "other": (0.0, 4.0)}).svg()
    found = outlines(drawing)
    widths = [
        max(x for x, _ in corners) - min(x for x, _ in corners)
        for name in ("a kind", "b kind", "a other", "b other")
        for corners in found[name]
    ]
    assert widths == pytest.approx([widths[3] / 4, widths[3] / 2, 0.0, widths[3]], abs=1e-3)
    heights = [found[name][0][0][1] for name in ("a kind", "a other", "b kind", "b other")]
    assert heights == sorted(heights)
    texts = [item.text for item in ET.fromstring(drawing).iter(f"{SVG}text")]  # noqa: S314
    assert {"title", "a", "b", "kind", "other", "1", "2", "4"} <= set(texts)


def test_a_histogram_has_its_limits_and_no_colour_of_its_own_for_text() -> None:
    parts = [
        Histogram("a.b", (1, 10, 100), (-1.0, 2.0), (-0.5, 1.5), "12 dB"),
        Histogram("$x" * 30, (5,), (0.0, 0.0), (0.0, 1.0)),
    ]
    drawing = Histograms(parts).svg()
    (outline,) = outlines(drawing)["a.b"]
    steps = sorted({y for _, y in outline})
    assert len(steps) == 4, "three counts and the ground"
    assert steps[1] - steps[0] == pytest.approx(steps[2] - steps[1], abs=0.01), "a logarithmic axis"
    assert drawing.count("stroke-dasharray: 3.7") == 4, "two limits each"
    assert "currentColor" in drawing
    assert "#000000" not in drawing
    assert "#ffffff" not in drawing
    texts = [item.text for item in ET.fromstring(drawing).iter(f"{SVG}text")]  # noqa: S314
    assert "12 dB" in " ".join(filter(None, texts))


def test_points_and_front_are_where_the_numbers_are() -> None:
    drawing = Points(
        "title", "cost", "dB", {"on": [(1.0, 1.0), (2.0, 3.0), (math.nan, 0.0)]}, [(1.0, 1.0), (2.0, 3.0)]
    ).svg()
    (line,) = outlines(drawing)["front"]
    assert [round(x) for x, _ in line] == [round(line[0][0]), round(line[-1][0]), round(line[-1][0])]
    assert line[0][1] == line[1][1] > line[2][1], "a staircase up"
    marks = next(part for part in ET.fromstring(drawing).iter(f"{SVG}g") if part.get("id") == "on")  # noqa: S314
    assert len(list(marks.iter(f"{SVG}use"))) == 2


def test_the_same_numbers_give_the_same_text_whatever_the_user_has_set() -> None:
    curves = Curves("title", "step", {"one": [(0.0, 1.0), (1.0, 2.0)]})
    drawing = curves.svg()
    with mpl.rc_context({"font.size": 20.0, "svg.fonttype": "path", "axes.facecolor": "black", "svg.hashsalt": "x"}):
        before = dict(mpl.rcParams)
        assert curves.svg() == drawing
        assert dict(mpl.rcParams) == before
    assert "<dc:date>" not in drawing


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"matplotlib.*not installed") as caught:
        Bars("title", ("a",), {"kind": (1.0,)}).svg()
    assert "qcompiler[plots]" in str(caught.value)


def test_another_process_draws_the_same_and_looks_for_no_display() -> None:
    curves = Curves("title", "step", {"one": [(0.0, 1.0), (1.0, 2.0)]})
    code = (
        f"import sys; from qcompiler.pages.plots import Curves; print({curves!r}.svg(), end='');"
        "import matplotlib; print(matplotlib.get_backend(auto_select=False), 'matplotlib.pyplot' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout == curves.svg() + "None False\n"

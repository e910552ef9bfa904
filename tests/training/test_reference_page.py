"""The reference of training names what there is."""

from __future__ import annotations

from pathlib import Path

from qcompiler.training import choose_codes, regularizers, schedules, tracking
from qcompiler.training.methods import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "training.md"


def test_every_method_has_its_row() -> None:
    text = PAGE.read_text(encoding="utf-8")
    section = text.split("## Methods")[1].split("## Penalties")[0]
    rows = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(METHODS)


def test_what_is_there_to_choose_is_named() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names = ["Dampening", "L2ToGrid", "BinRegularization", "Constant", "Cosine", "sample_codes", "optimize_codes"]
    names += ["oscillation_plot", "oscillation_scalars", "oscillation_statistics"]
    public = {name for item in (choose_codes, regularizers, schedules, tracking) for name in item.__all__}
    for name in names:
        assert name in public
        assert name in text

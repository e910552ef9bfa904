"""The share of architectures: finished ones are not run again, and the page counts them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import architectures
from benchmarks.architectures import Result, main, page

STRICT = Result("a", "timm", True, "", 30.0, 0, 9, 2.0, 500)
REFUSED = Result("b", "timm", False, "the torch function 'x' has no operator (at m)")


def test_a_run_goes_on_where_the_last_one_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def measured(library: str, name: str, *, check: bool) -> Result:
        ran.append(f"{name} by check" if check else name)
        return dataclasses.replace(STRICT, library=library, name=name)

    monkeypatch.setattr(architectures, "_in_process", measured)
    monkeypatch.setitem(architectures.LIBRARIES, "timm", (("a", "b", "c"), architectures.LIBRARIES["timm"][1]))
    (tmp_path / "timm.b.json").write_text(json.dumps(dataclasses.asdict(REFUSED)))
    assert main(["--library", "timm", "--out", str(tmp_path), "--shard", "1/2"]) == 0
    assert ran == ["a", "c"]
    assert main(["--library", "timm", "--out", str(tmp_path)]) == 0
    assert ran == ["a", "c"], "b was there from the start"
    assert main(["--library", "timm", "--out", str(tmp_path), "--check"]) == 0
    assert ran[2:] == ["a by check", "b by check", "c by check"], "predictions are results of their own"


def test_the_page_counts_what_is_strict_and_what_refuses() -> None:
    text = page([STRICT, REFUSED])
    assert "## timm: 1 of 2 strict" in text
    assert "| a | yes | 30.0 | 0 | 9 | 2 | 500 |" in text
    assert "- 1 x the torch function 'x' has no operator" in text


def test_a_network_is_checked_without_a_compile() -> None:
    result = architectures.predict("torchvision", "squeezenet1_1")
    assert result.strict and not result.why and not result.forms


def test_a_network_is_measured() -> None:
    result = architectures.measure("torchvision", "squeezenet1_1")
    assert result.strict and result.differing == 0 and result.db > 10.0
    assert result.forms >= 4

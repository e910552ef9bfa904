"""Workers are asked through files, and say what went wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from conformance import environments

WORKER = """
import json, pathlib, sys
import numpy as np
folder = pathlib.Path(sys.argv[1])
request = json.loads((folder / "request.json").read_text())
with np.load(folder / "request.npz") as arrays:
    if request["fail"]:
        sys.exit("cannot do that")
    np.savez(folder / "answer.npz", y=arrays["x"] * request["factor"])
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment `fake` whose interpreter is this one, and its worker."""
    (tmp_path / "oracles").mkdir()
    (tmp_path / "oracles" / "fake.py").write_text(WORKER, encoding="utf-8")
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "fake.txt").write_text("numpy==2.0.0\n", encoding="utf-8")
    monkeypatch.setattr(environments, "HERE", tmp_path)
    monkeypatch.setattr(environments, "FOLDER", tmp_path / "environments")
    monkeypatch.setattr(environments, "ENVIRONMENTS", ("fake",))
    monkeypatch.setattr(environments, "_interpreter", lambda _: Path(sys.executable))
    return tmp_path


@pytest.mark.usefixtures("fake")
def test_a_worker_answers() -> None:
    found = environments.ask("fake", {"fail": False, "factor": 3}, {"x": np.arange(4)})
    assert found["y"].tolist() == [0, 3, 6, 9]


@pytest.mark.usefixtures("fake")
def test_what_a_worker_writes_when_it_fails_is_the_error() -> None:
    with pytest.raises(RuntimeError, match="the worker fake failed: cannot do that"):
        environments.ask("fake", {"fail": True}, {"x": np.arange(4)})


def test_an_environment_is_ready_when_it_was_made_from_these_requirements(fake: Path) -> None:
    assert environments.missing("fake") == "no environment fake: make conformance-tools"
    folder = fake / "environments" / "fake"
    folder.mkdir(parents=True)
    (folder / "stamp").write_text(environments._stamp("fake"), encoding="utf-8")
    assert environments.missing("fake") == ""
    (fake / "requirements" / "fake.txt").write_text("numpy==2.0.1\n", encoding="utf-8")
    assert environments.missing("fake") != ""


def test_requirements_are_pinned_names_and_nothing_else() -> None:
    for name in environments.ENVIRONMENTS:
        text = (environments.HERE / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        for line in text.splitlines():
            distribution, _, version = line.partition("==")
            assert distribution.replace("-", "").replace("_", "").replace(".", "").isalnum(), line
            assert version, line


def test_workers_import_nothing_of_ours() -> None:
    for path in (environments.HERE / "oracles").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import qcompiler" not in text
        assert "from qcompiler" not in text
        assert "from conformance" not in text

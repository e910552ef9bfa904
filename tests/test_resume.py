"""A compile that was ended goes on from the last finished layer, with the same bytes; what is not ours is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.calibration.journal import Journal
from qcompiler.errors import ArtifactError, QCompilerError
from qcompiler.frontends import capture
from qcompiler.passes import adaround
from qcompiler.pipeline import default_pipeline, print_pipeline

ROOT = Path(__file__).parents[1]


def network() -> tuple[nn.Module, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layers = [layer for _ in range(5) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers).eval(), [torch.randn(4, 4, 8, 8, generator=generator) for _ in range(3)]


def compiled(output: Path, **changes: object) -> qcompiler.Compiled:
    net, batches = network()
    options = {"effort": "best", **changes}
    return qcompiler.compile(net, "int8_dsp", calibration_data=batches, output=output, **options)  # type: ignore[arg-type]


class Ended(BaseException):
    """Stands for a signal."""


def end_behind(monkeypatch: pytest.MonkeyPatch, layers: int, error: type[BaseException] = Ended) -> list[str]:
    """Let `layers` layers be rounded, then raise. Returns the names of all that were begun."""
    begun: list[str] = []
    original = adaround.AdaRound.round

    def rounded(self: adaround.AdaRound, node: object, *rest: object) -> dict[str, Tensor]:
        begun.append(node.name)  # type: ignore[attr-defined]
        if len(begun) > layers:
            raise error("ended")
        return original(self, node, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(adaround.AdaRound, "round", rounded)
    return begun


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_finished_layers_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(tmp_path / "whole")
    with monkeypatch.context() as patch:
        first = end_behind(patch, 3)
        with pytest.raises(Ended):
            compiled(tmp_path / "out")
    assert len(first) == 4
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.work" / "finished").iterdir())) == 3
    with monkeypatch.context() as patch:
        second = end_behind(patch, 100)
        compiled(tmp_path / "out")
    assert len(second) == 2
    assert second[0] == first[3], "the layer that was begun when it ended"
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.parametrize("changes", [{"seed": 1}, {"pipeline": True}, {"data": True}], ids=str)
def test_what_other_calls_have_finished_is_not_taken(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        end_behind(patch, 3)
        with pytest.raises(Ended):
            compiled(tmp_path / "out")
    begun = end_behind(monkeypatch, 100)
    net, batches = network()
    if "data" in changes:
        compiled_options: dict[str, object] = {"calibration_data": [batch + 0.5 for batch in batches], "effort": "best"}
    elif "pipeline" in changes:
        text = print_pipeline(default_pipeline("best"))
        text = text.replace("adaround", "adaround{positions=500}")
        compiled_options = {"calibration_data": batches, "pipeline": text}
    else:
        compiled_options = {"calibration_data": batches, "effort": "best", **changes}
    qcompiler.compile(net, "int8_dsp", output=tmp_path / "out", **compiled_options)  # type: ignore[arg-type]
    assert len(begun) == 5


def test_an_error_of_the_call_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end_behind(monkeypatch, 3, QCompilerError)
    with pytest.raises(QCompilerError, match="ended"):
        compiled(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"out\.work exists and is no work folder"):
        compiled(tmp_path / "out")
    assert (tmp_path / "out.work" / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / "out").exists()


def test_a_piece_that_was_torn_is_done_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    net, batches = network()
    key = journal.key(capture(net, batches[0]).module, "step")
    piece = {"a": torch.arange(3), "b": torch.ones(2, 2)}
    assert journal.piece(key, "one", lambda: piece) is piece
    again = journal.piece(key, "one", dict)
    assert {name: tensor.tolist() for name, tensor in again.items()} == {"a": [0, 1, 2], "b": [[1, 1], [1, 1]]}
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert journal.piece(key, "one", lambda: piece) is piece
    assert journal.found == 1


KILLED = """
import sys, torch
import tests.test_resume as t
from pathlib import Path
from qcompiler.passes import adaround
from qcompiler.pipeline import default_pipeline, print_pipeline
original = adaround.AdaRound.round
def rounded(self, node, *rest):
    print(node.name, flush=True)
    return original(self, node, *rest)
adaround.AdaRound.round = rounded
t.compiled(Path(sys.argv[1]))
"""


def test_a_process_that_is_killed_leaves_what_the_next_one_goes_on_from(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.work" / "finished").glob("*.safetensors"))) >= 2
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert len(again.stdout.split()) <= 3
    compiled(tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")

"""A compile that was ended goes on from the last finished layer, with the same bytes; what is not ours is left alone."""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.calibration import journal as journal_file
from qcompiler.calibration.journal import Journal
from qcompiler.errors import ArtifactError, QCompilerError
from qcompiler.frontends import capture
from qcompiler.passes.adaptive_rounding import adaround
from qcompiler.session.pipeline import default_pipeline, print_pipeline
from qcompiler.storage.destination import Destination
from qcompiler.storage.tensors import ALIGNMENT, write_tensors
from tests.support import kills
from tests.support.faults import DISK_FULL

ROOT = Path(__file__).parents[2]


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
    assert second[0] == first[3], "the layer that was in work when the first run ended"
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
    with pytest.raises(ArtifactError, match=r"out\.work exists and is not the work folder"):
        compiled(tmp_path / "out")
    assert (tmp_path / "out.work" / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / "out").exists()


def test_a_piece_that_was_torn_is_done_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    net, batches = network()
    key = journal.key(capture(net, batches[0]).module, "step")
    piece = {"a": torch.arange(3), "b": torch.ones(2, 2)}
    values = {"a": [0, 1, 2], "b": [[1, 1], [1, 1]]}
    for make in (lambda: piece, dict):  # made, then read
        assert {name: tensor.tolist() for name, tensor in journal.piece(key, "one", make).items()} == values
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert set(journal.piece(key, "one", lambda: piece)) == {"a", "b"}
    assert journal.found == 1


@pytest.mark.parametrize("shape", [(3, 5, 4, 4), (7, 3, 1, 1), (1, 6, 3, 3), (4,), ()])
def test_a_piece_has_one_form_whether_it_was_made_or_read(shape: tuple[int, ...], tmp_path: Path) -> None:
    journal, tensor = Journal(tmp_path), torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    given = tensor.to(memory_format=torch.channels_last) if len(shape) == 4 else tensor
    made = journal.piece("key", "one", lambda: {"odd": torch.zeros(3, dtype=torch.uint8), "weight": given})
    read = journal.piece("key", "one", dict)
    for found in (made["weight"], read["weight"]):
        assert torch.equal(found, tensor)
        assert found.stride() == torch.empty(shape).stride()
        assert found.data_ptr() % ALIGNMENT == 0
    assert journal.found == 1


def test_a_disk_that_is_full_ends_a_compile_with_a_reason_and_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(tmp_path / "whole")
    written: list[Path] = []
    original = write_tensors

    def full(path: Path, tensors: Mapping[str, Tensor]) -> None:
        written.append(path)
        if len(written) > 3:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", lambda _: DISK_FULL("fsync"))
                original(path, tensors)
        original(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(journal_file, "write_tensors", full)
        with pytest.raises(ArtifactError, match=r"cannot be written: .*No space left.*Free space"):
            compiled(tmp_path / "out")
    begun = end_behind(monkeypatch, 100)
    compiled(tmp_path / "out")
    assert len(begun) == 2
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_disk_that_is_full_at_the_end_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Destination, "_put_in_place", lambda _: DISK_FULL("rename"))
        with pytest.raises(ArtifactError, match=r"out cannot be written: No space left"):
            compiled(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out.work").iterdir()] == ["finished"]
    begun = end_behind(monkeypatch, 100)
    compiled(tmp_path / "out")
    assert begun == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_resumed_after_any_piece_the_bytes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, batches = kills.network()

    def compile_into(output: Path) -> dict[str, bytes]:
        qcompiler.compile(net, "int8_dsp", calibration_data=batches, effort="best", verify="off", output=output)
        return files(output)

    expected = compile_into(tmp_path / "whole")
    for pieces in range(5):
        with monkeypatch.context() as patch:
            begun = end_behind(patch, pieces)
            with pytest.raises(Ended):
                compile_into(tmp_path / "out")
        assert len(begun) == pieces + 1
        assert compile_into(tmp_path / "out") == expected, f"ended after {pieces} pieces"


@pytest.mark.parametrize("effort", ["default", "best"])
def test_the_order_in_memory_of_weights_and_data_does_not_show(effort: Literal["default", "best"]) -> None:
    net, batches = kills.network()
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    for parameter in last.parameters():  # where a file has them: right after other bytes
        parameter.data = unaligned(parameter.data)
    data = [unaligned(batch.to(memory_format=torch.channels_last)) for batch in batches]
    plain, other = (
        qcompiler.compile(
            model,
            "int8_dsp",
            calibration_data=given,
            effort=effort,
            verify="off",
            overrides={"0": {"activation_bits": 8, "weight_bits": 4}},  # biases are corrected too
        )
        for model, given in ((net, batches), (last, data))
    )
    assert plain.artifact.files() == other.artifact.files()


def unaligned(tensor: Tensor) -> Tensor:
    """The same numbers and strides, one element after the place where an allocator would begin."""
    room = torch.empty(tensor.untyped_storage().nbytes() // tensor.element_size() + 1, dtype=tensor.dtype)
    return room.as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)


def test_a_second_compile_into_the_same_output_is_told_so(tmp_path: Path) -> None:
    net, batches = network()
    told: list[str] = []

    def data() -> Iterator[Tensor]:
        with pytest.raises(ArtifactError, match=f"is being written by process {os.getpid()} on") as caught:
            compiled(tmp_path / "out", effort="fast")
        told.append(str(caught.value))
        yield from batches

    qcompiler.compile(net, "int8_dsp", calibration_data=data(), effort="fast", output=tmp_path / "out")
    assert len(told) == 1
    assert qcompiler.load(tmp_path / "out").target.name == "int8_dsp"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_is_refused_before_a_batch_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, batches = network()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis.tex").write_text("years of work")
    monkeypatch.chdir(tmp_path)

    read: list[Tensor] = []

    def data() -> Iterator[Tensor]:
        for batch in batches:
            read.append(batch)
            yield batch

    with pytest.raises(ArtifactError, match=r"results exists and is not an artifact: it contains thesis\.tex"):
        qcompiler.compile(net, "int8_dsp", calibration_data=data(), output="build/../results")
    assert not read
    assert files(tmp_path) == {"results/thesis.tex": b"years of work"}


KILLED = """
import sys, torch
import tests.session.test_resume as t
from pathlib import Path
from qcompiler.passes.adaptive_rounding import adaround
from qcompiler.session.pipeline import default_pipeline, print_pipeline
original = adaround.AdaRound.round
def rounded(self, node, *rest):
    print(node.name, flush=True)
    return original(self, node, *rest)
adaround.AdaRound.round = rounded
t.compiled(Path(sys.argv[1]))
"""


def test_a_process_that_is_killed_leaves_what_the_next_one_goes_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    begun = end_behind(monkeypatch, layers=5)
    compiled(tmp_path / "out")
    assert len(begun) <= 3
    begun.clear()
    compiled(tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")

"""An output is replaced whole or not at all, and nothing of the user's goes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from qcompiler.artifact.artifact import Artifact
from qcompiler.artifact.layout import MANIFEST
from qcompiler.errors import ArtifactError
from qcompiler.storage import exchange, occupant
from qcompiler.storage.destination import COMMIT, Destination, read_whole
from tests.support.faults import BROKEN, DISK_FULL, Ended, end, faulty


def version(text: str) -> dict[str, bytes]:
    """A small folder with the manifest of an artifact."""
    files = {"program.json": f"program {text}".encode(), "c/model.c": f"code {text}".encode(), f"{text}.bin": b"x"}
    manifest = {
        "schema": "qcompiler.artifact/1",
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
    }
    return {MANIFEST: (json.dumps(manifest, sort_keys=True, indent=1) + "\n").encode(), **files}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """To bring thousands of files to disk takes minutes, and no test here goes without power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


OLD, NEW, NEXT = version("old"), version("new"), version("next")


def write(output: str | Path, files: Mapping[str, bytes]) -> Path:
    with Artifact.destination(output) as destination:
        return destination.replace(files)


def on_disk(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(output: Path) -> dict[str, bytes]:
    """The content that a reader sees, all of one version."""

    def whole(folder: Path) -> dict[str, bytes]:
        if not (folder / MANIFEST).is_file():
            raise ArtifactError("no such folder")
        manifest = (folder / MANIFEST).read_bytes()
        names = json.loads(manifest)["sha256"]
        found = {MANIFEST: manifest, **{name: (folder / name).read_bytes() for name in names}}
        if any(hashlib.sha256(found[name]).hexdigest() != digest for name, digest in names.items()):
            raise ArtifactError("a mixture")
        return found

    return read_whole(Artifact.destination(output), whole)


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A folder in memory, where there is one: disks take longest to remove thousands of files."""
    memory = Path("/dev/shm")  # noqa: S108 - the folder within it has a name of its own
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if usable else None) as folder:
        yield Path(folder)


def calls_of(tmp_path: Path, before: Mapping[str, bytes] | None, *, exchanging: bool) -> list[str]:
    """The calls of one replacement that nothing disturbs."""
    if before is not None:
        write(tmp_path / "counted", before)
    with faulty(exchanging=exchanging) as calls:
        write(tmp_path / "counted", NEW)
    return calls.names


WAYS = pytest.mark.parametrize("exchanging", [True, False], ids=["exchange", "commit"])


@WAYS
@pytest.mark.parametrize("before", [OLD, None], ids=["over an old one", "new"])
def test_ended_at_any_call_the_whole_old_or_new_content_is_there(
    before: dict[str, bytes] | None, exchanging: bool, memory_path: Path
) -> None:
    if exchanging and exchange._renameat2() is None:
        pytest.skip("the system has no exchange of names")
    names = calls_of(memory_path, before, exchanging=exchanging)
    if before is not None:
        assert ("exchange" in names) is exchanging
    seen = set()
    for at in range(len(names)):
        for number in range(2):  # a second end during the next call, at its first steps: those that put things right
            output = memory_path / f"{at}" / f"{number}" / "out"
            if before is not None:
                write(output, before)
            with pytest.raises(Ended), faulty(at, end, exchanging=exchanging):
                write(output, NEW)
            if number:
                with pytest.raises(Ended), faulty(3, end, exchanging=exchanging):
                    write(output, NEW)
            where = f"ended at call {at}, {names[at]}"
            if exchanging and before is not None:
                assert on_disk(output) in (before, NEW), where  # for every program that looks at the folder
            if before is not None or output.exists():
                found = read(output)
                assert found in (before, NEW), where
                seen.add("old" if found == before else "new")
            write(output, NEXT)
            assert on_disk(output) == NEXT, where
            assert [path.name for path in output.parent.iterdir()] == ["out"], where
    assert seen == ({"old", "new"} if before is not None else {"new"})


@WAYS
@pytest.mark.parametrize("fault", [DISK_FULL, BROKEN], ids=["full disk", "broken disk"])
@pytest.mark.parametrize("for_good", [True, False], ids=["from then on", "once"])
def test_an_error_at_any_call_is_typed_and_loses_nothing(
    fault: Callable[[str], None], for_good: bool, exchanging: bool, memory_path: Path
) -> None:
    names = calls_of(memory_path, OLD, exchanging=exchanging)
    refused = 0
    for at in range(len(names)):
        output = memory_path / f"{at}" / "out"
        write(output, OLD)
        where = f"error at call {at}, {names[at]}"
        try:
            with faulty(at, fault, for_good=for_good, exchanging=exchanging):
                write(output, NEW)
        except ArtifactError:
            refused += 1
            assert read(output) in (OLD, NEW), where
        else:
            assert read(output) == NEW, where
        write(output, NEXT)
        assert on_disk(output) == NEXT, where
        assert [path.name for path in output.parent.iterdir()] == ["out"], where
    assert refused > len(names) // 3


def test_a_commit_is_completed_by_whoever_reads(tmp_path: Path) -> None:
    output = write(tmp_path / "out", OLD)
    names = calls_of(tmp_path, OLD, exchanging=False)
    last = len(names) - 1 - names[::-1].index("rename")
    with pytest.raises(Ended), faulty(last, end, exchanging=False):
        write(output, NEW)
    assert not output.exists()
    assert (tmp_path / "out.work" / COMMIT).is_file()
    assert read(output) == NEW
    assert on_disk(output) == NEW
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counted", "out"]


def test_a_commit_can_be_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = write(tmp_path / "out", OLD)
    names = calls_of(tmp_path, OLD, exchanging=False)
    last = len(names) - 1 - names[::-1].index("rename")
    with pytest.raises(Ended), faulty(last, end, exchanging=False):
        write(output, NEW)
    with faulty(0, BROKEN):
        assert read(output) == NEW
    assert not output.exists()


def test_a_commit_does_not_replace_what_was_put_there_since(tmp_path: Path) -> None:
    output = write(tmp_path / "out", OLD)
    names = calls_of(tmp_path, OLD, exchanging=False)
    with pytest.raises(Ended), faulty(names.index("rename"), end, exchanging=False):
        write(output, NEW)
    other = write(tmp_path / "other", NEXT)
    output.rename(tmp_path / "kept")
    other.rename(output)
    assert read(output) == NEXT
    assert on_disk(tmp_path / "kept") == OLD


def test_a_folder_that_cannot_move_is_replaced_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, rename = write(tmp_path / "out", OLD), os.rename

    def layered(source: str | Path, destination: str | Path) -> None:
        if Path(source) == output:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
        rename(source, destination)

    monkeypatch.setattr(os, "rename", layered)
    with faulty(exchanging=False):
        write(output, NEW)
    assert on_disk(output) == NEW


def shown(folder: Path) -> dict[str, bytes]:
    return on_disk(folder) if folder.is_dir() else {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("notes.txt", "notes.txt"),
        ("c/main.c", "c/main.c"),
        ("data/", "data/"),
        ("program.json", r"program.json \(altered\)"),
        (MANIFEST, r"manifest.json \(altered\)"),
    ],
)
def test_what_the_user_put_into_an_artifact_is_named(name: str, message: str, tmp_path: Path) -> None:
    output = write(tmp_path / "out", OLD)
    if name.endswith("/"):
        (output / name).mkdir()
    else:
        (output / name).write_bytes((output / name).read_bytes() + b" " if (output / name).exists() else b"mine")
    before = on_disk(output)
    with pytest.raises(ArtifactError, match=f"contains your files: {message}"):
        write(output, NEW)
    assert on_disk(output) == before
    assert (output / name).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_in_the_place_of_a_file_is_not_ours(tmp_path: Path) -> None:
    output = write(tmp_path / "out", OLD)
    (output / "program.json").rename(tmp_path / "moved.json")
    (output / "program.json").symlink_to(tmp_path / "moved.json")
    with pytest.raises(ArtifactError, match=r"program\.json"):
        write(output, NEW)
    assert (tmp_path / "moved.json").is_file()


def test_files_that_are_missing_stop_nobody(tmp_path: Path) -> None:
    output = write(tmp_path / "out", OLD)
    (output / "program.json").unlink()
    write(output, NEW)
    assert on_disk(output) == NEW


@pytest.mark.parametrize(
    "manifest",
    ['{"name": "a web application", "icons": []}', "[]", "{", '{"schema": "qcompiler.artifact/1"}', "[" * 100_000],
    ids=["web", "list", "torn", "no files", "deep"],
)
def test_a_manifest_of_others_makes_no_artifact(manifest: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / MANIFEST).write_text(manifest)
    (output / "index.html").write_text("mine")
    with pytest.raises(ArtifactError, match=r"exists and is not an artifact: it contains index\.html, manifest\.json"):
        write(output, NEW)
    assert (output / "index.html").read_text() == "mine"


def test_a_part_without_its_manifest_says_what_to_do(tmp_path: Path) -> None:
    output = write(tmp_path / "out", {name: data for name, data in OLD.items() if name != "old.bin"})
    (output / MANIFEST).unlink()
    with pytest.raises(
        ArtifactError, match=rf"contains a part of an artifact.*without the manifest.*Remove {output}\."
    ):
        write(output, NEW)


def test_many_files_are_not_all_named(tmp_path: Path) -> None:
    output = write(tmp_path / "out", OLD)
    for number in range(20):
        (output / f"{number:02}.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"00.txt, 01.txt, 02.txt, 03.txt, 04.txt, and more"):
        write(output, NEW)


@pytest.mark.parametrize(
    "output", ["absent/..", "absent/../results", "results/.", "results/", "link", "./absent/../results/../results"]
)
def test_paths_are_resolved_before_they_are_judged(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "results").mkdir(parents=True)
    (home / "results" / "thesis.tex").write_text("years of work")
    (home / "link").symlink_to("results")
    monkeypatch.chdir(home)
    before = sorted(path.relative_to(home) for path in home.rglob("*"))
    with pytest.raises(ArtifactError, match=r"is not an artifact: it contains thesis\.tex|is the working directory"):
        write(output, NEW)
    assert sorted(path.relative_to(home) for path in home.rglob("*")) == before


def test_a_link_to_an_artifact_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real", OLD)
    (tmp_path / "link").symlink_to("real")
    assert write(tmp_path / "link", NEW) == tmp_path / "real"
    assert (tmp_path / "link").is_symlink()
    assert on_disk(tmp_path / "real") == NEW


@pytest.mark.parametrize("output", ["", ".", ".."])
def test_the_working_directory_stays(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ArtifactError, match="is the working directory, or contains it"):
        write(output, NEW)


def test_the_home_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    (tmp_path / "user").mkdir()
    with pytest.raises(ArtifactError, match="is the home folder, or contains it"):
        write(tmp_path / "user", NEW)


@pytest.mark.parametrize(
    ("output", "message"), [("/", "is the root"), ("/proc", "is a mount point"), ("a\0b", "is not a valid path")]
)
def test_what_cannot_be_an_output_is_refused(output: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        write(output, NEW)


def test_a_mount_of_the_same_device_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("from", "to here"):
        (tmp_path / name).mkdir()
    command = 'mount --bind "$1/from" "$1/to here" && cat /proc/self/mountinfo'
    unshare = ["unshare", "-rm", "sh", "-c", command, "sh", str(tmp_path)]
    result = subprocess.run(unshare, check=False, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"the system lets tests mount nothing: {result.stderr.strip()}")
    (tmp_path / "mounts").write_text(result.stdout)
    monkeypatch.setattr(occupant, "MOUNTS", tmp_path / "mounts")
    assert occupant.is_mount(tmp_path / "to here")
    assert not occupant.is_mount(tmp_path / "from")


def test_an_empty_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", NEW)
    assert on_disk(tmp_path / "out") == NEW


@pytest.mark.parametrize(
    "name",
    ["thesis.tex", "finished/thesis.tex", "artifact/thesis.tex", "artifact/data/", "lock", "commit.json", "finished"],
)
def test_what_is_foreign_in_the_work_folder_stays(name: str, tmp_path: Path) -> None:
    place = tmp_path / "out.work" / name
    place.parent.mkdir(parents=True)
    if name.endswith("/"):
        place.mkdir()
        (place / "thesis.tex").write_text("years of work")
    else:
        place.write_text("years of work")
    before = on_disk(tmp_path)
    with pytest.raises(ArtifactError, match=rf"out\.work exists and is not the work folder of a compile: {name}"):
        write(tmp_path / "out", NEW)
    assert on_disk(tmp_path) == before


def test_a_work_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "finished").mkdir(parents=True)
    (tmp_path / "out.work").symlink_to("elsewhere")
    with pytest.raises(ArtifactError, match="it is not a regular folder"):
        write(tmp_path / "out", NEW)


def test_what_the_user_writes_while_we_write_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if exchange._renameat2() is None:
        pytest.skip("the system has no exchange of names")
    output = write(tmp_path / "out", OLD)
    original = Destination._put_in_place

    def late(self: Destination) -> None:
        (output / "notes.txt").write_text("mine")
        original(self)

    monkeypatch.setattr(Destination, "_put_in_place", late)
    with pytest.raises(ArtifactError, match=r"contains your files: notes\.txt"):
        write(output, NEW)
    assert on_disk(output) == {**OLD, "notes.txt": b"mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_writer_is_told_who_the_first_one_is(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Artifact.destination(output) as destination:
        message = rf"out is being written by process {os.getpid()} on \S+; expected one writer at a time"
        with pytest.raises(ArtifactError, match=message):
            write(output, NEW)
        destination.replace(OLD)
    assert on_disk(output) == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    output = write(tmp_path / "out", OLD)
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork while threads run: the child uses none
        child = os.fork()
    if not child:
        with Artifact.destination(output):
            os.write(writing, b"held")
            time.sleep(600)
        os._exit(1)
    try:
        assert os.read(reading, 4) == b"held"
        with pytest.raises(ArtifactError, match=f"is being written by process {child} on"):
            write(output, NEW)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
    write(output, NEW)
    assert on_disk(output) == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@WAYS
def test_readers_see_the_old_or_the_new_content_while_it_is_replaced(exchanging: bool, memory_path: Path) -> None:
    output, failures, done = write(memory_path / "out", OLD), list[str](), threading.Event()

    def keep_reading() -> None:
        while not done.is_set():
            try:
                if read(output) not in (OLD, NEW):
                    failures.append("a mixture")
            except ArtifactError as error:
                failures.append(str(error))

    readers = [threading.Thread(target=keep_reading) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        with faulty(exchanging=exchanging):
            for number in range(30):
                write(output, OLD if number % 2 else NEW)
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert not failures

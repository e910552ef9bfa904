"""The repository speaks of the project, not of the machine it was written on."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:home|root|Users|work|opt|mnt)/")
INDEX_ADDRESS = re.compile(r"index[-_]url|find[-_]links|https?://[^ )\"]*/simple\b", re.IGNORECASE)


def machine_specific(text: str) -> list[str]:
    """The lines of `text` that name a place of one machine or the address of a package index."""
    return [line for line in text.splitlines() if MACHINE_PATH.search(line) or INDEX_ADDRESS.search(line)]


def repository_files() -> list[Path]:
    """Tracked files, and new ones that git would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    return sorted(ROOT / name for name in listed.stdout.split("\0") if name)


def test_no_file_names_a_machine_or_an_index() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout to know the files of the repository")
    found: list[str] = []
    for path in repository_files():
        if not path.is_file() or b"\0" in (content := path.read_bytes()):
            continue
        lines = machine_specific(content.decode("utf-8", errors="replace"))
        found += [f"{path.relative_to(ROOT)}: {line.strip()}" for line in lines]
    assert not found, "\n".join(found)


def test_no_link_leaves_the_repository() -> None:
    """A link to an environment of one machine, once tracked, takes the place of the environment at the next checkout."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout to know the files of the repository")
    links = [path for path in repository_files() if path.is_symlink()]
    assert links, "at least the links in qcompiler/"
    outside = [str(path.relative_to(ROOT)) for path in links if not path.resolve().is_relative_to(ROOT)]
    assert not outside


@pytest.mark.parametrize("folder", ["home", "root", "Users"])
def test_recognizes_a_path_of_one_machine(folder: str) -> None:
    assert machine_specific(f"see /{folder}/someone/model.onnx")
    assert not machine_specific(f"see examples/{folder}/model.onnx and https://example.org/{folder}/")


def test_recognizes_the_address_of_an_index() -> None:
    assert machine_specific("https://example.org/" + "simple")
    assert machine_specific("--extra-index" + "-url=x")
    assert not machine_specific("a simple index of https://example.org/pages")

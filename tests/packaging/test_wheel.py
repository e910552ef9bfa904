"""The contents of an installed qcompiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Folder of the repository -> where it stands in the wheel.
SOURCE_FOLDERS = {"qcompiler": "qcompiler", "passes": "qcompiler/passes", "backends": "qcompiler/backends"}
LINKS = ("passes", "backends")


def source_files() -> list[str]:
    """The place in the wheel of every file of the three folders: code, and the files next to it."""
    return sorted(
        f"{shipped_as}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, shipped_as in SOURCE_FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
        # A link is no folder of its own; where links are not supported it is checked out as a file with the path.
        if not (folder == "qcompiler" and path.relative_to(ROOT).parts[1] in LINKS)
    )


def copy_sources(destination: Path) -> None:
    """The repository as an sdist holds it: no links, nothing built."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, destination / name)

    def ignore(folder: str, names: list[str]) -> list[str]:
        unwanted = LINKS if Path(folder) == ROOT / "qcompiler" else ()
        return [name for name in names if name in unwanted or name == "__pycache__"]

    for folder in SOURCE_FOLDERS:
        shutil.copytree(ROOT / folder, destination / folder, ignore=ignore)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The root of the built wheel."""
    tree = tmp_path_factory.mktemp("tree")
    output = tmp_path_factory.mktemp("wheel")
    copy_sources(tree)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(output), str(tree)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = output.iterdir()
    return zipfile.Path(built)


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` where only `folder` and the installed dependencies are on the path, and not this checkout."""
    # The editable install of this checkout is a finder at the end of sys.meta_path: an unpacked wheel comes before it.
    bootstrap = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    return subprocess.run(
        [sys.executable, "-P", "-c", bootstrap + code], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def unpacked(wheel: zipfile.Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    wheel.root.extractall(folder)
    return folder


def test_only_top_level_name_is_qcompiler(wheel: zipfile.Path) -> None:
    names = sorted(entry.name for entry in wheel.iterdir())
    assert [name for name in names if not name.endswith(".dist-info")] == ["qcompiler"]
    assert len(names) == 2


def test_holds_every_source_file_and_nothing_else(wheel: zipfile.Path) -> None:
    shipped = {name for name in wheel.root.namelist() if name.startswith("qcompiler/") and not name.endswith("/")}
    assert sorted(shipped) == source_files()


def test_imports_from_another_folder(unpacked: Path) -> None:
    code = "import qcompiler, qcompiler.passes, qcompiler.backends\nprint(qcompiler.passes.__file__)\n"
    result = run_python(code, unpacked)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == unpacked / "qcompiler" / "passes" / "__init__.py"


@pytest.mark.parametrize("name", LINKS)
def test_root_folder_refuses_to_be_imported_and_tells_the_right_name(name: str) -> None:
    result = run_python(f"import {name}", ROOT)
    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert f"import qcompiler.{name} instead" in result.stderr


def test_checkout_reaches_the_root_folders_under_their_one_name() -> None:
    code = "".join(f"import qcompiler.{name} as package\nprint(package.__file__)\n" for name in LINKS)
    result = run_python(code, ROOT)
    assert result.returncode == 0, result.stderr
    found = [Path(line).resolve() for line in result.stdout.splitlines()]
    assert found == [ROOT / name / "__init__.py" for name in LINKS]


def test_package_list_equals_the_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.rpartition("/")[0].replace("/", ".") for path in source_files() if path.endswith(".py")}
    assert settings["packages"] == sorted(folders)

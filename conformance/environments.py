"""The environments of the oracles: a separate one for each, and programs of the operating system.

An oracle's pins would fight with ours (the TOSA reference model wants an older NumPy), so each is installed from
`requirements/<name>.txt` into a virtual environment under `out/conformance/`, and asked through files: a worker of
`oracles/` reads `request.json` and `request.npz` from a folder and leaves `answer.npz` there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ENVIRONMENTS", "PACKAGES", "ask", "install", "missing"]

Array = npt.NDArray[Any]

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "out" / "conformance" / "environments"
ENVIRONMENTS = ("litert", "tosa", "vela")
"""Each has a file in `requirements/` and a worker in `oracles/`."""

PACKAGES: dict[str, tuple[str, ...]] = {
    "cc": ("gcc", "libc6-dev"),
    "aarch64-linux-gnu-gcc": ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
    "arm-linux-gnueabihf-gcc": ("gcc-arm-linux-gnueabihf", "libc6-dev-armhf-cross"),
    "riscv64-linux-gnu-gcc": ("gcc-riscv64-linux-gnu", "libc6-dev-riscv64-cross"),
    "arm-none-eabi-gcc": ("gcc-arm-none-eabi", "libnewlib-arm-none-eabi"),
    "qemu-aarch64": ("qemu-user",),
    "qemu-arm": ("qemu-user",),
    "qemu-riscv64": ("qemu-user",),
    "qemu-system-arm": ("qemu-system-arm",),
}
"""Programs, and the Debian packages that bring them."""

ANSWER_SECONDS = 600


def _interpreter(name: str) -> Path:
    return FOLDER / name / "bin" / "python"


def _stamp(name: str) -> str:
    """The inputs from which an environment was made."""
    requirements = (HERE / "requirements" / f"{name}.txt").read_bytes()
    return f"{hashlib.sha256(requirements).hexdigest()} {sys.version_info.major}.{sys.version_info.minor}\n"


def _is_ready(name: str) -> bool:
    stamp = FOLDER / name / "stamp"
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == _stamp(name)


def missing(need: str) -> str:
    """Why an environment or a program cannot be used; empty where it can.

    Args:
        need: A name of `ENVIRONMENTS` or `PACKAGES`.
    """
    if need in ENVIRONMENTS:
        return "" if _is_ready(need) else f"no environment {need}: make conformance-tools"
    if shutil.which(need):
        return ""
    return f"no program {need}: apt-get install {' '.join(PACKAGES[need])}"


def ask(name: str, request: Mapping[str, object], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Let the worker of an environment answer.

    Args:
        name: Name in `ENVIRONMENTS`.
        request: Goes into `request.json`; the worker's file says what it means.
        arrays: Go into `request.npz`.

    Returns:
        The arrays of `answer.npz`.

    Raises:
        RuntimeError: The worker failed; the message is what it wrote.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        np.savez(folder / "request.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes a keyword for one of them
        command = [str(_interpreter(name)), str(HERE / "oracles" / f"{name}.py"), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
        answer = folder / "answer.npz"
        if done.returncode or not answer.is_file():
            raise RuntimeError(f"the worker {name} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
        with np.load(answer) as file:
            return {key: file[key] for key in file.files}


def _make_environment(name: str) -> None:
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    requirements = str(HERE / "requirements" / f"{name}.txt")
    uv = Path(sys.executable).with_name("uv")
    if uv.is_file():
        command = [str(uv), "pip", "install", "--quiet", "--python", str(_interpreter(name)), "-r", requirements]
    else:
        command = [str(_interpreter(name)), "-m", "pip", "install", "--quiet", "-r", requirements]
    subprocess.run(command, check=True)
    (folder / "stamp").write_text(_stamp(name), encoding="utf-8")


def _missing_packages() -> list[str]:
    absent = [program for program in PACKAGES if shutil.which(program) is None]
    return list(dict.fromkeys(package for program in absent for package in PACKAGES[program]))


def _install_packages(packages: Sequence[str]) -> bool:
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        return False
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = [apt, "install", "--yes", "--quiet", "--no-install-recommends", *packages]
    for command in ([apt, "update", "--quiet"], install):
        if subprocess.run(command, env=environment, check=False).returncode:
            return False
    return True


def install() -> list[str]:
    """Make what can be made.

    Returns:
        A sentence for each thing that is still missing.
    """
    found: list[str] = []
    for name in ENVIRONMENTS:
        if _is_ready(name):
            continue
        try:
            _make_environment(name)
        except subprocess.CalledProcessError as failed:
            found.append(f"the environment {name} could not be made: {failed}")
    packages = _missing_packages()
    if packages and not _install_packages(packages):
        found.append(f"as root: apt-get install --no-install-recommends {' '.join(packages)}")
    return found


def main() -> int:
    """Install everything; say what is missing."""
    argparse.ArgumentParser(prog="conformance.environments", description=main.__doc__).parse_args()
    found = install()
    for line in found:
        sys.stderr.write(f"{line}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

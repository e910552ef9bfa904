"""The forms of artifacts: their files, and forms made of files."""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.artifact.artifact import Artifact
from qcompiler.backends.base import Emitted
from qcompiler.backends.integer.c.form import FOLDER, folder_of


def onnx_of(artifact: Artifact) -> bytes:
    """The ONNX file of an artifact."""
    return artifact.forms["ONNX"].files["model.onnx"]


def onnx_form(file: bytes) -> dict[str, Emitted]:
    """The form ONNX with the file `file`."""
    return {"ONNX": Emitted({"model.onnx": file})}


def c_of(artifact: Artifact) -> dict[str, bytes]:
    """The folder of C of an artifact, by names of files in it."""
    return folder_of(artifact.forms["C"].files)


def c_form(folder: Mapping[str, bytes], reason: str = "") -> dict[str, Emitted]:
    """The form C with the folder `folder`."""
    return {"C": Emitted({f"{FOLDER}{name}": data for name, data in folder.items()}, reason)}

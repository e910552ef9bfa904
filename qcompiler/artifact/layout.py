"""The files of an artifact: their names, which form owns each, and their hashes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from qcompiler.artifact.manifest import Manifest
from qcompiler.backends import PROGRAM as PROGRAM_FORM
from qcompiler.backends.base import Emitted
from qcompiler.errors import ArtifactError, PluginError
from qcompiler.storage.occupant import Kind

MANIFEST, PROGRAM, WEIGHTS = "manifest.json", "program.json", "weights.safetensors"
PROVENANCE, REPORT, ENCODINGS = "provenance.json", "report.html", "encodings.json"
REQUIRED = (PROGRAM, WEIGHTS, PROVENANCE)
_OWN = frozenset({MANIFEST, *REQUIRED, REPORT, ENCODINGS})
"""Files that belong to no back end."""
_PATH = re.compile(r"(?:\w[\w-]*/)?\w[\w.-]*", re.ASCII)
"""Paths of the files of forms; a matching path cannot lead out of the folder."""
_USUAL = frozenset({*_OWN, "model.onnx", "c"})
"""Names at the top of the folder."""


def check_names(manifest: Manifest) -> None:
    """Refuse paths that no artifact has, such as a path outside of the folder.

    Raises:
        ArtifactError: The manifest names such a path, or a file that belongs to no form.
    """
    owned = [name for form, item in manifest.forms.items() if form != PROGRAM_FORM for name in item.files]
    wrong = [name for name in owned if name in _OWN or not _PATH.fullmatch(name) or owned.count(name) > 1]
    wrong += [name for name in manifest.sha256 if name not in {*_OWN - {MANIFEST}, *owned}]
    if wrong:
        raise ArtifactError(f"{MANIFEST} names the file {wrong[0]!r}", expected="files of an artifact")


def check_paths(forms: Mapping[str, Emitted]) -> None:
    """Refuse forms whose files cannot be part of one artifact.

    Raises:
        PluginError: A path is not a plain name or a folder and a plain name, or is taken.
    """
    taken = dict.fromkeys(_OWN, "the artifact")
    for form, emitted in forms.items():
        for name in emitted.files:
            if not _PATH.fullmatch(name) or name in taken:
                owner = f", a file of {taken[name]}" if name in taken else ""
                raise PluginError(
                    f"the back end {form!r} writes {name!r}{owner}",
                    expected="a path of its own: a name, or a folder and a name",
                )
            taken[name] = form


def to_json(data: object) -> bytes:
    """JSON text of plain data; the same data gives the same bytes."""
    return (json.dumps(data, sort_keys=True, indent=1) + "\n").encode()


def named_files(manifest: bytes) -> dict[str, str]:
    """The sha256 of each file by the manifest, and that of the manifest as `save` writes it.

    Raises:
        ValueError: The manifest is not that of an artifact but, for example, of a web application.
    """
    try:
        data = json.loads(manifest)
        as_written = to_json(data)
    except RecursionError:
        raise ValueError("the nesting is too deep") from None
    files = data.get("sha256") if isinstance(data, dict) else None
    if not isinstance(files, dict) or not str(data.get("schema")).startswith("qcompiler.artifact/"):
        raise ValueError("it is not the manifest of an artifact")
    return {
        MANIFEST: hashlib.sha256(as_written).hexdigest(),
        **{name: str(digest) for name, digest in files.items() if name != MANIFEST},
    }


KIND = Kind("an artifact", MANIFEST, named_files, _USUAL)
"""Artifacts as contents of a folder that may be replaced."""

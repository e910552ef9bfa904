"""What the JSON files of an artifact may hold, key by key: `manifest.json` and `provenance.json`.

Everything is checked when it is read, so that what uses it later meets no other type, no missing key and no number that
is not finite.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qcompiler.errors import ArtifactError
from qcompiler.storage.reading import parse_json

SCHEMA = "qcompiler.artifact/1"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FoundForm(_Closed):
    """How one form compared: the fields of `verification.forms.Form`."""

    name: str
    status: Literal["equal", "within bound", "differs", "not run"]
    required: bool
    tensors: Count
    elements: Count
    differing: Count
    largest: Count
    first: str
    reason: str


class Verification(_Closed):
    """What `verification.forms.Report.to_dict` gives."""

    passed: bool
    reference: str
    samples: Count
    onnxruntime_integer_macs: Annotated[Finite, Field(ge=0, le=1)] | None
    forms: tuple[FoundForm, ...]


class Island(_Closed):
    """A part that runs in float: see `Artifact.islands`."""

    name: str
    why: str
    macs: Finite
    elements: Finite


class Manifest(_Closed):
    """`manifest.json`."""

    schema_version: Annotated[Literal["qcompiler.artifact/1"], Field(alias="schema")]
    target: dict[str, Any]
    """Checked by `Target.from_json`."""
    input_tree: Any
    """Checked by `ir.tree.from_plain`."""
    output_tree: Any
    input_names: tuple[str, ...] = ()
    diagnostics: tuple[str, ...]
    verification: Verification | None
    islands: tuple[Island, ...] = ()
    sqnr_db: dict[str, Finite | None]
    forms: tuple[str, ...] = ()
    without_c: str = ""
    sha256: dict[str, Digest]


class Happening(_Closed):
    """One thing that a pass did or declined: the fields of `ir.rewrite.Event`."""

    kind: str
    node: str
    origins: tuple[str, ...]
    where: str
    detail: str


class RunOfPass(_Closed):
    """What one pass did: the fields of `ir.rewrite.Record`."""

    pass_name: str
    events: tuple[Happening, ...]
    metrics: dict[str, int | Finite | str]


class Provenance(_Closed):
    """`provenance.json`."""

    pipeline: str
    passes: tuple[RunOfPass, ...]


_Checked = TypeVar("_Checked", Manifest, Provenance)


def read_checked(kind: type[_Checked], data: bytes, name: str) -> tuple[_Checked, Any]:
    """A file, checked.

    Args:
        kind: What it is.
        data: Its bytes.
        name: Of the file, for messages.

    Returns:
        The checked values, and the same as plain data, which is written back as it is.

    Raises:
        ArtifactError: It is no JSON, or a value is missing, unknown, of another type or out of range.
    """
    plain = parse_json(data, name)
    if kind is Manifest and (not isinstance(plain, dict) or plain.get("schema") != SCHEMA):
        raise ArtifactError(f"{name} is of another version", where=name, expected=f"schema {SCHEMA}")
    try:
        return kind.model_validate_json(data), plain
    except ValidationError as error:
        finding = error.errors()[0]
        place = ".".join(str(part) for part in finding["loc"])
        raise ArtifactError(f"{place}: {finding['msg']}", where=name, fix="Compile the model again.") from None

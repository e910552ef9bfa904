"""Schemas of the JSON files of an artifact: `manifest.json` and `provenance.json`.

All values are checked on reading, so that later code meets no wrong type, missing key or non-finite number.
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
    """Comparison of one form: the fields of `verification.forms.Form`."""

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
    """A verification report: the result of `verification.forms.Report.to_dict`."""

    passed: bool
    reference: str
    samples: Count
    onnxruntime_integer_macs: Annotated[Finite, Field(ge=0, le=1)] | None
    forms: tuple[FoundForm, ...]


class Island(_Closed):
    """A float island; see `Artifact.islands`."""

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
    """One rewrite or refusal of a pass: the fields of `ir.rewrite.Event`."""

    kind: str
    node: str
    origins: tuple[str, ...]
    where: str
    detail: str


class RunOfPass(_Closed):
    """The record of one pass: the fields of `ir.rewrite.Record`."""

    pass_name: str
    events: tuple[Happening, ...]
    metrics: dict[str, int | Finite | str]


class Provenance(_Closed):
    """`provenance.json`."""

    pipeline: str
    passes: tuple[RunOfPass, ...]


_Checked = TypeVar("_Checked", Manifest, Provenance)


def read_checked(kind: type[_Checked], data: bytes, name: str) -> tuple[_Checked, Any]:
    """Parse and check a JSON file.

    Args:
        kind: Schema of the file.
        data: Content of the file.
        name: Name of the file, for messages.

    Returns:
        The checked values, and the unchanged plain data.

    Raises:
        ArtifactError: The content is not JSON, or a value is missing, unknown, of another type or out of range.
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

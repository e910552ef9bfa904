"""Schemas of the JSON files of an artifact: `manifest.json` and `provenance.json`.

All values are checked on reading, so that later code meets no wrong type, missing key or non-finite number.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from qcompiler.errors import ArtifactError
from qcompiler.ir.diagnostics import Diagnostic, note
from qcompiler.storage.reading import parse_json

SCHEMA = "qcompiler.artifact/2"
FIRST = "qcompiler.artifact/1"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[Finite, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FoundForm(_Closed):
    """Comparison of one form: the fields of `verification.report.Form`."""

    name: str
    status: Literal["equal", "within bound", "differs", "not run"]
    required: bool
    tensors: Count
    elements: Count
    differing: Count
    largest: Count
    first: str
    reason: str


class FoundDiagnostic(_Closed):
    """One diagnostic: the fields of `ir.diagnostics.Diagnostic`."""

    code: str
    data: dict[str, JsonValue] = {}
    where: str = ""

    @model_validator(mode="after")
    def _has_a_sentence(self) -> Self:
        """Make the sentence once: a report or `repr` must not meet facts that are missing or of another type."""
        try:
            str(Diagnostic(self.code, self.data, self.where))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"the facts of {self.code!r} make no sentence: {type(error).__name__}: {error}") from None
        return self


class Verification(_Closed):
    """A verification report: the result of `verification.report.Report.to_dict`."""

    passed: bool
    reference: str
    samples: Count
    integer_macs: dict[str, Share]
    forms: tuple[FoundForm, ...]
    diagnostics: tuple[FoundDiagnostic, ...] = ()


class Island(_Closed):
    """A float island; see `Artifact.islands`."""

    name: str
    why: str
    macs: Finite
    elements: Finite


class FormFiles(_Closed):
    """The files of a form, or the reason for their absence; see `backends.base.Emitted`."""

    files: tuple[str, ...]
    reason: str


class Manifest(_Closed):
    """`manifest.json`."""

    schema_version: Annotated[Literal["qcompiler.artifact/2"], Field(alias="schema")]
    model: str = ""
    versions: dict[str, str] = {}
    target: dict[str, Any]
    """Checked by `Target.from_json`."""
    input_tree: Any
    """Checked by `ir.tree.from_plain`."""
    output_tree: Any
    input_names: tuple[str, ...] = ()
    diagnostics: tuple[FoundDiagnostic, ...]
    verification: Verification | None
    islands: tuple[Island, ...] = ()
    sqnr_db: dict[str, Finite | None]
    forms: dict[str, FormFiles]
    sha256: dict[str, Digest]


class Happening(_Closed):
    """One rewrite or refusal of a pass: see `ir.events.Event.plain`."""

    kind: str
    node: str
    origins: tuple[str, ...]
    where: str
    detail: str
    code: str = ""
    data: dict[str, int | Finite | str | tuple[str, ...]] = {}


class RunOfPass(_Closed):
    """The record of one pass: see `ir.events.Record.plain`."""

    pass_name: str
    events: tuple[Happening, ...]
    metrics: dict[str, int | Finite | str]


class Provenance(_Closed):
    """`provenance.json`."""

    pipeline: str
    passes: tuple[RunOfPass, ...]


class FirstVerification(_Closed):
    """A verification report of the first schema."""

    passed: bool
    reference: str
    samples: Count
    onnxruntime_integer_macs: Share | None
    forms: tuple[FoundForm, ...]


class FirstManifest(_Closed):
    """`manifest.json` of the schema `qcompiler.artifact/1`, whose only forms were C and ONNX."""

    schema_version: Annotated[Literal["qcompiler.artifact/1"], Field(alias="schema")]
    target: dict[str, Any]
    input_tree: Any
    output_tree: Any
    input_names: tuple[str, ...] = ()
    diagnostics: tuple[str, ...]
    verification: FirstVerification | None
    islands: tuple[Island, ...] = ()
    sqnr_db: dict[str, Finite | None]
    forms: tuple[str, ...] = ()
    without_c: str = ""
    sha256: dict[str, Digest]

    def translated(self) -> dict[str, Any]:
        """The same manifest in the current schema."""
        data = self.model_dump(mode="json", exclude={"schema_version", "without_c"})
        data["diagnostics"] = [note(text).plain() for text in self.diagnostics]
        if self.verification is not None:
            share = data["verification"].pop("onnxruntime_integer_macs")
            data["verification"]["integer_macs"] = {} if share is None else {"onnxruntime": share}
        c = sorted(name for name in self.sha256 if name.startswith("c/"))
        data["forms"] = {
            "integer program": {"files": ["program.json", "weights.safetensors"], "reason": ""},
            "C": {"files": c, "reason": self.without_c},
            "ONNX": {"files": ["model.onnx"], "reason": ""},
        }
        return {"schema": SCHEMA, **data}


def read_manifest(data: bytes, name: str) -> Manifest:
    """Parse and check a manifest of any schema.

    Args:
        data: Content of the file.
        name: Name of the file, for messages.

    Raises:
        ArtifactError: The content is not JSON, or a value is missing, unknown, of another type or out of range.
    """
    plain = parse_json(data, name)
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema == FIRST:
        data = json.dumps(_checked(FirstManifest, data, name).translated()).encode()
    elif schema != SCHEMA:
        raise ArtifactError(f"{name} has another version", where=name, expected=f"schema {SCHEMA} or {FIRST}")
    return _checked(Manifest, data, name)


def read_provenance(data: bytes, name: str) -> dict[str, Any]:
    """Parse and check `provenance.json`; arguments and errors are those of `read_manifest`.

    Returns:
        The plain data.
    """
    plain = parse_json(data, name)
    _checked(Provenance, data, name)
    return cast("dict[str, Any]", plain)


_Checked = TypeVar("_Checked", Manifest, FirstManifest, Provenance)


def _checked(kind: type[_Checked], data: bytes, name: str) -> _Checked:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        finding = error.errors()[0]
        place = ".".join(str(part) for part in finding["loc"])
        raise ArtifactError(f"{place}: {finding['msg']}", where=name, fix="Compile the model again.") from None

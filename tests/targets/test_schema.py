"""Every field of the schema is honoured by someone, described, and closed; the published JSON Schema is the real one."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs.generate import pages
from qcompiler.targets.descriptor import Descriptor
from qcompiler.targets.schema import By

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "reference" / "target.schema.json"


def models(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and all that it holds, each once."""
    waiting: list[Any] = [root]
    seen: list[type[BaseModel]] = []
    while waiting:
        item = waiting.pop()
        if isinstance(item, type) and issubclass(item, BaseModel):
            if item in seen:
                continue
            seen.append(item)
            yield item
            waiting += [field.annotation for field in item.model_fields.values()]
        else:
            waiting += typing.get_args(item)


FIELDS = [
    pytest.param(model, name, field, id=f"{model.__name__}.{name}")
    for model in models(Descriptor)
    for name, field in model.model_fields.items()
]


def test_the_schema_holds_all_that_it_should() -> None:
    names = {model.__name__ for model in models(Descriptor)}
    assert {"NumberType", "Combination", "Limits", "Tables", "Memory", "Compute", "Bias", "Onnx"} <= names
    assert len(FIELDS) > 80


@pytest.mark.parametrize(("model", "name", "field"), FIELDS)
def test_every_field_is_honoured_by_someone(model: type[BaseModel], name: str, field: FieldInfo) -> None:
    places = [item.place for item in field.metadata if isinstance(item, By)]
    assert len(places) == 1, f"nobody honours {model.__name__}.{name}: say who does, or leave it out"
    file, _, word = places[0].partition(": ")
    source = (ROOT / file).read_text(encoding="utf-8")
    assert word and word in source, f"{file} does not read {word!r}"


@pytest.mark.parametrize(("model", "name", "field"), FIELDS)
def test_every_field_says_what_it_means(model: type[BaseModel], name: str, field: FieldInfo) -> None:
    assert field.description or (model is Descriptor and (field.annotation.__doc__ or field.annotation))
    assert model.__doc__


def test_every_fact_is_shown() -> None:
    """What changes no integer is said to be honoured by the report: so it must appear there."""
    from qcompiler.targets import load_target

    text = (ROOT / "qcompiler" / "targets" / "facts.py").read_text(encoding="utf-8")
    for model, name, field in (param.values for param in FIELDS):
        assert isinstance(field, FieldInfo)
        if any(isinstance(item, By) and "facts.py: facts" in item.place for item in field.metadata):
            assert f".{name}" in text, f"{model}.{name} is a fact that nothing shows"
    assert ("source", load_target("int8_dsp").descriptor.target.sources[0]) in load_target("int8_dsp").facts()


def test_what_the_reference_says_is_generated_from_the_code() -> None:
    for name, expected in pages().items():
        found = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
        assert found == expected, "python docs/generate.py writes it"
    schema = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    assert schema["additionalProperties"] is False and schema["$defs"]["NumberType"]["additionalProperties"] is False

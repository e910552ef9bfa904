"""Every field of the schema is described and closed; the published JSON Schema is the real one.

`test_effects` looks for the effect of each.
"""

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
def test_every_field_says_what_it_means(model: type[BaseModel], name: str, field: FieldInfo) -> None:
    assert field.description or (model is Descriptor and (field.annotation.__doc__ or field.annotation))
    assert model.__doc__


def test_what_the_reference_says_is_generated_from_the_code() -> None:
    for name, expected in pages().items():
        found = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
        assert found == expected, "python docs/generate.py writes it"
    schema = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    assert schema["additionalProperties"] is False and schema["$defs"]["NumberType"]["additionalProperties"] is False

"""A whole descriptor: the fields of `schema`, free of contradictions."""

from __future__ import annotations

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from qcompiler.targets.consistency import contradictions
from qcompiler.targets.schema import Fields


class Descriptor(Fields):
    """A whole descriptor, `extends` resolved."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Descriptor:
        found = next(contradictions(self), None)
        if found is not None:
            raise PydanticCustomError("contradiction", "{reason}", {"reason": found.reason, "key": found.key})
        return self

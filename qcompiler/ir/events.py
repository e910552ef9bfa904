"""Events of passes: a code and data, of which the sentence is made when it is printed.

    FOLDED = Sentence("batch-norm-followed", "includes the batch norm {norm} that followed it")
    rewriter.note(layer, FOLDED(norm="bn1"))

Steps that look up an event compare its code and read its data, and never its sentence.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qcompiler.errors import GraphError

Fact: TypeAlias = "float | str | tuple[str, ...]"
"""A number, a name, or several names."""


class _Formatter(string.Formatter):
    """Formats as `str.format` does; several names are joined by the format specification, by default a comma."""

    def format_field(self, value: object, format_spec: str) -> str:
        """The text of one field."""
        if isinstance(value, tuple):
            return (format_spec or ", ").join(value)
        return str(super().format_field(value, format_spec))


_FORMATTER = _Formatter()


@dataclass(frozen=True)
class Sentence:
    """A kind of event. Sentences with one code are equal.

    Args:
        code: Name of the kind, in kebab case; empty for the plain text of a pass that declares no sentence.
        template: Sentence without a full stop. Its fields are written as in `str.format`; `{names: and }` joins several
            names by " and ".
    """

    code: str
    template: str = field(compare=False)

    def __call__(self, **data: Fact) -> Message:
        """The message with the facts `data`; there may be more facts than the template has fields.

        Raises:
            GraphError: A field of the template has no fact.
        """
        fields = {name for _, name, _, _ in _FORMATTER.parse(self.template) if name is not None}
        if not fields <= data.keys():
            missing = ", ".join(sorted(fields - data.keys()))
            raise GraphError(f"an event {self.code!r} was recorded without {missing}", expected=self.template)
        return Message(self, data)


TEXT = Sentence("", "{text}")
"""Plain text of a pass that declares no sentence."""


@dataclass(frozen=True)
class Message:
    """A sentence and the facts in it. `str` makes the text; equality compares the code and the facts."""

    sentence: Sentence
    data: Mapping[str, Fact] = field(default_factory=dict)

    @classmethod
    def of(cls, message: Message | str) -> Message:
        """The message itself; plain text as a message without a code."""
        return TEXT(text=message) if isinstance(message, str) else message

    @classmethod
    def from_plain(cls, detail: str, code: str, data: Mapping[str, float | str | Sequence[str]]) -> Message:
        """The message with the plain data of `Event.plain`, printed as it was when it was written."""
        if not code:
            return cls.of(detail)
        facts = {key: value if isinstance(value, str | int | float) else tuple(value) for key, value in data.items()}
        return cls(Sentence(code, detail.replace("{", "{{").replace("}", "}}")), facts)

    def __str__(self) -> str:
        return _FORMATTER.vformat(self.sentence.template, (), self.data)


@dataclass(frozen=True)
class Event:
    """One rewrite or refusal of a pass.

    Args:
        kind: `rewrite` or `refusal`.
        node: Name of the node concerned.
        origins: Captured nodes that the node represents.
        where: Module path and source line.
        message: The edit, or the reason of a refusal.
    """

    kind: str
    node: str
    origins: tuple[str, ...]
    where: str
    message: Message

    @property
    def code(self) -> str:
        """Kind of edit or reason, for steps that look it up."""
        return self.message.sentence.code

    @property
    def data(self) -> Mapping[str, Fact]:
        """Facts of the event, by name."""
        return self.message.data

    @property
    def detail(self) -> str:
        """The sentence, without a full stop."""
        return str(self.message)

    def plain(self) -> dict[str, Any]:
        """The event as plain data for JSON; code and data only if there is a code. Non-finite numbers become text."""
        found: dict[str, Any] = {
            "kind": self.kind,
            "node": self.node,
            "origins": self.origins,
            "where": self.where,
            "detail": self.detail,
        }
        if self.code:
            found.update(code=self.code, data={key: _finite(value) for key, value in self.data.items()})
        return found


@dataclass
class Record:
    """The events and measured figures of one run of a pass."""

    pass_name: str
    events: list[Event] = field(default_factory=list)
    metrics: dict[str, float | int | str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """The record as plain data for JSON; non-finite numbers become text."""
        metrics = {key: _finite(value) for key, value in self.metrics.items()}
        return {"pass_name": self.pass_name, "events": [event.plain() for event in self.events], "metrics": metrics}


def _finite(value: Fact) -> Fact:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

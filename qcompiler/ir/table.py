"""Tables of rules: the handling of each operator by one consumer, gathered from one file per operator family.

The file of a family has a table that its rules enter, `@lowers("add", "sub")`; one file joins the tables of all
families, `RULES = Table(mac.lowers, elementwise.lowers)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from qcompiler.errors import PluginError
from qcompiler.ir.registry import OpDef, Trait

Rule = TypeVar("Rule", bound=Callable[..., Any])


class Table(Mapping[str, Rule], Generic[Rule]):
    """Rules by name of operator, or by trait for all operators that have it.

    Args:
        parts: Tables of families, which are joined.

    Raises:
        PluginError: Two rules are for the same operator.
    """

    def __init__(self, *parts: Mapping[str, Rule]) -> None:
        self._rules: dict[str, Rule] = {}
        for part in parts:
            for key, rule in part.items():
                self._add(key, rule)

    def __call__(self, *keys: str | Trait) -> Callable[[Rule], Rule]:
        """A decorator that adds a rule for each of `keys`."""

        def add(rule: Rule) -> Rule:
            for key in keys:
                self._add(key, rule)
            return rule

        return add

    def find(self, definition: OpDef) -> Rule | None:
        """The rule for an operator: by its name, or else by the first trait of the table that it has; None without."""
        named = self._rules.get(definition.name)
        if named is not None:
            return named
        return next((rule for key, rule in self._rules.items() if isinstance(key, Trait) and definition.has(key)), None)

    def __getitem__(self, key: str) -> Rule:
        return self._rules[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def _add(self, key: str, rule: Rule) -> None:
        if key in self._rules:
            raise PluginError(
                f"two rules are for {key!r}", where=f"{self._rules[key].__module__} and {rule.__module__}"
            )
        self._rules[key] = rule

"""Importing the rules fills the table, each rule from one file."""

from __future__ import annotations

from qcompiler.frontends import (
    rules,
    rules_attention,
    rules_elementwise,
    rules_exact,
    rules_indexing,
    rules_movement,
    rules_normalization,
    rules_places,
    rules_pooling,
    rules_products,
    rules_recurrent,
    rules_reductions,
    rules_windows,
    table,
)
from tests.support.spellings import rules_of

FILES = (
    rules_attention,
    rules_elementwise,
    rules_exact,
    rules_indexing,
    rules_movement,
    rules_normalization,
    rules_places,
    rules_pooling,
    rules_products,
    rules_recurrent,
    rules_reductions,
    rules_windows,
)


def test_every_rule_is_of_one_of_the_files() -> None:
    assert rules.RULES is table.RULES
    own = {name for name, rule in rules.RULES.items() if rule.__module__.startswith("qcompiler.")}
    assert own == {name for file in FILES for name in rules_of(file)}
    assert all(rules_of(file) for file in FILES)

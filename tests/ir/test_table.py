"""Tables of rules by operator and by trait."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qcompiler.errors import PluginError
from qcompiler.ir.registry import Trait, op
from qcompiler.ir.table import Table

Rule = Callable[..., object]


def test_rules_enter_a_table_and_tables_are_joined() -> None:
    first: Table[Rule] = Table()
    second: Table[Rule] = Table()

    @first("add", "sub")
    def sums() -> str:
        return "sums"

    @second("mul")
    def products() -> str:
        return "products"

    joined = Table(first, second)
    assert list(joined) == ["add", "sub", "mul"] and len(joined) == 3
    assert joined["sub"] is sums and joined["mul"] is products
    assert "div" not in joined


def test_a_name_counts_before_a_trait() -> None:
    table: Table[Rule] = Table()

    @table(Trait.MOVEMENT)
    def moved() -> None: ...

    @table("pad")
    def padded() -> None: ...

    assert table.find(op("pad")) is padded
    assert table.find(op("concat")) is moved
    assert table.find(op("add")) is None


def test_an_operator_has_one_rule() -> None:
    table: Table[Rule] = Table()
    table("add")(len)
    with pytest.raises(PluginError, match=r"two rules are for 'add'.*builtins"):
        table("add")(len)
    with pytest.raises(PluginError, match="two rules are for 'add'"):
        Table(table, table)

"""Functions of torch have plain names, under which their rules stand."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import stochastic_depth

from qcompiler.errors import PluginError
from qcompiler.frontends import table
from qcompiler.frontends.named import Named
from qcompiler.frontends.table import RULES, as_tuple, axis_of, known_sizes, plain_name, rule, unknown
from qcompiler.frontends.trace import Leaf

ATEN = torch.ops.aten


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (F.relu, "relu"),
        ("relu_", "relu"),
        (torch.relu_, "relu"),
        (ATEN.relu, "relu"),
        (ATEN.relu_.default, "relu"),
        ("__add__", "add"),
        (operator.iadd, "add"),
        (operator.getitem, "getitem"),
        (torch.concatenate, "cat"),
        (ATEN.split_with_sizes.default, "split"),
        (ATEN._unsafe_view.default, "unsafe_view"),
        (F.batch_norm, "batch_norm"),
        (torch.batch_norm, "aten_batch_norm"),
        (ATEN.batch_norm.default, "aten_batch_norm"),
        (torch.ops.quantized.add.default, "quantized::add"),
        (stochastic_depth, "torchvision.ops.stochastic_depth.stochastic_depth"),
        (len, "len"),
    ],
)
def test_one_meaning_has_one_name(target: object, name: str) -> None:
    assert plain_name(target) == name


def test_a_rule_is_entered_under_all_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "RULES", Named("rules for the torch function"))

    def triple(b: object, input: object) -> object:
        return input

    assert rule("triple", "thrice")(triple) is triple
    assert {"triple": triple, "thrice": triple} == table.RULES
    with pytest.raises(
        PluginError, match=rf"two rules for the torch function 'triple' \(at {__name__} and {__name__}\)"
    ):
        rule("triple")(lambda b, input: input)


def test_a_function_without_a_rule_gets_a_hint_and_a_template() -> None:
    error = unknown("leaky_rel", "layer 3")
    assert error.found == "the torch function 'leaky_rel' has no operator"
    assert error.where == "layer 3"
    assert "There are rules for leaky_relu" in str(error.fix)
    assert "leaky_rel" in str(error.fix).partition("\n\n")[2]
    assert "There are rules" not in str(unknown("xyzzy", "").fix)


def test_aliases_lead_to_rules() -> None:
    assert {*table._ALIASES.values()} <= {*RULES}


@pytest.mark.parametrize(("value", "rank", "sizes"), [(3, 2, (3, 3)), ([3], 2, (3, 3)), ((1, 2), 2, (1, 2))])
def test_one_number_stands_for_all_axes(value: int, rank: int, sizes: tuple[int, ...]) -> None:
    assert as_tuple(value, rank) == sizes


def test_axes_count_from_either_end() -> None:
    leaf = Leaf("parameter", "w", torch.ones(2, 3))
    assert known_sizes(leaf) == (2, 3)
    assert [axis_of(leaf, dim) for dim in (0, 1, -1, -2)] == [0, 1, 1, 0]
    for dim in (2, -3):
        with pytest.raises(IndexError, match=f"axis {dim} of 2"):
            axis_of(leaf, dim)


def make() -> Callable[..., object]:
    return lambda: None


def test_a_function_of_another_package_has_its_full_name() -> None:
    assert plain_name(make) == f"{__name__}.make"

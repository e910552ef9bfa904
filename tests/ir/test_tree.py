"""Nested inputs and outputs: flat and back, as JSON, and matched against a call."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import InputError
from qcompiler.ir import tree

nested = st.recursive(
    st.one_of(st.none(), st.builds(lambda: torch.zeros(1))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=8,
)


def same(a: object, b: object) -> bool:
    """The same containers around the very same tensors."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a is b


@given(nested)
def test_flat_and_back(value: object) -> None:
    leaves, shape = tree.flatten(value)
    assert same(tree.unflatten(shape, leaves), value)
    assert tree.from_plain(json.loads(json.dumps(shape))) == shape
    assert tree.match(("tuple", [shape]), (value,)) == leaves


def test_leaves_are_numbered_in_order() -> None:
    a, b, c = (torch.full((1,), float(i)) for i in range(3))
    leaves, shape = tree.flatten({"z": a, "a": [b, (c, None)]})
    assert [float(leaf) for leaf in leaves] == [0.0, 1.0, 2.0]
    assert shape == ("dict", [("z", 0), ("a", ("list", [1, ("tuple", [2, None])]))])


def test_kinds_of_containers_are_those_of_text() -> None:
    pair = namedtuple("pair", "x y")  # what a user's forward may return
    leaves, shape = tree.flatten([OrderedDict(b=torch.ones(1)), pair(torch.ones(1), None)])
    assert shape == ("list", [("dict", [("b", 0)]), ("tuple", [1, None])])
    assert tree.unflatten(shape, leaves) == [{"b": leaves[0]}, (leaves[1], None)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "the input holds a int; expected tensors"),
        ([{3: torch.zeros(1)}], "the input has the dict key 3"),
        ((torch.zeros(1), "x"), "holds a str"),
        (torch.zeros(1).numpy(), "holds a ndarray"),
    ],
)
def test_other_things_are_refused(value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tree.flatten(value, "input")


@pytest.mark.parametrize(
    "data",
    [True, 1.5, "x", [], ["set", [0]], ["list", 0], ["dict", [0]], ["dict", [["k"]]], {"a": 0}, ["list", [True]]],
)
def test_what_is_no_tree_is_refused(data: object) -> None:
    with pytest.raises(InputError, match="is not a tree"):
        tree.from_plain(data)


def test_a_call_nests_as_the_model_does() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    shape: Any = ("tuple", [("dict", [("a", 0), ("b", None)]), ("list", [1])])
    assert tree.match(shape, ({"a": x, "b": None}, [y])) == [x, y]
    for arguments in ((x, y), ({"a": x, "b": None}, (y,)), ({"a": x}, [y]), ({"b": None, "a": x}, [y])):
        with pytest.raises(InputError, match=r"nest as .*; expected \(\{a: tensor, b: None\}, \[tensor\]\)"):
            tree.match(shape, arguments)


def test_single_is_a_leaf_or_a_tuple() -> None:
    assert [tree.single(count) for count in range(3)] == [("tuple", []), 0, ("tuple", [0, 1])]

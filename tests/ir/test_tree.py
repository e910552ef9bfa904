"""Nested inputs and outputs: flat and back, as JSON, and matched against a call."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import InputError
from qcompiler.ir import tree
from qcompiler.ir.types import DType

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


class Pair(NamedTuple):
    x: object
    y: object


@dataclass
class Boxes:
    at: object
    score: object
    kept: object = field(default=None, init=False)


class Stack(list[object]):
    pass


@dataclass
class Output(OrderedDict[str, object]):
    """As those of transformers: a dict and a dataclass, whose fields without a value are no entries."""

    logits: object = None
    state: object = None

    def __post_init__(self) -> None:
        for item in fields(self):
            if getattr(self, item.name) is not None:
                self[item.name] = getattr(self, item.name)


def _ones() -> torch.Tensor:
    return torch.ones(1)


OWN: dict[str, object] = {
    "NamedTuple": Pair(torch.ones(1), None),
    "dataclass": Boxes(torch.ones(1), [torch.zeros(2)]),
    "torch.max": torch.max(torch.ones(2, 3), 1),
    "OrderedDict": OrderedDict(b=torch.ones(1)),
    "defaultdict": defaultdict(_ones, b=torch.ones(1)),
    "list": Stack([torch.ones(1), torch.zeros(1)]),
    "dict and dataclass": Output(logits=torch.ones(1)),
    "nested": {"a": Pair(Boxes(torch.ones(1), None), OrderedDict(z=Stack([torch.zeros(1)])))},
}


@pytest.mark.parametrize("name", OWN)
def test_classes_of_the_model_come_back(name: str) -> None:
    value = OWN[name]
    leaves, shape = tree.flatten(value)
    for copy in (shape, pickle.loads(pickle.dumps(shape))):  # noqa: S301  # of our own making
        again = tree.unflatten(copy, leaves)
        assert type(again) is type(value)
        assert repr(again) == repr(value)


@pytest.mark.parametrize("name", OWN)
def test_without_the_class_fields_keep_their_names(name: str) -> None:
    value = OWN[name]
    leaves, shape = tree.flatten(value)
    read = tree.from_plain(json.loads(json.dumps(shape)))
    assert read == shape, "the class is not part of the text"
    plain = tree.unflatten(read, leaves)
    if isinstance(value, Pair | Boxes | torch.return_types.max):
        names = {"torch.max": ("values", "indices"), "NamedTuple": ("x", "y")}.get(name, ("at", "score", "kept"))
        assert isinstance(plain, tuple)
        assert getattr(plain, "_fields", ()) == names
        assert [getattr(plain, field) for field in names] == [getattr(value, field) for field in names]
    elif isinstance(value, dict) and name != "nested":
        assert type(plain) is dict
        assert list(plain) == list(value)
    assert tree.match(("tuple", [shape]), (plain,)) == leaves, "the tree also works as an argument"


def test_numbers_stand_for_themselves_where_they_may() -> None:
    value = (torch.ones(1), 3, [True, 0.5])
    leaves, shape = tree.flatten(value, values=True)
    assert tree.unflatten(tree.from_plain(json.loads(json.dumps(shape))), leaves) == value
    with pytest.raises(InputError, match="holds the number nan"):
        tree.flatten((torch.ones(1), float("nan")), values=True)


def test_leaves_have_the_types_of_the_caller() -> None:
    _, shape = tree.flatten([torch.ones(2), OrderedDict(b=torch.ones(1))])
    typed = tree.with_types(shape, [torch.float16, None])
    assert list(tree.leaf_types(typed)) == [(0, DType.F16), (1, None)]
    assert tree.from_plain(json.loads(json.dumps(typed))) == typed
    x, y = tree.match(("tuple", [typed]), ([torch.ones(2).half(), OrderedDict(b=torch.ones(1))],))
    assert x.dtype == y.dtype == torch.float32
    result = cast("list[Any]", tree.unflatten(typed, [x, y]))
    assert result[0].dtype == torch.float16
    assert type(result[1]) is OrderedDict
    arrays = cast("list[Any]", tree.unflatten(("list", [("bf16", 0), ("f16", 1)]), [x, y], arrays=True))
    assert [array.dtype for array in arrays] == [np.float32, np.float16], "NumPy has no bfloat16"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "the input holds a int .*expected tensors"),
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
    [
        *(True, 1.5, "x", [], ["set", [0]], ["list", 0], ["dict", [0]], ["dict", [["k"]]], {"a": 0}, ["list", [True]]),
        *(["record", ["R", ["list", [0]]]], ["record", [1, ["dict", []]]], ["container", ["C", 0]], ["value", "x"]),
        *(["value", float("nan")], ["f32", 0], ["f16", True], ["f16", [0]]),
    ],
)
def test_what_is_no_tree_is_refused(data: object) -> None:
    with pytest.raises(InputError, match="is not a tree"):
        tree.from_plain(data)


def test_a_call_nests_as_the_model_does() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    shape: Any = ("tuple", [("dict", [("a", 0), ("b", None)]), ("list", [1])])
    assert tree.match(shape, ({"a": x, "b": None}, [y])) == [x, y]
    assert tree.match(shape, ({"b": None, "a": x}, [y])) == [x, y], "keys come in any order"
    for arguments in ((x, y), ({"a": x, "b": None}, (y,)), ({"a": x}, [y]), ({"c": None, "a": x}, [y])):
        with pytest.raises(InputError, match=r"have the structure .*; expected \(\{a: tensor, b: None\}, \[tensor\]\)"):
            tree.match(shape, arguments)


def test_single_is_a_leaf_or_a_tuple() -> None:
    assert [tree.single(count) for count in range(3)] == [("tuple", []), 0, ("tuple", [0, 1])]

"""Events keep facts; the sentence is made when it is printed."""

from __future__ import annotations

import ast
import importlib
import json
import math
import pickle
import pkgutil
from pathlib import Path

import pytest

import qcompiler.passes
from qcompiler.errors import GraphError
from qcompiler.ir.events import TEXT, Event, Message, Record, Sentence

FED = Sentence("fed", "{layer} also feeds {others} {times:.2f} times")


def event(message: Message) -> Event:
    return Event("refusal", "a", ("a", "b"), "net:forward:4", message)


def test_the_sentence_is_made_of_the_facts() -> None:
    fact = FED(layer="c", others=("x", "y"), times=1 / 3)
    assert str(fact) == "c also feeds x, y 0.33 times"
    assert fact.data == {"layer": "c", "others": ("x", "y"), "times": 1 / 3}
    assert str(Sentence("two", "replaces {names: and }")(names=("x", "y"))) == "replaces x and y"
    assert str(Sentence("quoted", "uses {name!r}")(name="x")) == "uses 'x'"


def test_a_fact_that_is_missing_is_found_when_it_is_recorded() -> None:
    with pytest.raises(GraphError, match="an event 'fed' was recorded without others, times"):
        FED(layer="c")
    assert FED(layer="c", others=(), times=1, more=2).data["more"] == 2


def test_events_are_equal_by_code_and_facts() -> None:
    first = event(FED(layer="c", others=("x",), times=1.0))
    assert first == event(Sentence("fed", "in other words")(layer="c", others=("x",), times=1.0))
    assert first != event(FED(layer="c", others=("y",), times=1.0))
    assert first != event(Sentence("other", FED.template)(layer="c", others=("x",), times=1.0))
    assert event(Message.of("one")) != event(Message.of("two")), "plain texts differ by their text"


def test_events_are_pickled() -> None:
    first = event(FED(layer="c", others=("x",), times=1.0))
    again = pickle.loads(pickle.dumps(first))  # noqa: S301  # of our own making
    assert again == first and again.detail == first.detail


def test_plain_data_leads_back_to_the_event() -> None:
    first = event(FED(layer="{c}", others=("x", "y"), times=1.0))
    plain = json.loads(json.dumps(first.plain()))
    again = Message.from_plain(plain["detail"], plain["code"], plain["data"])
    assert again == first.message and str(again) == "{c} also feeds x, y 1.00 times"
    assert event(again).plain() == first.plain()


def test_plain_text_has_no_code() -> None:
    plain = event(Message.of("it {pads}")).plain()
    assert plain["detail"] == "it {pads}" and "code" not in plain and "data" not in plain
    assert Message.from_plain(plain["detail"], "", {}) == TEXT(text="it {pads}")


def test_numbers_without_end_become_text() -> None:
    limit = event(Sentence("limit", "it clamps from {low:g}")(low=-math.inf))
    assert limit.plain()["data"] == {"low": "-inf"} and limit.detail == "it clamps from -inf"
    assert Record("p", metrics={"worst": math.nan}).plain()["metrics"] == {"worst": "nan"}


def test_each_code_of_a_pass_is_declared_once() -> None:
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(qcompiler.passes.__path__, "qcompiler.passes.")
    ]
    found = {id(item): item for module in modules for item in vars(module).values() if isinstance(item, Sentence)}
    codes = sorted(sentence.code for sentence in found.values())
    assert len(codes) > 50 and codes == sorted(set(codes))
    assert not [text.template for text in found.values() if text.template.endswith(".")]


def test_no_pass_records_plain_text() -> None:
    """A later step could not read the facts in it."""
    folder = Path(str(qcompiler.passes.__file__)).parent
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                records = node.func.attr in ("note", "refuse") and len(node.args) == 2
                assert not records or isinstance(node.args[1], ast.Call | ast.Name), f"{path.name}:{node.lineno}"

"""Entries of `unknown` that concern operators of a model."""

from __future__ import annotations

import pytest

import qcompiler
from qcompiler.targets.uncertain import CONCERNED, uncertain

OPS = ("conv2d", "add", "sigmoid", "gelu", "linear", "mean", "softmax")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("int8_dsp", []),
        ("cmsis_nn", [["sigmoid"]]),
        ("nvdla", [["add"], ["sigmoid", "gelu"]]),
        ("xnnpack", [["add"], ["sigmoid", "gelu"], ["mean"]]),
        ("tflite_int8", [["linear"]]),
        ("ethos_u55", [["mean"], ["add"]]),
    ],
)
def test_an_entry_concerns_the_operators_that_it_names_or_that_belong_to_its_key(
    target: str, expected: list[list[str]]
) -> None:
    found = list(uncertain(qcompiler.load_target(target), OPS))
    assert [ops for _, ops in found] == expected
    assert all(not text.startswith("op:") for text, _ in found)


def test_an_operator_without_a_rule_is_not_the_cores() -> None:
    assert not list(uncertain(qcompiler.load_target("cmsis_nn"), ["softmax"]))


def test_every_key_is_in_a_descriptor() -> None:
    keys = {
        entry.partition(": ")[0]
        for name in qcompiler.targets()
        for entry in qcompiler.load_target(name).descriptor.target.unknown
    }
    assert set(CONCERNED) <= keys

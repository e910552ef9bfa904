"""Damaged descriptors, a thousand with the slow tests: each loads, or is refused with the one error that descriptors have."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qcompiler
from qcompiler.errors import TargetError
from qcompiler.targets import Target, load_target

FOLDER = Path(str(qcompiler.__file__)).parent / "targets"
SHIPPED = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.toml"))}
COUNTS = [250, pytest.param(1000, marks=pytest.mark.slow)]

VALUES = [
    "true", "false", "0", "-1", "1", "2", "3", "8", "16", "32", "64", "65536", "9223372036854775808", "9" * 400, "1e400",
    "inf", "-inf", "nan", "0.5", "-0.25", "1_000", "0xFF", "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "{}", "[]",
    "[[]]", "{ a = 1 }", "[1, 'x', {}]", '""', '"x"', "'single'", "'pow2_shift'", "'nvdla_cvt'", "'tosa_double'", "'pow2'",
    "'per_channel'", "'per_block'", "'rne'", "'float'", "'wrap'", "'low_nibble_first'", "'conv2d'", "['conv2d', 'conv2d']",
    "'ünïcode ☃ \U0001f600'", '"""\n[x]\n"""', "'a8'", "'int8_dsp'", "'../x.toml'", "'" + "x" * 5000 + ".toml'",
    "[" * 200 + "]" * 200, "'\\u0000.toml'", '"\\u0000.toml"', "'.toml'", "'/.toml'",
]  # fmt: skip
WORDS = sorted(
    {word for text in SHIPPED.values() for word in re.findall(r"[A-Za-z_0-9]+", text)} | {"block", "☃", '"a b"'}
)

Mutation = Callable[[list[str], random.Random], None]


def lines_with(lines: list[str], pattern: str) -> list[int]:
    return [index for index, line in enumerate(lines) if re.search(pattern, line)]


def drop_a_line(lines: list[str], source: random.Random) -> None:
    del lines[source.randrange(len(lines))]


def repeat_a_line(lines: list[str], source: random.Random) -> None:
    lines.insert(source.randrange(len(lines)), source.choice(lines))


def rename_a_key(lines: list[str], source: random.Random) -> None:
    index = source.choice(lines_with(lines, "=") or [0])
    lines[index] = re.sub(r"^\s*[\w.]+", lambda _: source.choice(WORDS), lines[index], count=1)


def retype_a_value(lines: list[str], source: random.Random) -> None:
    index = source.choice(lines_with(lines, "= ") or [0])
    lines[index] = lines[index].partition("=")[0] + "= " + source.choice(VALUES)


def swap_two_values(lines: list[str], source: random.Random) -> None:
    first, second = (source.choice(lines_with(lines, "= ") or [0]) for _ in range(2))
    parts = [lines[index].partition("=") for index in (first, second)]
    lines[first], lines[second] = ("".join([*parts[i][:2], parts[1 - i][2]]) for i in (0, 1))


def change_a_header(lines: list[str], source: random.Random) -> None:
    index = source.choice(lines_with(lines, r"^\[") or [0])
    word = source.choice(WORDS)
    lines[index] = source.choice([f"[{word}]", f"[[{word}]]", f"[op.{word}]", "[", lines[index].replace("[", "[[")])


def swap_a_word(lines: list[str], source: random.Random) -> None:
    index = source.randrange(len(lines))
    words = re.findall(r"[A-Za-z_0-9]+", lines[index])
    if words:
        lines[index] = lines[index].replace(source.choice(words), source.choice(WORDS))


def add_a_key(lines: list[str], source: random.Random) -> None:
    lines.insert(source.randrange(len(lines) + 1), f"{source.choice(WORDS)} = {source.choice(VALUES)}")


def cut_the_text(lines: list[str], source: random.Random) -> None:
    text = "\n".join(lines)
    lines[:] = text[: source.randrange(len(text))].split("\n")


def change_a_character(lines: list[str], source: random.Random) -> None:
    index = source.randrange(len(lines))
    place = source.randrange(len(lines[index]) + 1)
    character = source.choice(
        ["[", "]", "=", '"', "'", "{", "}", ",", "#", "\\", "\t", "\x00", "\ufeff", "é", "\U0001f600"]
    )
    lines[index] = lines[index][:place] + character + lines[index][place + source.randrange(2) :]


MUTATIONS: tuple[Mutation, ...] = (
    drop_a_line,
    repeat_a_line,
    rename_a_key,
    retype_a_value,
    swap_two_values,
    change_a_header,
    swap_a_word,
    add_a_key,
    cut_the_text,
    change_a_character,
)


def outcome(path: Path) -> str:
    """`loaded`, or the reason why not."""
    try:
        target = load_target(path)
    except TargetError as error:
        return "refused" if error.found and error.where else f"refused without a place: {error}"
    # Every property of a target that loads can be read, and the target can be written down.
    assert Target.from_json(target.to_json()) == target
    assert target.arithmetic.at("conv2d", 16).accumulator_bits <= 64
    assert target.summary() and target.facts()
    target.activation_spec(), target.weight_spec("conv2d", 0), target.packing
    return "loaded"


@pytest.mark.parametrize("count", COUNTS)
def test_mutations_of_a_descriptor_load_or_are_refused(count: int, tmp_path: Path) -> None:
    source = random.Random(20)
    found: dict[str, int] = {"loaded": 0, "refused": 0}
    path = tmp_path / "chip.toml"
    for _ in range(count):
        lines = source.choice(list(SHIPPED.values())).split("\n")
        for _ in range(source.choice([1, 1, 1, 2, 4])):
            source.choice(MUTATIONS)(lines or [""], source)
        text = "\n".join(lines)
        path.write_text(text, encoding="utf-8")
        try:
            found[outcome(path)] += 1
        except Exception as error:
            error.add_note(text)
            raise
    assert found["loaded"] > count / 20 and found["refused"] > count / 2, found


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbfschema = 'qcompiler.hw/1'", b"a = " + b"[" * 3000, b"a = " + b"9" * 5000],
)
def test_bytes_that_are_no_descriptor(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "chip.toml"
    path.write_bytes(content)
    with pytest.raises(TargetError) as caught:
        load_target(path)
    assert (caught.value.where or "").startswith("chip.toml")


CONFIGURATION = json.loads((Path(__file__).parent / "default_config.json").read_text(encoding="utf-8"))
JSON_VALUES: list[Any] = [
    None, True, False, "True", "False", "true", 0, 1, -1, 3, 8, 16, 32, 1.5, float("inf"), float("nan"), 1e308, 5e-324,
    10**400, "x", "\0", "é" * 100, "Conv", [], {}, [[]], {"a": 1}, ["Conv"], ["Conv", "Relu"],
]  # fmt: skip
KEYS = ["Conv", "Gemm", "LayerNormalization", "op_type", "defaults", "params", "is_symmetric", "min", "max", "bogus"]


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values within `node`."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, child in children for place in ((*path, key), *places(child, (*path, key)))]


def mutated(source: random.Random) -> str:
    """A runtime configuration with a few values changed, removed or renamed; one in twenty is cut."""
    data = copy.deepcopy(CONFIGURATION)
    for _ in range(source.choice([1, 1, 2, 4])):
        *outer, last = source.choice(places(data) or [("defaults",)])
        at = data
        for key in outer:
            at = at[key]
        kind = source.randrange(3)
        if kind == 0:
            at[last] = source.choice(JSON_VALUES)
        elif kind == 1 or isinstance(at, list):
            del at[last]
        else:
            at[source.choice(KEYS)] = at.pop(last)
    text = json.dumps(data)
    return text[: source.randrange(len(text))] if source.random() < 0.05 else text


@pytest.mark.parametrize("count", COUNTS)
def test_mutations_of_a_runtime_configuration_load_or_are_refused(count: int, tmp_path: Path) -> None:
    source = random.Random(21)
    path = tmp_path / "config.json"
    found = {"loaded": 0, "refused": 0}
    for _ in range(count // 2):
        path.write_text(mutated(source), encoding="utf-8")
        try:
            target = load_target(path, base=source.choice(["int8_dsp", "cmsis_nn", "ort_cpu", "pow2_mcu"]))
        except TargetError:
            found["refused"] += 1
        except Exception as error:
            error.add_note(path.read_text(encoding="utf-8"))
            raise
        else:
            assert Target.from_json(target.to_json()) == target
            found["loaded"] += 1
    assert min(found.values()) > count / 50, found

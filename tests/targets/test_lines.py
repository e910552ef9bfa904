"""Every error in a descriptor has its file and its line, also where the key stands in what is extended."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qcompiler
from qcompiler.errors import TargetError
from qcompiler.targets import load_target
from qcompiler.targets.lines import find_spots

TEXT = """# a comment
a = 1
"b c" = "x # no comment" # one
d.e.f = [
  1, # first
  [2, 3],
  { g = 4, h.i = { j = 5 } },
]
text = \"\"\"
[no.table]
k = 1 \\\"\"\" \"\"\"\"
other = '''
'quoted' [x]'''
[t]
x = 1979-05-27T07:32:00Z

[t.u]
y = { }
[[rows]]
name = "first"
[rows.inner]
z = inf
[[rows]]
name = "second"
inner.z = 0x1F
[ q . 'r' . "s" ]
v=true"""

LINES = {
    ("a",): 2,
    ("b c",): 3,
    ("d", "e", "f"): 4,
    ("d", "e", "f", 0): 5,
    ("d", "e", "f", 1, 1): 6,
    ("d", "e", "f", 2, "g"): 7,
    ("d", "e", "f", 2, "h", "i", "j"): 7,
    ("text",): 9,
    ("other",): 12,
    ("t",): 14,
    ("t", "x"): 15,
    ("t", "u", "y"): 18,
    ("rows",): 19,
    ("rows", 0, "name"): 20,
    ("rows", 0, "inner", "z"): 22,
    ("rows", 1): 23,
    ("rows", 1, "inner", "z"): 25,
    ("q", "r", "s", "v"): 27,
}


def test_keys_of_all_kinds_are_found() -> None:
    tomllib.loads(TEXT)
    for text in (TEXT, TEXT.replace("\n", "\r\n"), TEXT + "\n"):
        spots = find_spots(text, "x.toml")
        assert {key: spots.find(key).line for key in LINES} == LINES
        assert str(spots.find(("rows", 1))) == "x.toml:23"


def test_a_key_that_is_not_there_has_the_line_of_its_table() -> None:
    spots = find_spots(TEXT, "x.toml")
    assert spots.find(("t", "u", "nothing", "more")).line == 17
    assert spots.find(("nothing",)).line == 1


_KEYS = st.text("ab_-1", min_size=1, max_size=3)
_SCALARS = st.one_of(st.integers(), st.booleans(), st.sampled_from(['"x\\"]"', "'{#'", '""', "1.5", '"""\n[a]\n"""']))
_VALUES = st.recursive(
    _SCALARS.map(lambda value: str(value).lower() if isinstance(value, bool) else str(value)),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: "[" + ",\n ".join(items) + "]"),
    max_leaves=6,
)


@given(pairs=st.dictionaries(_KEYS, _VALUES, max_size=6), table=_KEYS)
@settings(max_examples=150)
def test_every_value_of_a_document_has_a_spot(pairs: dict[str, str], table: str) -> None:
    text = f"[{table}]\n" + "".join(f"{key} = {value}\n" for key, value in pairs.items())
    data = tomllib.loads(text)[table]
    spots = find_spots(text, "x").find((table,))
    assert list(spots.children) == list(data)
    lines = text.split("\n")
    for key, value in data.items():
        spot = spots.children[key]
        assert lines[spot.line - 1].startswith(f"{key} = ")
        assert list(spot.children) == (list(range(len(value))) if isinstance(value, list) else [])


HEAD = 'schema = "qcompiler.hw/1"\nextends = "int8_dsp"\n[target]\nname = "chip"\n'
DSP = (Path(str(qcompiler.__file__)).parent / "targets" / "int8_dsp.toml").read_text(encoding="utf-8").splitlines()


def line_of(text: str) -> int:
    """The line of int8_dsp.toml that begins with `text`."""
    return next(index for index, line in enumerate(DSP, start=1) if line.startswith(text))


WRONG: dict[str, tuple[str, str]] = {
    "no TOML": (HEAD + "x = = 1\n", "chip.toml:5"),
    "an unknown key": (HEAD + "\n[accumulator]\nbit = 32\n", "chip.toml:7"),
    "an unknown table": (HEAD + "\n[accumulators]\nbits = 32\n", "chip.toml:6"),
    "a value of another type": (HEAD + '\n\n[accumulator]\nbits = "32"\n', "chip.toml:8, key accumulator.bits"),
    "a value out of range": (HEAD + "[dtypes.a8]\nbits = 99\n", "chip.toml:6, key dtypes.a8.bits"),
    "in a rule behind those that are kept": (
        HEAD + '[[op]]\nnames = ["add"]\nkind = "elementwise"\n[[op]]\nnames = ["mul"]\nkind = "kind"\n',
        "chip.toml:10",
    ),
    "within a list": (
        HEAD + '[[op]]\nnames = [\n  "linear",\n  "add", 3,\n]\nkind = "mac"\n',
        "chip.toml:8, key op.",
    ),
    "a contradiction with what is extended": (HEAD + "[accumulator]\nbits = 16\n", "chip.toml:6, key accumulator.bits"),
    "a contradiction in what is extended": (
        HEAD + "[dtypes.a8]\nsymmetric = true\n",
        f"int8_dsp.toml:{line_of('out_fixed')}",
    ),
    "a missing table": ('schema = "qcompiler.hw/1"\n[target]\nname = "chip"\n', "chip.toml:1, key dtypes"),
    "a base that is not there": ('schema = "qcompiler.hw/1"\n\nextends = "int9"\n', "chip.toml:3"),
    "a base of another type": ('schema = "qcompiler.hw/1"\nextends = ["a"]\n', "chip.toml:2"),
    "another schema": ('# one\nschema = "qcompiler.hw/2"\n', "chip.toml:2"),
    "no schema": ("[target]\n", "chip.toml:1"),
    "a memory": (
        HEAD + '[[memory]]\nname = "sram"\nbytes = 1\n[[memory]]\nname = "sram"\nbytes = 1\n',
        "chip.toml:9, key memory.1.name",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_file_and_line(case: str, tmp_path: Path) -> None:
    text, place = WRONG[case]
    path = tmp_path / "chip.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TargetError) as caught:
        load_target(path)
    assert (caught.value.where or "").startswith(place), caught.value


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("[accumulator]\nbit = 32\n", "'bits'"),
        ("[requantise]\nmode = 'single'\n", "'requantize'"),
        ("[dtypes.a8]\nsimmetric = true\n", "'symmetric'"),
        ("[[op]]\nnames = ['add']\nkind = 'elementwise'\nlimit = 3\n", "'limits'"),
        ("[[op]]\nnames = ['linear']\nkind = 'mac'\nlimits = { term = 3 }\n", "'terms'"),
        (
            "[[op]]\nnames = ['linear']\nkind = 'mac'\ncombinations = [{ activation = 'a8', weigth = 'w8' }]\n",
            "'weight'",
        ),
        ("[onnx]\nbiass = 'float'\n", "'bias'"),
    ],
)
def test_unknown_keys_are_answered_with_the_nearest_of_their_table(text: str, fix: str, tmp_path: Path) -> None:
    path = tmp_path / "chip.toml"
    path.write_text(HEAD + text, encoding="utf-8")
    with pytest.raises(TargetError, match="there is no key") as caught:
        load_target(path)
    assert caught.value.fix == f"Did you mean {fix}?"


def test_overrides_and_json_have_no_lines() -> None:
    with pytest.raises(TargetError) as caught:
        load_target("int8_dsp").override(activation_bits=16, requantize="nvdla_cvt")
    assert caught.value.where == "int8_dsp.override, key requantize.mode"

"""Descriptors: what they say, what is refused, and how they extend and override one another."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcompiler
from qcompiler.errors import TargetError
from qcompiler.quant.requant import RequantMode
from qcompiler.targets import Target, load_target

BASE = Path(str(qcompiler.__file__)).parent / "targets" / "int8_dsp.toml"


def test_the_shipped_targets_say_what_they_compute() -> None:
    assert qcompiler.targets() == ["int8_dsp", "int8_dsp_per_channel", "int8_ort"]
    dsp, channel, runtime = map(load_target, qcompiler.targets())
    assert dsp.arithmetic.requant.mode is RequantMode.SINGLE
    assert runtime.arithmetic.requant.mode is RequantMode.FLOAT32_RNE
    assert (dsp.arithmetic.overflow, runtime.arithmetic.overflow) == ("forbid", "wrap")
    assert str(dsp.activation_spec()) == "s8"
    assert str(dsp.weight_spec("conv2d", 0)) == "s8 symmetric narrow"
    assert str(channel.weight_spec("conv2d", 0)) == "s8 symmetric narrow axis=0"
    assert channel.arithmetic == dsp.arithmetic


@pytest.mark.parametrize("name", ["int8_dsp", "int8_dsp_per_channel", "int8_ort"])
def test_json_is_the_whole_descriptor(name: str) -> None:
    target = load_target(name)
    assert Target.from_json(target.to_json()) == target
    assert Target.from_json(target.to_json()).digest() == target.digest()


def write(folder: Path, text: str, name: str = "chip.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


EXTENDS = 'schema = "qcompiler.hw/1"\nextends = "int8_dsp"\n[target]\nname = "chip"\n'


def test_a_chip_with_known_arithmetic_is_one_file(tmp_path: Path) -> None:
    text = EXTENDS + '[requantize]\nmode = "double"\n[[op]]\nnames = ["add"]\nkind = "elementwise"\n'
    target = load_target(write(tmp_path, text))
    assert target.name == "chip"
    assert target.arithmetic.requant.mode is RequantMode.DOUBLE
    assert target.supports("add")
    assert target.supports("mul"), "rules for other ops stay"


WRONG = {
    "no TOML": ("x = ", "not TOML"),
    "an unknown key": (EXTENDS + "[requantise]\nmode = 'single'\n", "Did you mean 'requantize'"),
    "an unknown key inside": (EXTENDS + "[accumulator]\nbit = 32\n", "Did you mean 'bits'"),
    "a mode that is none": (EXTENDS + '[requantize]\nmode = "triple"\n', "requantize.mode"),
    "asymmetric weights": (EXTENDS + "[dtypes.w8]\nsymmetric = false\n", "weights must be symmetric"),
    "activations per channel": (EXTENDS + '[dtypes.a8]\ngranularity = "per_channel"\n', "cannot leave the sum"),
    "a default that is no type": (EXTENDS + '[defaults]\nweight = "w4"\n', "defaults.weight is 'w4'"),
    "a tie of an op without a rule": (EXTENDS + '[[tie]]\nops = ["gather"]\n', "'gather', which has no rule"),
    "an accumulator that holds no product": (EXTENDS + "[accumulator]\nbits = 16\n", "does not hold one product"),
    "a fixed grid outside of the codes": (
        EXTENDS + '[[op]]\nnames = ["tanh"]\nkind = "table"\nout_fixed = { scale = 0.1, zero_point = 200 }\n',
        "zero_point is outside",
    ),
    "a rule of its own for limits per channel": (
        EXTENDS + '[[op]]\nnames = ["clamp_channels"]\nkind = "elementwise"\n',
        "set requantize.per_channel_clamp",
    ),
    "a rule of its own for functions between scales": (
        EXTENDS + '[[op]]\nnames = ["scaled_unary"]\nkind = "table"\n',
        "set their per_channel",
    ),
    "tables per channel on a fixed grid": (
        EXTENDS
        + '[[op]]\nnames = ["tanh"]\nkind = "table"\nper_channel = true\nout_fixed = { scale = 0.1, zero_point = 0 }\n',
        "tanh has a table per channel, and one grid",
    ),
    "a base that is not there": ('schema = "qcompiler.hw/1"\nextends = "int9"\n', "there is no target 'int9'"),
    "a base in a circle": ('schema = "qcompiler.hw/1"\nextends = "chip.toml"\n', "in a circle"),
    "another schema": ('schema = "qcompiler.hw/9"\nextends = "int8_dsp"\n', "schema"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_descriptors_are_refused(case: str, tmp_path: Path) -> None:
    text, message = WRONG[case]
    with pytest.raises(TargetError) as caught:
        load_target(write(tmp_path, text))
    assert message in str(caught.value)
    assert "chip.toml" in str(caught.value) or case == "a base that is not there"


def test_override() -> None:
    base = load_target("int8_dsp")
    target = base.override(weight_bits=4, per_channel=True).override(activation_bits=16, requantize="double")
    assert target.name == "int8_dsp[weight_bits=4, per_channel=True, activation_bits=16, requantize=double]"
    assert str(target.weight_spec("conv2d", 0)) == "s4 symmetric narrow axis=0"
    assert target.activation_spec().bits == 16
    assert load_target("int8_dsp") == base
    assert str(base.override(symmetric_activations=True).activation_spec()) == "s8 symmetric"
    assert base.override(layout="NCHW").layout.activations == "NCHW"


def test_limits_per_channel_follow_the_rule_for_clamp(tmp_path: Path) -> None:
    for name in qcompiler.targets():
        assert load_target(name).per_channel_clamp
    target = load_target("int8_dsp").override(per_channel_clamp=False)
    assert target.name == "int8_dsp[per_channel_clamp=False]"
    assert not target.per_channel_clamp
    assert target.op_rule("clamp_channels") is None
    assert target.supports("clamp")
    assert load_target("int8_dsp").op_rule("clamp_channels") == target.op_rule("clamp")
    assert load_target("int8_dsp").absorbs("conv2d", "clamp_channels")
    text = BASE.read_text(encoding="utf-8").replace("per_channel_clamp = true\n", "")
    assert not load_target(write(tmp_path, text)).per_channel_clamp, "what a descriptor does not say it cannot"


def test_tables_per_channel_are_a_matter_of_their_rules(tmp_path: Path) -> None:
    for name in qcompiler.targets():
        assert load_target(name).per_channel_table("silu")
        assert not load_target(name).per_channel_table("sigmoid")
        assert not load_target(name).per_channel_table("relu"), "no table"
        assert not load_target(name).per_channel_table("nothing")
    target = load_target("int8_dsp").override(per_channel_tables=False)
    assert target.name == "int8_dsp[per_channel_tables=False]"
    assert not target.per_channel_table("silu")
    assert target.supports("silu")
    assert not target.override(per_channel_tables=True).per_channel_table("sigmoid"), "its grid is fixed"
    text = BASE.read_text(encoding="utf-8").replace("per_channel = true\n", "")
    assert not load_target(write(tmp_path, text)).per_channel_table("silu"), "what a descriptor does not say it cannot"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_bits": 9}, "9 bits are asked for"),
        ({"weight_bits": True}, "a number of bits"),
        ({"per_channels": True}, "Did you mean per_channel"),
        ({"requantize": "triple"}, "one of single"),
        ({"per_channel_clamp": 1}, "True or False"),
        ({"per_channel_tables": 1}, "True or False"),
        ({"layout": "CHWN"}, "NHWC or NCHW"),
    ],
)
def test_overrides_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        load_target("int8_dsp").override(**changes)

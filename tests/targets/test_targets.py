"""Descriptors: what they say, what is refused, and how they extend and override one another."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcompiler
from qcompiler.errors import TargetError
from qcompiler.quant.requant import RequantMode
from qcompiler.targets import Target, load_target

ROOMY = ("int8_dsp", "int8_dsp_per_channel", "ort_cpu")
"""Targets on which channels may have limits and tables of their own."""
BASE = Path(str(qcompiler.__file__)).parent / "targets" / "int8_dsp.toml"


def test_the_shipped_targets_say_what_they_compute() -> None:
    dsp, channel, runtime = map(load_target, ROOMY)
    assert dsp.arithmetic.requant.mode is RequantMode.SINGLE
    assert runtime.arithmetic.requant.mode is RequantMode.FLOAT32_RNE
    assert (dsp.arithmetic.overflow, runtime.arithmetic.overflow) == ("forbid", "wrap")
    assert str(dsp.activation_spec()) == "s8"
    assert str(dsp.weight_spec("conv2d", 0)) == "s8 symmetric narrow"
    assert str(channel.weight_spec("conv2d", 0)) == "s8 symmetric narrow axis=0"
    assert channel.arithmetic == dsp.arithmetic


def test_a_former_name_still_loads() -> None:
    assert load_target("int8_ort") == load_target("ort_cpu")
    assert "int8_ort" not in qcompiler.targets()


@pytest.mark.parametrize("name", qcompiler.targets())
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
    "activations per channel": (
        EXTENDS + '[dtypes.a8]\ngranularity = "per_channel"\n',
        "activations must be per tensor",
    ),
    "a default that is no type": (EXTENDS + '[defaults]\nweight = "w4"\n', "defaults.weight is 'w4'"),
    "a tie of an op without a rule": (EXTENDS + '[[tie]]\nops = ["scatter"]\n', "'scatter', which has no rule"),
    "an accumulator that holds no product": (EXTENDS + "[accumulator]\nbits = 16\n", "cannot hold a single product"),
    "a fixed grid outside of the codes": (
        EXTENDS + '[[op]]\nnames = ["tanh"]\nkind = "table"\nout_fixed = { scale = 0.1, zero_point = 200 }\n',
        "zero_point is 200, which is outside",
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
        "tanh has one table per channel, but out_fixed",
    ),
    "a base that is not there": ('schema = "qcompiler.hw/1"\nextends = "int9"\n', "there is no target 'int9'"),
    "a base in a circle": ('schema = "qcompiler.hw/1"\nextends = "chip.toml"\n', "in a cycle"),
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


def test_the_name_of_a_changed_target_loads_it() -> None:
    for changes in ({"weight_bits": 3}, {"weight_bits": 4, "layout": "NHWC", "per_channel": True}):
        target = load_target("int8_dsp").override(**changes)
        assert load_target(target.name) == target
    with pytest.raises(TargetError, match="weight_bit"):
        load_target("int8_dsp[weight_bit=3]")
    with pytest.raises(TargetError, match="there is no target 'int9_dsp'"):
        load_target("int9_dsp[weight_bits=3]")
    with pytest.raises(TargetError, match="there is no target"):
        load_target("]")


def test_a_target_is_typed_as_the_call_that_gives_it() -> None:
    base = load_target("int8_dsp")
    assert base.typed == '"int8_dsp"'
    target = base.override(weight_bits=4, per_channel=True).override(fallback="float", requantize="double")
    assert target.typed == (
        'load_target("int8_dsp").override(weight_bits=4, per_channel=True, fallback="float", requantize="double")'
    )
    again = eval(target.typed, {"load_target": load_target})  # noqa: S307
    assert (again.digest(), again.name) == (target.digest(), target.name)


def test_limits_per_channel_follow_the_rule_for_clamp(tmp_path: Path) -> None:
    for name in qcompiler.targets():
        assert load_target(name).per_channel_clamp == (name in (*ROOMY, "pow2_mcu", "w4a8_npu", "w4a8_npu_blocks"))
    target = load_target("int8_dsp").override(per_channel_clamp=False)
    assert target.name == "int8_dsp[per_channel_clamp=False]"
    assert not target.per_channel_clamp
    assert target.op_rule("clamp_channels") is None
    assert target.supports("clamp")
    assert load_target("int8_dsp").op_rule("clamp_channels") == target.op_rule("clamp")
    assert load_target("int8_dsp").absorbs("conv2d", "clamp_channels")
    text = BASE.read_text(encoding="utf-8").replace("per_channel_clamp = true\n", "")
    assert not load_target(write(tmp_path, text)).per_channel_clamp, "a target has no types beyond its descriptor"


def test_tables_per_channel_are_a_matter_of_their_rules(tmp_path: Path) -> None:
    for name in qcompiler.targets():
        assert load_target(name).per_channel_table("silu") == (
            name in (*ROOMY, "pow2_mcu", "w4a8_npu", "w4a8_npu_blocks")
        )
        assert not load_target(name).per_channel_table("sigmoid")
        assert not load_target(name).per_channel_table("relu"), "the function has no table"
        assert not load_target(name).per_channel_table("nothing")
    target = load_target("int8_dsp").override(per_channel_tables=False)
    assert target.name == "int8_dsp[per_channel_tables=False]"
    assert not target.per_channel_table("silu")
    assert target.supports("silu")
    assert not target.override(per_channel_tables=True).per_channel_table("sigmoid"), "the grid is fixed"
    text = BASE.read_text(encoding="utf-8").replace("per_channel = true\n", "")
    assert not load_target(write(tmp_path, text)).per_channel_table("silu"), (
        "a target has no types beyond its descriptor"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_bits": 9}, "int8_dsp has no weights of 9 bits"),
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


W4 = """
[dtypes.w8]
allowed_bits = [8]
[dtypes.w4]
bits = 4
symmetric = true
packing = "low_nibble_first"
[defaults]
other_weights = ["w4"]
"""
MAC = '[[op]]\nnames = ["linear"]\nkind = "mac"\n'
CONTRADICTIONS = {
    "two types of one width": (
        '[dtypes.b]\nbits = 8\n[defaults]\nother_activations = ["b"]\n',
        "a8 and b both have 8 bits",
    ),
    "another type that is none": ('[defaults]\nother_weights = ["w2"]\n', "'w2' is not one of dtypes"),
    "a type that nobody uses": ("[dtypes.a16]\nbits = 16\n", "the number type 'a16' is not used in defaults"),
    "packed bytes": ('[dtypes.w8]\npacking = "low_nibble_first"\n', "needs 4-bit codes, but bits is 8"),
    "packed activations": (
        '[dtypes.a8]\nbits = 4\nallowed_bits = []\npacking = "low_nibble_first"\n',
        "only weights can be packed",
    ),
    "scales without multipliers": (
        '[dtypes.w8]\ngranularity = "per_channel"\n[requantize]\nper_channel = false\n',
        "w8 has one scale per channel, but requantize.per_channel is false",
    ),
    "a rule with scales without multipliers": (
        f"[requantize]\nper_channel = false\n{MAC}per_channel = true\n",
        "linear has one scale per channel, but requantize.per_channel is false",
    ),
    "channels of nothing": (
        '[[op]]\nnames = ["add"]\nkind = "elementwise"\nper_channel = true\n',
        "neither a weight nor a table",
    ),
    "a fixed grid of what moves": (
        '[[op]]\nnames = ["pad"]\nkind = "movement"\nout_fixed = { scale = 1.0, zero_point = 0 }\n',
        "keeps the grid of its input",
    ),
    "an island about which nothing is said": (
        '[[op]]\nnames = ["softmax"]\nkind = "float"\n',
        "has no out_fixed: remove the rule",
    ),
    "an island with limits": (
        '[[op]]\nnames = ["softmax"]\nkind = "float"\nout_fixed = { scale = 1.0, zero_point = 0 }\nlimits = { terms = 3 }\n',
        "so limits has no meaning",
    ),
    "limits the wrong way round": (
        f"{MAC}limits = {{ stride = [3, 1] }}\n",
        "stride has the minimum 3 and the maximum 1",
    ),
    "a table that requantizes": (
        '[[op]]\nnames = ["tanh"]\nkind = "table"\nrequantize = { mode = "single" }\n',
        "tanh is not requantized",
    ),
    "pairs of what has no weight": (
        '[[op]]\nnames = ["add"]\nkind = "elementwise"\ncombinations = [{ activation = "a8", weight = "w8" }]\n',
        "add has no weight",
    ),
    "pairs of other types": (
        f'{MAC}combinations = [{{ activation = "w8", weight = "w8" }}]\n',
        "'w8' is not one of the target's number types for activations",
    ),
    "pairs of one width in two arithmetics": (
        W4
        + MAC
        + 'combinations = [{ activation = "a8", weight = "w8" }, '
        + '{ activation = "a8", weight = "w4", accumulator = { bits = 24 } }]\n',
        "must have the same arithmetic",
    ),
    "shifts of any scale": ('[requantize]\nmode = "pow2_shift"\n', "all scales must be powers of two"),
    "shifts of any scale in a rule": (
        f'{MAC}requantize = {{ mode = "pow2_shift_rhaz" }}\n',
        "all scales must be powers of two",
    ),
    "a convertor without zero points": ('[requantize]\nmode = "nvdla_cvt"\n', "adds no zero point"),
    "a multiplier that the mode has not": (
        '[requantize]\nmode = "tosa16"\nmultiplier_bits = 32\n',
        "mode 'tosa16' cannot have multipliers of 32 bits",
    ),
    "a shift that the mode has not": (
        "[requantize]\nmax_right_shift = 40\n",
        "cannot have a right shift of up to 40 bits",
    ),
    "a table on an accumulator": (
        '[[supergroup]]\nsteps = [["conv2d"], ["tanh"]]\n',
        "tanh is not computed on accumulators",
    ),
    "an addition on an accumulator": (
        '[[supergroup]]\nsteps = [["conv2d"], ["add"], ["relu"]]\n',
        "add is not computed on accumulators",
    ),
    "an activation behind a table": (
        '[[supergroup]]\nsteps = [["tanh"], ["relu"]]\n',
        "tanh has no accumulator",
    ),
    "a supergroup of an op without a rule": ('[[supergroup]]\nsteps = [["div"], ["relu"]]\n', "which has no rule"),
    "two memories of one name": (
        '[[memory]]\nname = "m"\nbytes = 1\n[[memory]]\nname = "m"\nbytes = 2\n',
        "two memories have the name 'm'",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_cannot_be_honoured_is_refused_when_it_is_read(case: str, tmp_path: Path) -> None:
    text, message = CONTRADICTIONS[case]
    with pytest.raises(TargetError) as caught:
        load_target(write(tmp_path, EXTENDS + text))
    assert message in str(caught.value)


def test_widths_choose_among_number_types() -> None:
    target = load_target("cmsis_nn")
    assert str(target.activation_spec(bits=16)) == "s16 symmetric rounding=rhaz"
    assert target.weight_spec("conv2d", 0, bits=4).bits == 4
    with pytest.raises(TargetError, match="one of 8, 16 bits"):
        target.activation_spec(bits=4)
    assert target.unmultiplied("conv2d", 8, 4) == "" == target.unmultiplied("add", 16, 4)
    assert "but cmsis_nn supports a8 x w8, a8 x w4, a16 x w8" in target.unmultiplied("conv2d", 16, 4)
    wide = target.override(activation_bits=16)
    assert (wide.activation_bits, str(wide.activation_spec(bits=8))) == (16, "s8 rounding=rhaz")
    assert wide.packing == "low_nibble_first"
    assert target.override(weight_bits=4).weight_spec("conv2d", 0).bits == 4
    with pytest.raises(TargetError, match="one of 4, 8 bits"):
        target.override(weight_bits=5)


def test_arithmetic_follows_the_op_and_the_width() -> None:
    arithmetic = load_target("cmsis_nn").arithmetic
    conv8, conv16, add16 = arithmetic.at("conv2d", 8), arithmetic.at("conv2d", 16), arithmetic.at("add", 16)
    assert (conv8.requant.mode, conv8.accumulator_bits, conv8.bias_bits) == (RequantMode.DOUBLE, 32, 32)
    assert (conv16.requant.mode, conv16.accumulator_bits, conv16.bias_bits) == (RequantMode.S64_16, 64, 64)
    assert (add16.requant.mode, add16.accumulator_bits) == (RequantMode.DOUBLE, 32)
    again = load_target("cmsis_nn").override(requantize="single").arithmetic
    assert {again.at("conv2d", bits).requant.mode for bits in (8, 16)} == {RequantMode.SINGLE}
    narrow = load_target("nvdla").arithmetic.requant
    assert (narrow.multiplier_bits, narrow.min_exponent, narrow.max_exponent) == (16, -16, 15)


def test_another_name_of_a_mode(tmp_path: Path) -> None:
    target = load_target(write(tmp_path, EXTENDS + '[requantize]\nmode = "tosa_double"\n'))
    assert target.arithmetic.requant.mode is RequantMode.DOUBLE


def test_the_function_targets_hides_nothing_public() -> None:
    """`qcompiler.targets` is the function; what its package offers is to be had from `qcompiler`."""
    import sys

    offered = set(sys.modules["qcompiler.targets"].__all__) - {"Descriptor"}
    assert offered <= set(qcompiler.__all__)
    assert callable(qcompiler.targets)

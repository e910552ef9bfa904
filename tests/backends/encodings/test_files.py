"""Encodings as files: three written by hand, what a reader refuses, and that nothing is lost on the way."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.backends.encodings import VERSIONS, load, parse, write
from qcompiler.errors import EncodingsError
from qcompiler.quant.encoding import Encoding, Encodings

GOLDEN = Path(__file__).parent

# The same four tensors as in the files: real = scale * (q - zero_point), q counted from 0.
TENSORS = (
    Encoding("image", 8, (2.0**-6,), (131,), is_parameter=False),
    Encoding("relu.q", 16, (2.0**-14,), (0,), signed=True, is_parameter=False),
    Encoding(
        "conv.weight",
        8,
        (2.0**-6, 2.0**-7),
        (128, 128),
        symmetric=True,
        signed=True,
        per_channel=True,
        axis=0,
        is_parameter=True,
    ),
    Encoding("fc.weight", 4, (0.125,), (8,), symmetric=True, signed=True, is_parameter=True),
)
ARGUMENTS = {
    "activation_bitwidth": 8,
    "dtype": "int",
    "is_symmetric": True,
    "param_bitwidth": 8,
    "per_channel_quantization": True,
    "quant_scheme": "post_training_tf",
}
WHOLE = Encodings(TENSORS, "1.0.0", ("head",), ARGUMENTS, {"package": "qcompiler"})


@pytest.mark.parametrize("version", VERSIONS)
def test_writes_what_the_format_says(version: str) -> None:
    expected = json.loads((GOLDEN / f"{version}.json").read_text(encoding="utf-8"))
    assert json.loads(write(WHOLE, version)) == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_reads_what_the_format_says(version: str) -> None:
    found = load(GOLDEN / f"{version}.json")
    assert (found.version, found.excluded, found.producer) == (version, ("head",), {"package": "qcompiler"})
    assert [item.name for item in found.tensors] == [item.name for item in TENSORS]
    for mine, theirs in zip(found.tensors, TENSORS, strict=True):
        assert mine.same_grid(theirs)
        assert (mine.per_channel, mine.symmetric) == (theirs.per_channel, theirs.symmetric)
        if version == "2.0.0":  # the file alone has the axis and the stored type, but does not mark parameters
            assert dataclasses.replace(mine, is_parameter=theirs.is_parameter) == theirs
        else:
            assert mine.is_parameter == theirs.is_parameter


def test_the_ends_of_a_range_are_those_of_the_whole_grid() -> None:
    record = json.loads(write(WHOLE, "0.6.1"))["activation_encodings"]["image"][0]
    assert record["min"] == record["scale"] * record["offset"]
    assert record["max"] - record["min"] == record["scale"] * 255


scales = st.floats(2.0**-60, 2.0**60, width=32, exclude_min=True)


@st.composite
def encodings(draw: st.DrawFn) -> Encodings:
    tensors = []
    for index in range(draw(st.integers(1, 3))):
        bits, is_parameter = draw(st.sampled_from([2, 4, 8, 16, 32])), draw(st.booleans())
        symmetric = is_parameter
        count = draw(st.integers(2, 4)) if is_parameter else 1
        zero = draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
        tensors.append(
            Encoding(
                f"tensor {index}",
                bits,
                tuple(draw(st.lists(scales, min_size=count, max_size=count))),
                (2 ** (bits - 1),) * count if symmetric else tuple(zero),
                symmetric=symmetric,
                signed=symmetric or draw(st.booleans()),
                per_channel=count > 1,
                axis=0 if count > 1 else None,
                is_parameter=is_parameter,
            )
        )
    return Encodings(tuple(tensors), "1.0.0")


@given(encodings(), st.sampled_from(VERSIONS))
@settings(max_examples=60, deadline=None)
def test_scales_and_zero_points_survive_the_way_through_a_file(whole: Encodings, version: str) -> None:
    found = parse(write(whole, version)).by_name
    assert set(found) == set(whole.by_name)
    for item in whole.tensors:
        other = found[item.name]
        assert (other.scale, other.zero_point, other.bits) == (item.scale, item.zero_point, item.bits)
        assert other.per_channel == item.per_channel
        if version == "2.0.0":
            assert (other.signed, other.axis) == (item.signed, item.axis)
        else:
            assert (other.symmetric, other.is_parameter) == (item.symmetric, item.is_parameter)


@given(st.integers(2, 16), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_every_version_stands_for_the_same_real_numbers(bits: int, signed: bool, data: st.DataObject) -> None:
    """Each file by the formula of its own version, on the lowest and the highest code."""
    zero = data.draw(st.integers(0, 2**bits - 1))
    item = Encoding("x", bits, (0.5,), (zero,), signed=signed, is_parameter=False)
    whole = Encodings((item,), "1.0.0")
    ends = [0.5 * (0 - zero), 0.5 * (2**bits - 1 - zero)]
    old = json.loads(write(whole, "0.6.1"))["activation_encodings"]["x"][0]
    assert [old["min"], old["max"]] == ends
    assert [old["scale"] * (code + old["offset"]) for code in (0, 2**bits - 1)] == ends
    one = json.loads(write(whole, "1.0.0"))["activation_encodings"][0]
    assert [one["scale"][0] * (code + one["offset"][0]) for code in (0, 2**bits - 1)] == ends
    two = json.loads(write(whole, "2.0.0"))["encodings"][0]
    lowest = -(2 ** (bits - 1)) if signed else 0
    assert two["output_dtype"] == f"{'' if signed else 'u'}int{bits}"
    codes = (lowest, lowest + 2**bits - 1)
    assert [two["y_scale"] * (code - two.get("y_zero_point", 0)) for code in codes] == ends


def one_tensor(**changes: Any) -> str:
    record = {
        "name": "x",
        "enc_type": "PER_TENSOR",
        "dtype": "INT",
        "bw": 8,
        "is_sym": False,
        "scale": [0.1],
        "offset": [-3],
        **changes,
    }
    kept = {key: value for key, value in record.items() if value is not None}
    return json.dumps({"version": "1.0.0", "activation_encodings": [kept], "param_encodings": []})


def linear(**changes: Any) -> str:
    record = {"name": "x", "output_dtype": "int8", "y_scale": 0.1, **changes}
    return json.dumps({"version": "2.0.0", "encodings": [record]})


def channel(**changes: Any) -> str:
    record = {"bitwidth": 8, "dtype": "int", "is_symmetric": "False", "scale": 0.1, "offset": -3, **changes}
    return json.dumps({"version": "0.6.1", "activation_encodings": {"x": [record]}, "param_encodings": {}})


BLOCKS: dict[str, Any] = {
    "enc_type": "LPBQ",
    "compressed_bw": 4,
    "is_sym": True,
    "scale": [0.1],
    "offset": [-8],
    "block_size": 16,
    "per_block_int_scale": [3, 1, 15],
}
ROWS: dict[str, Any] = {
    "output_dtype": "int4",
    "y_scale": None,
    "axis": 1,
    "block_size": 16,
    "per_channel_float_scale": [0.1, 0.2],
    "per_block_int_scale": [[3, 1], [15, 2]],
}

REFUSED = {
    "not JSON": ("{", "not JSON"),
    "no version": ("[]", r"encodings of version None .*expected one of 0\.6\.1, 1\.0\.0, 2\.0\.0"),
    "a version that is to come": ('{"version": "2.1.0"}', r"version '2\.1\.0'"),
    "a section too few": ('{"version": "1.0.0", "activation_encodings": []}', "param_encodings"),
    "an unknown section": (
        '{"version": "2.0.0", "encodings": [], "encoding": []}',
        "no key 'encoding' in encodings of this version",
    ),
    "an unknown key": (one_tensor(scales=[0.1]), r"no key 'scales'.*x.*expected one of name, enc_type"),
    "blocks": (one_tensor(enc_type="PER_BLOCK", block_size=16), "enc_type is 'PER_BLOCK'.*sums block by block"),
    "blocks without a size": (one_tensor(enc_type="LPBQ"), "a tensor in blocks lacks one of its keys"),
    "blocks with another zero": (one_tensor(**{**BLOCKS, "offset": [-3]}), "the offset -3 next to blocks"),
    "blocks that do not fit": (one_tensor(**{**BLOCKS, "scale": [0.1, 0.2]}), "3 factors of blocks and 2 scales"),
    "rows of blocks of other lengths": (
        linear(**{**ROWS, "per_block_int_scale": [[1, 2], [3]]}),
        "not those of a weight",
    ),
    "rows of blocks without a size": (linear(**{**ROWS, "block_size": None}), "not those of a weight"),
    "rows of blocks for other channels": (linear(**{**ROWS, "per_block_int_scale": [[1, 2]]}), "not those of a weight"),
    "a size of blocks": (one_tensor(block_size=16), "has block_size"),
    "floating point": (
        one_tensor(dtype="FLOAT", bw=16, scale=None, offset=None),
        "dtype is FLOAT.*run the layer in float",
    ),
    "no symmetry": (one_tensor(is_sym=None), "is_sym is missing"),
    "fewer offsets than scales": (one_tensor(enc_type="PER_CHANNEL", scale=[0.1, 0.2]), "2 scales and 1 zero points"),
    "several scales for a tensor": (one_tensor(scale=[0.1, 0.2], offset=[0, 0]), "PER_TENSOR has 2 scales"),
    "a scale of nothing": (one_tensor(scale=[0.0]), "a scale is 0.0.*positive"),
    "a shifted zero point": (one_tensor(zero_point_shift=[0.5]), "zero_point_shift"),
    "a width of one bit": (one_tensor(bw=1), "bw: "),
    "a zero point between codes": (linear(y_zero_point=0.5), "y_zero_point is 0.5"),
    "a type of no integer": (linear(output_dtype="float8e4m3fn"), "output_dtype is 'float8e4m3fn'"),
    "a list without an axis": (linear(y_scale=[0.1, 0.2]), "axis is None and y_scale is a list"),
    "an axis without a list": (linear(axis=0), "axis is 0 and y_scale is a number"),
    "nested scales": (linear(axis=1, y_scale=[[0.1], [0.2]]), "y_scale in blocks"),
    "scales of scales": (linear(y_scale={"x": 1}), "y_scale as a table"),
    "no scale": (linear(y_scale=None), "y_scale is None"),
    "ends of another grid": (channel(min=-1.0), r"min is -1\.0.*expected -0\.30"),
    "modules instead of tensors": (
        '{"version": "0.6.1", "activation_encodings": {"conv": {"output": {}}}, "param_encodings": {}}',
        "not a list of channels.*conv.*next to the ONNX file",
    ),
    "an incomplete channel": (channel(offset=None), "no scale, offset or is_symmetric"),
    "a tensor twice": (
        json.dumps({"version": "2.0.0", "encodings": [json.loads(linear())["encodings"][0]] * 2}),
        "the tensor 'x' has two encodings",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_honoured_is_refused(case: str) -> None:
    text, message = REFUSED[case]
    with pytest.raises(EncodingsError) as caught:
        parse(text, "some.json")
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncodingsError, match=r"there is no file.*gone\.json"):
        load(tmp_path / "gone.json")
    (tmp_path / "odd.json").write_bytes(b"\xff\xfe")
    with pytest.raises(EncodingsError, match="not UTF-8"):
        load(tmp_path / "odd.json")


def test_ends_in_float32_are_those_of_the_grid() -> None:
    """AIMET multiplies in float32, and a 32-bit grid has steps that float32 does not hold."""
    record = {"scale": 3.1e-05, "offset": -(2**31), "bitwidth": 32, "min": -66571.99, "max": 66571.99}
    (item,) = parse(channel(**record, is_symmetric="True")).tensors
    assert (item.symmetric, item.zero_point) == (True, (2**31,))


def test_a_strict_symmetric_grid_of_older_files_has_its_zero_in_the_middle() -> None:
    """127 negative and 127 positive steps, counted from 0: the offset is -127, and stands for no asymmetric grid."""
    text = channel(is_symmetric="True", scale=0.01, offset=-127, min=-1.27, max=1.27)
    (item,) = parse(text).tensors
    assert (item.narrow, item.zero_point, item.signed) == (True, (128,), True)


def test_versions_ask_for_what_they_need() -> None:
    unknown_axis = dataclasses.replace(TENSORS[2], axis=None)
    with pytest.raises(EncodingsError, match=r"axis of 'conv\.weight' is unknown"):
        write(Encodings((unknown_axis,), "1.0.0"), "2.0.0")
    assert write(Encodings((unknown_axis,), "1.0.0"), "1.0.0")
    unknown_kind = dataclasses.replace(TENSORS[0], is_parameter=None)
    with pytest.raises(EncodingsError, match="whether 'image' is a parameter"):
        write(Encodings((unknown_kind,), "2.0.0"), "0.6.1")
    with pytest.raises(EncodingsError, match="version '3' of encodings"):
        write(WHOLE, "3")


@pytest.mark.parametrize("version", ["1.0.0", "2.0.0"])
def test_weights_in_blocks_are_written_and_read(version: str) -> None:
    weight = Encoding(
        "w", 4, (0.1, 0.2), (8, 8), symmetric=True, signed=True, per_channel=True, axis=0, is_parameter=True,
        block=16, factors=(3, 1, 15, 2, 7, 9),
    )  # fmt: skip
    (found,) = parse(write(Encodings((weight,), version), version)).tensors
    assert (found.block, found.factors, found.bits, found.scale) == (16, weight.factors, 4, (0.1, 0.2))
    assert found.same_grid(weight)
    assert not found.same_grid(dataclasses.replace(weight, factors=(3, 1, 15, 2, 7, 8)))
    with pytest.raises(EncodingsError, match=r"one scale per block of 16 inputs, which files of version 0\.6\.1 lack"):
        write(Encodings((weight,), version), "0.6.1")

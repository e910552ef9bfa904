"""Encodings from text; see `write` for the formats."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qcompiler.backends.encodings.write import VERSIONS
from qcompiler.errors import EncodingsError
from qcompiler.quant.encoding import Encoding, Encodings
from qcompiler.storage.reading import decode, parse_json, read_file

_DTYPE = re.compile(r"(?P<unsigned>u?)int(?P<bits>\d+)")
_SLACK = 0.5
"""Allowed difference, in steps, between the ends of a record and its scale and offset."""
_ROUNDED = 2.0**-20
"""The same as a share of the ends, because other tools compute them in float32."""

MOST_BITS = 64
"""Largest width of a code, in bits: biases of layers with 16-bit activations have 64."""
Bits = Annotated[int, Field(ge=2, le=MOST_BITS)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Channel(_Closed):
    """Version 0.6.1: one channel."""

    bitwidth: Bits
    dtype: Literal["int", "float"]
    is_symmetric: bool | None = None
    scale: float | None = None
    offset: int | None = None
    min: float | None = None
    max: float | None = None
    zero_point_shift: float = 0.0


class _Tensor(_Closed):
    """Version 1.0.0: one tensor."""

    name: str
    enc_type: str
    dtype: Literal["INT", "FLOAT"]
    bw: Bits
    is_sym: bool | None = None
    scale: tuple[float, ...] = ()
    offset: tuple[int, ...] = ()
    block_size: int | None = None
    compressed_bw: int | None = None
    per_block_int_scale: tuple[int, ...] = ()
    zero_point_shift: tuple[float, ...] = ()


class _QuantizeLinear(_Closed):
    """Version 2.0.0: one tensor. Scales and zero points are numbers, or lists of any depth."""

    name: str
    output_dtype: str
    y_scale: Any = None
    y_zero_point: Any = None
    axis: int | None = None
    block_size: int | None = None
    per_block_int_scale: Any = None
    per_channel_float_scale: Any = None


class _Version0(_Closed):
    version: str
    activation_encodings: dict[str, Any]
    param_encodings: dict[str, Any]
    excluded_layers: tuple[str, ...] = ()
    quantizer_args: dict[str, Any] = {}
    producer: dict[str, str] = {}


class _Version1(_Closed):
    version: str
    activation_encodings: tuple[dict[str, Any], ...]
    param_encodings: tuple[dict[str, Any], ...]
    excluded_layers: tuple[str, ...] = ()
    quantizer_args: dict[str, Any] = {}
    producer: dict[str, str] = {}


class _Version2(_Closed):
    version: str
    encodings: tuple[dict[str, Any], ...]
    excluded_layers: tuple[str, ...] = ()
    quantizer_args: dict[str, Any] = {}
    producer: dict[str, str] = {}


def load(path: str | Path) -> Encodings:
    """Read a file.

    Raises:
        EncodingsError: The file cannot be read; or see `parse`.
    """
    return parse(decode(read_file(path, EncodingsError), Path(path).name, EncodingsError), Path(path).name)


def parse(text: str, where: str = "encodings") -> Encodings:
    """Parse the text of `write` or of AIMET.

    Args:
        text: JSON of one of the versions that can be written.
        where: Name of the file, for messages.

    Raises:
        EncodingsError: The text is not JSON, has another version or an unknown key, contradicts itself, or has blocks
            with scales that are no whole multiples, or floating-point types, which are not supported.
    """
    data = parse_json(text, where, EncodingsError)
    version = data.get("version") if isinstance(data, dict) else None
    if version not in VERSIONS:
        raise EncodingsError(f"encodings of version {version!r}", where=where, expected="one of " + ", ".join(VERSIONS))
    if version == "0.6.1":
        table = _validated(_Version0, data, where)
        tensors = [
            _from_channels(name, records, is_parameter, f"{where}, {name}")
            for is_parameter, section in ((False, table.activation_encodings), (True, table.param_encodings))
            for name, records in section.items()
        ]
        return _complete(table, tensors)
    if version == "1.0.0":
        lists = _validated(_Version1, data, where)
        tensors = [
            _from_tensor(_validated(_Tensor, record, _named(where, record)), is_parameter, _named(where, record))
            for is_parameter, section in ((False, lists.activation_encodings), (True, lists.param_encodings))
            for record in section
        ]
        return _complete(lists, tensors)
    one = _validated(_Version2, data, where)
    tensors = [
        _from_quantize_linear(_validated(_QuantizeLinear, record, _named(where, record)), _named(where, record))
        for record in one.encodings
    ]
    return _complete(one, tensors)


def _complete(file: _Version0 | _Version1 | _Version2, tensors: list[Encoding]) -> Encodings:
    return Encodings(tuple(tensors), file.version, file.excluded_layers, file.quantizer_args, file.producer)


def _from_channels(name: str, records: object, is_parameter: bool, where: str) -> Encoding:
    if not isinstance(records, list) or not records:
        fix = (
            "Use the file written next to the ONNX file; the file for torch has names of modules." if records else None
        )
        raise EncodingsError(
            "the value is not a list of channels", where=where, expected="at least one record", fix=fix
        )
    channels = [_validated(_Channel, record, where) for record in records]
    first = channels[0]
    scales, offsets = [], []
    for item in channels:
        _check_integer(item.dtype, name, where)
        if (item.bitwidth, item.is_symmetric) != (first.bitwidth, first.is_symmetric):
            raise EncodingsError(
                "the channels have different kinds", where=where, expected="one bitwidth and is_symmetric"
            )
        if item.scale is None or item.offset is None or item.is_symmetric is None:
            raise EncodingsError(
                "a channel has no scale, offset or is_symmetric", where=where, expected="scale, offset and is_symmetric"
            )
        if item.zero_point_shift:
            raise _unsupported("zero_point_shift", where)
        _check_ends(item, where)
        scales.append(item.scale)
        offsets.append(item.offset)
    per_channel = len(channels) > 1
    return _encoding(name, first.bitwidth, scales, offsets, bool(first.is_symmetric), per_channel, is_parameter, where)


def _check_ends(item: _Channel, where: str) -> None:
    """Check that `min` and `max` agree with scale and offset."""
    if item.scale is None or item.offset is None:
        return
    steps = 2**item.bitwidth - 1
    strict = bool(item.is_symmetric) and item.offset == 1 - 2 ** (item.bitwidth - 1)
    ends = (("min", item.min, item.offset), ("max", item.max, item.offset + steps - int(strict)))
    for key, given, count in ends:
        expected = item.scale * count
        if given is not None and not abs(given - expected) <= _SLACK * item.scale + _ROUNDED * abs(expected):
            raise EncodingsError(
                f"{key} is {given!r}",
                where=where,
                expected=f"{expected!r}, as scale and offset require",
                fix="Correct one.",
            )


def _from_tensor(item: _Tensor, is_parameter: bool, where: str) -> Encoding:
    _check_integer(item.dtype, item.name, where)
    if item.enc_type == "LPBQ":
        return _from_low_power_blocks(item, is_parameter, where)
    if item.enc_type not in ("PER_TENSOR", "PER_CHANNEL"):
        raise EncodingsError(
            f"enc_type is {item.enc_type!r}",
            where=where,
            expected="PER_TENSOR, PER_CHANNEL or LPBQ, because no integer operator sums block by block",
        )
    for key in ("block_size", "compressed_bw", "per_block_int_scale"):
        if getattr(item, key):
            raise _unsupported(key, where)
    if any(item.zero_point_shift):
        raise _unsupported("zero_point_shift", where)
    if item.is_sym is None:
        raise EncodingsError("is_sym is missing", where=where, expected="true or false")
    per_channel = item.enc_type == "PER_CHANNEL"
    if not per_channel and len(item.scale) != 1:
        raise EncodingsError(f"PER_TENSOR has {len(item.scale)} scales", where=where, expected="one")
    return _encoding(
        item.name, item.bw, list(item.scale), list(item.offset), item.is_sym, per_channel, is_parameter, where
    )


def _from_low_power_blocks(item: _Tensor, is_parameter: bool, where: str) -> Encoding:
    """A weight in blocks, whose factors are whole numbers."""
    if item.compressed_bw is None or not item.block_size or not item.per_block_int_scale or not item.is_sym:
        raise EncodingsError(
            "a tensor in blocks lacks one of its keys",
            where=where,
            expected="compressed_bw, block_size, per_block_int_scale and is_sym: true",
        )
    if any(item.zero_point_shift):
        raise _unsupported("zero_point_shift", where)
    half = 2 ** (item.compressed_bw - 1)
    if not set(item.offset) <= {-half, 1 - half, -(2 ** (item.bw - 1))}:
        raise _unsupported(f"the offset {item.offset[0]} next to blocks", where)
    if not item.scale or len(item.per_block_int_scale) % len(item.scale):
        raise EncodingsError(
            f"{len(item.per_block_int_scale)} factors of blocks and {len(item.scale)} scales",
            where=where,
            expected="one scale per channel, and equally many blocks for each",
        )
    found = _encoding(
        item.name, item.compressed_bw, list(item.scale), [-half] * len(item.scale), True, True, is_parameter, where
    )
    return dataclasses.replace(found, block=item.block_size, factors=item.per_block_int_scale)


def _encoding(
    name: str,
    bits: int,
    scales: list[float],
    offsets: list[int],
    symmetric: bool,
    per_channel: bool,
    is_parameter: bool,
    where: str,
) -> Encoding:
    """An encoding of a version below 2."""
    _check_scales(scales, len(offsets), where)
    half = 2 ** (bits - 1)
    # "strict symmetric" grids have one code less, counted from 0, so the zero point is one lower.
    narrow = symmetric and all(offset == 1 - half for offset in offsets)
    zero_point = [half if narrow else -offset for offset in offsets]
    signed = symmetric and all(zero == half for zero in zero_point)
    return Encoding(
        name,
        bits,
        tuple(scales),
        tuple(zero_point),
        symmetric=symmetric,
        signed=signed,
        per_channel=per_channel,
        narrow=narrow,
        is_parameter=is_parameter,
    )


def _from_quantize_linear(item: _QuantizeLinear, where: str) -> Encoding:
    match = _DTYPE.fullmatch(item.output_dtype)
    if match is None or not 2 <= int(match["bits"]) <= MOST_BITS:
        raise EncodingsError(
            f"output_dtype is {item.output_dtype!r}",
            where=where,
            expected=f"int2 to int{MOST_BITS}, or uint2 to uint{MOST_BITS}",
        )
    if item.per_block_int_scale is not None:
        return _from_blocks(item, int(match["bits"]), signed=not match["unsigned"], where=where)
    for key in ("block_size", "per_channel_float_scale"):
        if getattr(item, key) is not None:
            raise _unsupported(key, where)
    scales = _numbers(item.y_scale, "y_scale", where)
    points = [0.0] * len(scales) if item.y_zero_point is None else _numbers(item.y_zero_point, "y_zero_point", where)
    fractions = [point for point in points if not point.is_integer()]
    if fractions:
        raise EncodingsError(f"y_zero_point is {fractions[0]}", where=where, expected="integers")
    per_channel = isinstance(item.y_scale, list)
    if per_channel != (item.axis is not None):
        raise EncodingsError(
            f"axis is {item.axis} and y_scale is a {'list' if per_channel else 'number'}",
            where=where,
            expected="an axis for a list, no axis for a number",
        )
    _check_scales(scales, len(points), where)
    bits, signed = int(match["bits"]), not match["unsigned"]
    shift = 2 ** (bits - 1) if signed else 0
    return Encoding(
        item.name,
        bits,
        tuple(scales),
        tuple(int(point) + shift for point in points),
        symmetric=signed and not any(points),
        signed=signed,
        per_channel=per_channel,
        axis=item.axis,
    )


def _from_blocks(item: _QuantizeLinear, bits: int, *, signed: bool, where: str) -> Encoding:
    """A weight in blocks: a scale per channel times a whole number per block."""
    scales = _numbers(item.per_channel_float_scale, "per_channel_float_scale", where)
    _check_scales(scales, len(scales), where)
    rows = item.per_block_int_scale
    well = isinstance(rows, list) and len(rows) == len(scales) and all(isinstance(row, list) for row in rows)
    lengths = {len(row) for row in rows} if well else set()
    factors = [factor for row in rows for factor in row] if well else []
    whole = all(isinstance(factor, int) and not isinstance(factor, bool) for factor in factors)
    if len(lengths) != 1 or not factors or not whole or not item.block_size or item.axis not in (0, 1) or not signed:
        raise EncodingsError(
            "the blocks are not those of a weight",
            where=where,
            expected="a signed output_dtype, axis 0 or 1, block_size, and per_block_int_scale with a row of whole "
            "numbers for each scale of per_channel_float_scale",
        )
    return Encoding(
        item.name,
        bits,
        tuple(scales),
        (2 ** (bits - 1),) * len(scales),
        symmetric=True,
        signed=True,
        per_channel=True,
        axis=1 - item.axis,
        block=item.block_size,
        factors=tuple(factors),
    )


def _numbers(value: object, key: str, where: str) -> list[float]:
    """A number, or a flat list of numbers."""
    if isinstance(value, dict):
        raise _unsupported(f"{key} as a table", where)
    items: list[object] = value if isinstance(value, list) else [value]
    if any(isinstance(item, list) for item in items):
        raise _unsupported(f"{key} in blocks", where)
    numbers = [float(item) for item in items if isinstance(item, int | float) and not isinstance(item, bool)]
    if not items or len(numbers) != len(items):
        raise EncodingsError(f"{key} is {value!r}", where=where, expected="a number, or a list of them")
    return numbers


def _check_scales(scales: list[float], points: int, where: str) -> None:
    if len(scales) != points or not scales:
        raise EncodingsError(
            f"{len(scales)} scales and {points} zero points", where=where, expected="equal numbers of both"
        )
    bad = [scale for scale in scales if not 0 < scale < math.inf]
    if bad:
        raise EncodingsError(f"a scale is {bad[0]}", where=where, expected="positive numbers")


def _check_integer(dtype: str, name: str, where: str) -> None:
    if dtype.lower() == "float":
        raise EncodingsError(
            f"dtype is {dtype}",
            where=where,
            expected="integers",
            fix=f"Remove {name!r} , and run the layer in float: overrides={{...: 'float'}}.",
        )


def _unsupported(what: str, where: str) -> EncodingsError:
    return EncodingsError(
        f"the encoding has {what}", where=where, expected="one scale and one zero point per tensor or per channel"
    )


def _named(where: str, record: Mapping[str, object]) -> str:
    return f"{where}, {record.get('name', 'a record without a name')}"


_Checked = TypeVar("_Checked", bound=BaseModel)


def _validated(kind: type[_Checked], data: object, where: str) -> _Checked:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        finding = error.errors()[0]
        key = ".".join(str(part) for part in finding["loc"])
        if finding["type"] == "extra_forbidden":
            raise EncodingsError(
                f"there is no key {key!r} in encodings of this version",
                where=where,
                expected="one of " + ", ".join(kind.model_fields),
            ) from None
        raise EncodingsError(f"{key}: {finding['msg']}" if key else finding["msg"], where=where) from None

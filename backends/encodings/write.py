"""Encodings as text.

    0.6.1   two tables, activation_encodings and param_encodings: name -> one record per channel, with min and max
    1.0.0   the same as two lists: one record per tensor, with lists of scales and offsets
    2.0.0   one list of ONNX QuantizeLinear parameters: stored type, scale, zero point, axis

Below 2.0.0 offsets are negated zero points of codes that count from 0; a signed symmetric grid of 8 bits has -128. A
grid is written with all its 2^bits codes; the format cannot express that the lowest code is unused (`narrow`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from qcompiler.errors import EncodingsError
from qcompiler.quant.encoding import Encoding, Encodings

VERSIONS = ("0.6.1", "1.0.0", "2.0.0")
"""Versions that can be written and read."""

Record = dict[str, object]


def write(encodings: Encodings, version: str = "1.0.0") -> str:
    """The text of a file. The same encodings give the same text.

    Args:
        encodings: Encodings to write.
        version: One of `VERSIONS`.

    Raises:
        EncodingsError: The version is unknown, or it needs unknown information: the channel axis, or which tensors are
            parameters.
    """
    if version not in VERSIONS:
        raise EncodingsError(f"version {version!r} of encodings", expected="one of " + ", ".join(VERSIONS))
    data: Record = {"version": version, **_WRITERS[version](encodings.tensors)}
    if encodings.producer:
        data["producer"] = dict(encodings.producer)
    if version != "2.0.0" or encodings.excluded:
        data["excluded_layers"] = list(encodings.excluded)
    if version != "2.0.0" and encodings.quantizer_args:
        data["quantizer_args"] = dict(encodings.quantizer_args)
    return json.dumps(data, sort_keys=True, indent=1) + "\n"


def _version_0(tensors: Sequence[Encoding]) -> Record:
    activations, parameters = _sections(tensors)
    return {
        "activation_encodings": {item.name: _channels(item) for item in activations},
        "param_encodings": {item.name: _channels(item) for item in parameters},
    }


def _channels(item: Encoding) -> list[Record]:
    """One record per scale.

    Its ends are the ends of the whole grid, so max - min is 2^bits - 1 steps.

    Raises:
        EncodingsError: The tensor has blocks.
    """
    if item.block:
        raise EncodingsError(
            f"{item.name!r} has one scale per block of {item.block} inputs, which files of version 0.6.1 lack",
            expected="version 1.0.0 or 2.0.0",
        )
    return [
        {
            "bitwidth": item.bits,
            "dtype": "int",
            "is_symmetric": str(item.symmetric),
            "scale": scale,
            "offset": offset,
            "min": scale * offset,
            "max": scale * (offset + 2 * item.half - 1),
        }
        for scale, offset in zip(item.scale, item.offset, strict=True)
    ]


def _version_1(tensors: Sequence[Encoding]) -> Record:
    activations, parameters = _sections(tensors)
    return {
        "activation_encodings": [_record(item) for item in activations],
        "param_encodings": [_record(item) for item in parameters],
    }


def _record(item: Encoding) -> Record:
    if item.block:
        return _low_power_blocks(item)
    return {
        "name": item.name,
        "enc_type": "PER_CHANNEL" if item.per_channel else "PER_TENSOR",
        "dtype": "INT",
        "bw": item.bits,
        "is_sym": item.symmetric,
        "scale": list(item.scale),
        "offset": list(item.offset),
    }


def _low_power_blocks(item: Encoding) -> Record:
    """A weight in blocks: codes of `compressed_bw` bits, which with their factors have `bw` bits."""
    return {
        "name": item.name,
        "enc_type": "LPBQ",
        "dtype": "INT",
        "bw": item.bits + max(item.factors).bit_length(),
        "compressed_bw": item.bits,
        "is_sym": item.symmetric,
        "scale": list(item.scale),
        "offset": list(item.offset),
        "block_size": item.block,
        "per_block_int_scale": list(item.factors),
    }


def _version_2(tensors: Sequence[Encoding]) -> Record:
    return {"encodings": [_quantize_linear(item) for item in tensors]}


def _quantize_linear(item: Encoding) -> Record:
    record: Record = {"name": item.name, "output_dtype": f"{'int' if item.signed else 'uint'}{item.bits}"}
    zero_point = item.stored_zero_point
    if item.per_channel or item.block:
        if item.axis is None:
            raise EncodingsError(
                f"the channel axis of {item.name!r} is unknown", expected="a channel axis, for version 2.0.0"
            )
        if item.block:
            count = len(item.factors) // len(item.scale)
            rows = [list(item.factors[first : first + count]) for first in range(0, len(item.factors), count)]
            # The axis of the blocks, the inputs of a weight; channels are along the other of the first two.
            record.update(axis=1 - item.axis, block_size=item.block, per_block_int_scale=rows)
            return {**record, "per_channel_float_scale": list(item.scale)}
        record.update(axis=item.axis, y_scale=list(item.scale), y_zero_point=list(zero_point))
    else:
        record.update(y_scale=item.scale[0], y_zero_point=zero_point[0])
    if not any(zero_point):  # as ONNX does without the operand
        del record["y_zero_point"]
    return record


def _sections(tensors: Sequence[Encoding]) -> tuple[list[Encoding], list[Encoding]]:
    unknown = next((item for item in tensors if item.is_parameter is None), None)
    if unknown is not None:
        raise EncodingsError(
            f"it is unknown whether {unknown.name!r} is a parameter",
            expected="encodings with that information, or version 2.0.0",
        )
    return [item for item in tensors if not item.is_parameter], [item for item in tensors if item.is_parameter]


_WRITERS: dict[str, Callable[[Sequence[Encoding]], Record]] = {
    "0.6.1": _version_0,
    "1.0.0": _version_1,
    "2.0.0": _version_2,
}

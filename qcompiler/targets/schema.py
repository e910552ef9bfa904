"""The hardware descriptor as data: every field that a descriptor may hold, what it means, and what is refused.

A descriptor is TOML, schema `qcompiler.hw/1`. All models are frozen and closed: a key that is not here is an error.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from qcompiler.quant.requant import RequantMode
from qcompiler.quant.rounding import Rounding
from qcompiler.quant.spec import ScaleKind

SCHEMA = "qcompiler.hw/1"

BLOCKS = (
    "weights with a scale per block are refused: each block needs a sum of its own, rescaled before it joins the "
    "others, which no integer operator here does. Use granularity per_tensor or per_channel"
)
"""Why there is no grid of blocks in a target."""

OpKind = Literal["mac", "elementwise", "average", "normalization", "table", "movement"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Identity(_Model):
    """Who the target is."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]+(\[.*\])?$")]
    version: str = "1"
    description: str = ""
    sources: tuple[str, ...] = ()
    """Where the numbers that are not obvious come from."""


class NumberType(_Model):
    """One grid of integers."""

    bits: Annotated[int, Field(ge=2, le=16)]
    allowed_bits: tuple[Annotated[int, Field(ge=2, le=16)], ...] = ()
    """Widths that an override may ask for; those of the type itself when empty."""
    signed: bool = True
    symmetric: bool = False
    narrow: bool = False
    """Leave out the lowest code, so that the grid is symmetric about zero."""
    granularity: Literal["per_tensor", "per_channel"] = "per_tensor"
    scale: ScaleKind = ScaleKind.FLOAT

    @model_validator(mode="before")
    @classmethod
    def _without_blocks(cls, data: object) -> object:
        if isinstance(data, dict) and ("block" in data or data.get("granularity") in ("per_block", "per_group")):
            raise ValueError(BLOCKS)
        return data

    @model_validator(mode="after")
    def _describes_a_grid(self) -> NumberType:
        if self.narrow and not self.signed:
            raise ValueError("narrow is for signed codes, of which it drops the lowest")
        return self


class Defaults(_Model):
    """Which grids values are on where no rule says otherwise: names of number types."""

    activation: str
    weight: str


class Requantize(_Model):
    """How accumulators become codes."""

    mode: RequantMode
    per_channel_clamp: bool = False
    """Whether each channel of a result may have limits of its own, where `clamp` has a rule: it computes
    `clamp_channels` then, so that equalization keeps the cap of a ReLU6."""


class Roundings(_Model):
    """Rounding of everything but requantization."""

    quantize: Rounding
    bias: Rounding
    table: Rounding
    average: Rounding


class Accumulator(_Model):
    """Where products are summed."""

    bits: Annotated[int, Field(ge=16, le=64)] = 32
    overflow: Literal["forbid", "wrap"] = "forbid"
    """`forbid`: a proof per channel that the sum fits, or the compile is refused."""


class FixedGrid(_Model):
    """A grid that the hardware dictates for a result."""

    scale: Annotated[float, Field(gt=0)]
    zero_point: int
    bits: Annotated[int, Field(ge=2, le=16)] = 8
    """Width of the results that it is for; of others the grid is found by calibration."""

    def misfit(self, number: NumberType) -> str:
        """Why results of `number` cannot be on this grid; empty where they can."""
        low, high = _limits(number.model_copy(update={"bits": self.bits}))
        if not low <= self.zero_point <= high:
            return f"zero_point is outside of {low} to {high}"
        if number.symmetric and self.zero_point:
            return f"zero_point is {self.zero_point} where the grid of activations is symmetric"
        if number.scale is ScaleKind.POW2 and math.frexp(self.scale)[0] != 0.5:
            return f"scale is {self.scale}, which is no power of two as those of activations are"
        return ""


class OpRule(_Model):
    """Ops that the integer core computes."""

    names: Annotated[tuple[str, ...], Field(min_length=1)]
    kind: OpKind
    per_channel: bool | None = None
    """Whether weights may have one scale per channel; None: as the number type says. Of tables: whether each channel
    may have one of its own, so that equalization goes through; None: no."""
    out_fixed: FixedGrid | None = None

    @model_validator(mode="after")
    def _has_one_range(self) -> OpRule:
        if self.kind == "table" and self.per_channel and self.out_fixed is not None:
            raise ValueError(f"{self.names[0]} has a table per channel, and one grid that is fixed for all of them")
        return self


class Supergroup(_Model):
    """Ops in a row between which nothing is quantized: one list of alternatives per step."""

    steps: Annotated[tuple[tuple[str, ...], ...], Field(min_length=2)]


class Tie(_Model):
    """Tensors of an op that share one grid."""

    ops: Annotated[tuple[str, ...], Field(min_length=1)]
    tensors: Literal["inputs_and_output"] = "inputs_and_output"


class Layout(_Model):
    """Physical order of axes."""

    activations: Literal["NHWC", "NCHW"] = "NCHW"
    weights: Literal["OHWI", "OIHW"] = "OIHW"


class Verification(_Model):
    """How far ONNX Runtime may be from the integer program, layer by layer, on the same integers."""

    layer_lsb: Annotated[int, Field(ge=0)] = 1
    layer_fraction: Annotated[float, Field(ge=0, le=1)] = 0.005
    """Share of the elements that may differ at all."""


class Partition(_Model):
    """What becomes of an op that the integer core does not have, or that is wanted in float."""

    fallback: Literal["refuse", "float"] = "refuse"
    """`float`: it runs in float32 between a dequantize and a quantize, on a processor beside the core."""


class Onnx(_Model):
    """Flavour of the exported file."""

    opset: Annotated[int, Field(ge=13)] = 13
    ir_version: Annotated[int, Field(ge=7)] = 8


class Simulation(_Model):
    """A scheme to train and to evaluate in, for which there is no hardware.

    Quantizers stand on the inputs of layers and on their weights; what a layer gives, additions and batch norms are in
    float, and so are biases. Activations that cannot be negative, behind a ReLU or a sigmoid, have unsigned codes.
    """

    reason: Annotated[str, Field(min_length=1)]
    """Why nothing can be compiled for it."""
    first_last_bits: Annotated[int, Field(ge=2, le=16)] | None = None
    """Bits of the weights of the first and the last layer, and of the input of the last; None: as of the others."""
    first_input: Literal["float", "quantized"] = "quantized"
    """What the first layer reads."""


class Descriptor(_Model):
    """A whole descriptor, `extends` resolved."""

    schema_version: Annotated[Literal["qcompiler.hw/1"], Field(alias="schema")]
    target: Identity
    dtypes: dict[str, NumberType]
    defaults: Defaults
    requantize: Requantize
    rounding: Roundings
    accumulator: Accumulator = Accumulator()
    op: Annotated[tuple[OpRule, ...], Field(min_length=1)]
    supergroup: tuple[Supergroup, ...] = ()
    tie: tuple[Tie, ...] = ()
    layout: Layout = Layout()
    partition: Partition = Partition()
    verify: Verification = Verification()
    onnx: Onnx = Onnx()
    simulation: Simulation | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Descriptor:
        for role in ("activation", "weight"):
            name = getattr(self.defaults, role)
            if name not in self.dtypes:
                raise ValueError(f"defaults.{role} is {name!r}, which is not one of dtypes {sorted(self.dtypes)}")
        weight = self.dtypes[self.defaults.weight]
        activation = self.dtypes[self.defaults.activation]
        if not weight.symmetric:
            raise ValueError("weights must be symmetric: a weight zero point costs a sum over the input per output")
        if not weight.signed:
            raise ValueError("weights must be signed: a symmetric grid of unsigned codes holds no negative weight")
        if activation.granularity == "per_channel":
            raise ValueError("activations per channel are refused: their scale cannot leave the sum over channels")
        seen: set[str] = set()
        for rule in self.op:
            for name in rule.names:
                if name in _FOLLOWS:
                    raise ValueError(f"{name} follows {_FOLLOWS[name]}")
                if name in seen:
                    raise ValueError(f"two rules are for the op {name!r}")
                seen.add(name)
            if rule.out_fixed is not None:
                reason = rule.out_fixed.misfit(activation)
                if reason:
                    raise ValueError(f"out_fixed of {rule.names[0]}: {reason}")
        named = [name for group in self.supergroup for step in group.steps for name in step]
        named += [name for tie in self.tie for name in tie.ops]
        for name in named:
            if name not in seen:
                raise ValueError(f"a supergroup or tie names the op {name!r}, which has no rule")
        product = 2 ** (activation.bits + weight.bits - 1)
        if self.accumulator.bits < 64 and product > 2 ** (self.accumulator.bits - 1) - 1:
            raise ValueError(f"an accumulator of {self.accumulator.bits} bits does not hold one product")
        return self


_FOLLOWS = {
    "clamp_channels": "the rule for clamp: set requantize.per_channel_clamp",
    "scaled_unary": "the rules for tables: set their per_channel",
}
"""Ops that are not named by rules, and what says whether the core has them."""


def _limits(number: NumberType) -> tuple[int, int]:
    if number.signed:
        return -(2 ** (number.bits - 1)) + number.narrow, 2 ** (number.bits - 1) - 1
    return 0, 2**number.bits - 1

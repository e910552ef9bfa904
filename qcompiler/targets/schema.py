"""The hardware descriptor as data: every field and its meaning.

A descriptor is TOML with schema `qcompiler.hw/1`. All models are frozen and closed: an unknown key is an error, and so
is a value of a type other than TOML's own. `targets.consistency` checks the fields against each other. Every field has
an effect: on what is compiled, on what is refused, or on what is reported (decision 13).
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from qcompiler.errors import InputError
from qcompiler.quant.modes import AverageRounding, Precision, RequantMode, RequantSpec, Rounding
from qcompiler.quant.spec import ScaleKind

SCHEMA = "qcompiler.hw/1"

Int: TypeAlias = Annotated[int, Strict()]
Bool: TypeAlias = Annotated[bool, Strict()]
Text: TypeAlias = Annotated[str, Strict()]
Real: TypeAlias = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Width: TypeAlias = Annotated[Int, Field(ge=2, le=16)]
Count: TypeAlias = Annotated[Int, Field(ge=0, lt=2**63)]
Interval: TypeAlias = tuple[Count, Count]
"""Smallest and largest."""

OpKind = Literal["mac", "elementwise", "average", "normalization", "table", "movement", "float"]
Packing = Literal["none", "low_nibble_first", "high_nibble_first"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Identity(_Model):
    """Identity of the target, and sources of the descriptor."""

    name: Annotated[Text, Field(pattern=r"^[A-Za-z0-9_.\-]+(\[.*\])?$")]
    """Name of the target; overrides are added in brackets."""
    version: Text = "1"
    """Version of the descriptor."""
    vendor: Text = ""
    """Vendor of the hardware or software."""
    description: Text = ""
    """One-line description for lists."""
    sources: tuple[Text, ...] = ()
    """Sources of the numbers that are not obvious."""
    unknown: tuple[Text, ...] = ()
    """Values without a public source, key by key, with the assumption made."""


class NumberType(_Model):
    """One integer grid."""

    bits: Width
    """Width of a code."""
    allowed_bits: tuple[Width, ...] = ()
    """Widths that an override may ask for; empty for the width of the type only."""
    signed: Bool = True
    """Whether codes run below 0."""
    symmetric: Bool = False
    """Whether the zero point is always 0; otherwise any code."""
    narrow: Bool = False
    """Leave out the lowest code, so that a signed grid is symmetric about zero."""
    granularity: Literal["per_tensor", "per_channel", "per_block"] = "per_tensor"
    """Number of scales: one, one per output channel of a weight, or one per channel with an integer factor of it for
    each block of inputs."""
    block: Annotated[Int, Field(ge=1, le=65536)] | None = None
    """Number of inputs of a channel that share a factor, with `per_block`."""
    factor_bits: Annotated[Int, Field(ge=1, le=8)] = 4
    """Width of these unsigned factors."""
    scale: ScaleKind = ScaleKind.FLOAT
    """Any scale, or powers of two."""
    packing: Packing = "none"
    """Storage of 4-bit weights: one per byte, or two per byte with the first in the low or high half."""

    @model_validator(mode="after")
    def _describes_a_grid(self) -> NumberType:
        if self.narrow and not self.signed:
            raise ValueError("narrow is for signed codes, of which it drops the lowest")
        if (self.granularity == "per_block") != (self.block is not None):
            raise ValueError("granularity per_block and the size of a block go together")
        if self.granularity == "per_block" and not (self.signed and self.symmetric):
            raise ValueError("blocks are for signed symmetric grids: a zero point would be another one in each of them")
        if self.packing != "none" and self.bits != 4:
            raise ValueError(f"packing is {self.packing}, which puts two codes of 4 bits into a byte, not {self.bits}")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """All allowed widths."""
        return tuple(sorted({self.bits, *self.allowed_bits}))

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest code."""
        if self.signed:
            return -(2 ** (self.bits - 1)) + self.narrow, 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1


class Defaults(_Model):
    """Default grids, as names of number types."""

    activation: Text
    """Default number type of activations."""
    weight: Text
    """Default number type of weights."""
    other_activations: tuple[Text, ...] = ()
    """Number types that an override may select by a width that the default lacks."""
    other_weights: tuple[Text, ...] = ()
    """The same for weights, by width."""


class Multiplier(_Model):
    """Arithmetic and width of the multipliers that turn accumulators into codes."""

    mode: RequantMode
    """The arithmetic; `tosa_double` is another name of `double`."""
    multiplier_bits: Annotated[Int, Field(ge=2, le=32)] | None = None
    """Bits of a signed integer multiplier; all that the mode has where it is not said."""
    max_left_shift: Count | None = None
    """Largest e of a multiplier f * 2^e with f in [1/2, 1): 0 where none may be above 1."""
    max_right_shift: Count | None = None
    """Largest -e."""
    multiplier_precision: Precision = "float64"
    """Float type in which s_x * s_w / s_y is computed; `f32_rne` has float32 always."""

    @model_validator(mode="after")
    def _is_held(self) -> Multiplier:
        try:
            self.spec()
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    def spec(self) -> RequantSpec:
        """The specification for `quant`."""
        return RequantSpec(
            self.mode, self.multiplier_bits, self.max_left_shift, self.max_right_shift, self.multiplier_precision
        )


class Requantize(Multiplier):
    """Requantization of accumulators to codes."""

    per_channel: Bool = True
    """Whether each channel may have its own multiplier; otherwise weights have one scale per tensor."""
    per_channel_clamp: Bool = False
    """Whether each channel of a result may have its own limits, if `clamp` has a rule: the core then computes
    `clamp_channels`, so that equalization keeps the cap of a ReLU6."""


class Roundings(_Model):
    """Rounding in all steps except requantization."""

    quantize: Rounding
    """Of real numbers to codes."""
    bias: Rounding
    """Of biases to steps of the accumulator."""
    table: Rounding
    """Of the entries of tables."""
    average: AverageRounding
    """Of the sum of a window divided by its number of elements: of codes less their zero point or, as `rhaz_raw`, of
    raw codes, halves away from code 0."""


class Accumulator(_Model):
    """Accumulator of the sums of products."""

    bits: Annotated[Int, Field(ge=16, le=64)] = 32
    """Width in bits."""
    overflow: Literal["forbid", "wrap", "saturate"] = "forbid"
    """Behaviour beyond the width. Absence of wrong results is proven per channel, or the compile is refused: with
    `wrap` for final sums, with `forbid` for all sums that begin with the bias, with `saturate` for every partial
    sum."""


class Bias(_Model):
    """Bias added to an accumulator."""

    bits: Annotated[Int, Field(ge=8, le=64)] = 32
    """Width of a stored bias; widths above 32 are stored in 64 bits."""
    zero_point_folding: Literal["compiler", "hardware"] = "hardware"
    """Place where the input zero point is removed from the products: hardware, or the compiler in the bias."""


class Elementwise(_Model):
    """Additions, subtractions and products of two activations."""

    mode: Literal["requantize", "f32"] = "requantize"
    """`requantize`: with the multipliers of the requantization; `f32`: both operands are dequantized, the operation is
    computed and its result quantized in float32, each step rounded."""
    add_shift: Annotated[Int, Field(ge=0, le=30)] = 20
    """Left shift in bits of both operands before rescaling to one scale; less if the result would exceed 30 bits."""


class Tables(_Model):
    """Lookup tables of functions of one number, one entry per code."""

    precision: Precision = "float64"
    """Float type in which an entry is computed before it is rounded."""
    per_channel: Bool = True
    """Whether each channel may have its own table, for functions with such a rule."""
    max_entries: Annotated[Int, Field(ge=4, le=65536)] = 65536
    """Longest table; 256 excludes tables for codes of more than 8 bits."""
    max_bytes: Annotated[Int, Field(ge=4)] | None = None
    """Largest size of all tables of one instruction, several if channels have their own."""


class FixedGrid(_Model):
    """Scale and zero point of a result that the hardware fixes."""

    scale: Annotated[Real, Field(gt=0)]
    """Size of a step."""
    zero_point: Int
    """Code of 0."""
    bits: Width = 8
    """Width of the results with this grid; calibration finds the grid of other widths."""


class Limits(_Model):
    """Limits of operator sizes; larger ops are not computed in integers."""

    kernel: Interval | None = None
    """Size of a window along each axis."""
    stride: Interval | None = None
    """Step of a window along each axis."""
    dilation: Interval | None = None
    """Distance of the taps along each axis."""
    groups: Literal["any", "one", "one_or_depthwise"] = "any"
    """Groups of a convolution: any, all channels together, or also each channel by itself."""
    terms: Count | None = None
    """Number of products in the sum of one output."""


class Combination(_Model):
    """An allowed pair of activation and weight, with its deviating arithmetic."""

    activation: Text
    """Number type of the input."""
    weight: Text
    """Number type of the weight."""
    requantize: Multiplier | None = None
    """In place of that of the rule."""
    accumulator: Accumulator | None = None
    """In place of that of the target."""
    bias: Bias | None = None
    """In place of that of the target."""


class OpRule(_Model):
    """Ops that the integer core computes."""

    names: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Ops of the graph, not of a framework."""
    kind: OpKind
    """Kind of the ops; `float`: ops that the core lacks, with results on a fixed grid after a float island."""
    per_channel: Bool | None = None
    """Whether weights may have one scale per channel; by default as in the number type. For tables: whether each
    channel may have its own, so that equalization passes through; false by default."""
    out_fixed: FixedGrid | None = None
    """Fixed grid of the results, in place of calibration."""
    limits: Limits | None = None
    """Sizes that they may have."""
    requantize: Multiplier | None = None
    """In place of that of the target."""
    combinations: tuple[Combination, ...] = ()
    """Pairs that layers may multiply; all pairs of the target's number types by default."""


class Supergroup(_Model):
    """A chain of ops without quantization in between."""

    steps: Annotated[tuple[tuple[Text, ...], ...], Field(min_length=2)]
    """One list of alternatives per step, the later ones activations."""


class Tie(_Model):
    """Tensors of an op that share one grid."""

    ops: Annotated[tuple[Text, ...], Field(min_length=1)]
    """The ops; ops that only move elements keep the grid in any case."""
    tensors: Literal["inputs_and_output"] = "inputs_and_output"
    """The tied tensors."""


class Layout(_Model):
    """Layout of tensors in memory."""

    activations: Literal["NHWC", "NCHW"] = "NCHW"
    """Physical order of images."""
    weights: Literal["OHWI", "OIHW"] = "OIHW"
    """Physical order of convolution weights."""
    alignment: Annotated[Int, Field(ge=1, le=4096)] = 16
    """Alignment of activations in bytes: a power of two."""
    channel_multiple: Annotated[Int, Field(ge=1, le=4096)] = 1
    """Number of channels computed at a time."""

    @model_validator(mode="after")
    def _alignment_is_a_power_of_two(self) -> Layout:
        if self.alignment & (self.alignment - 1):
            raise ValueError(f"alignment is {self.alignment}, which is no power of two")
        return self


class Memory(_Model):
    """One memory."""

    name: Text
    """Name, such as sram. Memories are tried in the order of the file."""
    bytes: Annotated[Count, Field(ge=1)]
    """Size in bytes."""
    holds: Annotated[tuple[Literal["activations", "constants"], ...], Field(min_length=1)] = (
        "activations",
        "constants",
    )
    """Contents that the memory may hold."""
    bytes_per_cycle: Annotated[Real, Field(gt=0)] | None = None
    """Bandwidth in bytes per cycle."""
    latency_cycles: Count | None = None
    """Cycles before the first byte of a transfer; each tensor is one transfer."""
    burst_bytes: Annotated[Count, Field(ge=1)] | None = None
    """Smallest transfer in bytes."""
    picojoules_per_byte: Annotated[Real, Field(ge=0)] | None = None
    """Energy per byte in picojoules."""


class Compute(_Model):
    """Speed of the core, for estimates."""

    clock_hz: Annotated[Real, Field(gt=0)] | None = None
    """Cycles per second."""
    macs_per_cycle: dict[
        Annotated[Text, Field(pattern=r"^(4|8|16)x(4|8|16)$")], Annotated[Int, Field(ge=1, lt=2**31)]
    ] = {}
    """Multiply-accumulates per cycle, by width of activation and weight: `8x8`."""
    elementwise_per_cycle: Annotated[Int, Field(ge=1, lt=2**31)] | None = None
    """Elements per cycle of all other ops."""
    picojoules_per_mac: Annotated[Real, Field(ge=0)] | None = None
    """Energy per multiply-accumulate in picojoules."""


class Verification(_Model):
    """Largest deviation of ONNX Runtime from the integer program, layer by layer, on the same integers."""

    layer_lsb: Annotated[Int, Field(ge=0, lt=2**16)] = 1
    """Largest difference in steps of the result's grid."""
    layer_fraction: Annotated[Real, Field(ge=0, le=1)] = 0.005
    """Share of the elements that may differ at all, not counting differences caused only by the rounding mode."""


class Partition(_Model):
    """Treatment of ops that the integer core lacks, or that are requested in float."""

    fallback: Literal["refuse", "float"] = "refuse"
    """`float`: such ops run in float32 between a dequantize and a quantize, on a processor next to the core."""


class Onnx(_Model):
    """Flavour of the exported file."""

    opset: Annotated[Int, Field(ge=13, le=25)] = 13
    """Version of the operators; raised if element types need a newer one."""
    ir_version: Annotated[Int, Field(ge=7, le=13)] = 8
    """Version of the file format."""
    activations: Literal["unsigned", "as_is"] = "unsigned"
    """Signed 8-bit activations as unsigned codes 128 higher, as ONNX Runtime's kernels require, or unchanged."""
    bias: Literal["int32", "float"] = "int32"
    """Biases as integers before a DequantizeLinear, or as the equivalent real numbers."""


class Simulation(_Model):
    """A scheme for training and evaluation without hardware.

    Quantizers are placed on the inputs of layers and on their weights; the results of layers, additions, batch norms
    and biases are in float. Activations after a ReLU or a sigmoid, which cannot be negative, have unsigned codes.
    """

    reason: Annotated[Text, Field(min_length=1)]
    """Reason why no model can be compiled for the target."""
    first_last_bits: Width | None = None
    """Width of the weights of the first and last layer, and of the input of the last; None: as for others."""
    first_input: Literal["float", "quantized"] = "quantized"
    """Whether the first layer reads a float or a quantized input."""


class Fields(_Model):
    """The fields of a descriptor; `descriptor.Descriptor` checks the fields against each other."""

    schema_version: Annotated[Literal["qcompiler.hw/1"], Field(alias="schema")]
    """The version of this schema."""
    target: Identity
    dtypes: dict[Text, NumberType]
    defaults: Defaults
    requantize: Requantize
    rounding: Roundings
    accumulator: Accumulator = Accumulator()
    bias: Bias = Bias()
    elementwise: Elementwise = Elementwise()
    table: Tables = Tables()
    op: Annotated[tuple[OpRule, ...], Field(min_length=1)]
    supergroup: tuple[Supergroup, ...] = ()
    tie: tuple[Tie, ...] = ()
    layout: Layout = Layout()
    memory: tuple[Memory, ...] = ()
    compute: Compute = Compute()
    partition: Partition = Partition()
    verify: Verification = Verification()
    onnx: Onnx = Onnx()
    simulation: Simulation | None = None
    """Simulation scheme of a target that is not hardware."""

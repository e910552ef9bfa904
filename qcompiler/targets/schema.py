"""The hardware descriptor as data: every field and its meaning.

A descriptor is TOML with schema `qcompiler.hw/1`. All models are frozen and closed: an unknown key is an error, as is a
value whose TOML type does not match. `targets.consistency` checks the fields against each other. Every field has
an effect: on what is compiled, on what is refused, or on what is reported (decision 13).
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from qcompiler.errors import InputError
from qcompiler.quant.modes import AverageRounding, Precision, RequantMode, RequantSpec, Rounding, SoftmaxMode
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

OpKind = Literal[
    "mac", "product", "elementwise", "average", "normalization", "softmax", "table", "movement", "exact", "float"
]
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
    """Widths that an override may select; empty if only `bits` is possible."""
    signed: Bool = True
    """Whether codes can be negative."""
    symmetric: Bool = False
    """Whether the zero point is always 0; otherwise the zero point may be any code."""
    narrow: Bool = False
    """Whether the lowest code is unused, so that a signed grid is symmetric about zero."""
    granularity: Literal["per_tensor", "per_channel", "per_block"] = "per_tensor"
    """Number of scales: one per tensor, one per output channel of a weight, or one per channel with an integer factor
    for each block of inputs."""
    block: Annotated[Int, Field(ge=1, le=65536)] | None = None
    """Number of inputs of a channel that share a factor, with `per_block`."""
    factor_bits: Annotated[Int, Field(ge=1, le=8)] = 4
    """Width in bits of the unsigned block factors."""
    scale: ScaleKind = ScaleKind.FLOAT
    """Kind of scales: any float32 value, or powers of two."""
    packing: Packing = "none"
    """Storage of 4-bit weights: one per byte, or two per byte with the first in the low or high half."""

    @model_validator(mode="after")
    def _describes_a_grid(self) -> NumberType:
        if self.narrow and not self.signed:
            raise ValueError("narrow drops the lowest signed code, but signed is false")
        if (self.granularity == "per_block") != (self.block is not None):
            raise ValueError("granularity per_block needs block, and block needs granularity per_block")
        if self.granularity == "per_block" and not (self.signed and self.symmetric):
            raise ValueError(
                "per_block needs a signed symmetric grid: otherwise each block would have its own zero point"
            )
        if self.packing != "none" and self.bits != 4:
            raise ValueError(f"packing is {self.packing}, which needs 4-bit codes, but bits is {self.bits}")
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
    """Additional number types, which an override selects by width."""
    other_weights: tuple[Text, ...] = ()
    """Additional number types of weights, which an override selects by width."""


class Multiplier(_Model):
    """Arithmetic and width of the multipliers that turn accumulators into codes."""

    mode: RequantMode
    """The arithmetic; `tosa_double` is another name of `double`."""
    multiplier_bits: Annotated[Int, Field(ge=2, le=32)] | None = None
    """Bits of a signed integer multiplier; by default the maximum of the mode."""
    max_left_shift: Count | None = None
    """Largest e of a multiplier f * 2^e with f in [1/2, 1); 0 limits multipliers to values below 1."""
    max_right_shift: Count | None = None
    """Largest -e of a multiplier f * 2^e with f in [1/2, 1)."""
    multiplier_precision: Precision = "float64"
    """Float type in which s_x * s_w / s_y is computed; `f32_rne` always uses float32."""

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
    product_factors: Bool = True
    """Whether the multiplier of a product of two activations may include a constant factor, such as the 1/sqrt(d) of
    attention; runtimes that derive multipliers from scales have none."""
    per_channel_clamp: Bool = False
    """Whether each channel of a result may have its own clamp limits. If `clamp` has a rule, the core then computes
    `clamp_channels`, and equalization can keep the cap of a ReLU6."""


class Roundings(_Model):
    """Rounding in all steps except requantization."""

    quantize: Rounding
    """Rounding of real numbers to codes."""
    bias: Rounding
    """Rounding of biases to steps of the accumulator."""
    table: Rounding
    """Rounding of table entries."""
    average: AverageRounding
    """Rounding of the sum of a window divided by its number of elements. The sum is over codes minus their zero point;
    with `rhaz_raw`, over raw codes with halves away from code 0."""
    mean_multiplier: Literal["whole", "divided"] = "whole"
    """Multiplier of a mean over n codes, where it has a significand: `whole`: that of s_x / (s_y n); `divided`: that of
    s_x / s_y, times the largest power of two up to n, divided by n without the remainder, as TensorFlow Lite does."""


class Accumulator(_Model):
    """Accumulator of the sums of products."""

    bits: Annotated[Int, Field(ge=16, le=64)] = 32
    """Width in bits."""
    overflow: Literal["forbid", "wrap", "saturate"] = "forbid"
    """Behaviour when a sum exceeds the width. The compiler proves per channel that results stay correct, or refuses:
    `wrap` requires it of final sums, `forbid` of all sums that begin with the bias, `saturate` of every partial sum."""


class Bias(_Model):
    """Bias added to an accumulator."""

    bits: Annotated[Int, Field(ge=8, le=64)] = 32
    """Width of a stored bias; widths above 32 are stored in 64 bits."""
    zero_point_folding: Literal["compiler", "hardware"] = "hardware"
    """Side that removes the input zero point: the hardware from the products, or the compiler in the bias."""


class Gradient(_Model):
    """Gradients in quantized training, which no deployed program contains.

    A gradient has one scale: its product with the weight sums over its channels, its product with the input over its
    positions, and a scale per channel or per position would not leave one of the two sums.
    """

    bits: Width = 8
    """Width of a code of a gradient."""
    allowed_bits: tuple[Width, ...] = (2, 3, 4, 5, 6, 7, 8, 16)
    """Other widths that an override may select."""
    symmetric: Bool = False
    """Whether the zero point is always 0; otherwise the zero point may be any code."""
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    """Rounding of gradients to codes: with the mean of the real number, or to the nearest code."""


class Elementwise(_Model):
    """Additions, subtractions and products of two activations."""

    mode: Literal["requantize", "f32"] = "requantize"
    """`requantize`: integer arithmetic with requantization multipliers; `f32`: both operands are dequantized, the
    operation is computed and its result quantized in float32, with rounding after each step."""
    add_shift: Annotated[Int, Field(ge=0, le=30)] = 20
    """Left shift in bits of both operands before rescaling to a common scale; reduced if the result would exceed 30
    bits."""


class Tables(_Model):
    """Lookup tables of functions of one number, one entry per code."""

    precision: Precision = "float64"
    """Float type in which an entry is computed before it is rounded."""
    per_channel: Bool = True
    """Whether each channel may have its own table, for functions whose rule allows it."""
    max_entries: Annotated[Int, Field(ge=4, le=65536)] = 65536
    """Maximum number of entries of a table; 256 excludes tables for codes of more than 8 bits."""
    max_bytes: Annotated[Int, Field(ge=4)] | None = None
    """Maximum size in bytes of all tables of one instruction, which has several if each channel has its own."""


class Softmax(_Model):
    """Arithmetic of softmax."""

    mode: SoftmaxMode = SoftmaxMode.TABLE
    """Arithmetic on 8-bit codes: `table`, `f32` (ONNX Runtime) or `gemmlowp` (TensorFlow Lite)."""
    wide_mode: SoftmaxMode = SoftmaxMode.TABLE
    """Arithmetic if the operand or the result has more than 8 bits: `table`, or `lut16` (TensorFlow Lite)."""

    @model_validator(mode="after")
    def _modes_have_their_width(self) -> Softmax:
        if self.mode is SoftmaxMode.LUT16:
            raise ValueError("mode is lut16, which computes 16-bit results: set wide_mode")
        if self.wide_mode in (SoftmaxMode.FLOAT32, SoftmaxMode.GEMMLOWP):
            raise ValueError(f"wide_mode is {self.wide_mode}, which computes 8-bit results")
        return self


class FixedGrid(_Model):
    """Scale and zero point of a result that the hardware fixes."""

    scale: Annotated[Real, Field(gt=0)]
    """The scale."""
    zero_point: Int
    """The zero point."""
    bits: Width = 8
    """Width of the results with this grid; at other widths, calibration finds the grid."""


class Limits(_Model):
    """Limits of operator sizes. Ops beyond them are not computed in integers."""

    kernel: Interval | None = None
    """Size of a window along each axis."""
    stride: Interval | None = None
    """Step of a window along each axis."""
    dilation: Interval | None = None
    """Dilation along each axis."""
    groups: Literal["any", "one", "one_or_depthwise"] = "any"
    """Allowed groups of a convolution: any number, one, or one and depthwise."""
    terms: Count | None = None
    """Maximum number of products in the sum of one output."""


class Combination(_Model):
    """An allowed pair of activation and weight, with its arithmetic where that differs from the rule's."""

    activation: Text
    """Number type of the input."""
    weight: Text
    """Number type of the weight, or of the second operand of a product of two activations."""
    requantize: Multiplier | None = None
    """Requantization of this pair; by default that of the rule."""
    accumulator: Accumulator | None = None
    """Accumulator of this pair; by default that of the target."""
    bias: Bias | None = None
    """Bias of this pair; by default that of the target."""


class OpRule(_Model):
    """Ops that the integer core computes."""

    names: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Names of ops of the graph, not of a framework."""
    kind: OpKind
    """Kind of the ops; `float`: ops that the core lacks, whose results have a fixed grid after a float island."""
    per_channel: Bool | None = None
    """For layers: whether weights may have one scale per channel; by default as in the number type. For tables: whether
    each channel may have its own table, which lets equalization pass through; false by default."""
    out_fixed: FixedGrid | None = None
    """Fixed grid of the results, which replaces calibration."""
    limits: Limits | None = None
    """Size limits of these ops."""
    requantize: Multiplier | None = None
    """Requantization of these ops; by default that of the target."""
    combinations: tuple[Combination, ...] = ()
    """Allowed pairs of activation and weight; by default all pairs of the target's number types."""


class Supergroup(_Model):
    """A chain of ops without quantization between them."""

    steps: Annotated[tuple[tuple[Text, ...], ...], Field(min_length=2)]
    """One list of alternative ops per step. All steps after the first are activations."""


class Tie(_Model):
    """Tensors of an op that share one grid."""

    ops: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Names of the ops. Ops that only move elements keep the grid of their input in any case."""
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
            raise ValueError(f"alignment is {self.alignment}, which is not a power of two")
        return self


class Memory(_Model):
    """One memory."""

    name: Text
    """Name, such as sram. Memories are filled in the order of the file."""
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
    """Maximum difference of an element in steps of the result's grid."""
    layer_fraction: Annotated[Real, Field(ge=0, le=1)] = 0.005
    """Maximum share of differing elements, not counting differences caused only by the rounding mode."""


class Partition(_Model):
    """Treatment of ops that the integer core lacks, or that are requested in float."""

    fallback: Literal["refuse", "float"] = "refuse"
    """`float`: such ops run in float32 between a dequantize and a quantize, on a processor next to the core."""


class Onnx(_Model):
    """Variant of the exported ONNX file."""

    opset: Annotated[Int, Field(ge=13, le=25)] = 13
    """Version of the operator set; raised if element types need a newer one."""
    ir_version: Annotated[Int, Field(ge=7, le=13)] = 8
    """Version of the file format."""
    activations: Literal["unsigned", "as_is"] = "unsigned"
    """Signed 8-bit activations as unsigned codes plus 128, as ONNX Runtime's kernels require, or unchanged."""
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
    """Width of the weights of the first and last layer and of the input of the last; by default as for other layers."""
    first_input: Literal["float", "quantized"] = "quantized"
    """Input of the first layer: float or quantized."""


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
    gradient: Gradient = Gradient()
    elementwise: Elementwise = Elementwise()
    table: Tables = Tables()
    softmax: Softmax = Softmax()
    op: Annotated[tuple[OpRule, ...], Field(min_length=1)]
    supergroup: tuple[Supergroup, ...] = ()
    tie: tuple[Tie, ...] = ()
    layout: Layout = Layout()
    memory: tuple[Memory, ...] = ()
    compute: Compute = Compute()
    partition: Partition = Partition()
    verify: Verification = Verification()
    onnx: Onnx = Onnx()
    forms: tuple[Text, ...] = ()
    """Forms that are written only for targets that name them, by the name of their back end: `TFLite`."""
    simulation: Simulation | None = None
    """Simulation scheme of a target that does not describe hardware."""

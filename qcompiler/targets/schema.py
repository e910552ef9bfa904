"""The hardware descriptor as data: every field, its meaning, and the code that honours it.

A descriptor is TOML with schema `qcompiler.hw/1`. All models are frozen and closed: an unknown key is an error, and so
is a value of a type other than TOML's own. `targets.consistency` checks the fields against each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from qcompiler.errors import InputError
from qcompiler.quant.modes import AverageRounding, Precision, RequantMode, RequantSpec, Rounding
from qcompiler.quant.spec import ScaleKind

SCHEMA = "qcompiler.hw/1"


@dataclass(frozen=True)
class By:
    """The code that honours a field: a file and an expression that reads it, `passes/common/fixed_grids.py: out_fixed`.

    Facts that change nothing in the integers, such as the size of a memory, are honoured by the code that reports them.
    """

    place: str


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

_REPORT = By("qcompiler/targets/facts.py: facts")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Identity(_Model):
    """Identity of the target, and sources of the descriptor."""

    name: Annotated[Text, By("qcompiler/targets/target.py: name"), Field(pattern=r"^[A-Za-z0-9_.\-]+(\[.*\])?$")]
    """Name of the target; overrides are added in brackets."""
    version: Annotated[Text, _REPORT] = "1"
    """Version of the descriptor."""
    vendor: Annotated[Text, _REPORT] = ""
    """Vendor of the hardware or software."""
    description: Annotated[Text, By("qcompiler/cli/commands.py: description")] = ""
    """One-line description for lists."""
    sources: Annotated[tuple[Text, ...], _REPORT] = ()
    """Sources of the numbers that are not obvious."""
    unknown: Annotated[tuple[Text, ...], _REPORT] = ()
    """Values without a public source, key by key, with the assumption made."""


class NumberType(_Model):
    """One integer grid."""

    bits: Annotated[Width, By("qcompiler/targets/target.py: number.bits")]
    """Width of a code."""
    allowed_bits: Annotated[tuple[Width, ...], By("qcompiler/targets/target.py: .widths")] = ()
    """Widths that an override may ask for; empty for the width of the type only."""
    signed: Annotated[Bool, By("qcompiler/targets/target.py: number.signed")] = True
    """Whether codes run below 0."""
    symmetric: Annotated[Bool, By("qcompiler/targets/target.py: number.symmetric")] = False
    """Whether the zero point is always 0; otherwise any code."""
    narrow: Annotated[Bool, By("qcompiler/targets/target.py: number.narrow")] = False
    """Leave out the lowest code, so that a signed grid is symmetric about zero."""
    granularity: Annotated[
        Literal["per_tensor", "per_channel", "per_block"], By("qcompiler/targets/target.py: number.granularity")
    ] = "per_tensor"
    """Number of scales: one, one per output channel of a weight, or one per channel with an integer factor of it for
    each block of inputs."""
    block: Annotated[Annotated[Int, Field(ge=1, le=65536)] | None, By("qcompiler/targets/target.py: number.block")] = (
        None
    )
    """Number of inputs of a channel that share a factor, with `per_block`."""
    factor_bits: Annotated[Annotated[Int, Field(ge=1, le=8)], By("qcompiler/targets/target.py: number.factor_bits")] = 4
    """Width of these unsigned factors."""
    scale: Annotated[ScaleKind, By("qcompiler/targets/target.py: number.scale")] = ScaleKind.FLOAT
    """Any scale, or powers of two."""
    packing: Annotated[Packing, By("qcompiler/program/program.py: packing")] = "none"
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

    activation: Annotated[Text, By("qcompiler/targets/target.py: defaults.activation")]
    """Default number type of activations."""
    weight: Annotated[Text, By("qcompiler/targets/target.py: defaults.weight")]
    """Default number type of weights."""
    other_activations: Annotated[tuple[Text, ...], By("qcompiler/targets/target.py: other_activations")] = ()
    """Number types that an override may select by a width that the default lacks."""
    other_weights: Annotated[tuple[Text, ...], By("qcompiler/targets/target.py: other_weights")] = ()
    """The same for weights, by width."""


class Multiplier(_Model):
    """Arithmetic and width of the multipliers that turn accumulators into codes."""

    mode: Annotated[RequantMode, By("qcompiler/quant/requant.py: self.mode")]
    """The arithmetic; `tosa_double` is another name of `double`."""
    multiplier_bits: Annotated[
        Annotated[Int, Field(ge=2, le=32)] | None, By("qcompiler/quant/modes.py: self.multiplier_bits")
    ] = None
    """Bits of a signed integer multiplier; all that the mode has where it is not said."""
    max_left_shift: Annotated[Count | None, By("qcompiler/quant/modes.py: self.max_left_shift")] = None
    """Largest e of a multiplier f * 2^e with f in [1/2, 1): 0 where none may be above 1."""
    max_right_shift: Annotated[Count | None, By("qcompiler/quant/modes.py: self.max_right_shift")] = None
    """Largest -e."""
    multiplier_precision: Annotated[Precision, By("qcompiler/quant/modes.py: self.precision")] = "float64"
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

    per_channel: Annotated[Bool, By("qcompiler/targets/consistency.py: requantize.per_channel")] = True
    """Whether each channel may have its own multiplier; otherwise weights have one scale per tensor."""
    per_channel_clamp: Annotated[Bool, By("qcompiler/targets/target.py: requantize.per_channel_clamp")] = False
    """Whether each channel of a result may have its own limits, if `clamp` has a rule: the core then computes
    `clamp_channels`, so that equalization keeps the cap of a ReLU6."""


class Roundings(_Model):
    """Rounding in all steps except requantization."""

    quantize: Annotated[Rounding, By("qcompiler/targets/target.py: rounding.quantize")]
    """Of real numbers to codes."""
    bias: Annotated[Rounding, By("qcompiler/targets/arithmetic.py: rounding.bias")]
    """Of biases to steps of the accumulator."""
    table: Annotated[Rounding, By("qcompiler/targets/arithmetic.py: rounding.table")]
    """Of the entries of tables."""
    average: Annotated[AverageRounding, By("qcompiler/targets/arithmetic.py: rounding.average")]
    """Of the sum of a window divided by its number of elements: of codes less their zero point or, as `rhaz_raw`, of
    raw codes, halves away from code 0."""


class Accumulator(_Model):
    """Accumulator of the sums of products."""

    bits: Annotated[Annotated[Int, Field(ge=16, le=64)], By("passes/common/proofs.py: accumulator_bits")] = 32
    """Width in bits."""
    overflow: Annotated[Literal["forbid", "wrap", "saturate"], By("passes/common/proofs.py: overflow")] = "forbid"
    """Behaviour beyond the width. Absence of wrong results is proven per channel, or the compile is refused: with
    `wrap` for final sums, with `forbid` for all sums that begin with the bias, with `saturate` for every partial
    sum."""


class Bias(_Model):
    """Bias added to an accumulator."""

    bits: Annotated[Annotated[Int, Field(ge=8, le=64)], By("passes/lower_to_integer/mac.py: bias_bits")] = 32
    """Width of a stored bias; widths above 32 are stored in 64 bits."""
    zero_point_folding: Annotated[
        Literal["compiler", "hardware"], By("passes/common/proofs.py: zero_point_folding")
    ] = "hardware"
    """Place where the input zero point is removed from the products: hardware, or the compiler in the bias."""


class Elementwise(_Model):
    """Additions, subtractions and products of two activations."""

    mode: Annotated[Literal["requantize", "f32"], By("qcompiler/quant/arithmetic.py: elementwise")] = "requantize"
    """`requantize`: with the multipliers of the requantization; `f32`: both operands are dequantized, the operation is
    computed and its result quantized in float32, each step rounded."""
    add_shift: Annotated[Annotated[Int, Field(ge=0, le=30)], By("qcompiler/quant/arithmetic.py: add_shift")] = 20
    """Left shift in bits of both operands before rescaling to one scale; less if the result would exceed 30 bits."""


class Tables(_Model):
    """Lookup tables of functions of one number, one entry per code."""

    precision: Annotated[Precision, By("qcompiler/quant/arithmetic.py: table_precision")] = "float64"
    """Float type in which an entry is computed before it is rounded."""
    per_channel: Annotated[Bool, By("qcompiler/targets/target.py: table.per_channel")] = True
    """Whether each channel may have its own table, for functions with such a rule."""
    max_entries: Annotated[Annotated[Int, Field(ge=4, le=65536)], By("passes/lower_to_integer/tables.py: most")] = 65536
    """Longest table; 256 excludes tables for codes of more than 8 bits."""
    max_bytes: Annotated[Annotated[Int, Field(ge=4)] | None, By("passes/lower_to_integer/tables.py: max_bytes")] = None
    """Largest size of all tables of one instruction, several if channels have their own."""


class FixedGrid(_Model):
    """Scale and zero point of a result that the hardware fixes."""

    scale: Annotated[Annotated[Real, Field(gt=0)], By("passes/fix_ranges.py: fixed.scale")]
    """Size of a step."""
    zero_point: Annotated[Int, By("passes/fix_ranges.py: fixed.zero_point")]
    """Code of 0."""
    bits: Annotated[Width, By("passes/common/fixed_grids.py: grid.bits")] = 8
    """Width of the results with this grid; calibration finds the grid of other widths."""


class Limits(_Model):
    """Limits of operator sizes; larger ops are not computed in integers."""

    kernel: Annotated[Interval | None, By("qcompiler/targets/limits.py: kernel")] = None
    """Size of a window along each axis."""
    stride: Annotated[Interval | None, By("qcompiler/targets/limits.py: stride")] = None
    """Step of a window along each axis."""
    dilation: Annotated[Interval | None, By("qcompiler/targets/limits.py: dilation")] = None
    """Distance of the taps along each axis."""
    groups: Annotated[Literal["any", "one", "one_or_depthwise"], By("qcompiler/targets/limits.py: groups")] = "any"
    """Groups of a convolution: any, all channels together, or also each channel by itself."""
    terms: Annotated[Count | None, By("qcompiler/targets/limits.py: terms")] = None
    """Number of products in the sum of one output."""


class Combination(_Model):
    """An allowed pair of activation and weight, with its deviating arithmetic."""

    activation: Annotated[Text, By("qcompiler/targets/target.py: pair.activation")]
    """Number type of the input."""
    weight: Annotated[Text, By("qcompiler/targets/target.py: pair.weight")]
    """Number type of the weight."""
    requantize: Annotated[Multiplier | None, By("qcompiler/targets/arithmetic.py: pair.requantize")] = None
    """In place of that of the rule."""
    accumulator: Annotated[Accumulator | None, By("qcompiler/targets/arithmetic.py: pair.accumulator")] = None
    """In place of that of the target."""
    bias: Annotated[Bias | None, By("qcompiler/targets/arithmetic.py: pair.bias")] = None
    """In place of that of the target."""


class OpRule(_Model):
    """Ops that the integer core computes."""

    names: Annotated[Annotated[tuple[Text, ...], Field(min_length=1)], By("qcompiler/targets/target.py: rule.names")]
    """Ops of the graph, not of a framework."""
    kind: Annotated[OpKind, By("qcompiler/targets/target.py: rule.kind")]
    """Kind of the ops; `float`: ops that the core lacks, with results on a fixed grid after a float island."""
    per_channel: Annotated[Bool | None, By("qcompiler/targets/target.py: rule.per_channel")] = None
    """Whether weights may have one scale per channel; by default as in the number type. For tables: whether each
    channel may have its own, so that equalization passes through; false by default."""
    out_fixed: Annotated[FixedGrid | None, By("passes/common/fixed_grids.py: out_fixed")] = None
    """Fixed grid of the results, in place of calibration."""
    limits: Annotated[Limits | None, By("qcompiler/targets/target.py: rule.limits")] = None
    """Sizes that they may have."""
    requantize: Annotated[Multiplier | None, By("qcompiler/targets/arithmetic.py: rule.requantize")] = None
    """In place of that of the target."""
    combinations: Annotated[tuple[Combination, ...], By("qcompiler/targets/target.py: rule.combinations")] = ()
    """Pairs that layers may multiply; all pairs of the target's number types by default."""


class Supergroup(_Model):
    """A chain of ops without quantization in between."""

    steps: Annotated[
        Annotated[tuple[tuple[Text, ...], ...], Field(min_length=2)], By("qcompiler/targets/target.py: group.steps")
    ]
    """One list of alternatives per step, the later ones activations."""


class Tie(_Model):
    """Tensors of an op that share one grid."""

    ops: Annotated[Annotated[tuple[Text, ...], Field(min_length=1)], By("qcompiler/targets/target.py: tie.ops")]
    """The ops; ops that only move elements keep the grid in any case."""
    tensors: Annotated[Literal["inputs_and_output"], By("passes/unify_scales.py: target.tie")] = "inputs_and_output"
    """The tied tensors."""


class Layout(_Model):
    """Layout of tensors in memory."""

    activations: Annotated[Literal["NHWC", "NCHW"], By("qcompiler/session/emission.py: layout.activations")] = "NCHW"
    """Physical order of images."""
    weights: Annotated[Literal["OHWI", "OIHW"], By("qcompiler/session/emission.py: layout.weights")] = "OIHW"
    """Physical order of convolution weights."""
    alignment: Annotated[
        Annotated[Int, Field(ge=1, le=4096)], By("qcompiler/session/emission.py: layout.alignment")
    ] = 16
    """Alignment of activations in bytes: a power of two."""
    channel_multiple: Annotated[
        Annotated[Int, Field(ge=1, le=4096)], By("qcompiler/program/roofline.py: channel_multiple")
    ] = 1
    """Number of channels computed at a time."""

    @model_validator(mode="after")
    def _alignment_is_a_power_of_two(self) -> Layout:
        if self.alignment & (self.alignment - 1):
            raise ValueError(f"alignment is {self.alignment}, which is no power of two")
        return self


class Memory(_Model):
    """One memory."""

    name: Annotated[Text, By("qcompiler/program/roofline.py: memory.name")]
    """Name, such as sram. Memories are tried in the order of the file."""
    bytes: Annotated[Annotated[Count, Field(ge=1)], By("qcompiler/program/roofline.py: memory.bytes")]
    """Size in bytes."""
    holds: Annotated[
        Annotated[tuple[Literal["activations", "constants"], ...], Field(min_length=1)],
        By("qcompiler/program/roofline.py: memory.holds"),
    ] = (
        "activations",
        "constants",
    )
    """Contents that the memory may hold."""
    bytes_per_cycle: Annotated[
        Annotated[Real, Field(gt=0)] | None, By("qcompiler/program/roofline.py: bytes_per_cycle")
    ] = None
    """Bandwidth in bytes per cycle."""
    latency_cycles: Annotated[Count | None, By("qcompiler/program/roofline.py: latency_cycles")] = None
    """Cycles before the first byte of a transfer; each tensor is one transfer."""
    burst_bytes: Annotated[Annotated[Count, Field(ge=1)] | None, By("qcompiler/program/roofline.py: burst_bytes")] = (
        None
    )
    """Smallest transfer in bytes."""
    picojoules_per_byte: Annotated[
        Annotated[Real, Field(ge=0)] | None, By("qcompiler/program/roofline.py: picojoules_per_byte")
    ] = None
    """Energy per byte in picojoules."""


class Compute(_Model):
    """Speed of the core, for estimates."""

    clock_hz: Annotated[Annotated[Real, Field(gt=0)] | None, By("qcompiler/program/roofline.py: clock_hz")] = None
    """Cycles per second."""
    macs_per_cycle: Annotated[
        dict[Annotated[Text, Field(pattern=r"^(4|8|16)x(4|8|16)$")], Annotated[Int, Field(ge=1, lt=2**31)]],
        By("qcompiler/program/roofline.py: macs_per_cycle"),
    ] = {}
    """Multiply-accumulates per cycle, by width of activation and weight: `8x8`."""
    elementwise_per_cycle: Annotated[
        Annotated[Int, Field(ge=1, lt=2**31)] | None, By("qcompiler/program/roofline.py: elementwise_per_cycle")
    ] = None
    """Elements per cycle of all other ops."""
    picojoules_per_mac: Annotated[
        Annotated[Real, Field(ge=0)] | None, By("qcompiler/program/roofline.py: picojoules_per_mac")
    ] = None
    """Energy per multiply-accumulate in picojoules."""


class Verification(_Model):
    """Largest deviation of ONNX Runtime from the integer program, layer by layer, on the same integers."""

    layer_lsb: Annotated[Annotated[Int, Field(ge=0, lt=2**16)], By("qcompiler/verification/forms.py: layer_lsb")] = 1
    """Largest difference in steps of the result's grid."""
    layer_fraction: Annotated[
        Annotated[Real, Field(ge=0, le=1)], By("qcompiler/verification/forms.py: layer_fraction")
    ] = 0.005
    """Share of the elements that may differ at all, not counting differences caused only by the rounding mode."""


class Partition(_Model):
    """Treatment of ops that the integer core lacks, or that are requested in float."""

    fallback: Annotated[Literal["refuse", "float"], By("passes/partition.py: target.fallback")] = "refuse"
    """`float`: such ops run in float32 between a dequantize and a quantize, on a processor next to the core."""


class Onnx(_Model):
    """Flavour of the exported file."""

    opset: Annotated[Annotated[Int, Field(ge=13, le=25)], By("backends/onnx_qdq/emit.py: options.opset")] = 13
    """Version of the operators; raised if element types need a newer one."""
    ir_version: Annotated[Annotated[Int, Field(ge=7, le=13)], By("backends/onnx_qdq/emit.py: options.ir_version")] = 8
    """Version of the file format."""
    activations: Annotated[Literal["unsigned", "as_is"], By("backends/onnx_qdq/emitter.py: options.activations")] = (
        "unsigned"
    )
    """Signed 8-bit activations as unsigned codes 128 higher, as ONNX Runtime's kernels require, or unchanged."""
    bias: Annotated[Literal["int32", "float"], By("backends/onnx_qdq/emitter.py: options.bias")] = "int32"
    """Biases as integers before a DequantizeLinear, or as the equivalent real numbers."""


class Simulation(_Model):
    """A scheme for training and evaluation without hardware.

    Quantizers are placed on the inputs of layers and on their weights; the results of layers, additions, batch norms
    and biases are in float. Activations after a ReLU or a sigmoid, which cannot be negative, have unsigned codes.
    """

    reason: Annotated[Annotated[Text, Field(min_length=1)], By("qcompiler/session/compile.py: simulation.reason")]
    """Reason why no model can be compiled for the target."""
    first_last_bits: Annotated[Width | None, By("passes/insert_quantizers.py: first_last_bits")] = None
    """Width of the weights of the first and last layer, and of the input of the last; None: as for others."""
    first_input: Annotated[Literal["float", "quantized"], By("passes/insert_quantizers.py: first_input")] = "quantized"
    """Whether the first layer reads a float or a quantized input."""


class Fields(_Model):
    """The fields of a descriptor; `descriptor.Descriptor` checks the fields against each other."""

    schema_version: Annotated[
        Literal["qcompiler.hw/1"], By("qcompiler/targets/loader.py: schema"), Field(alias="schema")
    ]
    """The version of this schema."""
    target: Annotated[Identity, By("qcompiler/targets/target.py: descriptor.target")]
    dtypes: Annotated[dict[Text, NumberType], By("qcompiler/targets/target.py: descriptor.dtypes")]
    defaults: Annotated[Defaults, By("qcompiler/targets/target.py: descriptor.defaults")]
    requantize: Annotated[Requantize, By("qcompiler/targets/arithmetic.py: descriptor.requantize")]
    rounding: Annotated[Roundings, By("qcompiler/targets/arithmetic.py: descriptor.rounding")]
    accumulator: Annotated[Accumulator, By("qcompiler/targets/arithmetic.py: descriptor.accumulator")] = Accumulator()
    bias: Annotated[Bias, By("qcompiler/targets/arithmetic.py: descriptor.bias")] = Bias()
    elementwise: Annotated[Elementwise, By("qcompiler/targets/arithmetic.py: descriptor.elementwise")] = Elementwise()
    table: Annotated[Tables, By("qcompiler/targets/arithmetic.py: descriptor.table")] = Tables()
    op: Annotated[Annotated[tuple[OpRule, ...], Field(min_length=1)], By("qcompiler/targets/target.py: descriptor.op")]
    supergroup: Annotated[tuple[Supergroup, ...], By("qcompiler/targets/target.py: descriptor.supergroup")] = ()
    tie: Annotated[tuple[Tie, ...], By("qcompiler/targets/target.py: descriptor.tie")] = ()
    layout: Annotated[Layout, By("qcompiler/targets/target.py: descriptor.layout")] = Layout()
    memory: Annotated[tuple[Memory, ...], By("qcompiler/targets/facts.py: memory")] = ()
    compute: Annotated[Compute, By("qcompiler/targets/facts.py: compute")] = Compute()
    partition: Annotated[Partition, By("qcompiler/targets/target.py: descriptor.partition")] = Partition()
    verify: Annotated[Verification, By("qcompiler/targets/target.py: descriptor.verify")] = Verification()
    onnx: Annotated[Onnx, By("qcompiler/targets/target.py: descriptor.onnx")] = Onnx()
    simulation: Annotated[Simulation | None, By("qcompiler/targets/target.py: descriptor.simulation")] = None
    """Simulation scheme of a target that is not hardware."""

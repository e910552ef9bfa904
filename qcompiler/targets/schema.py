"""The hardware descriptor as data: every field that a descriptor may hold, what it means, and who honours it.

A descriptor is TOML, schema `qcompiler.hw/1`. All models are frozen and closed: a key that is not here is an error, and
so is a value of another type than TOML's own. What one field means for another is checked in `targets.consistency`.
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
    """Who honours a field: a file and the word by which it reads the field, `passes/common/fixed_grids.py: out_fixed`.

    Facts that change nothing in the integers, such as the size of a memory, are honoured by those who report them.
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
    """Who the target is, and how well it is known."""

    name: Annotated[Text, By("qcompiler/targets/target.py: name"), Field(pattern=r"^[A-Za-z0-9_.\-]+(\[.*\])?$")]
    """Its name; overrides are added to it in brackets."""
    version: Annotated[Text, _REPORT] = "1"
    """Of the descriptor."""
    vendor: Annotated[Text, _REPORT] = ""
    """Who makes the hardware, or the software whose arithmetic this is."""
    description: Annotated[Text, By("qcompiler/cli/commands.py: description")] = ""
    """One line for lists."""
    sources: Annotated[tuple[Text, ...], _REPORT] = ()
    """Where the numbers that are not obvious come from."""
    unknown: Annotated[tuple[Text, ...], _REPORT] = ()
    """What no public source says, key by key, and what is assumed in its place."""


class NumberType(_Model):
    """One grid of integers."""

    bits: Annotated[Width, By("qcompiler/targets/target.py: number.bits")]
    """Width of a code."""
    allowed_bits: Annotated[tuple[Width, ...], By("qcompiler/targets/target.py: .widths")] = ()
    """Widths that an override may ask for; those of the type itself when empty."""
    signed: Annotated[Bool, By("qcompiler/targets/target.py: number.signed")] = True
    """Whether codes run below 0."""
    symmetric: Annotated[Bool, By("qcompiler/targets/target.py: number.symmetric")] = False
    """Whether the zero point is always 0; any else."""
    narrow: Annotated[Bool, By("qcompiler/targets/target.py: number.narrow")] = False
    """Leave out the lowest code, so that a signed grid is symmetric about zero."""
    granularity: Annotated[
        Literal["per_tensor", "per_channel", "per_block"], By("qcompiler/targets/target.py: number.granularity")
    ] = "per_tensor"
    """How many scales: one, one per output channel of a weight, or one per channel and an integer factor of it for each
    block of inputs."""
    block: Annotated[Annotated[Int, Field(ge=1, le=65536)] | None, By("qcompiler/targets/target.py: number.block")] = (
        None
    )
    """Inputs of a channel that share a factor, with `per_block`."""
    factor_bits: Annotated[Annotated[Int, Field(ge=1, le=8)], By("qcompiler/targets/target.py: number.factor_bits")] = 4
    """Width of these unsigned factors."""
    scale: Annotated[ScaleKind, By("qcompiler/targets/target.py: number.scale")] = ScaleKind.FLOAT
    """Any scale, or powers of two."""
    packing: Annotated[Packing, By("qcompiler/program/program.py: packing")] = "none"
    """How weights of four bits are stored: one in a byte, or two, the first of them in the low or in the high half."""

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
        """All widths that it may have."""
        return tuple(sorted({self.bits, *self.allowed_bits}))

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest code."""
        if self.signed:
            return -(2 ** (self.bits - 1)) + self.narrow, 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1


class Defaults(_Model):
    """Which grids values are on: names of number types."""

    activation: Annotated[Text, By("qcompiler/targets/target.py: defaults.activation")]
    """Of activations where nothing says otherwise."""
    weight: Annotated[Text, By("qcompiler/targets/target.py: defaults.weight")]
    """Of weights where nothing says otherwise."""
    other_activations: Annotated[tuple[Text, ...], By("qcompiler/targets/target.py: other_activations")] = ()
    """Grids that an override may ask for, by a width that the default does not have."""
    other_weights: Annotated[tuple[Text, ...], By("qcompiler/targets/target.py: other_weights")] = ()
    """The same for weights."""


class Multiplier(_Model):
    """By what, and how, accumulators are multiplied on their way to codes."""

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
        """The same for `quant`."""
        return RequantSpec(
            self.mode, self.multiplier_bits, self.max_left_shift, self.max_right_shift, self.multiplier_precision
        )


class Requantize(Multiplier):
    """How accumulators become codes."""

    per_channel: Annotated[Bool, By("qcompiler/targets/consistency.py: requantize.per_channel")] = True
    """Whether each channel may have a multiplier of its own; without it weights have one scale per tensor."""
    per_channel_clamp: Annotated[Bool, By("qcompiler/targets/target.py: requantize.per_channel_clamp")] = False
    """Whether each channel of a result may have limits of its own, where `clamp` has a rule: it computes
    `clamp_channels` then, so that equalization keeps the cap of a ReLU6."""


class Roundings(_Model):
    """Rounding of everything but requantization."""

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
    """Where products are summed."""

    bits: Annotated[Annotated[Int, Field(ge=16, le=64)], By("passes/common/proofs.py: accumulator_bits")] = 32
    """Its width."""
    overflow: Annotated[Literal["forbid", "wrap", "saturate"], By("passes/common/proofs.py: overflow")] = "forbid"
    """What happens beyond it. That no result is wrong for it is proven per channel, or the compile is refused: with
    `wrap` for final sums, with `forbid` for all that begin with the bias, with `saturate` for every partial sum."""


class Bias(_Model):
    """What is added to an accumulator."""

    bits: Annotated[Annotated[Int, Field(ge=8, le=64)], By("passes/lower_to_integer.py: bias_bits")] = 32
    """Width in which it is stored; of more than 32, in 64 bits."""
    zero_point_folding: Annotated[
        Literal["compiler", "hardware"], By("passes/common/proofs.py: zero_point_folding")
    ] = "hardware"
    """Who takes the input's zero point out of the products; the compiler does it in the bias, which must fit then."""


class Elementwise(_Model):
    """Additions, subtractions and products of two activations."""

    mode: Annotated[Literal["requantize", "f32"], By("qcompiler/quant/arithmetic.py: elementwise")] = "requantize"
    """`requantize`: by the multipliers of the requantization; `f32`: both operands are dequantized, the operation is
    computed and its result quantized in float32, each step rounded."""
    add_shift: Annotated[Annotated[Int, Field(ge=0, le=30)], By("qcompiler/quant/arithmetic.py: add_shift")] = 20
    """Bits that both operands are shifted left before they are brought to one scale; as many less as 30 bits ask."""


class Tables(_Model):
    """Functions of one number, one entry per code."""

    precision: Annotated[Precision, By("qcompiler/quant/arithmetic.py: table_precision")] = "float64"
    """Float type in which an entry is computed before it is rounded."""
    per_channel: Annotated[Bool, By("qcompiler/targets/target.py: table.per_channel")] = True
    """Whether each channel may have a table of its own, for the functions whose rules say so."""
    max_entries: Annotated[Annotated[Int, Field(ge=4, le=65536)], By("passes/lower_to_integer.py: max_entries")] = 65536
    """Longest table: 256 has none for codes of more than 8 bits."""
    max_bytes: Annotated[Annotated[Int, Field(ge=4)] | None, By("passes/lower_to_integer.py: max_bytes")] = None
    """Most that the tables of one instruction take, which are several where channels have their own."""


class FixedGrid(_Model):
    """A grid that the hardware dictates for a result."""

    scale: Annotated[Annotated[Real, Field(gt=0)], By("passes/fix_ranges.py: fixed.scale")]
    """Size of a step."""
    zero_point: Annotated[Int, By("passes/fix_ranges.py: fixed.zero_point")]
    """Code of 0."""
    bits: Annotated[Width, By("passes/common/fixed_grids.py: grid.bits")] = 8
    """Width of the results that it is for; of others the grid is found by calibration."""


class Limits(_Model):
    """Sizes that an op may have; what is beyond them is not computed in integers."""

    kernel: Annotated[Interval | None, By("qcompiler/targets/limits.py: kernel")] = None
    """Of a window, along each axis."""
    stride: Annotated[Interval | None, By("qcompiler/targets/limits.py: stride")] = None
    """Along each axis."""
    dilation: Annotated[Interval | None, By("qcompiler/targets/limits.py: dilation")] = None
    """Along each axis."""
    groups: Annotated[Literal["any", "one", "one_or_depthwise"], By("qcompiler/targets/limits.py: groups")] = "any"
    """Of a convolution: all channels together, or each by itself."""
    terms: Annotated[Count | None, By("qcompiler/targets/limits.py: terms")] = None
    """Products in the sum of one output."""


class Combination(_Model):
    """An activation and a weight that may be multiplied, and what differs for that pair."""

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
    """What they are; `float`: the core does not have them, but their results are on a fixed grid behind an island."""
    per_channel: Annotated[Bool | None, By("qcompiler/targets/target.py: rule.per_channel")] = None
    """Whether weights may have one scale per channel; as the number type says where it is not said. Of tables: whether
    each channel may have one of its own, so that equalization goes through; not where it is not said."""
    out_fixed: Annotated[FixedGrid | None, By("passes/common/fixed_grids.py: out_fixed")] = None
    """The grid of the results, which beats calibration."""
    limits: Annotated[Limits | None, By("qcompiler/targets/target.py: rule.limits")] = None
    """Sizes that they may have."""
    requantize: Annotated[Multiplier | None, By("qcompiler/targets/arithmetic.py: rule.requantize")] = None
    """In place of that of the target."""
    combinations: Annotated[tuple[Combination, ...], By("qcompiler/targets/target.py: rule.combinations")] = ()
    """Pairs that layers may multiply; any of the target's number types where none is named."""


class Supergroup(_Model):
    """Ops in a row between which nothing is quantized."""

    steps: Annotated[
        Annotated[tuple[tuple[Text, ...], ...], Field(min_length=2)], By("qcompiler/targets/target.py: group.steps")
    ]
    """One list of alternatives per step, the later ones activations."""


class Tie(_Model):
    """Tensors of an op that share one grid."""

    ops: Annotated[Annotated[tuple[Text, ...], Field(min_length=1)], By("qcompiler/targets/target.py: tie.ops")]
    """The ops; what only moves elements keeps its grid in any case."""
    tensors: Annotated[Literal["inputs_and_output"], By("passes/unify_scales.py: target.tie")] = "inputs_and_output"
    """Which of their tensors."""


class Layout(_Model):
    """How tensors lie in memory."""

    activations: Annotated[Literal["NHWC", "NCHW"], By("qcompiler/session/emission.py: layout.activations")] = "NCHW"
    """Of images."""
    weights: Annotated[Literal["OHWI", "OIHW"], By("qcompiler/session/emission.py: layout.weights")] = "OIHW"
    """Of convolution weights."""
    alignment: Annotated[
        Annotated[Int, Field(ge=1, le=4096)], By("qcompiler/session/emission.py: layout.alignment")
    ] = 16
    """Activations begin at multiples of it, bytes: a power of two."""
    channel_multiple: Annotated[
        Annotated[Int, Field(ge=1, le=4096)], By("qcompiler/program/roofline.py: channel_multiple")
    ] = 1
    """Channels that are computed at a time."""

    @model_validator(mode="after")
    def _alignment_is_a_power_of_two(self) -> Layout:
        if self.alignment & (self.alignment - 1):
            raise ValueError(f"alignment is {self.alignment}, which is no power of two")
        return self


class Memory(_Model):
    """One memory."""

    name: Annotated[Text, By("qcompiler/program/roofline.py: memory.name")]
    """Such as sram. Memories are tried in the order of the file."""
    bytes: Annotated[Annotated[Count, Field(ge=1)], By("qcompiler/program/roofline.py: memory.bytes")]
    """Its size."""
    holds: Annotated[
        Annotated[tuple[Literal["activations", "constants"], ...], Field(min_length=1)],
        By("qcompiler/program/roofline.py: memory.holds"),
    ] = (
        "activations",
        "constants",
    )
    """What may lie in it."""
    bytes_per_cycle: Annotated[
        Annotated[Real, Field(gt=0)] | None, By("qcompiler/program/roofline.py: bytes_per_cycle")
    ] = None
    """Bandwidth."""
    latency_cycles: Annotated[Count | None, By("qcompiler/program/roofline.py: latency_cycles")] = None
    """Before the first byte of a transfer, of which each tensor is one."""
    burst_bytes: Annotated[Annotated[Count, Field(ge=1)] | None, By("qcompiler/program/roofline.py: burst_bytes")] = (
        None
    )
    """Least that one transfer moves."""
    picojoules_per_byte: Annotated[
        Annotated[Real, Field(ge=0)] | None, By("qcompiler/program/roofline.py: picojoules_per_byte")
    ] = None
    """Energy."""


class Compute(_Model):
    """How fast the core is, for estimates."""

    clock_hz: Annotated[Annotated[Real, Field(gt=0)] | None, By("qcompiler/program/roofline.py: clock_hz")] = None
    """Cycles per second."""
    macs_per_cycle: Annotated[
        dict[Annotated[Text, Field(pattern=r"^(4|8|16)x(4|8|16)$")], Annotated[Int, Field(ge=1, lt=2**31)]],
        By("qcompiler/program/roofline.py: macs_per_cycle"),
    ] = {}
    """By width of activation and weight, `8x8`: multiply-accumulates."""
    elementwise_per_cycle: Annotated[
        Annotated[Int, Field(ge=1, lt=2**31)] | None, By("qcompiler/program/roofline.py: elementwise_per_cycle")
    ] = None
    """Elements of everything else."""
    picojoules_per_mac: Annotated[
        Annotated[Real, Field(ge=0)] | None, By("qcompiler/program/roofline.py: picojoules_per_mac")
    ] = None
    """Energy."""


class Verification(_Model):
    """How far ONNX Runtime may be from the integer program, layer by layer, on the same integers."""

    layer_lsb: Annotated[Annotated[Int, Field(ge=0, lt=2**16)], By("qcompiler/verification/forms.py: layer_lsb")] = 1
    """Steps of the result's grid."""
    layer_fraction: Annotated[
        Annotated[Real, Field(ge=0, le=1)], By("qcompiler/verification/forms.py: layer_fraction")
    ] = 0.005
    """Share of the elements that may differ at all, beside those that one rounding in place of the mode's explains."""


class Partition(_Model):
    """What becomes of an op that the integer core does not have, or that is wanted in float."""

    fallback: Annotated[Literal["refuse", "float"], By("passes/partition.py: target.fallback")] = "refuse"
    """`float`: it runs in float32 between a dequantize and a quantize, on a processor beside the core."""


class Onnx(_Model):
    """Flavour of the exported file."""

    opset: Annotated[Annotated[Int, Field(ge=13, le=25)], By("backends/onnx_qdq/emit.py: options.opset")] = 13
    """Version of the operators; raised where element types need a newer one."""
    ir_version: Annotated[Annotated[Int, Field(ge=7, le=13)], By("backends/onnx_qdq/emit.py: options.ir_version")] = 8
    """Version of the file format."""
    activations: Annotated[Literal["unsigned", "as_is"], By("backends/onnx_qdq/emit.py: options.activations")] = (
        "unsigned"
    )
    """Signed 8-bit activations as unsigned ones 128 higher, which ONNX Runtime's kernels want, or as they are."""
    bias: Annotated[Literal["int32", "float"], By("backends/onnx_qdq/emit.py: options.bias")] = "int32"
    """Biases as integers behind a DequantizeLinear, or as the real numbers that these stand for."""


class Simulation(_Model):
    """A scheme to train and to evaluate in, for which there is no hardware.

    Quantizers stand on the inputs of layers and on their weights; what a layer gives, additions and batch norms are in
    float, and so are biases. Activations that cannot be negative, behind a ReLU or a sigmoid, have unsigned codes.
    """

    reason: Annotated[Annotated[Text, Field(min_length=1)], By("qcompiler/session/compile.py: simulation.reason")]
    """Why nothing can be compiled for it."""
    first_last_bits: Annotated[Width | None, By("passes/insert_quantizers.py: first_last_bits")] = None
    """Bits of the weights of the first and the last layer, and of the input of the last; None: as of the others."""
    first_input: Annotated[Literal["float", "quantized"], By("passes/insert_quantizers.py: first_input")] = "quantized"
    """What the first layer reads."""


class Fields(_Model):
    """The fields of a descriptor; `descriptor.Descriptor` checks what they mean for one another."""

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
    """Of a target that is no hardware: how it is simulated."""

"""Every kernel against the executor, whose own reference are the plain loops of `tests/reference`: the same cases."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch

from qcompiler.backends.integer import Executor, c, emit
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.graph import Value
from qcompiler.ir.types import DType, QuantParams, TensorType
from qcompiler.quant.requant import RequantMode
from tests.backends.integer.c.builds import SANITIZED, STRICT, UNDEFINED, differing, random_codes
from tests.backends.integer.c.corpus import TESTS, Case, collect, merge
from tests.backends.integer.c.plans import Plan, separate
from tests.quant.test_blocks import lowered
from tests.reference.maker import CODES, Maker

LAYOUTS = ("NHWC", "NCHW")


@pytest.mark.parametrize(
    ("group", "layout"),
    [("mac", "NHWC"), ("requantize", "NCHW"), ("elementwise", "NCHW"), ("windows", "NHWC")],
)
def test_cases_of_the_reference(group: str, layout: str, tmp_path: Path) -> None:
    files, inputs = merge(collect(TESTS[group]), layout)
    assert not differing(files, inputs, tmp_path)


@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_compiler_warns_of_nothing(layout: str, tmp_path: Path) -> None:
    cases = [case for mode in RequantMode for case in sizes_where_kernels_change(mode)[::7]]
    files, inputs = merge([*cases, *collect(TESTS["elementwise"])[::5]], layout)
    assert not differing(files, inputs, tmp_path, ("-O2", *STRICT), cc="clang")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("group", TESTS)
def test_cases_of_the_reference_under_sanitizers(group: str, layout: str, tmp_path: Path) -> None:
    files, inputs = merge(collect(TESTS[group]), layout)
    assert not differing(files, inputs, tmp_path, ("-O1", *SANITIZED))


@pytest.mark.slow
@pytest.mark.parametrize("group", TESTS)
def test_cases_of_the_reference_optimized(group: str, tmp_path: Path) -> None:
    files, inputs = merge(collect(TESTS[group]), "NHWC")
    assert not differing(files, inputs, tmp_path, ("-O3", "-march=native"))


def layer(
    make: Maker,
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    attributes: dict[str, Attribute],
    *,
    dtype: DType = DType.I8,
    out: DType = DType.I8,
    op: str | None = None,
    weights: DType = DType.I8,
) -> None:
    """A convolution or linear layer with a multiplier per channel that fills the range of its result."""
    filters = weight[0]
    low, high = CODES[weights]
    zero_point = low if weights is DType.U8 else 0
    codes = torch.randint(low, high + 1, weight, generator=make.generator).to(weights.torch)
    bias = torch.randint(-(2**14), 2**14, (filters,), generator=make.generator).to(torch.int32)
    quant = QuantParams((0.01,), (zero_point,))
    taps = math.prod(weight[1:])
    span = CODES[dtype][1] - CODES[dtype][0]
    reach = math.log2((CODES[out][1] - CODES[out][0]) / (math.sqrt(taps) * span * (high - low) / 4 + 2**13))
    operands = [make.input(shape, dtype), make.leaf(codes, quant), make.leaf(bias)]
    operands += make.multiplier(filters, min(reach, 0.0) - 2, min(reach, 0.0))
    rank = len(weight) - 2
    if op is None:
        op = f"int_conv{rank}d" if rank else "int_linear"
    make.apply(op, operands, attributes, out)


def geometry(rank: int, **changes: Attribute) -> dict[str, Attribute]:
    base: dict[str, Attribute] = {
        "stride": (1,) * rank,
        "dilation": (1,) * rank,
        "padding": (0,) * 2 * rank,
        "groups": 1,
    }
    return base | changes


def sizes_where_kernels_change(mode: RequantMode) -> list[Case]:
    """Channels around the blocks of kernels, rows of taps that run over the border, weights wider than 8 bits."""
    cases: list[Case] = []

    def add(seed: int, *arguments: object, **options: object) -> None:
        make = Maker(seed, mode)
        layer(make, *arguments, **options)  # type: ignore[arg-type]  # passed on
        cases.append((make.graph, [x.numpy() for x in make.inputs]))

    padded = geometry(2, padding=(1, 2, 1, 0))
    for seed, (inputs, filters) in enumerate([(1, 1), (3, 4), (5, 5), (16, 17), (33, 7), (64, 9)]):
        add(seed, (1, inputs, 5, 6), (filters, inputs, 3, 3), padded)
        add(seed, (1, inputs, 7, 4), (filters, inputs, 1, 1), geometry(2))
        add(seed, (2, inputs, 9, 4), (filters, inputs, 3, 2), geometry(2, stride=(2, 1), dilation=(1, 2)))
        add(seed, (3, inputs), (filters, inputs), {})
    for seed, channels in enumerate([2, 31, 32, 33, 70]):
        groups = geometry(2, groups=channels, padding=(1, 1, 1, 1), stride=(1, 2))
        add(seed, (1, channels, 5, 6), (channels, 1, 3, 3), groups)
        add(seed, (2, channels, 4, 4), (2 * channels, 1, 2, 2), geometry(2, groups=channels))
        add(seed, (1, channels, 70), (channels, 1, 3), geometry(1, groups=channels, padding=(2, 1)))
    for seed, (per_group, rows) in enumerate([(4, 3), (3, 8), (2, 20)]):
        add(seed, (1, 2 * per_group, 4, 5), (2 * rows, per_group, 3, 3), geometry(2, groups=2, padding=(1, 1, 1, 1)))
        add(seed, (1, 2 * per_group, 3, 4, 5), (2 * rows, per_group, 2, 2, 2), geometry(3, groups=2, stride=(1, 2, 1)))
    for seed, dtype in enumerate([DType.U8, DType.I16, DType.U16]):
        add(seed, (1, 20, 5, 6), (6, 20, 3, 3), padded, dtype=dtype, out=DType.I16)
        add(seed, (1, 20, 5, 6), (20, 1, 3, 3), padded | {"groups": 20}, dtype=dtype, out=DType.I16)
        add(seed, (4, 40), (6, 40), {}, dtype=dtype, weights=DType.U8)  # less their zero point, weights have 9 bits
        add(seed, (2, 7, 5, 20), (6, 20), {}, dtype=dtype)  # four axes, of which memory holds another one last
        add(seed, (2, 1, 5, 20), (9, 20), {}, dtype=dtype)
    return cases


@pytest.mark.parametrize(
    ("mode", "layout"),
    [
        ("single", "NHWC"),
        ("single", "NCHW"),
        ("double", "NHWC"),
        ("double_hu", "NCHW"),
        ("f32_rne", "NCHW"),
        ("tosa16", "NHWC"),
        ("nvdla_cvt", "NCHW"),
        ("pow2_shift_rne", "NHWC"),
    ],
)
def test_sizes_where_kernels_change(mode: str, layout: str, tmp_path: Path) -> None:
    files, inputs = merge(sizes_where_kernels_change(RequantMode(mode)), layout)
    assert not differing(files, inputs, tmp_path, ("-O0", *UNDEFINED))


def wide_sums(mode: RequantMode) -> list[Case]:
    """Sums of codes of 16 bits, and biases, that leave 32 bits and stay where their products with a multiplier have 64."""
    cases: list[Case] = []
    # Significands of 15 bits and powers of two leave room for sums of 48 bits, those of 31 bits for 33.
    wide = mode.form.significand_bits < 31
    for seed, (shape, weight, attributes) in enumerate(
        [
            ((1, 44, 2, 3), (5, 44, 3, 3), geometry(2, padding=(1, 1, 1, 1))),
            ((1, 44, 9), (9, 44, 9), geometry(1, padding=(4, 4))),
            ((2, 400), (3, 400), {}),
            ((1, 40, 20, 20), (40, 1, 20, 20), geometry(2, groups=40)),
            ((1, 30, 4, 5), (30, 3, 3, 3), {**geometry(2), "padding": (1, 1), "output_padding": (0, 0)}),
        ]
    ):
        transposed = "output_padding" in attributes
        make = Maker(seed, mode)
        low, high = -128, 127
        codes = make.random.choice([low, high]) * torch.ones(weight, dtype=torch.int8)
        ends = torch.tensor([2**29, -(2**29), 0], dtype=torch.int64)
        if wide:
            ends = torch.tensor([2**44, -(2**44), 2**33 + 1], dtype=torch.int64)
        filters = weight[1] if transposed else weight[0]
        bias = ends.repeat(filters)[:filters].to(torch.int64 if wide else torch.int32)
        extreme = torch.full(shape, 32767 if seed % 2 else -32768, dtype=torch.int16)
        quant = QuantParams((0.01,), (-32768 if seed % 2 else 32767,))
        x = make.input(shape, DType.I16, quant, extreme)
        axis = 1 if transposed else 0
        weights = make.leaf(codes, QuantParams((0.01,) * filters, (0,) * filters, axis))
        operands: list[Value] = [x, weights, make.leaf(bias)]
        operands += make.multiplier(filters, *((-31, -30) if wide else (-22, -21)))
        rank = len(weight) - 2
        op = f"int_conv{'_transpose' if transposed else ''}{rank}d" if rank else "int_linear"
        node = make.apply(op, operands, {**attributes, "qmin": -32768, "qmax": 32767}, DType.I16)
        node.output.type = TensorType(DType.I16, node.output.type.shape, QuantParams((0.01,), (0,)))
        cases.append((make.graph, [extreme.numpy()]))
    return cases


@pytest.mark.parametrize(
    ("mode", "layout"),
    [
        ("single", "NHWC"),
        ("single", "NCHW"),
        ("tosa16", "NCHW"),
        ("s64_16", "NHWC"),
        ("pow2_shift_rhaz", "NHWC"),
        ("f32_rne", "NCHW"),
    ],
)
def test_sums_beyond_32_bits(mode: str, layout: str, tmp_path: Path) -> None:
    files, inputs = merge(wide_sums(RequantMode(mode)), layout)
    assert all(abs(int(code)) < 32767 for array in Executor(files).run(inputs) for code in array.flat), (
        "no sum is clipped, so a wrong sum shows"
    )
    assert not differing(files, inputs, tmp_path, ("-O0", *STRICT, *UNDEFINED))


@pytest.mark.parametrize(
    ("block", "mode", "layout"), [(4, "single", "NHWC"), (3, "f32_rne", "NCHW"), (1, "tosa16", "NHWC")]
)
def test_weights_with_a_factor_for_each_block_of_inputs(block: int, mode: str, layout: str, tmp_path: Path) -> None:
    """A convolution, one in groups, a transposed one and a linear layer; the last block of inputs is a short one."""
    module, *_ = lowered(block, requantize=mode)
    files = emit(module.main, layout, "OHWI" if layout == "NHWC" else "OIHW")  # type: ignore[arg-type]  # a layout
    assert sum("block" in item.attributes for item in files.program.instructions) == 4
    assert not differing(files, random_codes(files, 2), tmp_path, ("-O0", *STRICT, *UNDEFINED))
    text = c.emit(files, "model", separate(files))["model.c"].decode()
    assert text.count(f"a factor per {block} inputs") == 4


def test_weights_of_16_bits_less_their_zero_points(tmp_path: Path) -> None:
    """They leave 16 bits, and products of them 32."""
    cases: list[Case] = []
    for seed, (shape, weight, attributes) in enumerate(
        [
            ((1, 5, 4, 4), (3, 5, 2, 2), geometry(2)),
            ((2, 9), (5, 9), {}),
            ((1, 4, 4, 4), (4, 1, 3, 3), geometry(2, groups=4)),
        ]
    ):
        make = Maker(seed)
        codes = torch.randint(0, 65536, weight, generator=make.generator).to(torch.uint16)
        operands = [make.input(shape), make.leaf(codes, QuantParams((0.01,), (3,)))]
        operands += [make.leaf(torch.zeros(weight[0], dtype=torch.int32)), *make.multiplier(weight[0], -20, -19)]
        rank = len(weight) - 2
        make.apply(f"int_conv{rank}d" if rank else "int_linear", operands, attributes)
        cases.append((make.graph, [x.numpy() for x in make.inputs]))
    files, inputs = merge(cases, "NHWC")
    assert not differing(files, inputs, tmp_path, ("-O0", *STRICT, *UNDEFINED))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_over_their_operands(layout: str, tmp_path: Path) -> None:
    """Elementwise kernels whose result lies exactly where an operand does."""
    ops = {"int_add", "int_mul", "maximum", "minimum", "lookup", "int_clamp", "rescale"}
    found_cases = collect([*TESTS["elementwise"], *TESTS["requantize"]])
    cases = [case for case in found_cases if ops & {node.op for node in case[0].nodes}]
    files, inputs = merge(cases[LAYOUTS.index(layout) :: 2], layout)  # each case in one of the two
    plan = separate(files)
    offsets, shared = dict(plan.offsets), 0
    for item in files.program.instructions:
        tensors = files.program.tensors
        result = tensors[item.output]
        for name in item.inputs[:2]:
            wide = {"i16": 2, "u16": 2}
            fits = wide.get(tensors[name].dtype, 1) >= wide.get(result.dtype, 1)
            if name in offsets and tensors[name].shape == result.shape and fits:
                offsets[item.output] = offsets[name]
                shared += 1
                break
    assert shared > 50
    files_of_c = c.emit(files, "model", Plan(1, plan.bytes, plan.alignment, offsets))
    binary = c.Binary(files_of_c, tmp_path, cflags=("-O2",))
    found, expected = binary.run(inputs).outputs, Executor(files).run(inputs)
    assert all(map((lambda a, b: bool((a == b).all())), found, expected))

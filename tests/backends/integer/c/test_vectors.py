"""Kernels on vectors give the bits of the executor, with every set of instructions that this machine has."""

from __future__ import annotations

import itertools
import platform
import shutil
from pathlib import Path

import pytest
import torch

from qcompiler.ir.attributes import Attribute
from qcompiler.ir.types import DType, QuantParams
from qcompiler.quant.requant import RequantMode
from tests.backends.integer.c.builds import SANITIZED, STRICT, differing
from tests.backends.integer.c.corpus import TESTS, Case, collect, merge
from tests.backends.integer.c.test_kernels import geometry, layer, sizes_where_kernels_change
from tests.reference.maker import Maker

SETS = {
    "AVX-512-VNNI": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"),
    "AVX-VNNI": ("-mavx2", "-mavxvnni"),
    "AVX2": ("-mavx2",),
}


def _flags_of_processor() -> set[str]:
    path = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not path.exists():
        return set()
    lines = path.read_text(encoding="utf-8").splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


HERE = _flags_of_processor()


def options(name: str) -> tuple[str, ...]:
    """Flags of the compiler; skips where the processor lacks the instructions."""
    spelled = {"-mavx512vnni": "avx512_vnni", "-mavxvnni": "avx_vnni"}
    lacking = [flag for flag in SETS[name] if spelled.get(flag, flag.removeprefix("-m")) not in HERE]
    if lacking:
        pytest.skip(f"this processor has no {name}")
    return SETS[name]


def transposed(mode: RequantMode) -> list[Case]:
    """Strides that divide taps among places, some of which have none, and windows that leave the image on all sides."""
    cases: list[Case] = []
    shapes = itertools.product([(1, 1), (2, 2), (3, 2), (5, 1)], [5, 40], [DType.I8, DType.U8])
    for seed, (stride, filters, dtype) in enumerate(shapes):
        make = Maker(seed, mode)
        x = make.input((2, 8, 5, 11), dtype)
        weight = torch.randint(-128, 128, (8, filters, 3, 2), generator=make.generator).to(torch.int8)
        bias = torch.randint(-(2**14), 2**14, (filters,), generator=make.generator).to(torch.int32)
        grids = [QuantParams((0.01,) * filters, (0,) * filters, axis) for axis in (1, 0)]
        operands = [x, make.leaf(weight, grids[0]), make.leaf(bias, grids[1]), *make.multiplier(filters, -11, -7)]
        attributes: dict[str, Attribute] = {
            "stride": stride,
            "padding": (seed % 3, seed % 2),
            "dilation": (1 + seed % 2, 1),
            "groups": 1,
            "output_padding": (0, 0),
        }
        make.apply("int_conv_transpose2d", operands, attributes, dtype)
        cases.append((make.graph, [x.numpy() for x in make.inputs]))
    return cases


def layers(mode: RequantMode) -> list[Case]:
    """More pixels than a tile has, channels around those of a panel, lines of taps over all borders, both signs."""
    cases: list[Case] = []
    shapes = itertools.product([1, 3, 4, 17, 64], [1, 16, 31, 32, 33, 70], [DType.I8, DType.U8])
    for seed, (inputs, filters, dtype) in enumerate(shapes):
        make = Maker(seed, mode)
        kernel = (1, 1) if seed % 3 == 0 else (3, 3) if seed % 3 == 1 else (2, 5)
        padding = (0,) * 4 if seed % 2 else (kernel[0] - 1, kernel[0] - 1, kernel[1] - 1, kernel[1] - 1)
        attributes = geometry(2, padding=padding, stride=(1 + seed % 2, 1 + seed % 3))
        layer(make, (1 + seed % 2, inputs, 7, 9), (filters, inputs, *kernel), attributes, dtype=dtype, out=dtype)
        cases.append((make.graph, [x.numpy() for x in make.inputs]))
    for seed, (channels, dtype) in enumerate(itertools.product([8, 16, 32, 64, 65, 144], [DType.I8, DType.U8])):
        make = Maker(1000 + seed, mode)
        size = 3 if seed % 3 else 5
        attributes = geometry(2, padding=(size // 2,) * 4, stride=(1 + seed % 2,) * 2, groups=channels)
        layer(make, (1, channels, 9, 8), (channels, 1, size, size), attributes, dtype=dtype, out=dtype)
        cases.append((make.graph, [x.numpy() for x in make.inputs]))
    for seed, (inputs, filters, dtype) in enumerate(
        itertools.product([63, 64, 100, 513], [1, 6], [DType.I8, DType.U8])
    ):
        make = Maker(4000 + seed, mode)
        layer(make, (3, inputs), (filters, inputs), {}, dtype=dtype, out=dtype)
        cases.append((make.graph, [x.numpy() for x in make.inputs]))
    for seed, (per_group, rows) in enumerate([(4, 3), (8, 40), (6, 20)]):
        make = Maker(2000 + seed, mode)
        attributes = geometry(2, padding=(1, 1, 1, 1), dilation=(1, 2), groups=2)
        layer(make, (1, 2 * per_group, 8, 8), (2 * rows, per_group, 3, 3), attributes)
        cases.append((make.graph, [x.numpy() for x in make.inputs]))
    return cases + transposed(mode)


MODES = ("single", "f32_rne", "double")
QUICK = dict(zip(SETS, MODES, strict=True))
"""One kind of requantization for each set of instructions: `single` runs under the sanitizers with all of them."""


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, marks=[] if QUICK[name] == mode else [pytest.mark.slow])
        for name, mode in itertools.product(SETS, MODES)
    ],
)
def test_layers(name: str, mode: str, tmp_path: Path) -> None:
    flags = options(name)
    files, inputs = merge(layers(RequantMode(mode)), "NHWC")
    assert not differing(files, inputs, tmp_path, ("-O1", *STRICT, *flags))


def elementwise() -> list[Case]:
    """Sums, differences and products of rows that end anywhere, of both signs, with gates, and with large multipliers."""
    cases: list[Case] = []
    dtypes = [DType.I8, DType.U8]
    shapes = itertools.product(dtypes, dtypes, dtypes, [(2, 7, 3, 5), (1, 64, 2, 3), (1, 130, 1, 1)], [1, 2, 4])
    for seed, (left, right, out, shape, kept) in enumerate(shapes):
        make = Maker(seed)
        a, b = make.input(shape, left), make.input((*shape[:kept], *(1,) * (4 - kept)), right)
        product = {**make.scalar("product", 2.0 ** make.random.uniform(-12, 2)), "mode": "single"}
        make.requantized("int_mul", [a, b], product, out)
        make.requantized("int_add", [a, b], addition(make), out)
        cases.append((make.graph, [x.numpy() for x in make.inputs]))
    return cases


def addition(make: Maker) -> dict[str, Attribute]:
    """Multipliers that bring both operands to a common scale, and their sum to that of the result."""
    attributes: dict[str, Attribute] = {"shift": 20, "subtract": make.random.random() < 0.5, "mode": "single"}
    attributes |= {"offset": 0.0, "scalar_left_offset": 0.0}
    for side, reach in (("left", (-4.0, 0.9)), ("right", (-4.0, 0.9)), ("out", (-22.0, -17.0))):
        attributes |= make.scalar(side, 2.0 ** make.random.uniform(*reach))
    return attributes


@pytest.mark.parametrize("name", SETS)
def test_elementwise(name: str, tmp_path: Path) -> None:
    flags = options(name)
    files, inputs = merge(elementwise(), "NHWC")
    assert not differing(files, inputs, tmp_path, ("-O1", *STRICT, *flags))


@pytest.mark.parametrize("name", SETS)
def test_sizes_where_kernels_change(name: str, tmp_path: Path) -> None:
    flags = options(name)
    files, inputs = merge(sizes_where_kernels_change(RequantMode("single")), "NHWC")
    assert not differing(files, inputs, tmp_path, ("-O1", *flags))


@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang")
@pytest.mark.parametrize("name", SETS)
def test_another_compiler_warns_of_nothing(name: str, tmp_path: Path) -> None:
    flags = options(name)
    files, inputs = merge([*layers(RequantMode("single"))[::5], *elementwise()[::9]], "NHWC")
    assert not differing(files, inputs, tmp_path, ("-O1", *STRICT, *flags), cc="clang")


def extremes() -> list[Case]:
    """Codes and weights at the ends, whose products in pairs leave 16 bits; multipliers that grow, which wrap 32 bits."""
    cases: list[Case] = []
    ends = itertools.product((-128, 127), (-128, 127), ((-16, -13), (0, 6)))
    for seed, (code, weight, reach) in enumerate(ends):
        for shape, kernel, groups in (((1, 12, 4, 4), (33, 12, 3, 3), 1), ((1, 40, 4, 4), (40, 1, 3, 3), 40)):
            make = Maker(seed)
            x = make.input(shape, DType.I8, QuantParams((0.01,), (0,)), torch.full(shape, code, dtype=torch.int8))
            weights = make.leaf(torch.full(kernel, weight, dtype=torch.int8), QuantParams((0.01,), (0,)))
            bias = make.leaf(torch.zeros(kernel[0], dtype=torch.int32))
            operands = [x, weights, bias, *make.multiplier(kernel[0], *reach)]
            make.apply("int_conv2d", operands, geometry(2, padding=(1,) * 4, groups=groups))
            cases.append((make.graph, [x.numpy() for x in make.inputs]))
    return cases


@pytest.mark.parametrize("name", SETS)
def test_extremes(name: str, tmp_path: Path) -> None:
    flags = options(name)
    files, inputs = merge(extremes(), "NHWC")
    assert not differing(files, inputs, tmp_path, ("-O1", *flags))


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("group", TESTS)
def test_cases_of_the_reference_under_sanitizers(name: str, group: str, tmp_path: Path) -> None:
    flags = options(name)
    files, inputs = merge(collect(TESTS[group]), "NHWC")
    assert not differing(files, inputs, tmp_path, ("-O1", *SANITIZED, *flags))


@pytest.mark.parametrize("name", SETS)
def test_layers_under_sanitizers(name: str, tmp_path: Path) -> None:
    flags = options(name)
    files, inputs = merge(layers(RequantMode("single")), "NHWC")
    assert not differing(files, inputs, tmp_path, ("-O0", *SANITIZED, *flags))

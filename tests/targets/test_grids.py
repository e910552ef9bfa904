"""Every grid that a shipped target can be asked for: calibrated by every method, and the same integers in all forms."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler.calibration.observers import OBSERVERS, make_observer
from qcompiler.errors import CalibrationError, ParseError, TargetError
from qcompiler.passes import Pass
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.quant.affine import dequantize, qparams_from_range, quantize
from qcompiler.quant.spec import QuantSpec, ScaleKind
from qcompiler.session.pipeline import default_pipeline
from qcompiler.targets import Target, load_target
from tests.support.golden import leaf, module
from tests.targets.test_targets import EXTENDS, ROOMY, write

SINGLE = [method for method in OBSERVERS if method != "cross_entropy"]
KINDS = list(itertools.product([False, True], [True, False], [False, True]))
GRIDS = [(name, *kind) for name in ROOMY for kind in KINDS]
"""One target for every kind of grid; the slow tests take all."""
CASES = [
    pytest.param(*grid, marks=[] if index // len(KINDS) == index % 3 else [pytest.mark.slow])
    for index, grid in enumerate(GRIDS)
]


def asked(name: str, symmetric: bool, signed: bool, power_of_two: bool) -> Target:
    return load_target(name).override(
        symmetric_activations=symmetric, signed_activations=signed, power_of_two=power_of_two
    )


class Rectified(nn.Module):
    """No value is negative after a quantizer: every grid holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.c = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        z = functional.avg_pool2d(torch.cat([y, functional.relu6(self.b(y)) + y], 1), 2)
        return torch.relu(self.c((z * torch.sigmoid(z)).mean((2, 3))))


class Mixed(Rectified):
    """Values of both signs, functions of tables, movement and normalization as well."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.t = nn.LayerNorm(12), nn.ConvTranspose2d(12, 12, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x - 0.5)
        z = functional.pad(torch.cat([y, functional.silu(self.b(y)) - y], 1), (1, 0))
        z = functional.interpolate(functional.max_pool2d(self.t(z), 2), scale_factor=2.0)
        return self.c(self.n((z * torch.sigmoid(z)).mean((2, 3))))  # type: ignore[no-any-return]


def passes(method: str, *, per_channel: bool) -> list[Pass]:
    """The default pipeline with one method for weights and activations, and cross-entropy for the logits."""
    ranges: dict[type[Pass], Pass] = {
        CalibrateActivations: CalibrateActivations(method=method, logits="cross_entropy", rows=64),
        CalibrateWeights: CalibrateWeights(method=method),
    }
    return [ranges.get(type(item), item) for item in default_pipeline(per_channel=per_channel)]


@pytest.mark.parametrize(("name", "symmetric", "signed", "power_of_two"), CASES)
def test_all_forms_give_the_same_integers(name: str, symmetric: bool, signed: bool, power_of_two: bool) -> None:
    target = asked(name, symmetric, signed, power_of_two)
    torch.manual_seed(0)
    model: nn.Module = Rectified() if symmetric and not signed else Mixed()
    x = torch.rand(4, 3, 8, 8)
    method = SINGLE[GRIDS.index((name, symmetric, signed, power_of_two)) % len(SINGLE)]
    items = passes(method, per_channel=target.per_channel)
    compiled = qcompiler.compile(model.eval(), target, calibration_data=[x], example_inputs=(x,), passes=items)
    report = compiled.verify(x)
    assert [report.form(form).differing for form in ("integer graph", "integer program")] == [0, 0]
    assert report.passed
    spec = target.activation_spec()
    assert (spec.symmetric, spec.signed) == (symmetric, signed)
    for tensor in compiled.artifact.program.program.tensors.values():
        if power_of_two and tensor.dtype not in (
            "i16",
            "i32",
        ):  # the constants of a normalization have grids of their own
            assert all(torch.frexp(torch.tensor(scale)).mantissa == 0.5 for scale in tensor.scale)
        if symmetric:
            assert set(tensor.zero_point or (0,)) == {0}
    with torch.no_grad():
        expected = model(x)
    error = float((compiled.run(x) - expected).norm() / expected.norm())
    assert error < 0.1, "0.03 and less were seen, 0.06 with powers of two: equal mistakes cannot explain that"


SPECS = [
    QuantSpec(bits, signed=signed, symmetric=symmetric, axis=axis, scale_kind=kind)
    for bits, signed, symmetric, axis, kind in itertools.product(
        (4, 8), (True, False), (True, False), (None, 1), ScaleKind
    )
]


@pytest.mark.parametrize("method", OBSERVERS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_method_finds_a_range_for_every_grid(method: str, spec: QuantSpec) -> None:
    if method == "cross_entropy" and spec.per_channel:
        return  # refused, tests/calibration/test_cross_entropy.py says how
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    x = x.abs() if spec.symmetric and not spec.signed else x
    observer = make_observer(method, spec, "x")
    observer.update(x, index=0)
    low, high = observer.range()
    scale, zero_point = qparams_from_range(low, high, spec)
    # By least squares a grid may be wider than the values: up to twice, and half a step for the zero point.
    wider = 2.0 * float(x.max() - x.min()) if method in ("mse", "sqnr") else 0.0
    assert bool((low >= x.min().clamp(max=0.0) - wider).all()) and bool((high <= x.max() + wider).all())
    if spec.symmetric:
        assert not bool(zero_point.any())
    if spec.scale_kind is ScaleKind.POW2:
        assert bool((torch.frexp(scale).mantissa == 0.5).all())
    restored = dequantize(quantize(x, scale, zero_point, spec), scale, zero_point, spec.axis)
    # A grid of 16 steps, and of powers of two nearly half of them unused; cross-entropy clips what does not win.
    assert float((restored - x).norm() / x.norm()) < {4: 0.5, 8: 0.25}[spec.bits]


def test_a_grid_without_negative_numbers_refuses_them_and_says_where() -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 3, 8, 8)
    for name, method in (("int8_dsp", "min_max"), ("ort_cpu", "mse")):
        target = asked(name, True, False, False)
        items, message = passes(method, per_channel=target.per_channel), r"symmetric unsigned.*\(at %\w+\.q"
        with pytest.raises(CalibrationError, match=message) as caught:
            qcompiler.compile(Mixed().eval(), target, calibration_data=[x], example_inputs=(x,), passes=items)
        assert "signed or an asymmetric" in str(caught.value)


def test_fixed_grids_follow_where_they_can_and_are_calibrated_elsewhere() -> None:
    base = load_target("int8_dsp")

    def fixed(**changes: object) -> tuple[float, int] | None:
        rule = base.override(**changes).op_rule("sigmoid")
        assert rule is not None
        return None if rule.out_fixed is None else (rule.out_fixed.scale, rule.out_fixed.zero_point)

    assert fixed(power_of_two=True) == (1 / 256, -128)
    assert fixed(signed_activations=False) == (1 / 256, 0)
    assert fixed(signed_activations=False, symmetric_activations=True) == (1 / 256, 0)
    assert fixed(symmetric_activations=True) is None
    again = base.override(signed_activations=False).override(signed_activations=True)
    assert again.descriptor.op == base.descriptor.op


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[dtypes.w8]\nblock = 32\n", "per_block needs block, and block needs granularity per_block"),
        ('[dtypes.w8]\ngranularity = "per_block"\n', "per_block needs block, and block needs granularity per_block"),
        ('[dtypes.a8]\ngranularity = "per_block"\nblock = 4\n', "per_block needs a signed symmetric grid"),
        (
            '[dtypes.a8]\nsymmetric = true\ngranularity = "per_block"\nblock = 4\n[[op]]\nnames = ["sigmoid"]\nkind = "table"\n',
            "activations must be per tensor",
        ),
        ("[dtypes.w8]\nsigned = false\nnarrow = false\n", "weights must be signed"),
        ("[dtypes.a8]\nsigned = false\nnarrow = true\n", "narrow drops the lowest signed code"),
        ("[dtypes.a8]\nsymmetric = true\n", "zero_point is -128, but activations are symmetric"),
        (
            """[dtypes.a8]
scale = "pow2"
[[op]]
names = ["tanh"]
kind = "table"
out_fixed = { scale = 0.1, zero_point = 0 }
""",
            "the scales of activations are powers of two",
        ),
    ],
)
def test_grids_that_nothing_computes_are_refused_when_a_target_is_read(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=message):
        load_target(write(tmp_path, EXTENDS + text))


def test_factors_without_blocks_and_blocks_without_factors_are_refused() -> None:
    nodes = [
        leaf("w", "f32", 4, 8),
        leaf("s", "f32", 4),
        leaf("z", "i32", 4, kind="state"),
        leaf("f", "u8", 4, 2, kind="state"),
    ]
    tail = {
        'fake_quantize(%w, %s, %z) {spec = spec"s4 symmetric axis=0 block=4"}': "has factors nowhere",
        'fake_quantize(%w, %s, %z, %f) {spec = spec"s4 symmetric axis=0 block=3"}': r"expected u8\[4, 3\]",
        'fake_quantize(%w, %s, %z, %f) {spec = spec"s4 symmetric axis=0"}': "none without blocks",
        'fake_quantize(%w, %s, %z, %f) {spec = spec"s4 axis=0 block=4"}': "a signed symmetric one",
    }
    for text, message in tail.items():
        with pytest.raises(ParseError, match=message):
            module("quantized", *nodes, f"%q = {text} : f32[4, 8]", "%q", inputs="%x : f32[N, 8]")

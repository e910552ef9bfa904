"""Sums stay where they are exact: no float kernel beyond 2^24 or 2^53, no accumulator beyond its bits, or a refusal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from qcompiler import frontends
from qcompiler.backends.integer import Executor, emit
from qcompiler.errors import ArtifactError, GraphError, UnsupportedError
from qcompiler.ir.graph import Module
from qcompiler.ir.types import DType, QuantParams
from qcompiler.passes.base import PassContext
from qcompiler.passes.fit_biases import FitBiases
from qcompiler.passes.manager import PassManager
from qcompiler.quant.accumulator import accumulator_bounds, exact_in_float64, partial_sum_bound
from qcompiler.quant.requant import RequantMode
from qcompiler.session.pipeline import default_pipeline
from qcompiler.targets import load_target
from tests.reference.maker import Maker
from tests.support.running import outputs_of

UNIT = QuantParams((1.0,), (0,))


def linear(weight: Tensor, codes: Tensor, dtype: DType, zero_point: int = 0) -> Maker:
    """A linear layer whose codes are the lowest bits that requantization keeps: m = 1, so that nothing is lost."""
    make = Maker(0)
    make.limits = lambda dtype: {"dtype": str(dtype), "qmin": -(2**31), "qmax": 2**31 - 1}  # type: ignore[method-assign]
    make.quant = lambda dtype: UNIT  # type: ignore[method-assign]
    x = make.input(tuple(codes.shape), dtype, QuantParams((1.0,), (zero_point,)), codes.to(dtype.torch))
    bias = make.leaf(torch.zeros(len(weight), dtype=torch.int32))
    one = [make.leaf(torch.tensor([2**30], dtype=torch.int32)), make.leaf(torch.tensor([1], dtype=torch.int8))]
    make.apply("int_linear", [x, make.leaf(weight, UNIT), bias, *one], {}, DType.I32)
    return make


def executed(make: Maker) -> list[int]:
    values: list[int] = Executor(emit(make.graph)).run([x.numpy() for x in make.inputs])[0].reshape(-1).tolist()
    return values


@pytest.mark.parametrize("excess", [-1, 0, 1, 2, 255])
@pytest.mark.parametrize("seed", range(3))
def test_sums_at_the_end_of_float32_are_exact(excess: int, seed: int) -> None:
    """Weights whose sum of magnitudes times 255 lies around 2^24, and codes that reach it in steps of one."""
    generator = torch.Generator().manual_seed(seed)
    total = (2**24 - 1) // 255 + excess
    weight = torch.full((1, total // 127 + 2), 127, dtype=torch.int64)
    weight[0, -2:] = torch.tensor([total - 127 * (total // 127), 0])
    weight = weight[:, torch.randperm(weight.shape[1], generator=generator)]
    codes = torch.full((20, weight.shape[1]), 255)
    codes[1:] -= (torch.rand(19, weight.shape[1], generator=generator) < 0.01).to(torch.int64)
    codes[10:, ::2] = 0
    exact = (codes @ weight.T).reshape(-1).tolist()
    make = linear(weight.to(torch.int8), codes, DType.U8)
    assert executed(make) == exact
    assert outputs_of(make.graph, make.inputs)[0].reshape(-1).tolist() == exact


def test_float32_would_be_wrong_one_bit_further() -> None:
    """The reason for the rule: this sum is odd and above 2^24, which float32 cannot hold."""
    weight = torch.full((1, 519), 127, dtype=torch.int8)
    codes = torch.full((1, 519), 255)
    codes[0, 0] = 254
    exact = int(codes.to(torch.int64) @ weight.to(torch.int64).T)
    assert exact > 2**24
    assert exact % 2 == 0
    codes[0, 0] = 253
    exact = int(codes.to(torch.int64) @ weight.to(torch.int64).T)
    assert exact % 2 == 1
    assert int(np.float32(exact)) != exact
    assert executed(linear(weight, codes, DType.U8)) == [exact]


def test_sums_that_cancel_are_bounded_by_their_magnitudes() -> None:
    """The final sum is 0; on the way there, in some orders, is a sum that float32 cannot hold."""
    half = torch.full((1, 600), 127, dtype=torch.int8)
    weight = torch.cat([half, -half, torch.ones(1, 1, dtype=torch.int8)], 1)
    codes = torch.cat([torch.full((1, 1200), 255), torch.ones(1, 1, dtype=torch.int64)], 1)
    codes[0, 0] = codes[0, 600] = 254
    assert executed(linear(weight, codes, DType.U8)) == [1]
    assert int(partial_sum_bound(weight, 0, 255)) >= 2**24


def test_float64_is_refused_where_it_is_not_exact() -> None:
    # 4194369 = ceil(2^53 / (65535 * 2^15)): neither form computes what it might not hold.
    weight = torch.full((1, 4194369), -(2**15), dtype=torch.int16)
    make = linear(weight, torch.zeros(1, 4194369, dtype=torch.int64), DType.U16)
    with pytest.raises(GraphError, match=r"may exceed float64 \(at %int_linear"):
        outputs_of(make.graph, make.inputs)
    with pytest.raises(ArtifactError, match=r"partial sums can reach \d+ \(at int_linear"):
        executed(make)


@given(data=st.data())
@settings(max_examples=60)
def test_no_partial_sum_leaves_the_proven_bounds(data: st.DataObject) -> None:
    """In any order, from the bias on, as long as 0 is a possible input: which lowering always assumes."""
    weight = torch.tensor(data.draw(st.lists(st.integers(-128, 127), min_size=1, max_size=12)))
    bias = data.draw(st.integers(-(2**31), 2**31 - 1))
    low, high = -data.draw(st.integers(0, 255)), data.draw(st.integers(0, 255))
    minimum, maximum = accumulator_bounds(weight[None], torch.tensor([bias]), low, high)
    order = data.draw(st.permutations(range(len(weight))))
    codes = [data.draw(st.sampled_from([low, 0, high, (low + high) // 2])) for _ in order]
    total, bare = bias, 0
    for position in order:
        total += int(weight[position]) * codes[position]
        bare += int(weight[position]) * codes[position]
        assert int(minimum) <= total <= int(maximum)
        assert abs(bare) <= int(partial_sum_bound(weight[None], low, high))
    extreme = torch.where(weight > 0, high, low)
    assert int(maximum) == bias + int((weight * extreme).sum())


def test_the_float64_rule_looks_along_the_output_channels() -> None:
    weight = torch.zeros(2, 3, dtype=torch.int64)
    weight[:, 0] = 2**51
    assert exact_in_float64(weight, -1, 0)
    assert exact_in_float64(weight, -1, 1, axis=1)
    assert not exact_in_float64(weight, -2, 1, axis=1)


class Function(nn.Module):
    """A model that is one function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def lowered(model: nn.Module, *inputs: Tensor, fit: bool = False, **changes: object) -> Module:
    """`fit`: with biases that are made to fit."""
    module = frontends.capture(model.eval(), inputs).module
    context = PassContext(load_target("int8_dsp").override(**changes), calibration_data=[list(inputs)])
    passes = [item for item in default_pipeline() if fit or not isinstance(item, FitBiases)]
    PassManager(passes).run(module, context)
    return module


def layer(features: int, bias: float | None = None) -> nn.Linear:
    """All weights 1, which are the code 127 each."""
    result = nn.Linear(features, 1, bias=bias is not None)
    with torch.no_grad():
        result.weight.fill_(1.0)
        if bias is not None:
            result.bias.fill_(bias)
    return result


def ends(*shape: int) -> Tensor:
    """Numbers from 0 to 1: steps 0 to 255, or to 65535."""
    x = torch.ones(2, *shape)
    x[0] = 0.0
    return x


def test_the_longest_sum_that_fits_is_lowered_and_computed() -> None:
    # 66311 * 255 * 127 = 2147481735 is the last below 2^31.
    x = ends(66311)
    module = lowered(layer(66311), x)
    expected = outputs_of(module.main, [x])[0]
    assert torch.equal(expected, torch.tensor([[0.0], [66311.0]]))
    assert np.array_equal(Executor(emit(module.main)).run([x.numpy()])[0], expected.numpy())


REFUSED: dict[str, tuple[Callable[[], Module], str]] = {
    "one product too many": (lambda: lowered(layer(66312), ends(66312)), r"can reach 2147514120 \(at %linear"),
    "a bias on top of the sum": (lambda: lowered(layer(4, 66310.0), ends(4)), r"can reach \d+ \(at %linear"),
    "a bias of more than 32 bits": (lambda: lowered(layer(4, 1e5), ends(4)), r"the bias 100000.0 of channel 0 .*\(at %linear"),
    "a convolution": (
        lambda: lowered(Function(lambda x: functional.conv2d(x, torch.ones(1, 1, 300, 300))), ends(1, 300, 300)),
        r"can reach \d+ \(at %conv2d",
    ),
    "a mean of 16 bits": (
        lambda: lowered(Function(lambda x: x.mean((2, 3))), ends(1, 256, 256), activation_bits=16),
        r"can reach 4294901760 \(at %mean",
    ),
    "a window of 16 bits": (
        lambda: lowered(nn.AvgPool2d(200), ends(1, 256, 256), activation_bits=16),
        r"can reach 2621400000 \(at %avg_pool2d",
    ),
    "an adaptive window of 16 bits": (
        lambda: lowered(nn.AdaptiveAvgPool2d((1, 2)), ends(1, 401, 397), activation_bits=16),
        r"can reach \d+ \(at %adaptive_avg_pool2d",
    ),
    "an interpolation with large denominators": (
        lambda: lowered(Function(lambda x: functional.interpolate(x, (4099, 4093), mode="bilinear")), ends(1, 5, 7)),
        r"can reach \d+ \(at %resize",
    ),
    "a product of 16 bits in 32": (
        lambda: lowered(Function(torch.mul), ends(1, 4), ends(1, 4), activation_bits=16, requantize="double"),
        r"exceeds 32 bits \(at %mul",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_accumulator_that_may_overflow_is_refused_by_name(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(UnsupportedError, match=message):
        make()


@pytest.mark.parametrize("bias", [66310.0, -1e5, 1e9])
def test_a_bias_is_made_to_fit(bias: float) -> None:
    x = ends(4)
    module = lowered(layer(4, bias), x, fit=True)
    found = outputs_of(module.main, [x])[0]
    step = (abs(bias) + 4.0) / 255
    torch.testing.assert_close(found, torch.tensor([[bias], [bias + 4.0]]), rtol=0, atol=step)
    assert np.array_equal(Executor(emit(module.main)).run([x.numpy()])[0], found.numpy())


def test_a_product_of_33_bits_is_exact_where_requantization_has_64() -> None:
    a, b = torch.rand(2, 4, 50, generator=torch.Generator().manual_seed(0))
    a[0, :2], b[0, :2] = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
    module = lowered(Function(torch.mul), a, b, activation_bits=16, requantize=str(RequantMode.SINGLE))
    found = outputs_of(module.main, [a, b])[0]
    torch.testing.assert_close(found, a * b, rtol=0, atol=2 / 65535)  # one step of each operand
    assert np.array_equal(Executor(emit(module.main)).run([a.numpy(), b.numpy()])[0], found.numpy())

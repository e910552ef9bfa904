"""Distributions known without data, compared with samples of the assumed distributions, operator by operator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from torch import Tensor

from qcompiler.calibration import data_free, gaussian
from qcompiler.calibration.data_free import Stop, describe
from qcompiler.calibration.distribution import Distribution
from qcompiler.calibration.gaussian import STEP, Gaussian
from qcompiler.ir.graph import Graph
from qcompiler.ir.registry import Trait, known_ops
from qcompiler.ir.text import parse_module
from qcompiler.ir.types import Stage
from qcompiler.ops.unary import UNARY
from tests.support.running import outputs_of

Array = npt.NDArray[np.float64]
SAMPLES = 50_000
STATISTICS = torch.tensor([[0.0, 1.5, -2.0, 3.0], [1.0, 0.5, 2.0, 1.0]])
"""Means and deviations of the four channels of %c, which is a layer with a batch norm."""

HEAD = """graph @main stage=canonical {
  input %x : f32[N, 4, 1, 1]
  %w = parameter() {ref = "w", dtype = "f32", shape = (4, 1, 1, 1)} : f32[4, 1, 1, 1]
  %b = parameter() {ref = "b", dtype = "f32", shape = (4,)} : f32[4]
  %c = conv2d(%x, %w, %b) {groups = 4, statistics = "s"} : f32[N, 4, 1, 1]
"""

INFINITE = {
    "log": "the logarithm of numbers that may be 0 or less",
    "log1p": "as log",
    "rsqrt": "infinite at 0",
    "reciprocal": "infinite at 0",
}
"""Functions that stop on normal numbers, and why."""

WITHOUT_RULE = {
    "custom": "any function of torch; the message names it",
    "scale_product": "scales of quantizers, no activations",
    "fake_quantize_bias": "biases, no activations",
    "call": "its nodes have their own rules; a test below",
    **dict.fromkeys(
        ("exact", "not", "cast", "cumsum", "compare", "top_places"),
        "integers and booleans, which have no range of real numbers",
    ),
    "convert": "the range of integers depends on the data",
    "select": "a choice by a condition that depends on the data",
}
"""Operators without a rule of their own, and why."""


def graph_of(body: str, tensors: Mapping[str, Tensor] | None = None) -> Graph:
    """A graph whose %c, with an input of N(0, 1), is as `STATISTICS` say."""
    mean, std = STATISTICS
    known = {"w": std.reshape(4, 1, 1, 1), "b": mean, "s": STATISTICS, **(tensors or {})}
    return parse_module(f"{HEAD}{body}}}\n", known).main


def known_of(graph: Graph) -> dict[str, Distribution | Stop]:
    return {value.name: item for value, item in describe(graph, (-3.0, 3.0)).items()}


def sampled(graph: Graph, name: str) -> Tensor:
    """[values, channels] of a value when %c is normal."""
    x = torch.randn(SAMPLES, 4, 1, 1, generator=torch.Generator().manual_seed(1))
    seen: dict[str, Tensor] = {}
    outputs_of(graph, [x], lambda value, tensor: seen.update({value.name: tensor}))
    return seen[name].double().movedim(1, 0).flatten(1).T


def agrees(item: Distribution | Stop, seen: Tensor, extra: float = 0.0) -> None:
    """Six standard errors of the mean, twelve of the deviation, and `extra` deviations of what is no exact rule."""
    assert isinstance(item, Distribution), item
    found, scale = item.channels(1, seen.shape[1]), float(seen.std(0).max())
    error = (6 / len(seen) ** 0.5 + extra) * scale
    torch.testing.assert_close(found.mean, seen.mean(0), rtol=0, atol=error)
    # A heavy tail makes the deviation of samples itself uncertain.
    kurtosis = float(((seen - seen.mean(0)) / seen.std(0).clamp(min=1e-9)).pow(4).mean(0).max())
    torch.testing.assert_close(found.std, seen.std(0), rtol=0, atol=error * max(1.0, kurtosis**0.5))
    low, high = item.range
    assert low - 1e-6 * abs(low) <= float(seen.min()) + 1e-6
    assert float(seen.max()) <= high + 1e-6 * abs(high) + 1e-6


def test_every_operator_has_a_rule_or_a_reason() -> None:
    """A new operator of the registry is carried by what it is, has a rule of its own, or is named above."""
    from qcompiler.calibration.data_free import RULES

    missing = []
    for name, item in known_ops().items():
        if not item.evaluate.__module__.startswith("qcompiler."):
            continue  # other tests register operators
        if not (Stage.CANONICAL in item.stages or Stage.QUANTIZED in item.stages) or item.has(Trait.LEAF):
            continue
        by_trait = any(
            item.has(trait) for trait in (Trait.UNARY, Trait.ACTIVATION, Trait.MAC, Trait.MOVEMENT, Trait.ELEMENTWISE)
        )
        if not (by_trait or name in RULES or name in WITHOUT_RULE):
            missing.append(name)
    assert not missing


@pytest.mark.parametrize("name", sorted(UNARY))
def test_functions_of_normal_numbers(name: str) -> None:
    graph = graph_of(f"  %y = {name}(%c) : f32[N, 4, 1, 1]\n  return %y\n")
    item = known_of(graph)["y"]
    if name in INFINITE:
        assert isinstance(item, Stop), f"{name} is known"
        assert item.why.startswith(f"{name} has no finite mean or range for inputs around -14 to 10")
        return
    if name == "sqrt":  # not a number below 0, where the table holds 0
        graph = graph_of("  %r = relu(%c) : f32[N, 4, 1, 1]\n  %y = sqrt(%r) : f32[N, 4, 1, 1]\n  return %y\n")
        item = known_of(graph)["y"]
    agrees(item, sampled(graph, "y"), STEP**2)


@pytest.mark.parametrize("name", ["silu", "hardswish", "gelu", "sigmoid", "softplus"])
@pytest.mark.parametrize("clamp", ["relu(%c)", "clamp(%c) {min = -1.0, max = 2.0}"])
def test_functions_of_clipped_numbers(name: str, clamp: str) -> None:
    body = f"  %r = {clamp} : f32[N, 4, 1, 1]\n  %y = {name}(%r) : f32[N, 4, 1, 1]\n  return %y\n"
    agrees(known_of(graph_of(body))["y"], sampled(graph_of(body), "y"), STEP**2)


NUMBERS = {"one": torch.tensor(1.0), "three": torch.tensor(3.0), "six": torch.tensor(6.0)}
GATES = {
    "silu": """  %g = sigmoid(%c) : f32[N, 4, 1, 1]
  %y = mul(%c, %g) : f32[N, 4, 1, 1]
""",
    "hardswish": """  %k = constant() {ref = "three", dtype = "f32", shape = ()} : f32[]
  %six = constant() {ref = "six", dtype = "f32", shape = ()} : f32[]
  %a = add(%c, %k) : f32[N, 4, 1, 1]
  %r = clamp(%a) {min = 0.0, max = 6.0} : f32[N, 4, 1, 1]
  %m = mul(%r, %c) : f32[N, 4, 1, 1]
  %y = div(%m, %six) : f32[N, 4, 1, 1]
""",
    "tanhshrink": """  %g = tanh(%c) : f32[N, 4, 1, 1]
  %y = sub(%c, %g) : f32[N, 4, 1, 1]
""",
    "softsign": """  %k = constant() {ref = "one", dtype = "f32", shape = ()} : f32[]
  %a = abs(%c) : f32[N, 4, 1, 1]
  %d = add(%a, %k) : f32[N, 4, 1, 1]
  %y = div(%c, %d) : f32[N, 4, 1, 1]
""",
}
"""Functions built from nodes."""


@pytest.mark.parametrize("name", sorted(GATES))
def test_what_is_built_from_nodes_is_known_as_the_function_itself(name: str) -> None:
    built = known_of(graph_of(f"{GATES[name]}  return %y\n", NUMBERS))["y"]
    whole = known_of(graph_of(f"  %y = {name}(%c) : f32[N, 4, 1, 1]\n  return %y\n"))["y"]
    assert isinstance(built, Distribution)
    assert isinstance(whole, Distribution)
    torch.testing.assert_close(built.moments.mean, whole.moments.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(built.moments.std, whole.moments.std, rtol=0, atol=1e-9)
    assert built.range == pytest.approx(whole.range, abs=1e-9)


@settings(max_examples=12, deadline=None)
@given(
    mean=st.floats(-8, 8),
    std=st.floats(0.05, 8),
    ends=st.tuples(st.floats(-10, 10), st.floats(0, 10)),
    name=st.sampled_from(["silu", "hardswish", "gelu", "tanh", "leaky_relu", "elu", "mish", "softshrink", "abs"]),
)
def test_quadrature_against_adaptive_integration(mean: float, std: float, ends: tuple[float, float], name: str) -> None:
    """Slopes change by at most 2 per unit of x at a kink of a function, and by 1.2 where it is clipped: three kinks."""
    defaults = UNARY[name].attributes

    def function(x: Array) -> Array:
        return UNARY[name].numpy(x, **defaults)

    low, high = ends[0], ends[0] + ends[1]
    x = Gaussian(torch.tensor([mean]), torch.tensor([std]))
    found = gaussian.expectation(function, x, torch.tensor([low]).double(), torch.tensor([high]).double())
    assert found is not None
    centre, spread = float(x.mean), float(x.std)
    edges = [mean + std * z for z in (-9.0, 9.0)]
    places = sorted({*edges, *(p for p in (low, high, -3.0, -0.5, 0.0, 0.5, 3.0, mean) if edges[0] < p < edges[1])})

    def part(power: int) -> float:
        def integrand(v: float) -> float:
            value = float(function(np.array([min(max(v, low), high)]))[0])
            return value**power * math.exp(-0.5 * ((v - centre) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))

        return sum(integrate.quad(integrand, a, b, epsabs=1e-11)[0] for a, b in itertools.pairwise(places))

    bound = STEP**2 / 8 * 0.4 * 3 * 2 * std
    exact = part(1)
    assert float(found.mean) == pytest.approx(exact, abs=bound + 1e-9)
    largest = max(1.0, abs(low), abs(high))
    variance = part(2) - exact**2
    assert float(found.std) ** 2 == pytest.approx(variance, abs=4 * bound * largest + 1e-8)


@settings(max_examples=12, deadline=None)
@given(mean=st.floats(-8, 8), std=st.floats(0.05, 8), low=st.floats(-6, 6), width=st.floats(0, 8))
def test_quadrature_against_the_closed_form_of_clipping(mean: float, std: float, low: float, width: float) -> None:
    x = Gaussian(torch.tensor([mean]), torch.tensor([std]))
    ends = [torch.tensor([end], dtype=torch.float64) for end in (low, low + width)]
    found, exact = gaussian.expectation(lambda v: v, x, *ends), gaussian.clamp(x, *ends)
    assert found is not None
    bound = STEP**2 / 8 * 0.4 * 2 * std
    assert float(found.mean) == pytest.approx(float(exact.mean), abs=bound + 1e-9)
    assert float(found.std) ** 2 == pytest.approx(float(exact.std) ** 2, abs=4 * bound * max(width, std) + 1e-9)


def test_clamps_in_a_row_are_exact() -> None:
    body = """  %r = relu(%c) : f32[N, 4, 1, 1]
  %y = clamp(%r) {min = -1.0, max = 6.0} : f32[N, 4, 1, 1]
  return %y
"""
    item = known_of(graph_of(body))["y"]
    assert isinstance(item, Distribution)
    exact = gaussian.clamp(Gaussian(*STATISTICS), 0.0, 6.0)
    assert torch.equal(item.channels(1, 4).mean, exact.mean)
    assert torch.equal(item.channels(1, 4).std, exact.std)


def test_sums_and_products_of_independent_numbers() -> None:
    body = """  %d = conv2d(%z, %w, %b) {groups = 4, statistics = "s"} : f32[N, 4, 1, 1]
  %r = relu(%c) : f32[N, 4, 1, 1]
  %g = sigmoid(%d) : f32[N, 4, 1, 1]
  %p = mul(%r, %g) : f32[N, 4, 1, 1]
  %q = add(%r, %g) : f32[N, 4, 1, 1]
  return %p, %q
"""
    mean, std = STATISTICS
    text = HEAD.replace("{\n", "{\n  input %z : f32[N, 4, 1, 1]\n", 1)
    graph = parse_module(f"{text}{body}}}\n", {"w": std.reshape(4, 1, 1, 1), "b": mean, "s": STATISTICS}).main
    x = torch.randn(2, SAMPLES, 4, 1, 1, generator=torch.Generator().manual_seed(2))
    seen: dict[str, Tensor] = {}
    outputs_of(graph, list(x), lambda value, tensor: seen.update({value.name: tensor}))
    for name in ("p", "q"):
        agrees(known_of(graph)[name], seen[name].double().movedim(1, 0).flatten(1).T, STEP**2)


@pytest.mark.parametrize("op", ["add", "mul"])
def test_functions_of_two_numbers_without_a_rule_are_near_the_closed_form(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"""  %d = conv2d(%z, %w, %b) {{groups = 4, statistics = "s"}} : f32[N, 4, 1, 1]
  %r = relu(%c) : f32[N, 4, 1, 1]
  %g = sigmoid(%d) : f32[N, 4, 1, 1]
  %y = {op}(%r, %g) : f32[N, 4, 1, 1]
  %own = {op}(%r, %c) : f32[N, 4, 1, 1]
  return %y, %own
"""
    mean, std = STATISTICS
    text = HEAD.replace("{\n", "{\n  input %z : f32[N, 4, 1, 1]\n", 1)
    graph = parse_module(f"{text}{body}}}\n", {"w": std.reshape(4, 1, 1, 1), "b": mean, "s": STATISTICS}).main
    exact = known_of(graph)
    monkeypatch.delitem(data_free.RULES, op)
    for name in ("y", "own"):
        found, wanted = known_of(graph)[name], exact[name]
        assert isinstance(found, Distribution) and isinstance(wanted, Distribution)
        torch.testing.assert_close(found.moments.mean, wanted.moments.mean, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(found.moments.std, wanted.moments.std, rtol=1e-2, atol=1e-3)
        assert found.range[0] <= wanted.moments.mean.min() and wanted.moments.mean.max() <= found.range[1]


def test_channels_are_followed_through_movements() -> None:
    """As ShuffleNet does: channels split in two groups, exchanged, and put in a row again; then the last axis."""
    body = """  %v = reshape(%c) {shape = (dim"N", 2, 2, 1, 1)} : f32[N, 2, 2, 1, 1]
  %t = permute(%v) {axes = (0, 2, 1, 3, 4)} : f32[N, 2, 2, 1, 1]
  %u = reshape(%t) {shape = (dim"N", 4, 1, 1)} : f32[N, 4, 1, 1]
  %a = slice(%u) {axis = 1, start = 1, stop = 3} : f32[N, 2, 1, 1]
  %k = concat(%a, %c) {axis = 1} : f32[N, 6, 1, 1]
  %l = permute(%k) {axes = (0, 2, 3, 1)} : f32[N, 1, 1, 6]
  %y = silu(%l) : f32[N, 1, 1, 6]
  return %y
"""
    known = known_of(graph_of(body))
    expected = {"u": [0, 2, 1, 3], "k": [2, 1, 0, 1, 2, 3]}
    for name, order in expected.items():
        item = known[name]
        assert isinstance(item, Distribution)
        assert torch.equal(item.channels(1, len(order)).mean, STATISTICS[0][order].double())
    y, whole = known["y"], known_of(graph_of("  %y = silu(%c) : f32[N, 4, 1, 1]\n  return %y\n"))["y"]
    assert isinstance(y, Distribution)
    assert isinstance(whole, Distribution)
    torch.testing.assert_close(y.channels(3, 6).mean, whole.channels(1, 4).mean[expected["k"]], rtol=0, atol=1e-12)


def test_averages_and_layers_lie_between_independent_and_alike() -> None:
    text = """graph @main stage=canonical {
  input %x : f32[N, 4, 8, 8]
  %w = parameter() {ref = "w", dtype = "f32", shape = (2, 4)} : f32[2, 4]
  %m = mean(%x) {axes = (2, 3), keepdim = false} : f32[N, 4]
  %y = linear(%m, %w) : f32[N, 2]
  return %y
}
"""
    known = known_of(parse_module(text, {"w": torch.ones(2, 4)}).main)
    m, y = known["m"], known["y"]
    assert isinstance(m, Distribution)
    assert isinstance(y, Distribution)
    assert float(m.moments.std) == pytest.approx(64**-0.25)
    assert float(y.moments.std[0, 0]) == pytest.approx(64**-0.25 * 4**0.75)


def test_a_transposed_convolution_sums_the_taps_of_each_position() -> None:
    """Stride 2, kernel 3: one position in two sums two taps, the other one."""
    text = """graph @main stage=canonical {
  input %x : f32[N, 1, 16]
  %w = parameter() {ref = "w", dtype = "f32", shape = (1, 1, 3)} : f32[1, 1, 3]
  %b = parameter() {ref = "b", dtype = "f32", shape = (1,)} : f32[1]
  %k = constant() {ref = "five", dtype = "f32", shape = ()} : f32[]
  %a = add(%x, %k) : f32[N, 1, 16]
  %y = conv_transpose1d(%a, %w, %b) {stride = (2,)} : f32[N, 1, 33]
  return %y
}
"""
    tensors = {"w": torch.tensor([[[1.0, 4.0, 2.0]]]), "b": torch.tensor([1.0]), "five": torch.tensor(5.0)}
    y = known_of(parse_module(text, tensors).main)["y"]
    assert isinstance(y, Distribution)
    assert float(y.moments.mean) == pytest.approx(1.0 + (5.0 * 3.0 + 5.0 * 4.0) / 2)
    assert y.range[1] == pytest.approx(1.0 + 20.0 + 6 * 4.0)


def test_functions_are_named_where_they_stop() -> None:
    graph = graph_of("""  %l = log(%c) : f32[N, 4, 1, 1]
  %r = relu(%l) : f32[N, 4, 1, 1]
  %y = add(%r, %c) : f32[N, 4, 1, 1]
  return %y
""")
    known = known_of(graph)
    assert isinstance(known["y"], Stop)
    assert known["y"] is known["l"]
    assert known["y"].node.op == "log"

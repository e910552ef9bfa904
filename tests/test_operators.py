"""Every operator that a model may hold, in random geometry, from torch to all files.

Each draw is compiled, and then: the captured graph gives what torch gives; the exact simulation, the integer graph and
the integer program agree in every element, and with the plain loops; ONNX Runtime agrees layer by layer with the file.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler import frontends
from qcompiler.errors import UnsupportedError
from qcompiler.ops import UNARY
from qcompiler.targets import Target, load_target
from tests.reference.maker import check as check_against_loops
from tests.support.running import outputs_of

Draw = Callable[[st.SearchStrategy[Any]], Any]
Case = tuple[Callable[..., object], list[tuple[int, ...]]]
"""The model, a module or a function of tensors, and the shapes of its inputs."""


class Function(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs)


class One(Function):
    """A function of one tensor."""

    def forward(self, x: Tensor) -> object:  # type: ignore[override]
        return self.function(x)


class Two(Function):
    """A function of two tensors."""

    def forward(self, x: Tensor, y: Tensor) -> object:  # type: ignore[override]
        return self.function(x, y)


def sizes(draw: Draw, rank: int, low: int, high: int) -> Any:
    return tuple(draw(st.integers(low, high)) for _ in range(rank))


def convolution(rank: int) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        groups = draw(st.sampled_from([1, 2, 4]))
        channels, filters = 4 * draw(st.integers(1, 2)), 4 * draw(st.integers(1, 2))
        kernel, stride, dilation = sizes(draw, rank, 1, 3), sizes(draw, rank, 1, 2), sizes(draw, rank, 1, 2)
        padding = sizes(draw, rank, 0, 2)
        image = sizes(draw, rank, 6, 8 if rank < 3 else 6)
        layer: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        bias = draw(st.booleans())
        return layer(channels, filters, kernel, stride, padding, dilation, groups, bias), [(2, channels, *image)]

    return case


def transposed(rank: int) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        groups = draw(st.sampled_from([1, 2]))
        kernel, dilation = sizes(draw, rank, 1, 3), sizes(draw, rank, 1, 2)
        stride = sizes(draw, rank, 1, 3)
        padding = sizes(draw, rank, 0, 1)
        largest = [min(max(s, d), s + p) - 1 for s, d, p in zip(stride, dilation, padding, strict=True)]
        extra = tuple(draw(st.integers(0, most)) for most in largest)
        layer: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
        bias = draw(st.booleans())
        module = layer(4, 2 * groups, kernel, stride, padding, extra, groups, bias, dilation)
        return module, [(2, 4, *sizes(draw, rank, 3, 4))]

    return case


def linear(draw: Draw) -> Case:
    features = draw(st.integers(1, 9))
    outer = sizes(draw, draw(st.integers(0, 2)), 1, 4)
    return nn.Linear(features, draw(st.integers(1, 7)), bias=draw(st.booleans())), [(2, *outer, features)]


def matmul(draw: Draw) -> Case:
    rows, terms, columns = sizes(draw, 3, 1, 7)
    outer = sizes(draw, draw(st.integers(0, 2)), 1, 3)
    other = tuple(1 if draw(st.booleans()) else size for size in outer)
    turned = draw(st.booleans())
    second = (columns, terms) if turned else (terms, columns)
    function = (lambda x, y: x @ y.transpose(-2, -1)) if turned else torch.matmul
    return function, [(2, *outer, rows, terms), (2, *other, *second)]


def normalized_exponential(function: Callable[[Tensor, int], Tensor]) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        shape = (2, *sizes(draw, draw(st.integers(1, 3)), 2, 6))
        axis = draw(st.integers(1, len(shape) - 1))
        spread = draw(st.sampled_from([0.3, 1.0, 5.0]))
        return lambda x: function(x * spread, axis), [shape]

    return case


def batch_norm(draw: Draw) -> Case:
    rank = draw(st.integers(0, 3))
    layer: Any = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank](4)
    nn.init.uniform_(layer.running_mean, -1, 1)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    nn.init.uniform_(layer.weight, -1, 1)
    return layer, [(2, 4, *sizes(draw, rank, 1, 4))]


def layer_norm(draw: Draw) -> Case:
    # For few elements that are nearly equal, a comparison of codes shows nothing.
    inner = sizes(draw, 1, 9, 20) if draw(st.booleans()) else sizes(draw, 2, 3, 5)
    layer: Any = nn.LayerNorm(inner, elementwise_affine=draw(st.booleans()))
    if layer.weight is not None:
        nn.init.uniform_(layer.weight, -1, 1)
        nn.init.uniform_(layer.bias, -1, 1)
    return layer, [(2, *sizes(draw, draw(st.integers(0, 2)), 1, 4), *inner)]


def normalization(draw: Draw) -> Case:
    image = sizes(draw, draw(st.integers(1, 2)), 4, 6)
    kind = draw(st.sampled_from(["group", "groups", "instance", "rms", "length"]))
    layer: Any
    if kind in ("group", "groups"):
        layer = nn.GroupNorm(1 if kind == "group" else 2, 4)
    elif kind == "instance":
        layer = (nn.InstanceNorm1d, nn.InstanceNorm2d)[len(image) - 1](4, affine=draw(st.booleans()))
    elif kind == "rms":
        layer = nn.RMSNorm(image[-1], eps=1e-3)
    else:
        axis = draw(st.integers(1, len(image) + 1))
        return lambda x: functional.normalize(x, dim=axis), [(2, 4, *image)]
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.3, 1)
    return layer, [(2, 4, *image)]


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        shape = (2, *sizes(draw, draw(st.integers(1, 3)), 1, 5))
        other = tuple(1 if axis and draw(st.booleans()) else size for axis, size in enumerate(shape))
        if draw(st.booleans()):
            other = other[1:] if draw(st.booleans()) and len(other) > 1 else other
        shapes = [shape, other] if len(other) == len(shape) else [shape, (2, *(1,) * (len(shape) - 1))]
        return function, shapes

    return case


def with_number(draw: Draw) -> Case:
    number = draw(st.sampled_from([-2.0, 0.0, 0.5, 3, 1e-3]))
    function = draw(
        st.sampled_from(
            [lambda x: x + number, lambda x: number - x, lambda x: x * number, lambda x: x / 3.0, lambda x: -x]
        )
    )
    return function, [(2, *sizes(draw, 2, 1, 5))]


def unary(name: str) -> Callable[[Draw], Case]:
    function = functools.partial(UNARY[name].torch, **UNARY[name].attributes)
    # Some have no value for negative numbers, or too large ones near zero.
    positive = name in ("log", "log1p", "sqrt", "rsqrt", "reciprocal")
    return lambda draw: ((lambda x: function(x.abs() + 0.3)) if positive else function, [(2, *sizes(draw, 2, 1, 6))])


def clamp(draw: Draw) -> Case:
    low, high = sorted(draw(st.tuples(st.floats(-2, 2), st.floats(-2, 2))))
    functions: list[Callable[[Tensor], Tensor]] = [
        functional.relu,
        functional.relu6,
        lambda x: x.clamp(low, high),
        lambda x: x.clamp(min=low),
        lambda x: torch.clamp(x, max=high),
        lambda x: functional.hardtanh(x, low, high + 0.1),
    ]
    return draw(st.sampled_from(functions)), [(2, 3, 4)]


def prelu(draw: Draw) -> Case:
    layer = nn.PReLU(draw(st.sampled_from([1, 3])))
    nn.init.uniform_(layer.weight, -0.5, 1.5)
    return layer, [(2, 3, *sizes(draw, draw(st.integers(0, 2)), 1, 4))]


def pooled(draw: Draw) -> tuple[list[int], dict[str, Any], list[tuple[int, ...]]]:
    kernel, stride = list(sizes(draw, 2, 1, 3)), list(sizes(draw, 2, 1, 3))
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    options = {"stride": stride, "padding": padding, "ceil_mode": draw(st.booleans())}
    return kernel, options, [(2, 3, *sizes(draw, 2, 4, 7))]


def avg_pool(draw: Draw) -> Case:
    kernel, options, shapes = pooled(draw)
    options["count_include_pad"] = draw(st.booleans())
    options["divisor_override"] = draw(st.sampled_from([None, None, 1, 3, 7]))
    return lambda x: functional.avg_pool2d(x, kernel, **options), shapes


def max_pool(draw: Draw) -> Case:
    kernel, options, shapes = pooled(draw)
    options["dilation"] = draw(st.sampled_from([1, 1, 2]))
    spans = [options["dilation"] * (size - 1) + 1 for size in kernel]
    padded = [size + 2 * border for size, border in zip(shapes[0][2:], options["padding"], strict=True)]
    assume(all(size >= span for size, span in zip(padded, spans, strict=True)))
    return lambda x: functional.max_pool2d(x, kernel, **options), shapes


def pool_of_a_line(draw: Draw) -> Case:
    kernel = draw(st.integers(1, 3))
    options = {"stride": draw(st.integers(1, 2)), "padding": kernel // 2, "ceil_mode": draw(st.booleans())}
    pool = draw(st.sampled_from([functional.max_pool1d, functional.avg_pool1d]))
    return lambda x: pool(x, kernel, **options), [(2, 3, draw(st.integers(4, 7)))]


def adaptive(draw: Draw) -> Case:
    size: Any = list(sizes(draw, 2, 1, 4))
    image = sizes(draw, 2, 4, 7)
    return lambda x: functional.adaptive_avg_pool2d(x, size), [(2, 3, *image)]


def adaptive_max(draw: Draw) -> Case:
    rank = draw(st.integers(1, 3))
    pool = (functional.adaptive_max_pool1d, functional.adaptive_max_pool2d, functional.adaptive_max_pool3d)[rank - 1]
    size: Any = list(sizes(draw, rank, 1, 4))
    return lambda x: pool(x, size), [(2, 3, *sizes(draw, rank, 2, 7))]


def max_pool_of_boxes(draw: Draw) -> Case:
    kernel = sizes(draw, 3, 1, 3)
    options = {
        "stride": draw(st.sampled_from([None, sizes(draw, 3, 1, 2)])),
        "padding": tuple(draw(st.integers(0, k // 2)) for k in kernel),
        "dilation": sizes(draw, 3, 1, 2),
        "ceil_mode": draw(st.booleans()),
    }
    return lambda x: functional.max_pool3d(x, kernel, **options), [(2, 3, *sizes(draw, 3, 5, 7))]


def mean(draw: Draw) -> Case:
    rank = draw(st.integers(1, 3))
    axes = draw(st.lists(st.integers(1, rank), min_size=1, unique=True))
    keepdim = draw(st.booleans())
    return lambda x: x.mean(axes, keepdim=keepdim), [(2, *sizes(draw, rank, 1, 5))]


def resize(draw: Draw) -> Case:
    mode = draw(st.sampled_from(["nearest", "bilinear"]))
    corners = draw(st.booleans()) if mode == "bilinear" else None
    size = sizes(draw, 2, 2, 7)
    return lambda x: functional.interpolate(x, size, mode=mode, align_corners=corners), [(2, 3, *sizes(draw, 2, 2, 5))]


def concat(draw: Draw) -> Case:
    axis = draw(st.integers(1, 3))
    shape = [2, 3, 4, 2]
    other = [*shape[:axis], draw(st.integers(1, 4)), *shape[axis + 1 :]]
    return lambda x, y: torch.cat([x, y, x], axis), [tuple(shape), tuple(other)]


def movement(draw: Draw) -> Case:
    axes = draw(st.permutations([1, 2, 3]))
    border = list(sizes(draw, 4, 0, 2))
    value = draw(st.sampled_from([0.0, 1.5, -0.3]))
    functions: list[Callable[[Tensor], object]] = [
        lambda x: x.permute(0, *axes),
        lambda x: x.transpose(1, 3),
        lambda x: x.flatten(1),
        lambda x: x.flatten(2).unsqueeze(1),
        lambda x: x.reshape(-1, 3, 8),
        lambda x: x[:, 1:],
        lambda x: x[:, :, ::2],
        lambda x: x.chunk(2, 2),
        lambda x: x.split([1, 3], 2),
        lambda x: x.narrow(2, 1, 2),
        lambda x: functional.pad(x, border, value=value),
        lambda x: torch.stack([x, x * 2], 1),
        lambda x: functional.channel_shuffle(x.permute(0, 2, 1, 3), 2),
        lambda x: functional.pixel_shuffle(x.permute(0, 2, 1, 3), 2),
        lambda x: functional.pixel_unshuffle(x.reshape(-1, 3, 2, 4), 2),
        lambda x: x.unbind(2)[1],
        lambda x: x.squeeze(1) + x.unsqueeze(1).squeeze(1),
    ]
    return draw(st.sampled_from(functions)), [(2, 3, 4, 2)]


def windows(draw: Draw) -> Case:
    kernel, stride, border = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 1))
    functions: list[Callable[[Tensor], object]] = [
        lambda x: functional.unfold(x, kernel, padding=border, stride=stride),
        lambda x: functional.fold(functional.unfold(x, kernel, stride=stride), x.shape[2:], kernel, stride=stride),
        lambda x: x.unfold(2, kernel, stride),
    ]
    return draw(st.sampled_from(functions)), [(2, 3, *sizes(draw, 2, 4, 6))]


CASES: dict[str, Callable[[Draw], Case]] = {
    **{f"conv{rank}d": convolution(rank) for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d": transposed(rank) for rank in (1, 2, 3)},
    "linear": linear,
    "matmul": matmul,
    "softmax": normalized_exponential(torch.softmax),
    "log_softmax": normalized_exponential(torch.log_softmax),
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "normalization": normalization,
    "add": binary(torch.add),
    "sub": binary(torch.sub),
    "mul": binary(torch.mul),
    "div": binary(lambda x, y: x / (y.abs() + 0.2)),
    "windows": windows,
    "maximum": binary(torch.maximum),
    "minimum": binary(torch.minimum),
    "with a number": with_number,
    "clamp": clamp,
    "prelu": prelu,
    **{name: unary(name) for name in UNARY},
    "avg_pool2d": avg_pool,
    "max_pool2d": max_pool,
    "pool of a line": pool_of_a_line,
    "adaptive_avg_pool2d": adaptive,
    "adaptive max pooling": adaptive_max,
    "max_pool3d": max_pool_of_boxes,
    "mean": mean,
    "resize": resize,
    "concat": concat,
    "movement": movement,
}
TARGETS: Sequence[Target] = [
    load_target("int8_dsp"),
    load_target("int8_dsp_per_channel"),
    load_target("ort_cpu"),
    load_target("int8_dsp").override(requantize="double", layout="NCHW", weight_bits=4),
    load_target("int8_dsp_per_channel").override(activation_bits=16),
    load_target("int8_dsp").override(activation_bits=6, requantize="double_hu", symmetric_activations=True),
    load_target("int8_dsp").override(activation_bits=4, weight_bits=4),
]


def as_model(function: Callable[..., object], count: int) -> nn.Module:
    return function if isinstance(function, nn.Module) else (One if count == 1 else Two)(function)


def drawn(name: str, data: st.DataObject) -> tuple[nn.Module, list[Tensor], Target]:
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    function, shapes = CASES[name](data.draw)
    inputs = [torch.randn(shape) for shape in shapes]
    return as_model(function, len(inputs)).eval(), inputs, data.draw(st.sampled_from(TARGETS))


def flat(result: object) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [x for part in result for x in flat(part)]  # type: ignore[attr-defined]


def agrees(name: str, data: st.DataObject) -> None:
    model, inputs, target = drawn(name, data)
    with torch.no_grad():
        expected = flat(model(*inputs))
    graph = frontends.capture(model, tuple(inputs)).module.main
    for found, wanted in zip(outputs_of(graph, inputs), expected, strict=True):
        assert found.shape == wanted.shape
        if name == "normalization":  # one operator for several functions of torch
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(found, wanted), "the float graph is torch's own computation"
    with warnings.catch_warnings(action="error"):
        try:
            compiled = qcompiler.compile(model, target, example_inputs=tuple(inputs), calibration_data=[inputs])
        except UnsupportedError as error:  # 16-bit codes of both operands: one product may need 33 bits
            if name == "matmul" and target.activation_spec().bits == 16 and "of the two operands" in str(error):
                return
            raise
    assert compiled.verification is not None
    assert [form.status for form in compiled.verification.forms[:2]] == ["equal", "equal"]
    assert all(form.largest <= 1 for form in compiled.verification.forms if "layer by layer" in form.name)
    check_against_loops(compiled.integer.main, inputs)
    activation_bits, weight_bits = target.activation_spec().bits, target.weight_spec("linear", 0).bits
    noisy = 10 if activation_bits == 4 else 4 if min(activation_bits, weight_bits) < 8 else 1
    for result, wanted in zip(flat(compiled.run(*inputs)), expected, strict=True):
        span = max(1e-3, float(wanted.abs().max()))
        jump = 0.5 if name == "hardshrink" else 0.0  # near its threshold a step of the input is all of the output
        assert float((result - wanted).abs().max()) <= 0.06 * noisy * span + 1e-3 + jump


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=3)
def test_all_forms_of_an_operator_agree(name: str, data: st.DataObject) -> None:
    agrees(name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=40)
def test_all_forms_of_an_operator_agree_in_many_draws(name: str, data: st.DataObject) -> None:
    agrees(name, data)

"""High biases move to the following layers, on both kinds of graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qcompiler.errors import InputError, PassError
from qcompiler.ir.types import Stage
from qcompiler.passes.absorb_bias import AbsorbBias
from tests.support.declared import check_declared
from tests.support.equalized import PLACES, Net, image, measured, placed, run_alike
from tests.support.golden import computes_the_same, leaf, lines, module, run


def biased(seed: int = 0, padding: int = 0) -> Net:
    """A batch norm whose channels lie far above zero."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(8)
    with torch.no_grad():
        norm.bias.copy_(torch.linspace(-2, 12, 8))
        norm.weight.copy_(torch.linspace(0.5, 2, 8))
    net = Net(
        lambda m, x: m.b(torch.relu(m.n(m.a(x)))), a=nn.Conv2d(3, 8, 3), n=norm, b=nn.Conv2d(8, 4, 3, padding=padding)
    )
    with torch.no_grad():
        for _ in range(60):
            net.train()(torch.randn(16, 3, 8, 8))
    return net


@pytest.mark.parametrize("place", PLACES)
def test_three_deviations_below_the_mean_go_into_the_next_bias(place: str) -> None:
    net = biased()
    module, records = run_alike(net, placed(place, AbsorbBias()), image())
    mean, std = net.n.bias.detach(), net.n.weight.detach()
    c = (mean - 3 * std).clamp(min=0)
    assert measured(records[-1], "channels") == int((c > 0).sum()) > 2
    assert measured(records[-1], "border") == 0.0
    assert measured(records[-1], "sqnr_db") > 40, "except for the few numbers below c, the function is the same"
    layer = next(node for node in module.main.nodes if node.name == "a")
    new_mean, new_std = module.tensors[str(layer.attributes["statistics"])]
    torch.testing.assert_close(new_mean, mean - c)
    assert torch.equal(new_std, std)


def test_the_smallest_values_of_data_are_absorbed_exactly() -> None:
    torch.manual_seed(0)
    a = nn.Conv2d(3, 8, 1)
    with torch.no_grad():
        nn.init.uniform_(a.weight, -0.2, 0.2)
        a.bias = nn.Parameter(torch.linspace(-5, 15, 8))
    net = Net(lambda m, x: m.b(functional.max_pool2d(torch.relu(m.a(x)), 2)), a=a, b=nn.Conv2d(8, 4, 3))
    _, records = run_alike(net, [AbsorbBias()], image())
    assert measured(records[-1], "channels") > 2
    assert measured(records[-1], "sqnr_db") > 110


def test_the_border_is_measured_or_refused() -> None:
    net = biased(padding=1)
    _, records = run_alike(net, [AbsorbBias()], image())
    assert measured(records[-1], "border") > 0.1
    _, records = run_alike(net, [AbsorbBias(padded=False)], image())
    assert measured(records[-1], "channels") == 0
    assert any(event.detail == "b pads" for event in records[-1].events)


def test_without_statistics_and_data_there_is_nothing_to_absorb() -> None:
    net = Net(lambda m, x: m.b(torch.relu(m.a(torch.log(x)))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    with pytest.raises(PassError, match=r"no range of a layer is known: log has no finite .*calibration_data"):
        run_alike(net, [AbsorbBias()], image().abs() + 1.0, calibrate=False)


def test_without_a_batch_norm_what_the_layers_before_say_is_absorbed() -> None:
    net = Net(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        net.a.bias.add_(20.0)
    _, records = run_alike(net, [AbsorbBias()], image(), calibrate=False)
    assert measured(records[-1], "channels") == 8
    assert 10.0 < measured(records[-1], "largest") < 21.0


def test_a_negative_number_of_deviations_is_refused() -> None:
    with pytest.raises(InputError, match="sigmas=-1"):
        AbsorbBias(sigmas=-1.0)


def test_an_average_over_padding_keeps_no_shift() -> None:
    net = Net(
        lambda m, x: m.b(functional.avg_pool2d(torch.relu(m.a(x)), 3, 1, 1)), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1)
    )
    _, records = run_alike(net, [AbsorbBias()], image())
    assert any("does not keep a shift" in event.detail for event in records[-1].events)


LINEAR = [
    leaf("w1", "f32", 2, 3),
    leaf("b1", "f32", 2),
    leaf("w2", "f32", 2, 2),
    leaf("b2", "f32", 2),
    '%a = linear(%x, %w1, %b1) {statistics = "n"} : f32[N, 2]',
    "%r = relu(%a) : f32[N, 2]",
    "%b = linear(%r, %w2, %b2) : f32[N, 2]",
    "%b",
]
NUMBERS = {
    "b1": torch.tensor([10.0, 1.0]),
    "w2": torch.tensor([[2.0, 1.0], [-1.0, 3.0]]),
    "b2": torch.tensor([0.5, -0.5]),
    # Mean and standard deviation of %a: 10 - 3 * 2 = 4 is absorbed, 1 - 3 * 1 is below zero.
    "n": torch.tensor([[10.0, 1.0], [2.0, 1.0]]),
}


@pytest.mark.parametrize(("sigmas", "c"), [(3.0, [4.0, 0.0]), (0.5, [9.0, 0.5])])
def test_a_pair_by_hand(sigmas: float, c: list[float]) -> None:
    subject = module("canonical", *LINEAR, inputs="%x : f32[N, 3]", tensors=NUMBERS)
    before = lines(subject)
    record = run(AbsorbBias(sigmas=sigmas), subject)
    shift = torch.tensor(c)
    tensors = subject.tensors
    torch.testing.assert_close(tensors["b1"], NUMBERS["b1"] - shift)
    torch.testing.assert_close(tensors["b2"], NUMBERS["b2"] + NUMBERS["w2"] @ shift)
    torch.testing.assert_close(tensors["n"], torch.stack([NUMBERS["n"][0] - shift, NUMBERS["n"][1]]))
    assert torch.equal(tensors["w2"], NUMBERS["w2"]) and lines(subject) == before
    count = int((shift > 0).sum())
    assert record.metrics == {"channels": count, "largest": max(c), "border": 0.0}
    rewrites = [(event.node, event.detail) for event in record.events if event.kind == "rewrite"]
    assert rewrites == [("a", f"{count} channels move up to {max(c):.4g} to the bias of b")]


def test_without_an_activation_the_mean_itself_moves() -> None:
    text = [line.replace("%r, %w2", "%a, %w2") for line in LINEAR if not line.startswith("%r")]
    subject = module("canonical", *text, inputs="%x : f32[N, 3]", tensors=NUMBERS)
    run(AbsorbBias(), subject)
    torch.testing.assert_close(subject.tensors["b1"], NUMBERS["b1"] - NUMBERS["n"][0])
    computes_the_same(module("canonical", *text, inputs="%x : f32[N, 3]", tensors=NUMBERS), subject, rtol=1e-5)


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, nn.Module], str]] = {
    "a producer without bias": (
        lambda m, x: m.b(torch.relu(m.a(x))),
        {"a": nn.Conv2d(3, 8, 1, bias=False), "b": nn.Conv2d(8, 4, 1)},
        "a has no bias",
    ),
    "a reader without bias": (
        lambda m, x: m.b(torch.relu(m.a(x))),
        {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1, bias=False)},
        "b has no bias",
    ),
    "a transposed reader": (
        lambda m, x: m.b(torch.relu(m.a(x))),
        {"a": nn.Conv2d(3, 8, 1), "b": nn.ConvTranspose2d(8, 4, 2)},
        "b sums fewer taps at the border",
    ),
    "a factor": (
        lambda m, x: m.b(torch.relu(m.a(x)) * 2.0),
        {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1)},
        "in between does not keep a shift",
    ),
    "an output": (lambda m, x: torch.relu(m.a(x)), {"a": nn.Conv2d(3, 8, 1)}, "is an output of the model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_keep_a_shift_is_refused_with_its_reason(case: str) -> None:
    function, layers, reason = REFUSED[case]
    net = Net(function, **layers)
    subject, records = run_alike(net, [AbsorbBias()], image())
    found = {event.node: event.detail for event in records[-1].events if event.kind == "refusal"}
    assert reason in found["a"]
    assert measured(records[-1], "channels") == 0
    for name, tensor in net.state_dict().items():
        assert torch.equal(subject.tensors[name], tensor)


def test_what_it_needs_and_invalidates() -> None:
    check_declared(
        AbsorbBias(),
        {Stage.CANONICAL, Stage.QUANTIZED},
        requires={"batch-norm-folded"},
        invalidates={"activation-ranges"},
    )
    with pytest.raises(InputError, match="sigmas=nan"):
        AbsorbBias(sigmas=float("nan"))

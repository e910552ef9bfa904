"""Calls become nodes: sizes in the batch, constants, writes in place, and results that cannot be used."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler import frontends
from qcompiler.errors import QCompilerError
from qcompiler.frontends import convert
from qcompiler.ir.dims import symbol
from qcompiler.ir.graph import Graph
from tests.support.functions import Function, numbers
from tests.support.running import outputs_of

N = symbol("N")


def added_in_place(x: Tensor, y: Tensor | None) -> Tensor:
    """The view is written to, and the whole is read."""
    whole = x * 2
    whole.reshape(-1).add_(1)
    return whole


def clamped_before(x: Tensor, y: Tensor | None) -> Tensor:
    """A tensor that is written to is read before and after."""
    z = x + 1
    before = z * 2
    z.relu_()
    return before + z


def optional(x: Tensor, y: Tensor | None) -> Tensor:
    return x if y is None else x + y


def decided(x: Tensor, y: Tensor | None) -> Tensor:
    return x * 2 if len(x) == 1 else x


def half(x: Tensor, y: Tensor | None) -> Tensor:
    return x[: x.shape[0] // 2]


def squeezed(x: Tensor, y: Tensor | None) -> Tensor:
    return torch.relu(x).squeeze()


def scaled_by_half_of_the_batch(x: Tensor, y: Tensor | None) -> Tensor:
    return x * (x.shape[0] // 2)


def read(x: Tensor, y: Tensor | None) -> Tensor:
    return x * x.max().item()


@pytest.mark.parametrize("function", [added_in_place, clamped_before, optional])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_graph_does_what_the_model_does_at_any_batch(function: Callable[..., Tensor], batch: int) -> None:
    try:
        graph = frontends.capture(Function(function).eval(), torch.randn(2, 6)).module.main
    except QCompilerError as error:
        assert function is added_in_place, "only memory that is seen twice may be refused"
        assert "memory that another tensor shares" in str(error)  # noqa: PT017
        return
    x = torch.randn(batch, 6, generator=torch.Generator().manual_seed(batch))
    assert torch.equal(outputs_of(graph, [x])[0], function(x.clone(), None))


def test_memory_that_is_equal_by_chance_is_no_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.export writes `x[:, True]` as an index into `empty`, whose values two runs may share."""
    monkeypatch.setattr(convert, "_same", lambda one, other: True)
    with pytest.raises(QCompilerError, match="'empty' has no operator"):
        frontends.capture(torch.export.export(Flag().eval(), (torch.ones(2, 3),)))


class Flag(nn.Module):
    """A new axis, by an index that is a flag."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, True]


def test_an_argument_that_is_left_out_stays_out() -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    assert len(frontends.capture(Function(optional).eval(), x).module.main.inputs) == 1
    both = frontends.capture(Function(optional).eval(), (x, y)).module.main
    assert torch.equal(outputs_of(both, [x, y])[0], x + y)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (half, "of symbolic size N is sliced"),
        (squeezed, r"differ on inputs of shape \[1, 3\]"),
        (decided, r"differ on inputs of shape \[1, 3\]"),
        (scaled_by_half_of_the_batch, "batch|differ"),
        (read, "values of its inputs"),
    ],
)
def test_what_holds_for_one_batch_only_is_refused(function: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(QCompilerError, match=message):
        frontends.capture(Function(function).eval(), torch.randn(4, 3))


def graph_of(function: Callable[..., object], x: Tensor) -> Graph:
    return frontends.capture(Function(function).eval(), x).module.main


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x.flatten(), (4 * N,)),
        (lambda x: x.reshape(x.shape[0] * 2, -1), (2 * N, 2)),
        (lambda x: torch.cat([x.flatten(), x.new_zeros(3)])[None], (1, 4 * N + 3)),
        (lambda x: x.mean(0), (4,)),
    ],
)
def test_sizes_are_expressions_in_the_batch(function: Callable[..., object], shape: tuple[object, ...]) -> None:
    assert graph_of(function, numbers(2, 4)).outputs[0].type.shape == shape


def test_numbers_of_shapes_fold_and_parts_of_them_are_checked() -> None:
    ops = [node.op for node in graph_of(lambda x: x * x.shape[1] / x.size(-1), numbers(2, 4)).nodes]
    assert ops == ["constant", "mul", "constant", "div"]


def test_what_does_not_depend_on_the_inputs_is_a_constant() -> None:
    graph = graph_of(lambda x: x + torch.arange(4).float().flip(0), numbers(2, 4))
    assert [node.op for node in graph.nodes] == ["constant", "add"]
    (tensor,) = graph.module.tensors.values()
    assert tensor.tolist() == [3, 2, 1, 0]


class Scaled(nn.Module):
    """Computes with a parameter in a way that no operator has, and writes to its buffer."""

    def __init__(self, returned: bool) -> None:
        super().__init__()
        self.weight, self.count = nn.Parameter(torch.ones(4)), nn.Buffer(torch.zeros(4))
        self.returned = returned

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        y = x * torch.cumprod(self.weight, 0)
        return y + self.count if self.returned else y


def test_constants_from_parameters_are_told() -> None:
    found = frontends.capture(Scaled(False).eval(), numbers(2, 4))
    assert any("cumprod of parameters became a constant" in str(item) for item in found.diagnostics)
    assert found.module.main.outputs[0].producer is not None


def test_a_buffer_that_is_written_may_not_be_read() -> None:
    with pytest.raises(QCompilerError, match=r"the forward writes to 'count' and reads the new value"):
        frontends.capture(Scaled(True).eval(), numbers(2, 4))


def written_in_part() -> fx.GraphModule:
    """y = x * 1; y[:, 0] = 0.0; torch.fx does not trace this from code, but a graph may hold it."""
    graph = fx.Graph()
    y = graph.call_function(torch.mul, (graph.placeholder("x"), 1))
    graph.call_function(operator.setitem, (y, (slice(None), 0), 0.0))
    graph.output(y)
    return fx.GraphModule(nn.Module(), graph)


def table_with_a_part(x: Tensor) -> Tensor:
    table = torch.zeros(4)
    table[1:] = 2.0
    return x * table


def test_a_part_of_a_tensor_may_be_written_only_if_it_is_constant() -> None:
    x = numbers(2, 4)
    assert torch.equal(outputs_of(graph_of(table_with_a_part, x), [x])[0], table_with_a_part(x))
    with pytest.raises(
        QCompilerError, match=r"setitem writes to a part of a tensor .* Build the tensor with torch.cat"
    ):
        frontends.capture(written_in_part(), x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.fft.fft(x).abs(), r"gives complex numbers of torch.complex64 .* two tensors for the real and imag"),
        (lambda x: torch.complex(x, x), "complex numbers of torch.complex64"),
        (lambda x: {"size": x.shape[0], "x": x}, "the model returns a size that depends on the batch|differ"),
        (lambda x: x.squeeze(), "the rank depends on the batch size|differ"),
    ],
)  # fmt: skip
def test_results_that_no_graph_has_are_refused(function: Callable[..., object], message: str) -> None:
    with pytest.raises(QCompilerError, match=message):
        graph_of(function, numbers(2, 4))


def test_a_result_that_is_not_read_may_be_anything() -> None:
    x = numbers(2, 4)

    def unused(x: Tensor) -> Tensor:
        torch.complex(x, x)
        return x * 2

    assert [node.op for node in graph_of(unused, x).nodes if node.op != "constant"] == ["mul"]


def test_all_calls_without_an_operator_are_told_at_once_with_what_the_user_wrote() -> None:
    def forward(x: Tensor, y: object) -> tuple[Tensor, ...]:
        drawn = torch.bernoulli(x.sigmoid())
        unused = torch.poisson(x.abs())
        del unused
        return drawn + 1, x * 2, torch.normal(x, 1.0)

    with pytest.raises(QCompilerError) as caught:
        frontends.capture(Function(forward).eval(), (torch.randn(4, 3), torch.randn(4, 3)))
    text = str(caught.value)
    assert "'bernoulli' has no operator" in text
    assert ": `drawn = torch.bernoulli(x.sigmoid())`" in text
    listed = text.partition("Also missing:\n")[2].splitlines()
    assert len(listed) == 1, "a result that nobody reads needs no operator"
    assert (
        ": `return drawn + 1, x * 2, torch.normal(x, 1.0)`). Replace it in the model, or register a rule for it"
        in listed[0]
    )
    assert "'normal' has no operator" in listed[0]

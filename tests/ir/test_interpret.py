"""Running graphs: what is computed, seen, replaced, freed and refused."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import GraphError, InputError
from qcompiler.ir.graph import Graph, Module, Value
from qcompiler.ir.interpret import check_inputs, interpret, interpret_with
from qcompiler.ir.text import parse_module
from qcompiler.ir.types import DType, Stage, TensorType
from tests.ir.samples import ANYTHING, conv_net, small
from tests.support.running import outputs_of


def test_every_value_is_seen_in_order() -> None:
    seen: list[str] = []
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    (result,) = outputs_of(small().main, [x], lambda value, tensor: seen.append(value.name))
    assert seen == ["x", "w", "a", "b", "c"]
    assert torch.equal(result, x + x.relu())


def test_values_can_be_replaced_while_running() -> None:
    seen: dict[str, Tensor] = {}
    (result,) = outputs_of(
        small().main,
        [torch.ones(1, 4)],
        observe=lambda value, tensor: seen.update({value.name: tensor}),
        replace=lambda value, tensor: torch.full_like(tensor, 5.0) if value.name == "b" else tensor,
    )
    assert torch.equal(result, torch.full((1, 4), 6.0))
    assert torch.equal(seen["b"], torch.ones(1, 4)), "the computed value is seen, not its replacement"


def test_a_tensor_is_freed_after_its_last_use() -> None:
    text = """graph @main stage=float {
      input %x : f32[4]
      %a = relu(%x) : f32[4]
      %b = sigmoid(%a) : f32[4]
      %c = tanh(%b) : f32[4]
      %unused = relu(%c) : f32[4]
      %d = add(%a, %c) : f32[4]
      return %d, %c
    }"""
    alive: dict[str, weakref.ref[Tensor]] = {}
    held: list[list[str]] = []

    def observe(value: Value, tensor: Tensor) -> None:
        held.append([name for name, reference in alive.items() if reference() is not None])
        alive[value.name] = weakref.ref(tensor)

    outputs_of(parse_module(text).main, [torch.ones(4)], observe)
    assert held == [[], ["x"], ["x", "a"], ["x", "a"], ["x", "a", "c"], ["x", "c"]], (
        "the caller holds x; b is gone once c is computed and a once d is; nothing reads the unused value; c is an output"
    )


def test_any_domain_will_do() -> None:
    graph = small().main
    (depth,) = interpret_with(graph, [0], lambda node, operands: (1 + max(operands, default=-1),))
    assert depth == 3, "the longest path: x or w, a, b, c"


def test_a_rule_gives_as_many_results_as_there_are() -> None:
    with pytest.raises(GraphError, match=r"parameter returned 2 results .at %w.*expected 1"):
        interpret_with(small().main, [0], lambda node, operands: (0, 0))


def test_several_results_and_outputs_in_any_order() -> None:
    graph = Module().add(Graph())
    x = graph.add_input("x", TensorType(DType.F32, (2,)))
    node = graph.append(ANYTHING, [x], {"second": 0, "results": 2})
    graph.set_outputs([node.outputs[1], x, node.outputs[1]])
    data = torch.arange(2.0)
    assert all(found is data for found in outputs_of(graph, [data]))
    assert len(outputs_of(graph, [data])) == 3


@pytest.mark.parametrize("stage", [Stage.FLOAT, Stage.QUANTIZED, Stage.INTEGER])
@pytest.mark.parametrize("batch", [1, 5])
def test_networks_run_at_every_stage_and_batch(stage: Stage, batch: int) -> None:
    module = conv_net(stage)
    x = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def check(value: Value, tensor: Tensor) -> None:
        expected = [size if isinstance(size, int) else batch for size in value.type.shape]
        assert list(tensor.shape) == expected
        assert tensor.dtype == value.type.dtype.torch

    (logits,) = outputs_of(module.main, [x], check)
    (reference,) = outputs_of(conv_net(Stage.FLOAT).main, [x])
    # 8 bits on a network of three layers; what is shown is that the stages compute the same model.
    assert float((logits - reference).norm() / reference.norm()) < 0.1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "0 inputs were given; expected 1"),
        ([torch.zeros(2, 4, dtype=torch.float64)], "input 'x' has element type torch.float64; expected f32"),
        ([torch.zeros(2, 5)], "dimension 1 is 5, not 4"),
        ([torch.zeros(4)], "1 dimensions, not 2"),
        ([torch.zeros(65, 4)], "the size N is 65; expected between 1 and 64"),
        ([torch.zeros(0, 4)], "the size N is 0"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: list[Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        outputs_of(small().main, inputs)


def test_a_symbol_is_found_in_whichever_input_comes_first() -> None:
    text = """graph @main stage=float {
      input %pairs : f32[2*N + 1]
      input %x : f32[N]
      bound N 1 8
      return %x
    }"""
    graph = parse_module(text).main
    assert check_inputs(graph, [torch.zeros(7), torch.zeros(3)]) == {"N": 3}
    with pytest.raises(InputError, match=r"dimension 0 is 6, which 2\*N \+ 1 never is"):
        check_inputs(graph, [torch.zeros(6), torch.zeros(3)])
    with pytest.raises(InputError, match=r"input 'x'.*dimension 0 is 4, not 3"):
        check_inputs(graph, [torch.zeros(7), torch.zeros(4)])
    with pytest.raises(InputError, match="the size N is 0"):
        check_inputs(graph, [torch.zeros(1), torch.zeros(0)])


NORM = """graph @main stage=float {
  input %x : f32[N, 3, 5]
  bound N 1 64
  %weight = parameter() {ref = "weight", dtype = "f32", shape = (3,)} : f32[3]
  %bias = parameter() {ref = "bias", dtype = "f32", shape = (3,)} : f32[3]
  %mean = KIND() {ref = "running_mean", dtype = "f32", shape = (3,)} : f32[3]
  %variance = state() {ref = "running_var", dtype = "f32", shape = (3,)} : f32[3]
  %y = batch_norm(%x, %weight, %bias, %mean, %variance) {training = true, momentum = 0.2} : f32[N, 3, 5]
  %z = add(%y, %y) : f32[N, 3, 5]
  return %z
}"""


def test_a_step_is_a_function_of_inputs_tensors_and_state() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3, momentum=0.2)
    tensors = {name: tensor.detach().clone() for name, tensor in norm.state_dict().items() if tensor.dim()}
    graph = parse_module(NORM.replace("KIND", "state"), tensors).main
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    state: dict[str, Tensor] = {}
    for _ in range(3):
        x = torch.randn(7, 3, 5) + 1.0
        given = dict(state)
        (found,), state = interpret(graph, [x], tensors, state=given)
        with torch.no_grad():
            expected = norm(x)
        assert torch.equal(found, expected + expected)
        assert set(state) == {"running_mean", "running_var"}
        for name, tensor in state.items():
            assert torch.equal(tensor, norm.state_dict()[name])
            assert name not in given or not torch.equal(given[name], tensor), "the given state is not written"
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())


def test_state_without_an_update_stays_and_is_read() -> None:
    module = conv_net(Stage.FLOAT)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    name, tensor = next(iter(module.tensors.items()))
    (expected,), _ = interpret(module.main, [x], {**module.tensors, name: tensor * 2})
    (found,), state = interpret(module.main, [x], module.tensors, state={name: tensor * 2})
    assert torch.equal(found, expected)
    assert list(state) == [name]


def test_only_states_are_updated() -> None:
    graph = parse_module(NORM.replace("KIND", "constant"), dict.fromkeys(("weight", "bias"), torch.ones(3))).main
    tensors = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), torch.ones(3))
    with pytest.raises(GraphError, match=r"batch_norm updates its operand %mean .at %y.*expected a state"):
        interpret(graph, [torch.ones(2, 3, 5)], tensors)

"""The module of a compiled model: tensors keep their names, and the graph is never written."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import qcompiler
from qcompiler.ir.hashing import module_hash
from qcompiler.ir.interpret import interpret
from tests.training.networks import INPUTS, small


@pytest.fixture(scope="module")
def compiled() -> qcompiler.Compiled:
    return qcompiler.compile(small(), calibration_data=[INPUTS], verify="off")


def result(module: nn.Module, x: Tensor = INPUTS) -> Tensor:
    found = module(x)
    assert isinstance(found, Tensor)
    return found


def test_train_mode_computes_what_the_interpreter_does(compiled: qcompiler.Compiled) -> None:
    module = compiled.module().train()
    (expected,), state = interpret(compiled.quantized.main, [INPUTS], compiled.quantized.tensors)
    assert torch.equal(result(module), expected)
    assert not state, "batch norms are folded"


def test_the_state_dict_holds_the_tensors_of_the_graph_alone(compiled: qcompiler.Compiled) -> None:
    module = compiled.module()
    # A path through another tensor gets an underscore.
    assert {name.replace("_.", ".") for name in module.state_dict()} == set(compiled.quantized.tensors)
    leaves = [node for node in compiled.quantized.main.nodes if node.op == "parameter" and node.output.users]
    parameters = {node.text("ref") for node in leaves}
    assert {name.replace("_.", ".") for name, _ in module.named_parameters()} == parameters
    assert isinstance(module, qcompiler.QATModule)


def test_the_compiled_graph_is_not_written(compiled: qcompiler.Compiled) -> None:
    before = module_hash(compiled.quantized)
    module = compiled.module().train()
    weights = [parameter for name, parameter in module.named_parameters() if name.endswith("weight")]
    optimizer = torch.optim.SGD(weights, lr=1e-3)
    result(module).square().sum().backward()
    optimizer.step()
    module.step()
    found = result(module.eval())
    assert not torch.equal(found, compiled.run(INPUTS))  # type: ignore[arg-type]
    assert module_hash(compiled.quantized) == before
    assert torch.equal(compiled.simulate(INPUTS), compiled.run(INPUTS))  # type: ignore[arg-type]


def test_a_block_in_float_leaves_the_attribute_and_ends(compiled: qcompiler.Compiled) -> None:
    module = compiled.module()
    exact, real = result(module), module.fake_quantized(INPUTS)
    assert isinstance(real, Tensor) and not torch.equal(exact, real)
    with module.in_float(), module.in_float():
        assert module.exact and torch.equal(result(module), real)
    assert torch.equal(result(module), exact)
    with pytest.raises(KeyError), module.in_float():
        raise KeyError
    assert torch.equal(result(module), exact)


def test_scales_stay_above_zero_with_any_learning_rate(compiled: qcompiler.Compiled) -> None:
    module = compiled.module().train()
    scales = {name: item for name, item in module.named_parameters() if name.endswith("scale")}
    before = {name: item.detach().clone() for name, item in scales.items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=10.0, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        result(module).square().sum().backward()
        optimizer.step()
        module.step()
    assert scales and not any(item.requires_grad for item in scales.values())
    assert all(torch.equal(item, before[name]) for name, item in scales.items())
    assert bool(result(module.eval()).isfinite().all())


def test_copies_and_pickles_compute_the_same(compiled: qcompiler.Compiled) -> None:
    module = compiled.module()
    with torch.no_grad():
        next(module.parameters()).mul_(0.5)
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):  # noqa: S301  # of our own making
        assert torch.equal(result(other), result(module))
        assert torch.equal(result(other.train()), result(copy.deepcopy(module).train()))


@pytest.mark.parametrize("training", [False, True])
def test_a_forward_is_a_function_of_its_tensors(compiled: qcompiler.Compiled, training: bool) -> None:
    module, other = compiled.module().train(training), compiled.module().train(training)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    before = result(module)
    found = functional_call(module, dict(other.state_dict()), (INPUTS,))
    assert isinstance(found, Tensor)
    assert torch.equal(found, result(other))
    assert torch.equal(result(module), before)


class Named(nn.Module):
    """Submodules with names of attributes of the module that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.steps, self.target = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)
        self.exact, self.recipe, self.step = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.weights, self.steps, self.target, self.exact, self.recipe, self.step):
            x = torch.relu(layer(x))
        return x


def test_a_model_may_use_the_names_of_the_module() -> None:
    model = Named().eval()
    compiled = qcompiler.compile(model, calibration_data=[INPUTS], verify="off")
    module = compiled.module()
    assert torch.equal(result(module), compiled.run(INPUTS))  # type: ignore[arg-type]
    learning = qcompiler.prepare_qat(model, calibration_data=[INPUTS])
    assert {"weights_.weight", "steps_.weight", "target_.bias"} <= set(learning.state_dict())
    result(learning).sum().backward()
    learning.step()
    assert int(learning.steps) == 1

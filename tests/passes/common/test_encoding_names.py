"""Names of encodings: what they stand for in a graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qcompiler.frontends import capture
from qcompiler.ir.graph import Graph
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.common.encoding_names import Names, Role
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.partition import Partition
from qcompiler.session.pipeline import structural_passes
from qcompiler.targets import load_target


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 1)
        self.conv2 = nn.Conv2d(4, 4, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.conv2(self.act(self.conv1(x))) + x)
        return y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(Block(), Block())
        self.gate = nn.Linear(4, 4, bias=False)
        self.gate2 = nn.Linear(4, 4, bias=False)
        self.gate2.weight = self.gate.weight

    def forward(self, image: Tensor) -> Tensor:
        x = self.layer1(image)
        x = torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        y: Tensor = torch.tanh(self.gate(x)) * torch.sigmoid(self.gate2(x))
        return y


@pytest.fixture(scope="module")
def graph() -> Graph:
    module = capture(Net().eval(), (torch.randn(2, 4, 5, 5),)).module
    context = PassContext(load_target("int8_dsp"))
    PassManager([*structural_passes()[0], Partition(), InsertQuantizers()]).run(module, context)
    return module.main


FOUND = {
    "image": ["image.q"],
    "image.q": ["image.q"],
    "layer1.0.conv1.weight": ["layer1.0.conv1.weight.q"],
    "layer1.0.conv1.weight.q.codes": ["layer1.0.conv1.weight.q"],
    "gate.weight": ["gate.weight.q", "gate2.weight.q"],
    "/layer1/layer1.0/act/Relu_output_0": ["layer1.0.act.q"],
    "/layer1/layer1.0/act/Relu_1_output_0": ["layer1.0.act_1.q"],
    "/layer1.1/act/Relu_1_output_0": ["layer1.1.act_1.q"],
    "/gate/Gemm_output_0": ["gate.q"],
    "/gate/MatMul_output_0": ["gate.q"],
    "/GlobalAveragePool_output_0": ["adaptive_avg_pool2d_1.q"],
    "/Tanh_output_0": ["tanh.q"],
    "/Mul_output_0": ["mul.q"],
}


@pytest.mark.parametrize("name", FOUND)
def test_a_name_of_the_model_or_of_its_export_finds_its_quantizer(name: str, graph: Graph) -> None:
    names = Names(graph, [name])
    assert [place.node.name for place in names.find(name)] == FOUND[name]
    assert all(place.role in (Role.ACTIVATION, Role.PARAMETER) for place in names.find(name))


def test_a_bias_is_that_of_its_layer(graph: Graph) -> None:
    names = Names(graph, [])
    for name in ("layer1.0.conv1.bias", "layer1.0.act.q.bias.codes"):
        (place,) = names.find(name)
        assert (place.role, place.node.name) == (Role.BIAS, "layer1.0.conv1")


def test_what_is_moved_has_a_place_and_one_behind_it(graph: Graph) -> None:
    names = Names(graph, [])
    mover = next(node for node in graph.nodes if node.op == "reshape")
    assert [place.role for place in names.find(mover.name)] == [Role.MOVED]
    assert [place.role for place in names.find(f"{mover.name}.q")] == [Role.AFTER]
    assert names.find("/Flatten_output_0") == names.find(mover.name)


UNKNOWN = {
    "layer1.0.act": "it runs several times: use layer1.0.act.q or layer1.0.act_1.q",
    "layer1.0.conv1": "its result has no quantizer: it is fused with layer1.0.act",
    "/layer1/layer1.0/act/Relu_2_output_0": "operators of that type are layer1.0.act",
    "/Softmax_output_0": "there is no operator of that type",
    "layer1.0.conv1.wieght": "did you mean layer1.0.conv1.weight",
    "495": "the outputs are mul.q",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_of_nothing_is_explained(name: str, graph: Graph) -> None:
    names = Names(graph, [name])
    assert names.find(name) == []
    assert names.explain(name).startswith(UNKNOWN[name])

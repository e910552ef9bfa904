"""Both tracers give one graph; every node has its place in the source; the model does not change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from examples.digits.model import DigitsNet
from qcompiler.errors import UnsupportedError
from qcompiler.frontends import capture
from qcompiler.frontends.torch_module import TorchModule
from qcompiler.ir import tree
from qcompiler.ir.graph import Module
from qcompiler.ir.hashing import module_hash
from qcompiler.ir.text import print_module
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from qcompiler.passes.fold_constants import FoldConstants
from tests.support.running import outputs_of


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def canonical(module: Module) -> Module:
    PassManager([Canonicalize(), FoldConstants(), EliminateDeadCode()]).run(module, PassContext())
    return module


def exported(model: nn.Module, *inputs: Tensor, dynamic: bool = True) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=65536)
    shapes = tuple({0: batch} for _ in inputs) if dynamic else None
    return torch.export.export(model, inputs, dynamic_shapes=shapes)


class Functional(nn.Module):
    """The same operators spelled as functions, methods and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding="same")
        self.gain = nn.Buffer(torch.linspace(0.5, 2.0, 8).reshape(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self.conv(x))
        z = torch.relu(y) + y.relu() - y.clone().relu_()
        z = functional.max_pool2d(z * self.gain, 2) + functional.avg_pool2d(z.mul(0.5), (2, 2))
        z = torch.cat((z, z.sigmoid().neg()), dim=1)[:, 2:12]
        z += functional.hardtanh(z, -0.5, 0.5)
        z = functional.adaptive_avg_pool2d(z, 1) / 3
        return functional.linear(torch.flatten(z, 1), self.conv.weight[:, :, 0, 0].reshape(-1)[:20].view(2, 10))


class Spelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 1)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shared(self.norm(x))
        y = self.shared(nn.functional.silu(y)).permute(0, 2, 3, 1).contiguous()
        y = self.drop(y.transpose(1, 3)).mean(dim=(2, 3), keepdim=True)
        y = y.squeeze(-1).squeeze(-1).view(x.size(0), -1)
        return y.unsqueeze(1).flatten(1)


class Sizes(nn.Module):
    """Images of other sizes, in each spelling."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            functional.interpolate(x, (11, 4)),
            functional.interpolate(x, size=(11, 13), mode="bilinear"),
            functional.interpolate(x, x.shape[-2:] * 1, mode="bilinear", align_corners=True) + 1,
            functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True),
            functional.interpolate(x, scale_factor=(0.5, 3), mode="nearest"),
            functional.adaptive_avg_pool2d(x, (None, 4)),
        )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "digits": (DigitsNet, (2, 1, 8, 8)),
    "resnet18": (torchvision.models.resnet18, (2, 3, 32, 32)),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, (2, 3, 32, 32)),
    "functional": (Functional, (2, 3, 8, 8)),
    "spelled": (Spelled, (2, 4, 6, 6)),
    "sizes": (Sizes, (2, 3, 6, 6)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_both_tracers_give_one_canonical_graph(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make().eval(), images(*shape)
    by_fx, by_export = capture(model, x), capture(exported(model, x), x)
    assert (by_fx.route, by_export.route) == ("fx", "given")
    first, second = canonical(by_fx.module), canonical(by_export.module)
    assert print_module(first, locations=False) == print_module(second, locations=False)
    assert module_hash(first) == module_hash(second)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_computes_what_the_model_does(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(1)
    model = make().eval()
    module = capture(model, images(*shape)).module
    x = images(7, *shape[1:])
    with torch.no_grad():
        expected, _ = tree.flatten(model(x))
    # Sums over axes run in the order of the strides, which a graph without views may have otherwise.
    torch.testing.assert_close(outputs_of(module.main, [x]), expected, rtol=1e-5, atol=1e-6)


def test_every_node_knows_module_and_line() -> None:
    model = torchvision.models.resnet18().eval()
    graph = capture(model, images(2, 3, 32, 32)).module.main
    places = {node.name: node.location for node in graph.nodes}
    assert places["layer1.0.conv1"].path == "layer1.0.conv1"
    assert places["layer1.0.conv1"].source.startswith("torchvision.models.resnet:BasicBlock.forward:")
    assert all(node.location.source for node in graph.nodes)
    assert not any("/" in node.location.source for node in graph.nodes)


class Nested(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor], options: dict[str, Tensor], scale: float = 2.0) -> dict[str, object]:
        a, b = pair
        return {"sum": a + b * scale, "rest": [options["mask"] * a, (b, None)]}


def test_nested_inputs_and_outputs_keep_their_form() -> None:
    a, b, mask = images(2, 3), images(2, 3) + 1, images(2, 3) - 1
    graph = capture(Nested().eval(), ((a, b), {"mask": mask})).module.main
    leaves = outputs_of(graph, tree.match(graph.input_tree, ((a, b), {"mask": mask})))
    result = tree.unflatten(graph.output_tree, leaves)
    expected = Nested()((a, b), {"mask": mask})
    assert torch.equal(result["sum"], expected["sum"])  # type: ignore[index]
    assert torch.equal(result["rest"][0], expected["rest"][0])  # type: ignore[index]
    assert result["rest"][1][1] is None  # type: ignore[index]


def test_arguments_by_name() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, *, y: Tensor) -> Tensor:
            return x - y

    graph = capture(Two().eval(), {"y": images(2, 3), "x": images(2, 3) * 2}).module.main
    assert graph.input_names == ["x", "y"]


def test_the_model_and_torch_stay_as_they_were() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    threads, grad, dtype = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
    capture(model, images(2, 3, 8, 8))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()) == (threads, grad, dtype)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_graph_does_not_share_the_models_tensors() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    module = capture(model, images(2, 3)).module
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[operator]
    assert module.tensors["0.weight"].abs().sum() > 0


def test_a_refusal_keeps_the_failure_of_the_next_graph_as_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def graphs(*_: object) -> list[Callable[[], object]]:
        return [partial(_raised, UnsupportedError("no such operator")), partial(_raised, ValueError("not traced"))]

    monkeypatch.setattr(TorchModule, "graphs", graphs)
    with pytest.raises(UnsupportedError, match="no such operator") as caught:
        capture(nn.ReLU().eval(), (torch.randn(2, 3),))
    assert str(caught.value.__cause__) == "not traced"


def _raised(error: Exception) -> object:
    raise error

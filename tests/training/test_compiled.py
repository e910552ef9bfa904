"""torch.compile of modules that learn: one graph, the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.session.source import prepared
from qcompiler.training.batch_norm import Style

INPUTS = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def tiny() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.Dropout(0.0), nn.Flatten(), nn.Linear(64, 3)
        )
        model.train()(INPUTS)
    return model.eval()


def gradients(module: nn.Module, run: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    module.zero_grad()
    result: Tensor = run(INPUTS)
    result.square().sum().backward()
    return result.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


# Warnings of torch's own compiler about itself are not ours to mend.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("backend", "target", "style", "method"),
    [
        pytest.param("inductor", "int8_dsp", "fold", "lsq", marks=pytest.mark.slow),
        ("aot_eager", "int8_dsp_per_channel", "keep", "lsq+"),
        pytest.param("aot_eager", "int8_dsp_per_channel", "double", "min_max", marks=pytest.mark.slow),
        pytest.param("aot_eager", "ort_cpu", "fold", "ewgs", marks=pytest.mark.slow),
    ],
)
def test_one_graph_gives_the_same_results_and_gradients(backend: str, target: str, style: Style, method: str) -> None:
    torch._dynamo.reset()
    module = qcompiler.prepare_qat(tiny(), target, calibration_data=[INPUTS], batch_norm=style, method=method)
    other = copy.deepcopy(module)
    compiled = torch.compile(other, fullgraph=True, backend=backend)
    assert isinstance(compiled, nn.Module)
    (eager, expected), (found, own) = gradients(module, module), gradients(other, compiled)
    step = float(module.get_submodule("5.quantizer").deployed(INPUTS)[0])  # type: ignore[operator]
    # Kernels that are fused round once less here and there: a code on a tie may be the next one.
    assert float((eager - found).abs().max()) <= 1.01 * step
    assert list(expected) == list(own)
    for name, gradient in expected.items():
        bound = 0.02 * float(gradient.abs().max()) + 1e-6
        assert float((gradient - own[name]).abs().max()) <= bound, name
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(other.get_buffer(name), buffer, rtol=1e-5, atol=1e-5)
    # Kernels that are not those of torch.compile compute on codes: a break in the graph, which fullgraph= forbids.
    compiled = torch.compile(other.eval(), backend=backend)
    exact = qcompiler.compile(other).run(INPUTS)
    assert isinstance(exact, Tensor)
    assert torch.equal(compiled(INPUTS), exact), "eval mode is exact with torch.compile, too"
    assert prepared(compiled) is other

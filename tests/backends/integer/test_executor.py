"""The executor against the integer graph: every tensor, every element, both layouts."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from qcompiler.backends.integer import Executor, emit
from qcompiler.errors import ArtifactError, InputError, UnsupportedError
from qcompiler.ir.graph import Module
from qcompiler.program.files import ProgramFiles
from tests.passes.test_default_pipeline import capture, compiled
from tests.support.running import outputs_of


class Mixed(nn.Module):
    """One of each operator that the three networks lack."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=1)
        self.b = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)
        self.pool = nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False)
        self.act = nn.SiLU()
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(self.a(x))
        b = torch.sigmoid(self.b(a))
        c = self.pool(torch.cat([a * b, self.act(a)], 1))
        d = nn.functional.pad(nn.functional.max_pool2d(c, 3, 2, 1, ceil_mode=True), (1, 0, 2, 1), value=0.5)
        return self.head(d.permute(0, 2, 3, 1).mean((1, 2)))  # type: ignore[no-any-return]


def build(network: str, target: str) -> Module:
    torch.manual_seed(0)
    if network == "mixed":
        x = torch.randn(4, 3, 33, 29)
        return compiled(Mixed(), x, target, [[x]])
    # All layers of a MobileNetV2, with a tenth of its weights.
    model = getattr(torchvision.models, network)(**({"width_mult": 0.35} if network == "mobilenet_v2" else {}))
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 64, 64))
    x = torch.randn(4, 3, 32, 32)
    return compiled(model, x, target, [[x]])


shared = functools.lru_cache(maxsize=4)(build)
"""`build` once for tests that only look."""


def differences(module: Module, files: ProgramFiles, inputs: torch.Tensor) -> dict[str, int]:
    """Differing elements by tensor name."""
    graph_tensors: dict[str, torch.Tensor] = {}
    outputs_of(module.main, [inputs], lambda value, tensor: graph_tensors.update({value.name: tensor}))
    found: dict[str, int] = {}

    def observe(name: str, array: np.ndarray) -> None:
        expected = graph_tensors[name].numpy()
        assert expected.shape == array.shape
        found[name] = int((expected != array).sum())

    Executor(files).run([inputs.numpy()], observe)
    return found


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("target", ["int8_dsp", "int8_dsp_per_channel", "ort_cpu"])
def test_executor_equals_graph_on_every_tensor_of_a_mixed_network(target: str, layout: Literal["NHWC", "NCHW"]) -> None:
    module = shared("mixed", target)
    files = emit(module.main, layout, "OHWI" if layout == "NHWC" else "OIHW")
    for batch in (1, 7):
        counts = differences(module, files, torch.randn(batch, 3, 33, 29))
        assert len(counts) >= 14
        assert not any(counts.values()), {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v2"])
def test_executor_equals_graph_on_real_networks(network: str) -> None:
    module = shared(network, "int8_dsp")
    files = emit(module.main)
    for batch in (1, 7):
        counts = differences(module, files, torch.randn(batch, 3, 32, 32))
        assert not any(counts.values()), {name: count for name, count in counts.items() if count}


def test_a_changed_weight_changes_the_result() -> None:
    module = shared("mixed", "int8_dsp")
    files = emit(module.main)
    name = next(i.inputs[1] for i in files.program.instructions if i.op == "int_conv2d")
    changed = {**files.constants, name: files.constants[name].astype(np.int8) ^ 1}
    counts = differences(module, ProgramFiles(files.program, changed), torch.randn(2, 3, 33, 29))
    assert any(counts.values())


def test_files_round_trip_and_are_the_same_bytes_twice() -> None:
    first, second = (emit(build("mixed", "int8_dsp").main) for _ in range(2))
    assert first.program_json() == second.program_json()
    assert first.weights() == second.weights()
    loaded = ProgramFiles.parse(first.program_json(), first.weights())
    x = np.random.default_rng(0).standard_normal((2, 3, 33, 29)).astype(np.float32)
    assert np.array_equal(Executor(loaded).run([x])[0], Executor(first).run([x])[0])


def test_bad_files_and_inputs_are_refused() -> None:
    files = emit(shared("mixed", "int8_dsp").main)
    with pytest.raises(ArtifactError, match=r"program\.json, schema"):
        ProgramFiles.parse(files.program_json().replace("qcompiler.program/2", "qcompiler.program/9"), files.weights())
    with pytest.raises(ArtifactError, match="cannot be read"):
        ProgramFiles.parse(files.program_json(), files.weights()[:20])
    with pytest.raises(ArtifactError, match="is missing"):
        ProgramFiles(files.program, {})
    with pytest.raises(InputError, match="shape"):
        Executor(files).run([np.zeros((1, 3, 32, 29), np.float32)])
    with pytest.raises(InputError, match="element type"):
        Executor(files).run([np.zeros((1, 3, 33, 29), np.float64)])
    with pytest.raises(UnsupportedError, match="stage float"):
        emit(capture(nn.Linear(2, 2), torch.zeros(1, 2)).main)

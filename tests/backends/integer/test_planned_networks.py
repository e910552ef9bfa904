"""Plans of real networks: as small as the bytes that are alive at once, and the same codes in one array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

import qcompiler
from benchmarks.networks import NETWORKS, TWINS, load
from examples.digits.model import load_digits_net
from qcompiler.backends.integer import Executor, emit
from qcompiler.backends.integer.memory import plan, plan_program
from qcompiler.frontends import capture
from qcompiler.passes.base import PassContext
from qcompiler.passes.manager import PassManager
from qcompiler.program.files import ProgramFiles
from qcompiler.session.pipeline import default_pipeline
from qcompiler.targets import load_target
from qcompiler.verification.forms import Forms, verify

Layout = Literal["NHWC", "NCHW"]
ALLOWED = 1.02
"""Bytes of the array over the bytes that are alive at once."""


def compiled(model: nn.Module, x: Tensor, layout: Layout = "NHWC", target: str = "int8_dsp") -> ProgramFiles:
    """The program, without the checks between the passes: their numbers are not what is looked at here."""
    module = capture(model.eval(), x).module
    PassManager(default_pipeline()).run(module, PassContext(load_target(target), samples=[], calibration_data=[[x]]))
    return emit(module.main, layout, "OHWI" if layout == "NHWC" else "OIHW")


def check(files: ProgramFiles) -> int:
    """Bytes of the array of a program; close to the bound and with nothing that is not needed."""
    memory = files.program.memory
    assert memory is not None
    assert memory.lower_bound <= memory.bytes <= ALLOWED * memory.lower_bound
    assert plan(files.program) == memory
    assert plan_program(files.program) == files.program, "the order is already the best"
    return memory.bytes


def check_codes(files: ProgramFiles, x: Tensor) -> None:
    """Every tensor is the same in one array."""
    expected: dict[str, np.ndarray[Any, Any]] = {}
    found: dict[str, np.ndarray[Any, Any]] = {}
    outputs = Executor(files).run([x.numpy()], expected.__setitem__)
    planned = Executor(files, files.program.memory).run([x.numpy()], found.__setitem__)
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    assert all(np.array_equal(a, b) for a, b in zip(outputs, planned, strict=True))


SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int, int]] = {
    "digits": (load_digits_net, (1, 8, 8), 5120, 5120),
    "mobilenet": (lambda: load("mobilenet"), (3, 32, 32), 21504, 21504),
    "mobilenet_relu": (lambda: load("mobilenet_relu"), (3, 32, 32), 21504, 21504),
    "mobilenet_hard": (lambda: load("mobilenet_hard"), (3, 32, 32), 21504, 21504),
    "resnet": (lambda: load("resnet"), (3, 32, 32), 12288, 12288),
    "resnet_hard": (lambda: load("resnet_hard"), (3, 32, 32), 12288, 12288),
    "efficientnet": (lambda: load("efficientnet"), (3, 32, 32), 21504, 21504),
    "mobilenet_v3": (lambda: load("mobilenet_v3"), (3, 32, 32), 21504, 21504),
    "unet": (lambda: load("unet"), (3, 32, 32), 49152, 32768),
}
"""Network, shape of an image, and bytes: in NHWC, and in NCHW, where operands of concat need not be copied."""


# Twins have the shapes of the network that they are made of.
SAME_SHAPES = ("mobilenet_relu", "mobilenet_hard", "resnet_hard")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SAME_SHAPES else []) for name in SMALL]
)
def test_small_networks_in_one_array(name: str) -> None:
    make, shape, *expected = SMALL[name]
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    layouts: tuple[Layout, ...] = ("NHWC", "NCHW")
    for layout, size in zip(layouts, expected, strict=True):
        files = compiled(make(), x, layout)
        assert check(files) == size
        check_codes(files, x)


def test_all_networks_of_the_benchmarks_are_here() -> None:
    assert set(SMALL) == {"digits", *NETWORKS, *TWINS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenet_v2", 1_505_280),  # 96 channels of 112 x 112, and what the depthwise layer makes of them
        ("resnet18", 1_003_520),  # 64 channels of 112 x 112, and of 56 x 56 after the pooling
        ("resnet50", 1_806_336),  # 256 channels of 56 x 56 twice, and 64 channels
        ("densenet121", 2_107_392),
        ("inception_v3", None),
        ("efficientnet_b0", 1_505_280),
        ("googlenet", 1_003_520),
        ("shufflenet_v2_x0_5", 451_584),
    ],
)
def test_networks_of_torchvision_in_one_array(name: str, size: int | None) -> None:
    torch.manual_seed(0)
    extra = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    model = getattr(torchvision.models, name)(**extra)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        model.train()(x)  # settles the statistics of the batch norms
    files = compiled(model, x[:1])
    found = check(files)
    assert size is None or found == size


class Attention(nn.Module):
    """Real numbers in the middle: an island of several results reads and writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.stem(x)).flatten(2).transpose(1, 2)
        z = y + self.attention(y, y, y, need_weights=False)[0]
        windows = z.reshape(-1, 6, 8)  # [6 N, 6, 8]: a size that is a multiple of the batch
        best, where = (part[:, :3] for part in torch.sort(windows.mean(1).reshape(-1, 48), descending=True))
        return self.head(z.mean(1)) + best.sum(1, keepdim=True), where


def test_islands_and_what_they_read_and_write_have_places() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6)
    target = qcompiler.load_target("int8_dsp").override(fallback="float")
    result = qcompiler.compile(Attention().eval(), target, calibration_data=[x])
    files = result.artifact.program
    program, memory = files.program, files.program.memory
    assert memory is not None
    calls = [item for item in program.instructions if item.op == "call"]
    assert any(len(item.outputs) > 1 for item in calls)
    written = [name for item in calls for name in item.outputs if name not in program.outputs]
    assert {*written, *(name for item in calls for name in item.inputs)} <= {*memory.offsets, *program.constants}
    assert any(program.tensors[name].dtype == "f32" for name in memory.offsets)
    assert memory.alignment % 8 == 0, "indices are integers of eight bytes"
    check_codes(files, x[:1])
    assert "integer program" in {form.name for form in result.verify().forms if form.status == "equal"}


def test_verification_finds_a_plan_that_destroys_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    module = capture(load_digits_net().eval(), x).module
    target = load_target("int8_dsp")
    passes = default_pipeline()
    PassManager(passes[:-1]).run(module, PassContext(target, samples=[], calibration_data=[[x]]))
    quantized = module.clone()
    PassManager(passes[-1:], facts=["ties", "requantization-fused"]).run(module, PassContext(target, samples=[]))
    files = emit(module.main)
    memory = files.program.memory
    assert memory is not None
    forms = Forms(files, {}, quantized.main, module.main)
    assert verify(forms, [x], target).form("integer program").status == "equal"
    conv = next(item for item in files.program.instructions if item.op == "int_conv2d")
    offsets = {**memory.offsets, conv.output: memory.offsets[conv.inputs[0]]}
    broken = files.program.model_copy(
        update={"memory": memory.model_copy(update={"offsets": offsets, "bytes": 2 * memory.bytes})}
    )
    monkeypatch.setattr("qcompiler.program.files.check_memory", lambda program, memory: None)
    damaged = ProgramFiles(broken, files.constants)
    found = verify(Forms(damaged, {}, quantized.main, module.main), [x], target)
    assert not found.passed
    assert (found.form("integer program").status, found.form("integer program").first) == ("differs", conv.output)
    alone = verify(Forms(damaged), [x], target).form("integer program in one array")
    assert (alone.status, alone.first, alone.required) == ("differs", conv.output, True)

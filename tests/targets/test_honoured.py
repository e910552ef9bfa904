"""Every statement of a descriptor has an effect: on the integers, on the files, or as a refusal with its reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qcompiler
from qcompiler import frontends
from qcompiler.backends import onnx_qdq
from qcompiler.backends.integer import Executor, emit
from qcompiler.errors import ArtifactError, TargetError, UnsupportedError
from qcompiler.ir.graph import Module
from qcompiler.ir.types import DType
from qcompiler.passes.base import Override, PassContext
from qcompiler.passes.manager import PassManager
from qcompiler.program.files import ProgramFiles
from qcompiler.program.program import Program
from qcompiler.session.pipeline import default_pipeline
from qcompiler.targets import Target, load_target
from tests.support.running import outputs_of

HEAD = 'schema = "qcompiler.hw/1"\nextends = "int8_dsp"\n[target]\nname = "chip"\n'


def chip(folder: Path, text: str, base: str = "int8_dsp") -> Target:
    path = folder / "chip.toml"
    path.write_text(HEAD.replace("int8_dsp", base) + text, encoding="utf-8")
    return load_target(path)


def lowered(
    model: nn.Module, target: Target, x: Tensor, overrides: Mapping[str, Override] | None = None
) -> tuple[Module, Tensor]:
    """The integer graph and what it gives, after the executor has given the same."""
    module = frontends.capture(model.eval(), (x,)).module
    context = PassContext(target, calibration_data=[[x]], overrides=overrides or {})
    PassManager(default_pipeline("fast", per_channel=target.per_channel)).run(module, context)
    found = outputs_of(module.main, [x])[0]
    files = emit(module.main, "NHWC", "OHWI", packing=target.packing)
    again = ProgramFiles.parse(files.program_json(), files.weights())
    assert np.array_equal(Executor(again).run([x.numpy()])[0], found.numpy())
    return module, found


class Function(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[no-any-return,operator]  # a function of one tensor


def image(channels: int = 4, size: int = 9) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)) - 0.5


CONV = '[[op]]\nnames = ["conv2d"]\nkind = "mac"\n'
LIMITS: dict[str, tuple[str, nn.Module, str]] = {
    "a kernel": (CONV + "limits = { kernel = [1, 3] }\n", nn.Conv2d(4, 2, (3, 5)), "a kernel of 3 x 5, but only 1 to 3"),
    "a stride": (CONV + "limits = { stride = [1, 2] }\n", nn.Conv2d(4, 2, 3, 3), "a stride of 3 x 3, but only 1 to 2"),
    "a dilation": (CONV + "limits = { dilation = [1, 1] }\n", nn.Conv2d(4, 2, 3, dilation=2), "a dilation of 2 x 2"),
    "groups": (CONV + 'limits = { groups = "one" }\n', nn.Conv2d(4, 4, 3, groups=4), "4 groups of channels, but only one is"),
    "groups that are no channels": (
        CONV + 'limits = { groups = "one_or_depthwise" }\n',
        nn.Conv2d(4, 4, 3, groups=2),
        "2 groups of channels, but only one or depthwise is",
    ),
    "a long sum": (CONV + "limits = { terms = 35 }\n", nn.Conv2d(4, 2, 3), "sums of 36 products, but at most 35 are"),
    "a long mean": (
        '[[op]]\nnames = ["mean"]\nkind = "average"\nlimits = { terms = 80 }\n',
        Function(lambda x: x.mean((2, 3))),
        "sums of 81 products",
    ),
    "a window": (
        '[[op]]\nnames = ["max_pool2d"]\nkind = "movement"\nlimits = { kernel = [2, 2] }\n',
        nn.MaxPool2d(3),
        "a kernel of 3 x 3",
    ),
    "a row of a matrix": (
        '[[op]]\nnames = ["linear"]\nkind = "mac"\nlimits = { terms = 8 }\n',
        nn.Linear(9, 2),
        "sums of 9 products",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LIMITS)
def test_sizes_beyond_the_limits_are_refused_or_run_in_float(case: str, tmp_path: Path) -> None:
    text, layer, message = LIMITS[case]
    target = chip(tmp_path, text)
    with pytest.raises(UnsupportedError, match=f"the operator has {message}") as caught:
        lowered(layer, target, image())
    assert "raise the limits of the target" in str(caught.value)
    module, _ = lowered(nn.Sequential(nn.ReLU(), layer, nn.ReLU()), target.override(fallback="float"), image())
    assert any(node.op == "call" for node in module.main.nodes)


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        (CONV + "limits = { kernel = [1, 5], stride = [1, 1], dilation = [2, 2], terms = 60 }\n", nn.Conv2d(4, 2, (3, 5), dilation=2)),
        (CONV + 'limits = { groups = "one_or_depthwise", terms = 9 }\n', nn.Conv2d(4, 8, 3, groups=4)),
        ('[[op]]\nnames = ["conv_transpose2d"]\nkind = "mac"\nlimits = { terms = 16 }\n', nn.ConvTranspose2d(4, 3, 2, 2)),
    ],
)  # fmt: skip
def test_sizes_within_the_limits_are_not(text: str, layer: nn.Module, tmp_path: Path) -> None:
    lowered(layer, chip(tmp_path, text), image())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[[op]]\nnames = ["conv2q"]\nkind = "mac"\n',
            r"for 'conv2q', which is not a known operator .*Did you mean 'conv2d'",
        ),
        ('[[op]]\nnames = ["batch_norm"]\nkind = "mac"\n', "has a rule for batch_norm, which has no integer form"),
        (
            '[[op]]\nnames = ["layer_norm"]\nkind = "average"\n',
            "the kind of layer_norm is 'average' in chip.*normalization",
        ),
    ],
)
def test_rules_for_what_is_no_such_operator_are_refused_by_the_first_compile(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match=message):
        lowered(nn.Conv2d(4, 2, 3), chip(tmp_path, text), image())


def test_tables_that_are_too_long_or_too_many_are_refused(tmp_path: Path) -> None:
    x = image()
    short = chip(tmp_path, "[table]\nmax_entries = 256\n")
    lowered(nn.Tanh(), short, x)
    with pytest.raises(UnsupportedError, match=r"a table of 65536 entries .*at most 256 on chip"):
        lowered(nn.Tanh(), short.override(activation_bits=16), x)
    small = chip(tmp_path, "[table]\nmax_bytes = 255\n")
    with pytest.raises(UnsupportedError, match=r"tables of 256 bytes .*at most 255 on chip"):
        lowered(nn.Tanh(), small, x)


def test_pairs_that_are_not_multiplied_are_refused(tmp_path: Path) -> None:
    target = load_target("hexagon_htp")
    layers = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))
    module, _ = lowered(layers, target, image(), {"0": 16})
    modes = [node.attributes["mode"] for node in module.main.nodes if node.op == "int_conv2d"]
    assert modes == ["single", "tosa16"], "the second layer reads 16 bits"
    with pytest.raises(
        UnsupportedError, match=r"conv2d of 8-bit activations and 4-bit weights, but hexagon_htp supports"
    ):
        lowered(layers, target, image(), {"1": {"weight_bits": 4}})


def test_16_bit_activations_with_64_bit_biases() -> None:
    x = image() * 4
    layers = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(294, 5))
    module, found = lowered(layers, load_target("int16x8"), x)
    biases = [node.inputs[2].type.dtype for node in module.main.nodes if node.op in ("int_conv2d", "int_linear")]
    assert biases == [DType.I64, DType.I64]
    with torch.no_grad():
        expected = layers(x)
    assert float((found - expected).norm() / expected.norm()) < 0.02, "8-bit weights cause the loss"
    again = onnx_qdq.run(onnx_qdq.emit(module.main), [x.numpy()])[0]
    step = float(module.main.outputs[0].producer.inputs[0].type.quant.scale[0])  # type: ignore[union-attr]
    assert float(np.abs(again - found.numpy()).max()) <= 2.5 * step, "one step per layer, and its consequences"


def test_a_wide_bias_needs_no_larger_scale() -> None:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.copy_(torch.tensor([300.0, -300.0]))
    x = torch.rand(8, 4, generator=torch.Generator().manual_seed(0)) * 1e-3
    wide, _ = lowered(layer, load_target("int16x8"), x)
    linear = next(node for node in wide.main.nodes if node.op == "int_linear")
    assert int(wide.tensors[str(linear.inputs[2].producer.attributes["ref"])].abs().max()) > 2**31  # type: ignore[union-attr]


def test_a_multiplier_that_would_be_lost_gets_a_larger_scale_of_the_weight() -> None:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.copy_(torch.tensor([3e5, 2e5]))
    x = torch.rand(8, 4, generator=torch.Generator().manual_seed(0)) * 1e-3
    module, found = lowered(layer, load_target("int16x8"), x)
    linear = next(node for node in module.main.nodes if node.op == "int_linear")
    assert bool(module.tensors[str(linear.inputs[3].producer.attributes["ref"])].all())  # type: ignore[union-attr]
    torch.testing.assert_close(found, torch.tensor([[3e5, 2e5]]).expand(8, 2), rtol=0, atol=1.01 * 3e5 / 32767)


def test_accumulators_and_folded_zero_points(tmp_path: Path) -> None:
    x = torch.zeros(2, 300)
    x[1] = 1.0
    layer = nn.Linear(300, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0] * 150]))
    narrow = chip(tmp_path, "[accumulator]\nbits = 24\n")
    lowered(layer, narrow, x)  # the final sum is half of what it is on the way, at most
    saturating = chip(tmp_path, '[accumulator]\nbits = 23\noverflow = "saturate"\n')
    with pytest.raises(UnsupportedError, match=r"can reach 4857750 .*has 23 bits"):
        lowered(layer, saturating, x)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    folding = chip(tmp_path, '[accumulator]\nbits = 40\n[bias]\nbits = 23\nzero_point_folding = "compiler"\n')
    with pytest.raises(
        UnsupportedError, match=r"a bias is 4876800 including the zero point of the input.*23-bit biases"
    ):
        lowered(layer, folding, x)
    lowered(layer, chip(tmp_path, "[accumulator]\nbits = 40\n[bias]\nbits = 23\n"), x)


def test_multipliers_that_the_hardware_cannot_hold_are_refused(tmp_path: Path) -> None:
    target = chip(tmp_path, "[requantize]\nmax_left_shift = 0\n")
    x = image()
    # From a range of 1 to one of 0.1.
    with pytest.raises(UnsupportedError, match=r"needs a left shift of 4 bits, but the hardware shifts by at most 0"):
        lowered(nn.Sequential(nn.ReLU(), Function(lambda x: x.clamp(max=0.1))), target, x)
    with pytest.raises(
        UnsupportedError, match=r"needs a right shift of \d+ bits, but the hardware shifts by at most 0"
    ):
        lowered(nn.Conv2d(4, 2, 3), chip(tmp_path, "[requantize]\nmultiplier_bits = 4\nmax_right_shift = 0\n"), x)


@pytest.mark.parametrize(("bits", "least"), [(8, 25.0), (16, 40.0)])
def test_fewer_bits_of_a_multiplier_cost_accuracy(bits: int, least: float, tmp_path: Path) -> None:
    layer, x = nn.Conv2d(4, 8, 3), image()
    _, whole = lowered(layer, load_target("int8_dsp").override(activation_bits=16), x)
    target = chip(tmp_path, f"[requantize]\nmultiplier_bits = {bits}\n").override(activation_bits=16)
    module, found = lowered(layer, target, x)
    conv = next(node for node in module.main.nodes if node.op == "int_conv2d")
    multiplier = module.tensors[str(conv.inputs[3].producer.attributes["ref"])]  # type: ignore[union-attr]
    assert not bool((multiplier % 2 ** (32 - bits)).any())
    ratio = 20 * float(torch.log10(whole.norm() / (found - whole).norm()))
    assert least < ratio < 110.0


def test_results_of_islands_get_the_grid_that_the_target_fixes(tmp_path: Path) -> None:
    rule = '[[op]]\nnames = ["log_softmax"]\nkind = "float"\nout_fixed = { scale = 0.0625, zero_point = 127 }\n'
    target = chip(tmp_path, rule, "tflite_int8").override(fallback="float")
    model = nn.Sequential(nn.Flatten(), nn.Linear(324, 6), nn.LogSoftmax(1), nn.Linear(6, 3))
    module, _ = lowered(model, target, image())
    grids = [node.output.type.quant for node in module.main.nodes if node.op == "quantize"]
    assert [(grid.scale[0], grid.zero_point[0]) for grid in grids if grid is not None][-1] == (1 / 16, 127)
    sigmoid, _ = lowered(nn.Sequential(nn.Tanh(), nn.Sigmoid()), target, image())
    found = [node.output.type.quant for node in sigmoid.main.nodes if node.op == "lookup"]
    assert [(grid.scale[0], grid.zero_point[0]) for grid in found if grid is not None] == [
        (1 / 128, 0),
        (1 / 256, -128),
    ]


@given(data=st.data())
@settings(max_examples=60)
def test_packed_constants_come_back(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["i4", "u4"]))
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    low, high = (-8, 7) if dtype == "i4" else (0, 15)
    codes = np.random.default_rng(0).integers(low, high + 1, shape).astype(np.int8 if dtype == "i4" else np.uint8)
    packing = data.draw(st.sampled_from(["none", "low_nibble_first", "high_nibble_first"]))
    program = Program.model_validate(
        {
            "schema": "qcompiler.program/2", "layout": "NHWC", "packing": packing,
            "inputs": [], "outputs": ["w"], "instructions": [],
            "constants": {"w": {"role": "value", "order": tuple(range(len(shape)))}},
            "tensors": {"w": {"dtype": dtype, "shape": shape}},
        }
    )  # fmt: skip
    files = ProgramFiles(program, {"w": codes})
    again = ProgramFiles.parse(files.program_json(), files.weights())
    assert again.constants["w"].dtype == codes.dtype
    assert np.array_equal(again.constants["w"], codes)


def test_two_weights_lie_in_a_byte() -> None:
    from safetensors.numpy import load

    layer = nn.Conv2d(3, 4, 3)
    target = load_target("w4a8_npu")
    module = frontends.capture(layer.eval(), (image(3),)).module
    PassManager(default_pipeline("fast", per_channel=True)).run(
        module, PassContext(target, calibration_data=[[image(3)]])
    )
    files = emit(module.main, "NHWC", "OHWI", packing=target.packing)
    name = next(i for i in files.program.instructions if i.op == "int_conv2d").inputs[1]
    stored, codes = load(files.weights())[name], files.constants[name].reshape(-1)
    assert stored.dtype == np.uint8 and stored.size == codes.size // 2
    assert np.array_equal(stored & 0xF, codes[::2].view(np.uint8) & 0xF)
    assert np.array_equal(stored >> 4, codes[1::2].view(np.uint8) & 0xF)
    broken = files.program.model_copy(update={"tensors": {**files.program.tensors}})
    broken.tensors[name] = broken.tensors[name].model_copy(update={"shape": (4, 3, 3, 4)})
    with pytest.raises(ArtifactError, match="108 codes for 144 elements"):
        ProgramFiles.parse(ProgramFiles(broken, files.constants).program_json(), files.weights())


def test_the_flavour_of_an_onnx_file() -> None:
    x = image()
    module, found = lowered(nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU()), load_target("tensorrt"), x)
    options = onnx_qdq.OnnxOptions(activations="as_is", bias="float")
    content = onnx_qdq.emit(module.main, options)
    model = onnx.load_from_string(content)
    types = {item.data_type for item in model.graph.initializer}
    assert types == {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT}, "no uint8 and no int32"
    zeros = [onnx.numpy_helper.to_array(i) for i in model.graph.initializer if i.name.endswith("zero_point")]
    assert zeros and not any(zero.any() for zero in zeros)
    default = onnx.load_from_string(onnx_qdq.emit(module.main))
    assert {onnx.TensorProto.UINT8, onnx.TensorProto.INT32} <= {item.data_type for item in default.graph.initializer}
    step = float(module.main.outputs[0].producer.inputs[0].type.quant.scale[0])  # type: ignore[union-attr]
    for written in (content, onnx_qdq.emit(module.main)):
        assert float(np.abs(onnx_qdq.run(written, [x.numpy()])[0] - found.numpy()).max()) <= 1.01 * step


def test_the_artifact_of_a_named_target_comes_back(tmp_path: Path) -> None:
    target = load_target("w4a8_npu")
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AvgPool2d(2)).eval()
    compiled = qcompiler.compile(model, target, calibration_data=[image()], output=tmp_path / "out")
    again = qcompiler.load(tmp_path / "out")
    assert again.target == target
    found, expected = again.run(image()), compiled.run(image())
    assert isinstance(found, Tensor) and isinstance(expected, Tensor) and torch.equal(found, expected)
    program = json.loads((tmp_path / "out" / "program.json").read_text(encoding="utf-8"))
    assert program["packing"] == "low_nibble_first"
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "two per byte" in report and "source" in report


def test_the_report_says_what_is_not_known(tmp_path: Path) -> None:
    compiled = qcompiler.compile(
        nn.Conv2d(4, 2, 3).eval(), "nvdla", calibration_data=[image()], effort="fast", verify="off"
    )
    text = compiled.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "unknown" in text
    assert "requantize.multiplier_bits: depends on the operands according to the documents" in text

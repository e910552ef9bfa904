"""Files that are quantized already: their codes are those of ONNX Runtime, and our own file gives our own codes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import EncodingsError, InputError, UnsupportedError
from qcompiler.frontends.onnx.source import OnnxModel
from tests.frontends.onnx.files import graph_of, model_of

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Convolutions, a residual, a clamp, a sigmoid as a gate, a concat, an average and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Hardswish())
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image)
        x = x + self.second(x)
        y = nn.functional.max_pool2d(x, 2)
        both = torch.cat([y, y * torch.sigmoid(self.gate(y))], 1)
        scores: Tensor = self.head(both.mean((2, 3)))
        return scores


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as a file of real numbers."""
    torch.manual_seed(0)
    network = Network()
    with torch.no_grad():
        network(torch.randn(64, 3, 8, 8))
    found = tmp_path_factory.mktemp("onnx") / "network.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (X[:2],), found, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        )  # fmt: skip
    return found


def runtime(model: bytes | ModelProto, x: Any) -> npt.NDArray[np.float32]:
    """The first result in ONNX Runtime, without its optimizations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found: npt.NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: np.asarray(x)})[0]
    return found


def result(compiled: qcompiler.Compiled, x: Any) -> npt.NDArray[np.float32]:
    """The first result of a program."""
    found = compiled.run(x)
    first = next(iter(found.values())) if isinstance(found, dict) else found
    return np.asarray(first)


@pytest.mark.parametrize("target", ["int8_dsp", "ort_cpu", "int8_dsp_per_channel"])
def test_our_own_file_gives_the_same_codes(path: Path, target: str) -> None:
    first = qcompiler.compile(path, target, calibration_data=[X], verify="off", effort="fast")
    again = qcompiler.compile(first.artifact.files()["model.onnx"], target, verify="off")
    assert np.array_equal(result(first, X), result(again, X))
    told = {item.code for item in again.diagnostics}
    assert "encodings-set" in told
    assert not {"quantizers-added", "grids-lacking", "quantizers-lost"} & told


def test_one_limit_of_codes_is_a_number_on_each_grid() -> None:
    nodes: list[NodeProto] = []
    tensors: dict[str, npt.ArrayLike] = {"z": np.uint8(0), "ten": np.uint8(10)}
    tensors |= {"one": np.float32(0.1), "two": np.float32(0.2)}
    for scale in ("one", "two"):
        nodes += [
            helper.make_node("QuantizeLinear", ["x", scale, "z"], [f"{scale}.in"]),
            helper.make_node("Max", [f"{scale}.in", "ten"], [f"{scale}.limited"], name=f"limit_{scale}"),
            helper.make_node("DequantizeLinear", [f"{scale}.limited", scale, "z"], [f"{scale}.out"]),
        ]
    model = OnnxModel(small([*nodes, helper.make_node("Add", ["one.out", "two.out"], ["y"])], tensors))
    found = [float(tensor) for tensor in model.file.initializers.values() if not tensor.dim()]
    np.testing.assert_allclose(sorted(found), [1.0, 2.0], rtol=1e-6)


def test_limits_per_channel_are_read_back() -> None:
    """After equalization a ReLU6 is a clamp with limits per channel, written as Max and Min of codes."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 4, 1)]
    with torch.no_grad():
        convs[1].weight *= torch.logspace(-1.5, 1.5, 8).reshape(8, 1, 1, 1)
    model = nn.Sequential(convs[0], nn.ReLU6(), convs[1], nn.ReLU6(), convs[2]).eval()
    first = qcompiler.compile(model, calibration_data=[X], verify="off")
    file = onnx.load_model_from_string(first.artifact.files()["model.onnx"])
    assert {"Max", "Min"} <= {node.op_type for node in file.graph.node}
    again = qcompiler.compile(file, verify="off")
    assert np.array_equal(result(first, X), result(again, X))


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_codes_are_those_of_onnx_runtime(
    path: Path, tmp_path: Path, form: str, per_channel: bool, signed: bool
) -> None:
    quantized = quantized_by_onnx_runtime(path, tmp_path / "q.onnx", form, per_channel, signed)
    target = qcompiler.load_target("ort_cpu").override(per_channel=per_channel)
    compiled = qcompiler.compile(tmp_path / "q.onnx", target, calibration_data=[X])
    found, wanted = result(compiled, X), runtime(quantized, X)
    steps = np.abs(found - wanted) / smallest_step(wanted)
    assert steps.max() <= 1.01
    assert (steps > 0.5).mean() <= 0.05
    assert {"grids-lacking", "quantizers-lost"}.isdisjoint(item.code for item in compiled.diagnostics)


def quantized_by_onnx_runtime(source: Path, file: Path, form: str, per_channel: bool, signed: bool) -> bytes:
    """The file of `quantize_static`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([{"x": X.numpy()}])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    prepared = file.with_name("prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, file, Reader(), quant_format=QuantFormat[form], per_channel=per_channel,
        activation_type=QuantType.QInt8 if signed else QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return file.read_bytes()


def smallest_step(values: npt.NDArray[np.float32]) -> float:
    """The scale of quantized values, at most."""
    return float(np.diff(np.unique(values)).min())


# --- patterns -------------------------------------------------------------------------------------------------------

SCALES: dict[str, npt.ArrayLike] = {"xs": np.float32(0.02), "ws": np.float32(0.01), "ys": np.float32(0.03)}


def q(source: str, out: str, scale: str, zero: str, **options: Any) -> list[NodeProto]:
    """A pair of QuantizeLinear and DequantizeLinear."""
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [f"{out}.codes"], **options),
        helper.make_node("DequantizeLinear", [f"{out}.codes", scale, zero], [out], **options),
    ]


def layer(
    weight: npt.NDArray[Any],
    zero: npt.ArrayLike,
    *,
    scale: npt.ArrayLike = 0.01,
    after: Sequence[NodeProto] = (),
    tensors: Mapping[str, npt.ArrayLike] | None = None,
    axis: int = 0,
) -> ModelProto:
    """x ─► Q ─► DQ ─► Gemm(DQ(weight)) ─► h, then `after`, which ends in y; without it Q ─► DQ."""
    nodes = [
        *q("x", "xq", "xs", "xz"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis),
        helper.make_node("Gemm", ["xq", "wd"], ["h"], name="layer", transB=1),
        *(after or q("h", "y", "ys", "yz")),
    ]
    held: dict[str, npt.ArrayLike] = {
        **SCALES, "xz": np.uint8(120), "yz": np.uint8(130), "w": weight, "ws": np.asarray(scale, np.float32), "wz": zero,
        **(tensors or {}),
    }  # fmt: skip
    return model_of(graph_of(nodes, {"x": ["N", 6]}, ["y"], held))


def numbers(seed: int, low: int, high: int, shape: Sequence[int] = (5, 6)) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(low, high + 1, shape)


ROWS = torch.randn(64, 6, generator=torch.Generator().manual_seed(1)) * 1.5


def check(model: ModelProto, target: str = "int8_dsp", most: float = 0.01, **options: Any) -> qcompiler.Compiled:
    """Compile without data, and compare with ONNX Runtime: at most `most` of the elements are off, by one step."""
    compiled = qcompiler.compile(model, target, **options)
    found, wanted = result(compiled, ROWS), runtime(model, ROWS).astype(np.float32)
    off = np.abs(found - wanted) > 1e-5
    assert off.mean() <= most, (off.sum(), found[off][:4], wanted[off][:4])
    assert len(np.unique(wanted)) > 8, "a test that can fail"
    return compiled


def test_a_layer() -> None:
    check(layer(numbers(0, -127, 127).astype(np.int8), np.int8(0)))


def test_scales_per_channel() -> None:
    scales = np.linspace(0.004, 0.012, 5, dtype=np.float32)
    model = layer(numbers(0, -127, 127).astype(np.int8), np.zeros(5, np.int8), scale=scales)
    check(model, "int8_dsp_per_channel")
    with pytest.raises(EncodingsError, match=r"int8_dsp lacks 1 of the 3 grids.*'layer.weight' .5 scales, one per ch"):
        qcompiler.compile(model, "int8_dsp")
    compiled = qcompiler.compile(model, "int8_dsp", calibration_data=[ROWS], unmatched_encodings="ignore")
    assert "layer.weight" in next(str(item) for item in compiled.diagnostics if item.code == "grids-lacking")


def test_unsigned_weights_with_their_zero_point_in_the_middle() -> None:
    check(layer(numbers(0, 1, 255).astype(np.uint8), np.uint8(128)))


def test_asymmetric_weights_that_fit_are_exact() -> None:
    check(layer(numbers(0, 0, 150).astype(np.uint8), np.uint8(30)))


def test_asymmetric_weights_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"the weight 'wd' is asymmetric: .* -30 to \d+.*expected -128 to 127"):
        qcompiler.compile(layer(np.arange(0, 240, 8).reshape(5, 6).astype(np.uint8), np.uint8(30)))


def test_the_lowest_code_of_a_weight_is_told_where_the_target_lacks_it() -> None:
    weight = numbers(0, -127, 127).astype(np.int8)
    weight[0, 0] = -128
    compiled = qcompiler.compile(layer(weight, np.int8(0)), "int8_dsp")
    assert "lowest-weights" in {item.code for item in compiled.diagnostics}


def test_weights_as_real_numbers_before_their_quantizer() -> None:
    """The pattern of NNCF, Brevitas and exported training: the file holds the numbers."""
    weight = np.random.default_rng(3).normal(size=(5, 6)).astype(np.float32) * 0.4
    nodes = [
        *q("x", "xq", "xs", "xz"),
        *q("w", "wd", "ws", "wz"),
        helper.make_node("Gemm", ["xq", "wd"], ["h"], name="layer", transB=1),
        *q("h", "y", "ys", "yz"),
    ]
    held: dict[str, npt.ArrayLike] = {**SCALES, "xz": np.int8(3), "yz": np.int8(-4), "w": weight, "wz": np.int8(0)}
    check(model_of(graph_of(nodes, {"x": ["N", 6]}, ["y"], held)))


def test_a_weight_that_is_transposed_after_its_inverse_quantizer() -> None:
    scales = np.linspace(0.004, 0.012, 5, dtype=np.float32)
    nodes = [
        *q("x", "xq", "xs", "xz"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Transpose", ["wd"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["xq", "wt"], ["h"], name="layer"),
        *q("h", "y", "ys", "yz"),
    ]
    held: dict[str, npt.ArrayLike] = {
        **SCALES,
        "ws": scales,
        "wz": np.zeros(5, np.int8),
        "w": numbers(0, -127, 127).astype(np.int8),
    }
    model = model_of(graph_of(nodes, {"x": ["N", 6]}, ["y"], {**held, "xz": np.uint8(128), "yz": np.uint8(99)}))
    check(model, "int8_dsp_per_channel")


def test_a_quantizer_before_an_activation_is_kept() -> None:
    """Another grid before the activation than after it: two roundings, as in the file."""
    after = [
        *q("h", "hq", "hs", "hz"),
        helper.make_node("Relu", ["hq"], ["r"], name="relu"),
        *q("r", "y", "ys", "yz"),
    ]
    more: dict[str, npt.ArrayLike] = {"hs": np.float32(0.11), "hz": np.uint8(128), "yz": np.uint8(0)}
    compiled = check(layer(numbers(0, -127, 127).astype(np.int8), np.int8(0), after=after, tensors=more))
    assert "quantizers-lost" not in {item.code for item in compiled.diagnostics}


def test_a_value_on_a_second_grid_is_a_copy() -> None:
    after = [
        *q("h", "hq", "ys", "yz"),
        *q("hq", "again", "hs", "hz"),
        helper.make_node("Add", ["hq", "again"], ["s"], name="sum"),
        *q("s", "y", "ss", "sz"),
    ]
    more: dict[str, npt.ArrayLike] = {
        "hs": np.float32(0.1937),
        "hz": np.uint8(100),
        "ss": np.float32(0.0613),
        "sz": np.uint8(128),
    }
    check(layer(numbers(0, -127, 127).astype(np.int8), np.int8(0), after=after, tensors=more))


def test_codes_that_move() -> None:
    """Reshape and transposition on codes, as in files with operators on codes."""
    after = [
        helper.make_node("QuantizeLinear", ["h", "ys", "yz"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["c2"]),
        helper.make_node("Transpose", ["c2"], ["c3"], perm=[0, 2, 1]),
        helper.make_node("DequantizeLinear", ["c3", "ys", "yz"], ["y"]),
    ]
    more: dict[str, npt.ArrayLike] = {"shape": np.array([-1, 5, 1], np.int64)}
    check(layer(numbers(0, -127, 127).astype(np.int8), np.int8(0), after=after, tensors=more))


def test_inputs_and_outputs_of_codes_become_real_numbers() -> None:
    model = layer(numbers(0, -127, 127).astype(np.int8), np.int8(0))
    nodes = [node for node in model.graph.node if node.output[0] not in ("xq.codes", "y")]
    next(node for node in nodes if node.output[0] == "xq").input[0] = "x"
    held: dict[str, npt.ArrayLike] = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    kinds = {"x": TensorProto.UINT8, "y.codes": TensorProto.UINT8}
    on_codes = model_of(graph_of(nodes, {"x": ["N", 6]}, ["y.codes"], held, kinds))
    codes = np.clip(np.rint(ROWS.numpy() / 0.02) + 120, 0, 255).astype(np.uint8)
    wanted = (runtime(on_codes, codes).astype(np.float32) - 130) * np.float32(0.03)
    compiled = qcompiler.compile(on_codes, example_inputs=ROWS)
    assert np.abs(result(compiled, ROWS) - wanted).max() < 1e-5


def test_a_batch_norm_after_a_quantized_layer_changes_its_weights() -> None:
    after = [
        helper.make_node("BatchNormalization", ["h", "g", "b", "m", "v"], ["n"], name="norm"),
        *q("n", "y", "ys", "yz"),
    ]
    ones: dict[str, npt.ArrayLike] = {
        "g": np.full(5, 1.3, np.float32),
        "b": np.zeros(5, np.float32),
        "m": np.zeros(5, np.float32),
    }
    more: dict[str, npt.ArrayLike] = {**ones, "v": np.full(5, 0.8, np.float32)}
    model = layer(numbers(0, -127, 127).astype(np.int8), np.int8(0), after=after, tensors=more)
    with pytest.raises(EncodingsError, match=r"'layer.weight'"):
        qcompiler.compile(model)
    compiled = qcompiler.compile(model, calibration_data=[ROWS], unmatched_encodings="ignore")
    assert "grids-lacking" in {item.code for item in compiled.diagnostics}


# --- what is missing, and what is refused ---------------------------------------------------------------------------


def test_missing_quantizers_are_calibrated_and_told() -> None:
    after = [helper.make_node("Tanh", ["h"], ["t"], name="tanh"), *q("t", "y", "ys", "yz")]
    model = layer(numbers(0, -127, 127).astype(np.int8), np.int8(0), after=after)
    with pytest.raises(EncodingsError, match=r"1 tensors have no quantizer in the model.*layer\.q"):
        qcompiler.compile(model)
    compiled = qcompiler.compile(model, calibration_data=[ROWS])
    assert "layer.q" in next(str(item) for item in compiled.diagnostics if item.code == "quantizers-added")


def test_encodings_beside_those_of_the_file_are_refused(path: Path) -> None:
    first = qcompiler.compile(path, calibration_data=[X], verify="off", effort="fast")
    with pytest.raises(InputError, match="the model has quantizers of its own"):
        qcompiler.compile(first.artifact.files()["model.onnx"], encodings=first.artifact.grids)


def test_other_commands_read_the_numbers(path: Path) -> None:
    first = qcompiler.compile(path, calibration_data=[X], verify="off", effort="fast")
    data = first.artifact.files()["model.onnx"]
    assert qcompiler.check(data, "int8_dsp").passed
    source = OnnxModel(data)
    assert source.encodings is not None and source.encodings.own
    assert OnnxModel(path).encodings is None


DYNAMIC = [
    helper.make_node("DynamicQuantizeLinear", ["x"], ["c", "s", "z"]),
    helper.make_node("MatMulInteger", ["c", "w", "z"], ["i"]),
    helper.make_node("Cast", ["i"], ["f"], to=1),
    helper.make_node("Mul", ["f", "s"], ["y"]),
]


def small(nodes: Sequence[NodeProto], tensors: Mapping[str, npt.ArrayLike]) -> ModelProto:
    return model_of(graph_of(nodes, {"x": ["N", 6]}, ["y"], tensors), opset=21)


def with_zero_point(kind: int) -> ModelProto:
    """A quantizer whose zero point has a type."""
    model = small(q("x", "y", "s", "z"), {"s": np.float32(0.1)})
    data = b"\x00" if kind in (TensorProto.FLOAT8E4M3FN, TensorProto.INT4) else b"\x00\x00"
    model.graph.initializer.append(helper.make_tensor("z", kind, [], data, raw=True))
    return model


REFUSED = {
    "dynamic": (small(DYNAMIC, {"w": np.ones((6, 4), np.uint8)}), "DynamicQuantizeLinear cannot be compiled: its ran"),
    "products of integers": (
        small([helper.make_node("MatMulInteger", ["x", "w"], ["y"])], {"w": np.ones((6, 4), np.uint8)}),
        "MatMulInteger cannot be compiled",
    ),
    "convolutions of integers": (
        small([helper.make_node("ConvInteger", ["x", "w"], ["y"])], {"w": np.ones((1, 1, 3, 3), np.uint8)}),
        "ConvInteger cannot be compiled",
    ),
    "float8": (with_zero_point(TensorProto.FLOAT8E4M3FN), "the codes have the type float8_e4m3fn"),
    "four bits": (with_zero_point(TensorProto.INT4), "activations of int4.*expected 8 or 16 bits"),
    "a computed scale": (
        small([helper.make_node("ReduceMax", ["x"], ["s"], keepdims=0), *q("x", "y", "s", "z")], {"z": np.uint8(0)}),
        "the scale 's' is not a constant",
    ),
    "a scale per channel of an activation": (
        small(q("x", "y", "s", "z", axis=1), {"s": np.ones(6, np.float32), "z": np.zeros(6, np.uint8)}),
        "an activation has one scale per channel",
    ),
    "a negative scale": (small(q("x", "y", "s", "z"), {"s": np.float32(-1), "z": np.uint8(0)}), "a scale is -1"),
    "another grid": (
        small(
            [
                helper.make_node("QuantizeLinear", ["x", "s", "z"], ["c"]),
                helper.make_node("DequantizeLinear", ["c", "t", "z"], ["y"]),
            ],
            {"s": np.float32(1), "t": np.float32(2), "z": np.uint8(0)},
        ),
        "codes are read on another grid",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    model, words = REFUSED[case]
    with pytest.raises(UnsupportedError, match=words):
        qcompiler.compile(model, example_inputs=torch.randn(2, 6))

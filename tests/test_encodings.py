"""Encodings out of a compile and into one: every tensor is named, and the same grids give the same program."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import qcompiler
from examples.digits.data import load_data
from examples.digits.model import load_digits_net
from qcompiler import cli, errors
from qcompiler.backends import encodings
from qcompiler.frontends import capture
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Graph, Module
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.apply_encodings import ApplyEncodings
from qcompiler.passes.check_encodings import CheckEncodings
from qcompiler.passes.fix_ranges import FixRanges
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.partition import Partition
from qcompiler.passes.unify_scales import UnifyScales
from qcompiler.quant.encoding import Encodings
from qcompiler.session.pipeline import structural_passes
from tests.support.forms import onnx_of

VERSIONS = encodings.VERSIONS


class Net(nn.Module):
    """Limits per channel, a fixed grid among the parts of a concat, tied averages, a constant and a moved result."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(2))
        self.a = nn.Conv2d(8, 4, 1)
        self.b = nn.Conv2d(8, 4, 1, bias=False)
        self.gate = nn.Sigmoid()
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(32, 5)
        self.register_buffer("slope", torch.linspace(0.75, 1.0, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        y = torch.cat([self.gate(self.a(x)), torch.relu(self.b(x) + self.slope)], 1)
        result: Tensor = self.fc(self.pool(y).flatten(1))
        return result


FACTS = ("lowest-weights", "no-memory-plan", "encodings-set", "encodings-ignored")


def notes(compiled: qcompiler.Compiled) -> list[str]:
    """The diagnostics that are about encodings and other facts of the compile, not about its quality."""
    return [str(item) for item in compiled.diagnostics if item.code in FACTS]


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def compiled() -> qcompiler.Compiled:
    return qcompiler.compile(net(), calibration_data=[IMAGES], verify="off")


def write(folder: Path, text: str) -> Path:
    path = folder / "given.json"
    path.write_text(text, encoding="utf-8")
    return path


def again(path: Path | Encodings, target: Any = "int8_dsp", **options: Any) -> qcompiler.Compiled:
    """Compile the net with given encodings and without data."""
    options = {"example_inputs": IMAGES, "verify": "off", **options}
    return qcompiler.compile(net(), target, encodings=path, **options)


@pytest.fixture(scope="module")
def canonical() -> Module:
    module = capture(net(), (IMAGES,)).module
    PassManager(structural_passes()[0]).run(module, PassContext(qcompiler.load_target("int8_dsp")))
    return module


def placed(
    canonical: Module, text: str, target: Any = "int8_dsp", *, data: bool = True, unmatched: str = "error"
) -> tuple[Module, list[Record]]:
    """The net with quantizers on given grids, as far as the check of these."""
    module = canonical.clone()
    context = PassContext(
        qcompiler.load_target(target),
        encodings=encodings.parse(text),
        calibration_data=[[IMAGES]] if data else None,
    )
    passes = [Partition(), InsertQuantizers(), ApplyEncodings(), FixRanges(), UnifyScales(), CheckEncodings(unmatched)]
    return module, PassManager(passes, {"canonical", "batch-norm-folded"}).run(module, context)


def edited(compiled: qcompiler.Compiled, change: Callable[[dict[str, Any]], None], *, foreign: bool = False) -> str:
    """The file of `compiled` of version 1.0.0, changed; as if another tool had written it where it is foreign."""
    data = json.loads(compiled.encodings())
    change(data)
    if foreign:
        del data["producer"]
    return json.dumps(data)


def records(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for section in ("activation_encodings", "param_encodings") for item in data[section]}


def same_program(one: qcompiler.Compiled, other: qcompiler.Compiled) -> bool:
    a, b = one.artifact, other.artifact
    return (a.program.program_json(), a.program.weights(), onnx_of(a), a.encodings()) == (
        b.program.program_json(),
        b.program.weights(),
        onnx_of(b),
        b.encodings(),
    )


@pytest.mark.parametrize("target", ["int8_dsp", "int8_dsp_per_channel", "int8_ort"])
def test_a_program_comes_back_bit_for_bit_without_data(target: str, tmp_path: Path) -> None:
    first = qcompiler.compile(net(), target, calibration_data=[IMAGES], output=tmp_path / "out", verify="off")
    assert same_program(first, again(tmp_path / "out" / "encodings.json", target))


def test_a_trained_network_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model, data = load_digits_net(), load_data().calibration_images[:64]
    first = qcompiler.compile(model, calibration_data=[data], verify="off")
    path = write(tmp_path, first.encodings())
    assert same_program(first, qcompiler.compile(model, example_inputs=data, encodings=path, verify="off"))


FEW_BITS: dict[str, Any] = {"activation_bits": 6, "weight_bits": 4, "signed_activations": False}
TARGETS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "of one scale": ({}, ("2.0.0", "0.6.1")),
    "per channel": ({"per_channel": True}, ("2.0.0", "0.6.1")),
    "unsigned, of few bits": (FEW_BITS, ("1.0.0",)),
    "symmetric powers of two": ({"symmetric_activations": True, "power_of_two": True}, ("0.6.1",)),
}


@pytest.mark.parametrize("case", TARGETS)
def test_every_version_brings_a_program_back_bit_for_bit(case: str, tmp_path: Path) -> None:
    changes, versions = TARGETS[case]
    target = qcompiler.load_target("int8_dsp").override(**changes) if changes else "int8_dsp"
    # With weights of few bits all but `fast` correct biases to data, which no encoding holds.
    effort: Literal["fast", "default"] = "fast" if changes is FEW_BITS else "default"
    first = qcompiler.compile(net(), target, calibration_data=[IMAGES], effort=effort, verify="off")
    for version in versions:
        assert same_program(first, again(write(tmp_path, first.encodings(version)), target))


def test_weights_in_blocks_come_back_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(40, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)).eval()
    x, target = torch.randn(4, 40, 5, 5), "w4a8_npu_blocks"
    first = qcompiler.compile(model, target, calibration_data=[x], effort="fast", verify="off")
    for version in ("1.0.0", "2.0.0"):
        path = write(tmp_path, first.encodings(version))
        assert same_program(first, qcompiler.compile(model, target, example_inputs=x, encodings=path, verify="off"))
    text = first.encodings().replace('"block_size": 32', '"block_size": 16')
    with pytest.raises(
        errors.EncodingsError, match="has blocks of 16 inputs; expected blocks of 32, as in w4a8_npu_blocks"
    ):
        qcompiler.compile(model, target, example_inputs=x, encodings=write(tmp_path, text), verify="off")
    path = write(tmp_path, first.encodings())
    with pytest.raises(
        errors.EncodingsError, match="has blocks of 32 inputs; expected one scale, or one for each channel"
    ):
        qcompiler.compile(model, "w4a8_npu", example_inputs=x, encodings=path, verify="off")


@pytest.mark.parametrize("data", [{}, {"calibration_data": [IMAGES]}])
def test_all_but_corrected_biases_comes_back(data: dict[str, Any], tmp_path: Path) -> None:
    target = qcompiler.load_target("int8_dsp").override(**FEW_BITS)
    first = qcompiler.compile(net(), target, calibration_data=[IMAGES], verify="off")
    assert "correct-bias" in first.artifact.pipeline
    second = again(write(tmp_path, first.encodings()), target, **data)
    assert "correct-bias" in second.artifact.pipeline
    assert first.encodings() == second.encodings()
    assert first.artifact.program.program_json() == second.artifact.program.program_json()
    constants, others = (item.artifact.program.constants for item in (first, second))
    changed = [name for name in constants if not np.array_equal(constants[name], others[name])]
    assert changed and all(name.endswith(".bias") for name in changed)


def test_widths_and_passes_come_back_too(tmp_path: Path) -> None:
    """A file of this package needs no repetition of its options."""
    overrides: dict[str, Any] = {"a": 16, "relu": {"activation_bits": 4}}
    first = qcompiler.compile(net(), calibration_data=[IMAGES], overrides=overrides, effort="fast", verify="off")
    data = json.loads(first.encodings())
    assert "cross-layer-equalization" not in data["producer"]["pipeline"]
    assert (records(data)["a.q"]["bw"], records(data)["relu.q"]["bw"]) == (16, 4)
    assert same_program(first, again(write(tmp_path, first.encodings("2.0.0"))))


@pytest.mark.slow
def test_float_islands_come_back_too(tmp_path: Path) -> None:
    """Islands are exported by torch, which takes its time."""
    target = qcompiler.load_target("int8_dsp").override(fallback="float")
    first = qcompiler.compile(net(), target, calibration_data=[IMAGES], overrides={"b": "float"}, verify="off")
    assert json.loads(first.encodings())["excluded_layers"] == ["b"]
    second = again(write(tmp_path, first.encodings()), target)
    assert same_program(first, second)
    assert second.artifact.islands[0]["name"] == "b"
    with pytest.raises(errors.UnsupportedError, match="an override selects float"):
        again(tmp_path / "given.json")


def test_given_encodings_are_verified_like_found_ones(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    second = again(write(tmp_path, compiled.encodings()), verify="error")
    assert second.verification is not None
    assert second.verification.passed
    assert notes(second) == ["Encodings set 21 tensors; 0 quantizers are calibrated."]


def test_every_tensor_of_codes_has_one_encoding_under_its_name(compiled: qcompiler.Compiled) -> None:
    model = onnx.load_from_string(onnx_of(compiled.artifact))
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    found = records(json.loads(compiled.encodings()))
    stored = {item["name"]: item for item in json.loads(compiled.encodings("2.0.0"))["encodings"]}
    assert set(found) == set(stored)
    quantized, read = set(), set()
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            (name,) = node.output
            quantized.add(name)
        elif node.op_type == "DequantizeLinear":
            name = node.input[0]
            read.add(name)
        else:
            continue
        scale, zero = constants[node.input[1]], constants[node.input[2]] if len(node.input) > 2 else np.int32(0)
        record, raw = found[name], stored[name]
        assert np.asarray(record["scale"], np.float32).tolist() == scale.reshape(-1).tolist()
        assert raw.get("y_zero_point", 0) == zero.tolist()
        half = 2 ** (record["bw"] - 1)
        shift = half if raw["output_dtype"].startswith("int") else 0
        assert record["offset"] == [-(int(zero) + shift)], name
        assert raw["output_dtype"] == (str(zero.dtype) if name in quantized or zero.dtype == np.int32 else "int8")
    assert quantized | read == set(found), "all quantized tensors, and no others"
    assert {name for name in found if name.endswith(".codes")} == read - quantized


def test_a_quantized_graph_has_the_encodings_of_its_integer_form(compiled: qcompiler.Compiled) -> None:
    before = encodings.collect(compiled.quantized.main).by_name
    after = encodings.collect(compiled.integer.main, calibrated=compiled.quantized.main).by_name
    shared = set(before) & set(after)
    assert all(before[name] == after[name] for name in shared)
    assert set(before) - shared == set(), "lowering adds tensors, and renames none"
    assert set(after) - shared == {"b.q.bias.codes"}, "a layer without a bias gets one of zeros"
    with pytest.raises(errors.UnsupportedError, match="at stage float has no encodings"):
        encodings.collect(Graph())


def test_an_integer_graph_alone_knows_the_width_of_its_types_only() -> None:
    target = qcompiler.load_target("int8_dsp").override(activation_bits=6)
    small = qcompiler.compile(net(), target, calibration_data=[IMAGES], verify="off")
    assert {item.bits for item in encodings.collect(small.integer.main).tensors} == {8, 32}
    exact = encodings.collect(small.integer.main, calibrated=small.quantized.main)
    assert {item.bits for item in exact.tensors} == {6, 8, 32}


def test_an_artifact_writes_every_version(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    loaded = qcompiler.load(compiled.save(tmp_path / "out"))
    for version in VERSIONS:
        assert loaded.encodings(version) == compiled.encodings(version)
    assert (tmp_path / "out" / "encodings.json").read_text() == compiled.encodings()
    with pytest.raises(errors.EncodingsError, match=r"version '0\.4\.0'"):
        loaded.encodings("0.4.0")


def test_an_artifact_of_before_has_none(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    folder = compiled.save(tmp_path / "out")
    (folder / "encodings.json").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]["encodings.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(errors.ArtifactError, match=r"contains no encodings\.json.*Compile the model again"):
        qcompiler.load(folder).encodings()


MODEL_NAMES = {
    "x.q": "x",
    "features.2.q": "/features/features.2/Clip_output_0",
    "features.3": "/features/features.3/MaxPool_output_0",
    "a.q": "a",
    "gate.q": "/gate/Sigmoid_output_0",
    "b.q": "/b/Conv_output_0",
    "pool.q": "pool",
    "fc.q": "/fc/Gemm_output_0",
    "features.0.weight.q.codes": "features.0.weight",
    "a.weight.q.codes": "a.weight",
    "b.weight.q.codes": "b.weight",
    "fc.weight.q.codes": "fc.weight",
    "features.2.q.bias.codes": "features.0.bias",
    "a.q.bias.codes": "a.bias",
    "fc.q.bias.codes": "fc.bias",
}
"""Names of the ONNX file of an artifact -> names of the model, and as torch.onnx.export calls the tensors."""


def test_names_of_the_model_and_of_its_export_are_known(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    def rename(data: dict[str, Any]) -> None:
        known = records(data)
        for old, new in MODEL_NAMES.items():
            known[old]["name"] = new

    assert same_program(compiled, again(write(tmp_path, edited(compiled, rename))))


def test_a_name_that_no_tensor_has_is_reported_with_the_nearest(
    compiled: qcompiler.Compiled, canonical: Module
) -> None:
    def rename(data: dict[str, Any]) -> None:
        known = records(data)
        known["fc.weight.q.codes"]["name"] = "fc.weigth"
        known["features.2.q"]["name"] = "features.0"
        known["fc.q"]["name"] = "/blocks/Gelu_output_0"
        known["a.q"]["name"] = "/module_conv/Conv_output_0"
        known["x.q"]["name"] = "input.1"
        data["param_encodings"] = [item for item in data["param_encodings"] if "bias" not in item["name"]]

    text = edited(compiled, rename)
    with pytest.raises(errors.EncodingsError) as caught:
        placed(canonical, text)
    message = str(caught.value)
    assert "5 of 17 encodings match no tensor" in message
    assert "'fc.weigth' (did you mean fc.weight" in message
    assert "'features.0' (its result has no quantizer: it is fused with features.2)" in message
    assert "'/blocks/Gelu_output_0' (there is no operator of that type)" in message
    assert "'/module_conv/Conv_output_0' (operators of that type are features.0, a, b)" in message
    assert "'input.1' (the outputs are fc.q)" in message
    assert "unmatched_encodings='ignore'" in message
    _, done = placed(canonical, text, unmatched="ignore")
    assert done[-1].metrics["given"] == 12
    assert "fc.weigth" in str(done[-1].metrics["unmatched"])


def test_what_a_file_leaves_out_is_calibrated_or_missed(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    def drop(data: dict[str, Any]) -> None:
        gone = ("a.q", "fc.q", "fc.weight.q.codes", "fc.q.bias.codes")
        for section in ("activation_encodings", "param_encodings"):
            data[section] = [item for item in data[section] if item["name"] not in gone]

    path = write(tmp_path, edited(compiled, drop))
    with pytest.raises(
        errors.EncodingsError, match=r"2 tensors have no encoding, and there is no calibration_data: a\.q, fc\.q"
    ):
        again(path)
    with_data = again(path, calibration_data=[IMAGES])
    assert notes(with_data)[0] == "Encodings set 17 tensors; 2 quantizers are calibrated."
    wider = again(path, calibration_data=[4 * IMAGES])
    assert not same_program(compiled, wider)
    before, near, after = (records(json.loads(item.encodings())) for item in (compiled, with_data, wider))
    assert before["relu.q"] == after["relu.q"], "given encodings override calibration"
    assert near["fc.weight.q.codes"] == before["fc.weight.q.codes"], "a weight has its range without data"
    assert near["fc.q"]["scale"] == pytest.approx(before["fc.q"]["scale"], rel=0.05), "ranges found on quantized values"
    assert near["a.q"]["scale"][0] < after["a.q"]["scale"][0]


def test_a_model_is_not_equalized_for_the_file_of_another_tool(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    theirs = again(write(tmp_path, edited(compiled, lambda data: None, foreign=True)))
    assert "cross-layer-equalization" in [record.pass_name for record in compiled.records]
    assert "cross-layer-equalization" not in [record.pass_name for record in theirs.records]


def changed(name: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: records(data)[name].update(fields)


def torn(data: dict[str, Any]) -> None:
    data["activation_encodings"].append({**records(data)["a.q"], "name": "a", "scale": [0.5]})


def without(name: str) -> Callable[[dict[str, Any]], None]:
    def drop(data: dict[str, Any]) -> None:
        data["activation_encodings"] = [item for item in data["activation_encodings"] if item["name"] != name]

    return drop


UNHOLDABLE = {
    "a width that the target has not": (
        changed("a.q", bw=12),
        r"'a\.q' has 12 bits; expected one of 2, 3, 4, 5, 6, 7, 8, 16 bits, the widths of int8_dsp",
    ),
    "weights of too many bits": (
        changed("a.weight.q.codes", bw=16, offset=[-(2**15)]),
        r"'a\.weight\.q\.codes' has 16 bits; expected one of 2, 3, 4, 5, 6, 7, 8 bits",
    ),
    "channels where there is one scale": (
        changed("a.weight.q.codes", enc_type="PER_CHANNEL", scale=[0.1] * 4, offset=[-128] * 4),
        r"4 scales, one per channel; expected one scale, as in int8_dsp",
    ),
    "weights with a zero point": (
        changed("a.weight.q.codes", is_sym=False, offset=[-100]),
        r"'a\.weight\.q\.codes' has the zero point -28 of an asymmetric grid; expected 0, because int8_dsp is symmetric",
    ),
    "a zero point on no code": (
        changed("a.q", offset=[-300]),
        r"'a\.q' has the zero point 172; expected one of the codes of int8_dsp, -128 to 127",
    ),
    "another grid than the hardware dictates": (
        changed("gate.q", scale=[0.00390625 * 2]),
        r"'gate\.q' has scale 0\.0078125.*expected scale 0\.00390625 and zero point 0, which int8_dsp fixes there",
    ),
    "a bias that is not on the grid of the accumulator": (
        changed("a.q.bias.codes", scale=[1.0]),
        r"'a\.q\.bias\.codes' has the scale 1\.0; expected .*, the product of the scales of input and weight",
    ),
    "a bias of eight bits": (
        changed("a.q.bias.codes", bw=8, offset=[-128]),
        r"8 bits and zero point 128; expected 32 signed bits with zero point 0",
    ),
    "a bias whose grid is not known yet": (
        without("x.q"),
        r"the bias 'features\.2\.q\.bias\.codes' has an encoding, but x\.q have none",
    ),
    "two names of one tensor": (torn, r"the encodings of 'a\.q' and 'a' belong to one tensor but differ"),
}


@pytest.mark.parametrize("case", UNHOLDABLE)
def test_what_the_target_cannot_hold_is_refused(case: str, compiled: qcompiler.Compiled, canonical: Module) -> None:
    change, message = UNHOLDABLE[case]
    with pytest.raises(errors.EncodingsError, match=message):
        placed(canonical, edited(compiled, change))


def test_symmetric_activations_refuse_a_zero_point(compiled: qcompiler.Compiled, canonical: Module) -> None:
    target = qcompiler.load_target("int8_dsp").override(symmetric_activations=True)
    with pytest.raises(errors.EncodingsError, match=r"'x\.q' has the zero point .* of an asymmetric grid"):
        placed(canonical, compiled.encodings(), target)


def test_one_scale_serves_all_channels(compiled: qcompiler.Compiled, canonical: Module) -> None:
    module, _ = placed(canonical, compiled.encodings(), "int8_dsp_per_channel")
    given = records(json.loads(compiled.encodings()))["a.weight.q.codes"]["scale"]
    assert module.tensors["a.weight.scale"].tolist() == [float(np.float32(given[0]))] * 4


def test_an_override_that_contradicts_a_file_is_refused(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    path = write(tmp_path, compiled.encodings())
    with pytest.raises(errors.EncodingsError, match=r"'a\.q' has 8 bits; expected 16 bits, as the override says"):
        again(path, overrides={"a": 16})


def test_weights_on_a_code_that_the_target_has_not_are_told(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    """A grid of 256 codes on one of 255: the weight on the lowest one saturates, and that is no secret."""
    scale = float(-net().get_parameter("a.weight").detach().min() / 128)

    def stretch(data: dict[str, Any]) -> None:
        records(data)["a.weight.q.codes"]["scale"] = [scale]
        data["param_encodings"] = [item for item in data["param_encodings"] if "bias" not in item["name"]]

    told = notes(again(write(tmp_path, edited(compiled, stretch, foreign=True))))
    assert told[0] == "%a.weight.q: 1 weight is on code -128 of the encoding; int8_dsp begins at -127."


def compiled_with(data: Mapping[str, Any], tmp_path: Path, **options: Any) -> qcompiler.Compiled:
    return again(write(tmp_path, json.dumps(data)), **options)


def test_a_moved_value_may_have_a_grid_of_its_own(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    data = json.loads(compiled.encodings())
    records(data)["features.3"]["scale"] = [0.05]
    data["param_encodings"] = [item for item in data["param_encodings"] if "bias" not in item["name"]]
    pooled = compiled_with(data, tmp_path, verify="error")
    program = pooled.artifact.program.program
    assert program.tensors["features.3.q"].scale == (float(np.float32(0.05)),)
    assert "rescale" in [item.op for item in program.instructions if item.output == "features.3.q"]
    layer = next(item for item in program.instructions if item.output == "a.q")
    assert layer.inputs[0] == "features.3.q"
    assert same_program(pooled, again(write(tmp_path, pooled.encodings()))), "the same in the other direction"


def test_parts_of_a_concat_go_to_the_grid_of_the_whole(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    """As AIMET has it: a grid for each part, and one for the result."""
    data = json.loads(compiled.encodings())
    known = records(data)
    known["relu.q"]["scale"], known["concat"]["scale"] = [0.03], [0.04]
    del known["concat.input0.q"]
    data["activation_encodings"] = [item for item in known.values() if not item["name"].endswith(".codes")]
    data["param_encodings"] = [
        item for item in known.values() if item["name"].endswith(".codes") and "bias" not in item["name"]
    ]
    for name in ("pool.q", "reshape"):
        known[name]["scale"] = [0.04]
    joined = compiled_with(data, tmp_path, target="int8_ort", verify="error")
    tensors = joined.artifact.program.program.tensors
    step = float(np.float32(0.04))
    assert tensors["concat.q"].scale == tensors["concat.input0.q"].scale == tensors["concat.input1.q"].scale == (step,)
    assert tensors["relu.q"].scale == (float(np.float32(0.03)),)
    assert same_program(joined, again(write(tmp_path, joined.encodings()), "int8_ort"))


def test_parts_that_differ_without_a_whole_are_joined_by_calibration(
    compiled: qcompiler.Compiled, tmp_path: Path
) -> None:
    data = json.loads(compiled.encodings())
    gone = ("concat", "concat.input0.q", "pool.q", "reshape")
    data["activation_encodings"] = [item for item in data["activation_encodings"] if item["name"] not in gone]
    data["param_encodings"] = [item for item in data["param_encodings"] if "bias" not in item["name"]]
    records(data)["gate.q"]["scale"], records(data)["relu.q"]["scale"] = [0.003], [0.03]
    joined = compiled_with(data, tmp_path, target="int8_ort", calibration_data=[IMAGES], verify="error")
    tensors = joined.artifact.program.program.tensors
    assert tensors["gate.q"].scale != tensors["relu.q"].scale
    assert tensors["concat.input0.q"].scale == tensors["concat.input1.q"].scale == tensors["concat.q"].scale


def test_passes_of_ones_own_place_them(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    path = write(tmp_path, compiled.encodings())
    pipeline = json.loads(compiled.encodings())["producer"]["pipeline"]
    with pytest.raises(errors.PipelineError, match=r"needs the pass apply-encodings.*after insert-quantizers"):
        again(path, pipeline=pipeline)
    placed = pipeline.replace("insert-quantizers", "insert-quantizers, apply-encodings")
    with pytest.raises(errors.PipelineError, match=r"needs the pass check-encodings.*after unify-scales"):
        again(path, pipeline=placed)
    unify = "unify-scales{copies=noise}"
    placed = placed.replace(unify, f"{unify}, check-encodings")
    assert same_program(compiled, again(path, pipeline=placed))
    with pytest.raises(errors.PassError, match="apply-encodings needs encodings"):
        qcompiler.compile(net(), example_inputs=IMAGES, pipeline=placed)
    swapped = placed.replace("insert-quantizers, apply-encodings", "insert-quantizers").replace(
        f"{unify},", f"{unify}, apply-encodings,"
    )
    with pytest.raises(errors.PipelineError, match="check-encodings needs fixed-ranges, ties"):
        again(path, pipeline=swapped)


def test_arguments_are_checked(compiled: qcompiler.Compiled) -> None:
    given = encodings.parse(compiled.encodings())
    assert same_program(compiled, again(given))
    with pytest.raises(errors.InputError, match="unmatched_encodings is 'skip'"):
        again(given, unmatched_encodings="skip")
    with pytest.raises(errors.InputError, match="unmatched='skip'"):
        CheckEncodings("skip")


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", load_data().calibration_images[:64].numpy())
    model, out, back = "examples.digits.model:load_digits_net", str(tmp_path / "out"), str(tmp_path / "back")
    compile_ = ["compile", model, "--verify", "off"]
    assert cli.main([*compile_, "--calibration", str(tmp_path / "x.npy"), "-o", out]) == 0
    assert cli.main(["encodings", out, "--version", "2.0.0", "-o", str(tmp_path / "e.json")]) == 0
    capsys.readouterr()
    assert cli.main(["encodings", out, "--version", "0.6.1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["version"] == "0.6.1"
    assert printed["activation_encodings"]["features.0.2.q"][0]["bitwidth"] == 8
    data = json.loads((tmp_path / "e.json").read_text())
    data["encodings"].append({"name": "nowhere", "output_dtype": "uint8", "y_scale": 0.1})
    (tmp_path / "e.json").write_text(json.dumps(data))
    given = [*compile_, "--encodings", str(tmp_path / "e.json")]
    assert cli.main(given) == 1
    assert "'nowhere' (" in capsys.readouterr().err
    assert cli.main([*given, "--ignore-unmatched", "-o", back]) == 0
    assert "note: Encodings that match no tensor are ignored: nowhere." in capsys.readouterr().err
    for name in ("program.json", "weights.safetensors", "model.onnx", "encodings.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "back" / name).read_bytes(), name
    assert cli.main(["encodings", out, "--version", "3"]) == 2
    assert cli.main(["encodings", out, "-o", str(tmp_path / "no" / "e.json")]) == 1


@pytest.mark.parametrize(
    "text", ["[]", '{"a": 5}', '{"a": "x"}', '{"nobody": "1"}', '{"a": "1"}', '{"a": "999999999,1"}', "{"]
)
def test_factors_that_are_no_factors_of_the_model_are_refused(text: str, tmp_path: Path) -> None:
    first = qcompiler.compile(net(), calibration_data=[IMAGES], verify="off")
    data = json.loads(first.encodings())
    data["producer"]["factors"] = text
    with pytest.raises(errors.EncodingsError, match="factors"):
        again(write(tmp_path, json.dumps(data)))

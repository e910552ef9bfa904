"""Runtime configurations as targets: what each key becomes, and that none is passed over."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler
from qcompiler import cli
from qcompiler.errors import TargetError
from qcompiler.ir.onnx_types import ELSEWHERE, OPS
from qcompiler.ir.registry import known_ops
from qcompiler.targets import load_target

WHOLE = Path(__file__).parent / "default_config.json"


def config(folder: Path, **sections: Any) -> Path:
    """A file with just these sections; a dot in a name is written as two underscores."""
    data: dict[str, Any] = {}
    for key, value in sections.items():
        at = data
        *outer, last = key.split("__")
        for name in outer:
            at = at.setdefault(name, {})
        at[last] = value
    path = folder / "config.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def rule(target: qcompiler.Target, op: str) -> Any:
    found = target.op_rule(op)
    assert found is not None
    return found


def test_every_section_of_a_file_has_its_effect() -> None:
    base, target = load_target("int8_dsp"), load_target(WHOLE, base="int8_dsp")
    assert target.name == "default_config[base=int8_dsp]"
    assert target.descriptor.target.version == "V7"
    assert str(target.activation_spec()) == "s8"
    assert target.descriptor.dtypes["a8"].allowed_bits == (8, 16)
    assert target.descriptor.dtypes["w8"].allowed_bits == (4, 8)
    assert str(target.weight_spec("conv2d", 0)) == "s8 symmetric axis=0", "not strict: 256 codes"
    assert str(target.weight_spec("linear", 0)) == "s8 symmetric"
    assert not target.per_channel
    assert target.absorbs("conv2d", "relu")
    assert target.absorbs("conv3d", "clamp"), "no part of a batch norm is left"
    assert target.absorbs("add", "relu")
    assert not target.absorbs("linear", "relu")
    assert not target.absorbs("mul", "relu")
    assert [tie.ops for tie in target.descriptor.tie] == [("concat", "resize"), ("mean",)]
    sigmoid, tanh = rule(target, "sigmoid").out_fixed, rule(target, "tanh")
    assert (sigmoid.scale, sigmoid.zero_point, sigmoid.bits) == (float(torch.tensor(1 / 255)), -128, 8)
    assert tanh.out_fixed.scale == float(torch.tensor(2 / 255))
    assert not tanh.per_channel, "one grid for all channels"
    assert rule(target, "silu").per_channel
    assert target.arithmetic == base.arithmetic
    assert target.layout == base.layout
    assert target == load_target(str(WHOLE), load_target("int8_dsp"))


def test_a_network_compiles_for_it() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1)
        ).eval()
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    compiled = qcompiler.compile(model, load_target(WHOLE, base="int8_dsp"), calibration_data=[images])
    assert compiled.verification is not None
    assert compiled.verification.passed
    tensors = compiled.artifact.program.program.tensors
    assert len(tensors["0.weight.q"].scale) == 8
    assert tensors["4.q"].scale == (float(torch.tensor(1 / 255)),)
    assert (tensors["5_1.q"].scale, tensors["5_1.q"].zero_point) == (tensors["4.q"].scale, tensors["4.q"].zero_point)


def test_a_file_that_says_nothing_is_the_base(tmp_path: Path) -> None:
    base = load_target("ort_cpu")
    target = load_target(config(tmp_path), base="ort_cpu")
    mine, theirs = (json.loads(item.to_json()) for item in (target, base))
    assert mine.pop("target")["name"] == "config[base=ort_cpu]"
    theirs.pop("target")
    assert mine == theirs


SAID: dict[str, tuple[dict[str, Any], str, str]] = {
    "symmetric activations": ({"defaults__ops__is_symmetric": "True"}, "s8 symmetric", "s8 symmetric narrow"),
    "strict symmetric activations": (
        {"defaults__ops__is_symmetric": "True", "defaults__strict_symmetric": "True"},
        "s8 symmetric narrow",
        "s8 symmetric narrow",
    ),
    "all codes of weights": ({"defaults__strict_symmetric": "False"}, "s8", "s8 symmetric"),
    "channels": ({"defaults__per_channel_quantization": "True"}, "s8", "s8 symmetric narrow axis=0"),
    "sixteen bits alone": (
        {
            "defaults__supported_kernels": [
                {"activation": {"bitwidth": 16, "dtype": "int"}, "param": {"bitwidth": 8, "dtype": "int"}}
            ]
        },
        "s16",
        "s8 symmetric narrow",
    ),
    "weights by their own section": (
        {"defaults__params__is_symmetric": "False", "params__weight__is_symmetric": "True"},
        "s8",
        "s8 symmetric narrow",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_grids_are_those_of_the_file(case: str, tmp_path: Path) -> None:
    sections, activation, weight = SAID[case]
    target = load_target(config(tmp_path, **sections), base="int8_dsp")
    assert str(target.activation_spec()) == activation
    assert str(target.weight_spec("conv2d", 0)) == weight


def test_channels_op_by_op_are_the_rule_when_all_layers_have_them(tmp_path: Path) -> None:
    layers = {name: {"per_channel_quantization": "True"} for name in ("Conv", "ConvTranspose", "Gemm")}
    assert load_target(config(tmp_path, op_type=layers), base="int8_dsp").per_channel
    opposite = {"Gemm": {"per_channel_quantization": "False"}}
    target = load_target(config(tmp_path, op_type=opposite), base="int8_dsp_per_channel")
    assert target.weight_spec("conv2d", 0).axis == 0
    assert target.weight_spec("linear", 0).axis is None


def kernel(activation: int, param: int, dtype: str = "int") -> dict[str, Any]:
    return {
        "activation": {"bitwidth": activation, "dtype": dtype},
        "param": {"bitwidth": param, "dtype": dtype},
    }


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "activations in float": (
        {"defaults__ops__is_output_quantized": "False"},
        "defaults.ops.is_output_quantized: activations cannot stay in float",
    ),
    "inputs in float": ({"defaults__ops__is_input_quantized": "False"}, "defaults.ops.is_input_quantized"),
    "weights in float": ({"defaults__params__is_quantized": "False"}, "defaults.params.is_quantized: weights cannot"),
    "asymmetric weights": ({"defaults__params__is_symmetric": "False"}, "defaults.params.is_symmetric: .*zero point"),
    "asymmetric weights of their own": ({"params__weight__is_symmetric": "False"}, "params.weight.is_symmetric"),
    "asymmetric biases": (
        {"params__bias": {"is_quantized": "True", "is_symmetric": "False"}},
        "params.bias.is_symmetric: a bias has no zero point",
    ),
    "other parameters": ({"params__gamma__is_quantized": "True"}, "params.gamma.is_quantized"),
    "signs by tensor": ({"defaults__unsigned_symmetric": "True"}, "defaults.unsigned_symmetric: .*same signedness"),
    "floating point": (
        {"defaults__supported_kernels": [kernel(8, 8), kernel(16, 16, "float")]},
        "defaults.supported_kernels.1: .*floating-point",
    ),
    "widths that the base has not": (
        {"defaults__supported_kernels": [kernel(32, 16)]},
        "kernels.0: int8_dsp does not support activations of 32 bits and weights of 16 bits",
    ),
    "widths in pairs": (
        {"defaults__supported_kernels": [kernel(16, 8), kernel(8, 4)]},
        "defaults.supported_kernels: 16-bit activations with 4-bit weights are missing",
    ),
    "widths of one operator": (
        {"op_type__Conv__supported_kernels": [kernel(16, 8)]},
        "op_type.Conv.supported_kernels: .*the same widths",
    ),
    "layers in float": ({"op_type__Conv__is_output_quantized": "False"}, "op_type.Conv.is_output_quantized: results"),
    "functions in float": ({"op_type__Tanh__is_output_quantized": "False"}, "op_type.Tanh.is_output_quantized"),
    "an operand in float": ({"op_type__Add__is_input_quantized": "False"}, "op_type.Add.is_input_quantized"),
    "a grid for what is moved": (
        {"op_type__MaxPool__is_output_quantized": "True"},
        "op_type.MaxPool.is_output_quantized: max_pool2d only moves",
    ),
    "a symmetry of its own": ({"op_type__Add__is_symmetric": "True"}, "op_type.Add.is_symmetric: .*same symmetry"),
    "one scale for slopes": (
        {"op_type__PRelu__per_channel_quantization": "False"},
        "op_type.PRelu.per_channel_quantization: slopes are exact",
    ),
    "slopes of few bits": (
        {"op_type__PRelu__params__weight__is_quantized": "True"},
        "op_type.PRelu.params.weight.is_quantized: slopes",
    ),
    "a scale per channel of a normalization": (
        {"op_type__LayerNormalization__per_channel_quantization": "True"},
        "op_type.LayerNormalization.per_channel_quantization",
    ),
    "an asymmetric normalization": (
        {"op_type__LayerNormalization__params__weight__is_symmetric": "False"},
        "op_type.LayerNormalization.params.weight.is_symmetric",
    ),
    "layers with weights in float": (
        {"op_type__Gemm__params__weight__is_quantized": "False"},
        "op_type.Gemm.params.weight.is_quantized",
    ),
    "a parameter that is none": (
        {"op_type__Add__params__weight__is_quantized": "True"},
        "op_type.Add.params.weight: add has no parameter 'weight'",
    ),
    "half a range": (
        {"op_type__Tanh__encoding_constraints": {"min": 0.0}},
        "op_type.Tanh.encoding_constraints: .*one end",
    ),
    "no range": ({"op_type__Tanh__encoding_constraints": {"min": 1, "max": 1}}, "min must be less than max"),
    "a range of what is moved": (
        {"op_type__Pad__encoding_constraints": {"min": 0, "max": 1}},
        "op_type.Pad.encoding_constraints: pad only moves",
    ),
    "a type that is none": ({"op_type__Convv": {}}, "op_type.Convv: .*type 'Convv'; did you mean 'Conv'?"),
    "a group with a table": (
        {"supergroups": [{"op_list": ["Conv", "Relu"]}, {"op_list": ["Conv", "HardSwish"]}]},
        "supergroups.1.op_list: only Relu and Clip",
    ),
    "a group of nothing": ({"supergroups": [{"op_list": ["Conv", "Rleu"]}]}, "supergroups.0.op_list.1: .*'Relu'"),
    "a pattern that is none": ({"supergroup_pass_list": ["Softmax"]}, "supergroup_pass_list.0: 'Softmax' is not"),
    "an input in float": ({"model_input__is_input_quantized": "False"}, "model_input.is_input_quantized: inputs"),
    "an output in float": ({"model_output__is_output_quantized": "False"}, "model_output.is_output_quantized: outputs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_base_cannot_do_is_refused_with_its_key(case: str, tmp_path: Path) -> None:
    sections, message = REFUSED[case]
    with pytest.raises(TargetError, match=message) as caught:
        load_target(config(tmp_path, **sections), base="int8_dsp")
    assert "1 key of the configuration cannot be honoured" in str(caught.value)
    assert "config.json" in str(caught.value)


def test_all_that_is_refused_is_told_at_once_and_may_be_given_up(tmp_path: Path) -> None:
    groups = [{"op_list": ["Conv", name]} for name in ("PRelu", "Relu", "LeakyRelu")]
    path = config(tmp_path, supergroups=groups, op_type__LayerNormalization__params__weight__is_symmetric="False")
    with pytest.raises(
        TargetError, match=r"3 keys .*supergroups\.0\.op_list, supergroups\.2\.op_list: only Relu and Clip"
    ):
        load_target(path, base="int8_dsp")
    unneeded = ["op_type.LayerNormalization", "supergroups.0", "supergroups.2"]
    target = load_target(path, "int8_dsp", ignore=unneeded)
    assert target.absorbs("conv2d", "relu")
    assert not target.absorbs("conv2d", "prelu")
    with pytest.raises(TargetError, match=r"ignore lists 'supergroups\.1', but no such key is refused"):
        load_target(path, "int8_dsp", ignore=[*unneeded, "supergroups.1"])


MALFORMED = {
    "no JSON": ("{", "not JSON"),
    "an unknown section": ('{"op_types": {}}', "no key 'op_types'.*Did you mean 'op_type'"),
    "an unknown key": ('{"defaults": {"strict_symmetrc": "True"}}', "'defaults.strict_symmetrc'.*'strict_symmetric'"),
    "a word that is no truth": (
        '{"defaults": {"ops": {"is_symmetric": "yes"}}}',
        'defaults.ops.is_symmetric: expected "True" or "False"',
    ),
    "a width that no kernel has": (
        '{"defaults": {"supported_kernels": [{"activation": {"bitwidth": 12, "dtype": "int"}}]}}',
        "defaults.supported_kernels.0.activation.bitwidth",
    ),
    "a group of one": ('{"supergroups": [{"op_list": ["Conv"]}]}', "supergroups.0.op_list"),
    "no kernels": ('{"defaults": {"supported_kernels": []}}', "defaults.supported_kernels"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused(case: str, tmp_path: Path) -> None:
    text, message = MALFORMED[case]
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TargetError, match=message):
        load_target(path, base="int8_dsp")


def test_a_file_and_a_base_belong_together(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"needs a base.*default_config\.json.*--base"):
        load_target(WHOLE)
    with pytest.raises(
        TargetError, match="base was given with the target 'int8_dsp'; expected a runtime configuration"
    ):
        load_target("int8_dsp", base="ort_cpu")
    with pytest.raises(TargetError, match="there is no target 'int8_dps'"):
        load_target(WHOLE, base="int8_dps")
    with pytest.raises(TargetError, match=r"there is no file.*gone\.json"):
        load_target(tmp_path / "gone.json", base="int8_dsp")


def test_a_base_with_one_grid_for_all_keeps_weights_apart(tmp_path: Path) -> None:
    """A descriptor may name one type for activations and weights: what is said of one is not said of the other."""
    descriptor = json.loads(load_target("int8_dsp").override(symmetric_activations=True).to_json())
    descriptor["defaults"]["activation"] = "w8"
    del descriptor["dtypes"]["a8"]
    base = qcompiler.Target.of(copy.deepcopy(descriptor), "test")
    target = load_target(config(tmp_path, defaults__per_channel_quantization="True"), base)
    assert target.activation_spec().axis is None
    assert target.weight_spec("conv2d", 0).axis == 0


def test_the_table_of_operators_names_what_there_is() -> None:
    named = {op for ops in OPS.values() for op in ops}
    assert named <= set(known_ops())
    assert not set(OPS) & set(ELSEWHERE)
    ours = {name for item in load_target("int8_dsp").descriptor.op for name in item.names}
    without_type = {"silu", "log_sigmoid", "tanhshrink", "expm1", "log1p", "rsqrt", "exact"}
    assert ours - named == without_type, "functions for which ONNX has several operators"


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    model = "examples.digits.model:load_digits_net"
    assert cli.main(["check", model, "--target", str(WHOLE), "--base", "int8_dsp"]) == 0
    capsys.readouterr()
    assert cli.main(["check", model, "--target", str(WHOLE)]) == 1
    assert "--base int8_dsp" in capsys.readouterr().err

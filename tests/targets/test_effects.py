"""Every field of the schema changes something: what is compiled, what is refused, or what is reported (decision 13).

Of each field there are two descriptors that differ in it alone, and a view of them that must differ too. A field
without an entry in `EFFECTS` fails: a descriptor says nothing that has no effect.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qcompiler
from qcompiler import frontends
from qcompiler.backends.integer import emit
from qcompiler.errors import QCompilerError
from qcompiler.passes.base import Override, PassContext
from qcompiler.passes.insert_gradient_quantizers import InsertGradientQuantizers
from qcompiler.passes.manager import PassManager
from qcompiler.session.pipeline import default_pipeline, training_passes
from qcompiler.targets import Target, load_target
from tests.targets.test_schema import FIELDS


class Everything(nn.Module):
    """Operators for every kind of rule, on 4 channels of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 3, groups=6)
        self.point = nn.Conv2d(6, 6, 1)
        self.linear, self.last = nn.Linear(12, 40), nn.Linear(40, 5)
        with torch.no_grad():
            self.conv.weight[0] *= 8.0
            self.linear.weight[:20] *= 8.0

    def forward(self, x: Tensor) -> Tensor:
        """[N, 4, 8, 8] -> [N, 5]."""
        x = F.relu6(self.conv(x) * 4)
        y = F.hardtanh(self.depthwise(x))
        z = F.avg_pool2d(torch.tanh(y) + y * 0.3 + F.hardtanh(self.point(y), -1e-5, 1e-5), 2)
        z = torch.cat([z, F.max_pool2d(y, 2)], 1)
        return torch.sigmoid(self.last(F.silu(self.linear(z.mean((2, 3))))))


@functools.cache
def everything() -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return Everything().eval()


def images() -> Tensor:
    return torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1))


View = Callable[[Target], object]


def gradients(target: Target, bits: int | None = None) -> object:
    """The quantizers of gradients of quantized training."""
    context = PassContext(target, calibration_data=[[images()]])
    module = frontends.capture(everything(), (images(),)).module
    passes = (*training_passes("fast", target=target), InsertGradientQuantizers(bits))
    PassManager(passes).run(module, context)
    return [str(node.attributes) for node in module.main.nodes if node.op == "quantize_gradient"]


def gradients_of_four_bits(target: Target) -> object:
    """The same with a width that the call asks for."""
    return gradients(target, 4)


def lowered(
    target: Target,
    model: nn.Module | None = None,
    data: Tensor | None = None,
    effort: str = "fast",
    overrides: Mapping[str, Override] | None = None,
) -> object:
    """The integer program of `Everything` or of another model, with its constants."""
    x = images() if data is None else data
    module = frontends.capture(model or everything(), (x,)).module
    context = PassContext(target, calibration_data=[[x]], overrides=overrides or {})
    widths = {"weight_bits": target.weight_bits, "activation_bits": target.activation_bits}
    PassManager(default_pipeline(effort, per_channel=target.per_channel, **widths)).run(module, context)
    program = emit(module.main, target.layout.activations, target.layout.weights, packing=target.packing)
    return program.program_json(), program.weights()


def shares(target: Target) -> object:
    """The integer program of a softmax."""
    return lowered(target, nn.Softmax(1).eval())


class Attention(nn.Module):
    """A product of two activations, times a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ x.transpose(2, 3) * 0.5


def attended(target: Target) -> object:
    """The integer program of such a product."""
    return lowered(target, Attention().eval(), torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)))


def compiled(target: Target, model: nn.Module | None = None) -> qcompiler.Compiled:
    return qcompiler.compile(model or everything(), target, calibration_data=[images()], effort="fast", verify="off")


def written(target: Target) -> object:
    """The ONNX file and the C of `Everything`."""
    files = compiled(target).artifact.files()
    return files["model.onnx"], [data for name, data in files.items() if name.startswith("c/")]


def forms(target: Target) -> object:
    """The names of the forms that are written."""
    return sorted(compiled(target).artifact.forms)


def equalized(target: Target) -> object:
    """The integer program after cross-layer equalization, with ranges of least error."""
    return lowered(target, effort="default")


def asked(node: str, **widths: int) -> View:
    """The integer program where a node is to have other widths."""
    return lambda target: lowered(target, overrides={node: dict(widths)})


def summed(target: Target) -> object:
    """The compiled form of a sum that leaves the range of its result unless it begins with the bias."""
    layer = nn.Linear(300, 1).eval()
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(-150.0)
    return lowered(target, layer, torch.cat([torch.zeros(1, 300), torch.ones(1, 300)]))


def estimated(target: Target) -> object:
    return json.dumps(dataclasses.asdict(compiled(target).artifact.estimate), default=str)


def facts(target: Target) -> object:
    return target.facts()


def trained(target: Target) -> object:
    """The parameters of a training module, scales among them."""
    data = [images()]
    module = qcompiler.prepare_qat(everything(), target, example_inputs=images(), calibration_data=data)
    return {name: item.tolist() for name, item in module.named_parameters()}


def verified(target: Target) -> object:
    """Whether a verification lets an ONNX file pass whose codes of one layer are wrong by one here and there."""
    layer = nn.Conv2d(4, 2, 3).eval()
    with torch.no_grad():
        layer.weight.fill_(0.1)
    made = compiled(target, layer)
    with tempfile.TemporaryDirectory() as folder:
        place = made.save(Path(folder) / "made")
        model = onnx.load(place / "model.onnx")
        bias = next(item for item in model.graph.initializer if item.data_type == onnx.TensorProto.INT32)
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 100, bias.name))
        onnx.save(model, place / "model.onnx")
        manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
        manifest["sha256"]["model.onnx"] = hashlib.sha256((place / "model.onnx").read_bytes()).hexdigest()
        (place / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return qcompiler.load(place).verify().passed


@dataclasses.dataclass(frozen=True)
class Effect:
    """Two descriptors and how to look at them.

    Args:
        before, after: Changes of `base`, by dotted path; `after` is laid over `before`. A rule in `op` or `tie` takes
            its names from other rules.
        base: Shipped target.
        see: The view; an error's message is a view as well.
    """

    after: Mapping[str, Any]
    before: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base: str = "int8_dsp"
    see: View = lowered


def changed(base: str, changes: Mapping[str, Any]) -> Target:
    data = json.loads(load_target(base).to_json())
    for path, value in changes.items():
        *folders, last = path.split(".")
        place = data
        for folder in folders:
            place[folder] = place.get(folder) or {}
            place = place[folder]
        if path in ("op", "tie"):
            field = {"op": "names", "tie": "ops"}[path]
            kept = [{**row, field: [n for n in row[field] if n not in value[field]]} for row in place[path]]
            value = [*(row for row in kept if row[field]), value]
        place[last] = value
    return Target.of(data, "chip")


def view(effect: Effect, changes: Mapping[str, Any]) -> object:
    try:
        return effect.see(changed(effect.base, changes))
    except QCompilerError as error:
        return str(error)


def rule(names: str, kind: str, **more: object) -> dict[str, Any]:
    return {"op": {"names": names.split(), "kind": kind, **more}}


def pair(**more: object) -> dict[str, Any]:
    return rule("conv2d", "mac", combinations=[{"activation": "a8", "weight": "w8", **more}])


def memory(**more: object) -> dict[str, Any]:
    first = {"name": "sram", "bytes": 100_000, "holds": ["activations", "constants"], "bytes_per_cycle": 2.0, **more}
    second = {"name": "dram", "bytes": 1_000_000, "bytes_per_cycle": 0.5, "picojoules_per_byte": 9.0}
    return {**SPEEDS, "memory": [first, second]}


SPEEDS = {
    "compute": {"clock_hz": 1e6, "macs_per_cycle": {"8x8": 16}, "elementwise_per_cycle": 4, "picojoules_per_mac": 0.5}
}
WIDE_SHARES = rule("softmax", "softmax", out_fixed={"scale": 1 / 32768, "zero_point": 0, "bits": 16})
GRID = {"scale": 1 / 128, "zero_point": -128, "bits": 8}
FREE = rule("sigmoid hardsigmoid", "table")
NARROW_A = {"dtypes.a8.allowed_bits": [8], "dtypes.a12": {"bits": 12}}
NARROW_W = {"dtypes.w8.allowed_bits": [8], "dtypes.w4": {"bits": 4, "symmetric": True}}
COARSE = {"verify.layer_lsb": 16, "verify.layer_fraction": 1.0}
SIMULATION = {"simulation.reason": "none computes it"}

EFFECTS: dict[str, Effect] = {
    "Descriptor.forms": Effect({"forms": ["TFLite"]}, see=forms),
    "Identity.name": Effect({"target.name": "other"}, see=lambda target: target.name),
    "Identity.version": Effect({"target.version": "2"}, see=facts),
    "Identity.vendor": Effect({"target.vendor": "someone"}, see=facts),
    "Identity.description": Effect({"target.description": "other"}, see=lambda target: target.descriptor.target.description),
    "Identity.sources": Effect({"target.sources": ["other"]}, see=facts),
    "Identity.unknown": Effect({"target.unknown": ["rounding: a guess"]}, see=facts),
    "NumberType.bits": Effect({"dtypes.a8.bits": 7}),
    "NumberType.allowed_bits": Effect({"dtypes.a8.allowed_bits": [8]}, see=asked("conv", activation_bits=6)),
    "NumberType.signed": Effect({"dtypes.a8.signed": False}, FREE),
    "NumberType.symmetric": Effect({"dtypes.a8.symmetric": True}, FREE),
    "NumberType.narrow": Effect({"dtypes.w8.narrow": False}, {"dtypes.w8.bits": 3}, see=equalized),
    "NumberType.granularity": Effect({"dtypes.w8.granularity": "per_channel"}),
    "NumberType.block": Effect({"dtypes.w4.block": 16}, base="w4a8_npu_blocks"),
    "NumberType.factor_bits": Effect({"dtypes.w4.factor_bits": 2}, base="w4a8_npu_blocks"),
    "NumberType.scale": Effect({"dtypes.w8.scale": "pow2"}),
    "NumberType.packing": Effect({"dtypes.w4.packing": "high_nibble_first"}, base="w4a8_npu"),
    "Defaults.activation": Effect({"defaults.activation": "a12", "defaults.other_activations": ["a8"]}, {**NARROW_A, "defaults.other_activations": ["a12"]}),
    "Defaults.weight": Effect({"defaults.weight": "w4", "defaults.other_weights": ["w8"]}, {**NARROW_W, "defaults.other_weights": ["w4"]}),
    "Defaults.other_activations": Effect({**NARROW_A, "defaults.other_activations": ["a12"]}, {"dtypes.a8.allowed_bits": [8]}, see=asked("conv", activation_bits=12)),
    "Defaults.other_weights": Effect({"defaults.other_weights": ["w4"], **NARROW_W}, {"dtypes.w8.allowed_bits": [8]}, see=asked("conv", weight_bits=4)),
    "Requantize.mode": Effect({"requantize.mode": "double"}),
    "Requantize.multiplier_bits": Effect({"requantize.multiplier_bits": 8}),
    "Requantize.max_left_shift": Effect({"requantize.max_left_shift": 0}),
    "Requantize.max_right_shift": Effect({"requantize.max_right_shift": 2}),
    "Requantize.multiplier_precision": Effect({"requantize.multiplier_precision": "float32"}),
    "Requantize.per_channel": Effect({"requantize.per_channel": False}, base="int8_dsp_per_channel"),
    "Requantize.product_factors": Effect({"requantize.product_factors": False}, see=attended),
    "Requantize.per_channel_clamp": Effect({"requantize.per_channel_clamp": False}, see=equalized),
    "Multiplier.mode": Effect(rule("conv2d", "mac", requantize={"mode": "double"}), rule("conv2d", "mac", requantize={"mode": "single"})),
    "Multiplier.multiplier_bits": Effect(rule("conv2d", "mac", requantize={"mode": "single", "multiplier_bits": 8})),
    "Multiplier.max_left_shift": Effect(rule("conv2d", "mac", requantize={"mode": "single", "max_left_shift": 0})),
    "Multiplier.max_right_shift": Effect(rule("conv2d", "mac", requantize={"mode": "single", "max_right_shift": 2})),
    "Multiplier.multiplier_precision": Effect(rule("conv2d", "mac", requantize={"mode": "single", "multiplier_precision": "float32"})),
    "Roundings.quantize": Effect({"rounding.quantize": "floor"}),
    "Roundings.bias": Effect({"rounding.bias": "floor"}),
    "Roundings.table": Effect({"rounding.table": "floor"}),
    "Roundings.average": Effect({"rounding.average": "rne"}),
    "Roundings.mean_multiplier": Effect({"rounding.mean_multiplier": "divided"}),
    "Accumulator.bits": Effect({"accumulator.bits": 16}),
    "Accumulator.overflow": Effect({"accumulator.overflow": "saturate"}, {"accumulator.bits": 24}, see=summed),
    "Gradient.bits": Effect({"gradient.bits": 4}, see=gradients),
    "Gradient.allowed_bits": Effect({"gradient.allowed_bits": []}, see=gradients_of_four_bits),
    "Gradient.symmetric": Effect({"gradient.symmetric": True}, see=gradients),
    "Gradient.rounding": Effect({"gradient.rounding": "nearest"}, see=gradients),
    "Bias.bits": Effect({"bias.bits": 12}),
    "Bias.zero_point_folding": Effect({"bias.zero_point_folding": "compiler"}, {"bias.bits": 16}),
    "Elementwise.mode": Effect({"elementwise.mode": "f32"}),
    "Elementwise.add_shift": Effect({"elementwise.add_shift": 4}),
    "Tables.precision": Effect({"table.precision": "float32"}, {**FREE, "dtypes.a8.bits": 16, "accumulator.bits": 40}),
    "Tables.per_channel": Effect({"table.per_channel": False}, see=equalized),
    "Tables.max_entries": Effect({"table.max_entries": 128}),
    "Tables.max_bytes": Effect({"table.max_bytes": 128}),
    "Softmax.mode": Effect({"softmax.mode": "gemmlowp"}, see=shares),
    "Softmax.wide_mode": Effect({"softmax.wide_mode": "lut16"}, {**WIDE_SHARES, "dtypes.a8.bits": 16}, see=shares),
    "FixedGrid.scale": Effect(rule("sigmoid", "table", out_fixed={**GRID, "scale": 1 / 64})),
    "FixedGrid.zero_point": Effect(rule("sigmoid", "table", out_fixed={**GRID, "zero_point": -100}), rule("sigmoid", "table", out_fixed=GRID)),
    "FixedGrid.bits": Effect(rule("sigmoid", "table", out_fixed={**GRID, "bits": 16}), rule("sigmoid", "table", out_fixed=GRID)),
    "Limits.kernel": Effect(rule("conv2d", "mac", limits={"kernel": [1, 2]})),
    "Limits.stride": Effect(rule("max_pool2d", "movement", limits={"stride": [1, 1]})),
    "Limits.dilation": Effect(rule("conv2d", "mac", limits={"dilation": [2, 3]})),
    "Limits.groups": Effect(rule("conv2d", "mac", limits={"groups": "one"}), rule("conv2d", "mac", limits={"groups": "any"})),
    "Limits.terms": Effect(rule("linear", "mac", limits={"terms": 12})),
    "Combination.activation": Effect(rule("conv2d", "mac", combinations=[{"activation": "a12", "weight": "w8"}]), {**NARROW_A, "defaults.other_activations": ["a12"]}),
    "Combination.weight": Effect(rule("conv2d", "mac", combinations=[{"activation": "a8", "weight": "w4"}]), {**NARROW_W, "defaults.other_weights": ["w4"]}),
    "Combination.requantize": Effect(pair(requantize={"mode": "double"}), pair()),
    "Combination.accumulator": Effect(pair(accumulator={"bits": 16}), pair()),
    "Combination.bias": Effect(pair(bias={"bits": 10}), pair()),
    "OpRule.names": Effect(rule("conv2d", "mac", limits={"kernel": [1, 2]}), rule("conv1d", "mac", limits={"kernel": [1, 2]})),
    "OpRule.kind": Effect(rule("sigmoid", "float", out_fixed=GRID), {**rule("sigmoid", "table", out_fixed=GRID), "partition.fallback": "float"}),
    "OpRule.per_channel": Effect(rule("linear", "mac", per_channel=False), base="int8_dsp_per_channel"),
    "OpRule.out_fixed": Effect(FREE),
    "OpRule.limits": Effect(rule("linear", "mac", limits={"terms": 12})),
    "OpRule.requantize": Effect(rule("conv2d", "mac", requantize={"mode": "double"})),
    "OpRule.combinations": Effect(rule("conv2d", "mac", combinations=[{"activation": "a12", "weight": "w8"}]), {**NARROW_A, "defaults.other_activations": ["a12"]}),
    "Supergroup.steps": Effect({"supergroup": [{"steps": [["linear"], ["relu", "clamp"]]}]}),
    "Tie.ops": Effect({"tie": {"ops": ["add"]}}),
    "Tie.tensors": Effect({"tie": {"ops": ["add"], "tensors": "inputs_and_output"}}),
    "Layout.activations": Effect({"layout.activations": "NCHW"}),
    "Layout.weights": Effect({"layout.weights": "OIHW"}),
    "Layout.alignment": Effect({"layout.alignment": 64}, see=written),
    "Layout.channel_multiple": Effect({"layout.channel_multiple": 16}, SPEEDS, see=estimated),
    "Memory.name": Effect(memory(name="tcm"), memory(), see=estimated),
    "Memory.bytes": Effect(memory(bytes=1_000), memory(), see=estimated),
    "Memory.holds": Effect(memory(holds=["activations"]), memory(), see=estimated),
    "Memory.bytes_per_cycle": Effect(memory(bytes_per_cycle=0.01), memory(), see=estimated),
    "Memory.latency_cycles": Effect(memory(latency_cycles=5_000), memory(), see=estimated),
    "Memory.burst_bytes": Effect(memory(burst_bytes=50_000), memory(), see=estimated),
    "Memory.picojoules_per_byte": Effect(memory(picojoules_per_byte=7.0), memory(picojoules_per_byte=1.0), see=estimated),
    "Compute.clock_hz": Effect({"compute.clock_hz": 2e6}, SPEEDS, see=estimated),
    "Compute.macs_per_cycle": Effect({"compute.macs_per_cycle": {"8x8": 1}}, SPEEDS, see=estimated),
    "Compute.elementwise_per_cycle": Effect({"compute.elementwise_per_cycle": 1}, SPEEDS, see=estimated),
    "Compute.picojoules_per_mac": Effect({"compute.picojoules_per_mac": 1.0}, memory(picojoules_per_byte=1.0), see=estimated),
    "Verification.layer_lsb": Effect({"verify.layer_lsb": 0}, COARSE, see=verified),
    "Verification.layer_fraction": Effect({"verify.layer_fraction": 0.0}, COARSE, see=verified),
    "Partition.fallback": Effect({"partition.fallback": "float"}, rule("sigmoid", "float", out_fixed=GRID)),
    "Onnx.opset": Effect({"onnx.opset": 17}, see=written),
    "Onnx.ir_version": Effect({"onnx.ir_version": 9}, see=written),
    "Onnx.activations": Effect({"onnx.activations": "as_is"}, see=written),
    "Onnx.bias": Effect({"onnx.bias": "float"}, see=written),
    "Simulation.reason": Effect({"simulation.reason": "nobody knows how"}, SIMULATION, see=written),
    "Simulation.first_last_bits": Effect({"simulation.first_last_bits": 8}, base="lsq_paper", before={"simulation.first_last_bits": 4}, see=trained),
    "Simulation.first_input": Effect({"simulation.first_input": "quantized"}, base="lsq_paper", see=trained),
    "Descriptor.schema_version": Effect({"schema": "qcompiler.hw/2"}),
    "Descriptor.simulation": Effect(SIMULATION, see=written),
}  # fmt: skip
"""`Model.field` -> its effect. Fields of `Descriptor` that hold a model are there if a field of the model is."""


def test_every_field_has_an_entry() -> None:
    fields = {f"{model.__name__}.{name}" for model, name, _ in (param.values for param in FIELDS)}  # type: ignore[union-attr]
    tables = {name for name in fields if name.startswith("Descriptor.")} - {*EFFECTS}
    assert {*EFFECTS} == fields - tables
    held = {"target", "dtypes", "defaults", "requantize", "rounding", "accumulator", "bias", "elementwise", "table"}
    held |= {
        "gradient",
        "op",
        "supergroup",
        "tie",
        "layout",
        "memory",
        "compute",
        "partition",
        "verify",
        "onnx",
        "softmax",
    }
    assert tables == {f"Descriptor.{name}" for name in held}


@functools.cache
def seen_before(name: str) -> object:
    effect = EFFECTS[name]
    same = next(key for key, item in EFFECTS.items() if dataclasses.replace(item, after=effect.after) == effect)
    return view(effect, effect.before) if same == name else seen_before(same)


@pytest.mark.parametrize("name", EFFECTS)
def test_a_field_has_an_effect(name: str) -> None:
    effect = EFFECTS[name]
    assert seen_before(name) != view(effect, {**effect.before, **effect.after}), f"{name} changes nothing"


def test_what_changes_nothing_is_found() -> None:
    nothing = Effect({"tie": {"ops": ["permute"]}})
    assert view(nothing, {}) == view(nothing, nothing.after)

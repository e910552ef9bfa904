"""Modules that learn: names, state, modes, and that what they compute in eval mode is what compile makes of them."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn import functional

import qcompiler
from examples.digits.data import load_data
from examples.digits.model import load_digits_net
from qcompiler import errors
from qcompiler.session.source import TRAINING
from qcompiler.training.freezing import Freezing, Tracking
from qcompiler.training.methods import METHODS, Method
from qcompiler.training.oscillations import Oscillations
from qcompiler.training.quantizer import Quantizer
from qcompiler.training.ranges import FixedRange, LearnedClip, LearnedScale
from tests.training.networks import INPUTS, LABELS, small

ROOT = Path(__file__).parents[2]


def prepare(
    target: str | qcompiler.Target = "int8_dsp", model: nn.Module | None = None, **options: Any
) -> qcompiler.QATModule:
    return qcompiler.prepare_qat(model or small(), target, calibration_data=[INPUTS], **options)


def learn(module: qcompiler.QATModule, steps: int = 3, lr: float = 0.01) -> list[float]:
    """The losses of a few steps, with momentum."""
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)
    losses = []
    module.train()
    for _ in range(steps):
        optimizer.zero_grad()
        logits = module(INPUTS)
        loss = functional.cross_entropy(logits, LABELS) + module.regularization()
        loss.backward()
        optimizer.step()
        module.step()
        losses.append(float(loss.detach()))
    return losses


def result(module: nn.Module, x: Tensor = INPUTS) -> Tensor:
    found = module(x)
    assert isinstance(found, Tensor)
    return found.detach()


def target_of(name: str, bits: int) -> qcompiler.Target:
    per_channel = name.endswith("per_channel")
    base = qcompiler.load_target(name.removesuffix(" per_channel"))
    return base.override(weight_bits=bits, activation_bits=bits, per_channel=per_channel)


# One of each style, and one of each kind of target, in every run.
QUICK = (("int8_dsp", 8, "fold"), ("int8_dsp per_channel", 4, "keep"), ("int8_dsp per_channel", 8, "double"))
QUICK_TARGETS = ("ort_cpu", "hexagon_htp_a16w4", "pow2_mcu", "w4a8_npu_blocks")
QUICK_METHODS = ("lsq", "ewgs", "min_max", "pact", "stochastic")
CASES = [
    pytest.param(name, bits, style, marks=() if (name, bits, style) in QUICK else pytest.mark.slow)
    for name, bits in itertools.product(("int8_dsp", "int8_dsp per_channel", "ort_cpu"), (4, 8))
    for style in (("fold", "keep", "double") if "per_channel" in name else ("fold",))
]


@pytest.mark.parametrize(("name", "bits", "style"), CASES)
def test_eval_mode_is_what_is_compiled_bit_for_bit(name: str, bits: int, style: Any) -> None:
    module = prepare(target_of(name, bits), batch_norm=style)
    before = result(module.eval())
    learn(module)
    found = result(module.eval())
    assert not torch.equal(found, before)
    compiled = qcompiler.compile(module)
    assert compiled.verification is not None
    assert compiled.verification.passed
    assert compiled.target == module.target
    for form in (compiled.run(INPUTS), compiled.simulate(INPUTS), compiled.module()(INPUTS)):
        assert isinstance(form, Tensor)
        assert torch.equal(found, form)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK_TARGETS else pytest.mark.slow)
        for name in qcompiler.targets()
        if name != "lsq_paper"
    ],
)
def test_every_deployable_target_ships_what_eval_mode_computes(name: str) -> None:
    module = prepare(name)
    learn(module, 2)
    found = result(module.eval())
    compiled = qcompiler.compile(module)
    assert torch.equal(found, compiled.run(INPUTS))  # type: ignore[arg-type]


def test_a_bias_that_does_not_fit_ships_as_eval_mode_computes() -> None:
    # 20 bits for biases, and one that is huge compared with its weights.
    target = qcompiler.load_target("int8_dsp")
    data = json.loads(target.to_json())
    data["bias"]["bits"] = 20
    target = qcompiler.Target.of(data, "a test")
    model = small()
    with torch.no_grad():
        model.head.weight.mul_(0.1)
    module = prepare(target, model)
    with torch.no_grad():
        module.get_parameter("head.bias").add_(50.0)
    found = result(module.eval())
    scale = module.get_submodule("head.weight_quantizer").deployed(model.head.weight)[0]  # type: ignore[operator]
    shipped = module.quantized().tensors["head.weight.scale"]
    assert float(shipped) > 1.5 * float(scale)
    assert torch.equal(found, qcompiler.compile(module, verify="off").run(INPUTS))  # type: ignore[arg-type]


def test_a_compiled_module_has_every_form() -> None:
    module = prepare()
    learn(module)
    compiled = qcompiler.compile(module)
    assert "c/small.h" in compiled.artifact.forms["C"].files
    grids = json.loads(compiled.encodings())
    assert len(grids["param_encodings"]) >= 4
    assert "pipeline" not in grids.get("producer", {}), "no passes lead from the model to the learned weights"


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in QUICK_METHODS else pytest.mark.slow) for name in METHODS]
)
def test_every_method_learns_and_compiles(method: str) -> None:
    module = prepare(target_of("ort_cpu", 4), method=method)
    losses = learn(module, 6)
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in module.parameters())
    found = result(module.eval())
    assert torch.equal(found, qcompiler.compile(module, verify="off").run(INPUTS))  # type: ignore[arg-type]


def test_training_of_the_digits_wins_back_half_of_what_quantization_costs() -> None:
    data = load_data()
    images, labels = data.train_images[:128], data.train_labels[:128]
    model = load_digits_net()
    target = qcompiler.load_target("int8_dsp").override(weight_bits=3)
    module = qcompiler.prepare_qat(model, target, calibration_data=[data.calibration_images[:128]])

    @torch.no_grad()
    def loss_of(learned: nn.Module) -> float:
        # In eval mode: the model has a dropout, with which the losses of steps are drawn by chance.
        return float(functional.cross_entropy(result(learned.eval(), images), labels))

    float_loss, before = loss_of(model), loss_of(module)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.03, momentum=0.9)
    for _ in range(12):
        optimizer.zero_grad()
        functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
        module.step()
    assert loss_of(module) < (float_loss + before) / 2


@pytest.mark.parametrize(
    ("bits", "method", "learns"),
    [(8, "lsq", False), (4, "lsq", True), (8, {"x": "lsq"}, True), (8, {"weights": "lsq"}, False)],
)
def test_the_range_of_a_fine_input_learns_where_it_is_named(bits: int, method: Any, learns: bool) -> None:
    module = prepare(target_of("int8_dsp", bits), method=method)
    assert ("x.quantizer.scale" in dict(module.named_parameters())) is learns
    assert "x.quantizer.scale" in module.state_dict()


@pytest.mark.parametrize(
    ("value", "message"),
    [(0.0, "after training a scale is 0.*head.quantizer.*scale_lr"), (float("nan"), "a scale is nan.*finite")],
)
def test_a_range_that_training_has_destroyed_is_refused_by_name(value: float, message: str) -> None:
    module = prepare()
    module.get_parameter("head.quantizer.scale").data.fill_(value)
    with pytest.raises(errors.CalibrationError, match=message):
        qcompiler.compile(module)


def test_names_are_those_of_the_model() -> None:
    model = small()
    folded, kept = prepare(model=model), prepare("int8_dsp_per_channel", model, batch_norm="keep")
    names = dict(model.named_parameters())
    assert set(names) <= set(dict(kept.named_parameters()))
    assert set(model.state_dict()) <= set(kept.state_dict())
    weights = {name for name in names if ".1." not in name}
    assert weights <= set(dict(folded.named_parameters()))
    assert {"x.quantizer.scale", "stem.0.weight_quantizer.scale", "head.quantizer.scale"} <= set(folded.state_dict())
    missing = kept.load_state_dict(model.state_dict(), strict=False)
    assert not missing.unexpected_keys


def test_parameter_groups_hold_each_parameter_once() -> None:
    module = prepare("int8_dsp_per_channel", batch_norm="keep", method={"weights": "lsq", "activations": "pact"})
    groups = module.parameter_groups(lr=0.5, scale_lr=1e-3, weight_decay=1e-4)
    held = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in module.parameters()}
    assert len(held) == len({id(p) for p in held})
    by_name = {group["name"]: group for group in groups}
    assert list(by_name) == ["weights", "biases", "batch_norms", "scales", "ranges"]
    assert len(by_name["weights"]["params"]) == 4
    assert len(by_name["batch_norms"]["params"]) == 6
    assert {group["weight_decay"] for group in groups if group["name"] in ("weights", "ranges")} == {1e-4}
    assert {group["weight_decay"] for group in groups if group["name"] not in ("weights", "ranges")} == {0.0}
    assert (by_name["scales"]["lr"], by_name["ranges"]["lr"], by_name["weights"]["lr"]) == (1e-3, 1e-3, 0.5)
    torch.optim.SGD(groups)  # type: ignore[arg-type]  # torch takes them as they are


@pytest.mark.parametrize("method", ["lsq", "lsq+", "min_max", "pact"])
def test_parameter_groups_train_as_one_rate_for_all_does(method: str) -> None:
    trained = []
    for grouped in (True, False):
        module = prepare("int8_dsp", method=method)
        first = {name: p.detach().clone() for name, p in module.named_parameters()}
        parameters = [dict(group) for group in module.parameter_groups(0.02, weight_decay=0.0)]
        optimizer = torch.optim.SGD(parameters if grouped else module.parameters(), lr=0.02, momentum=0.9)
        module.train()
        for _ in range(3):
            optimizer.zero_grad()
            logits = module(2.0 * INPUTS)  # beyond the ranges, so that every one of them has a gradient
            assert isinstance(logits, Tensor)
            functional.cross_entropy(logits, LABELS).backward()
            optimizer.step()
            module.step()
        trained.append(dict(module.named_parameters()))
        moved = [
            name for name, p in module.named_parameters() if "quantizer" in name and not torch.equal(p, first[name])
        ]
        assert len(moved) >= 3, "ranges do not move"
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


LOAD = """
import sys, torch
from safetensors.torch import load_file, save_file
import qcompiler
from tests.training.networks import INPUTS, small
from tests.support.forms import c_of
module = qcompiler.prepare_qat(
    small(seed=1), "int8_dsp_per_channel", calibration_data=[torch.randn(4, 3, 8, 8)], method="min_max", batch_norm="keep"
)
module.load_state_dict(load_file(sys.argv[1]), strict=True)
save_file({"result": module.eval()(INPUTS), "steps": module.steps}, sys.argv[2])
"""


def test_state_goes_into_a_module_of_another_process(tmp_path: Path) -> None:
    module = prepare("int8_dsp_per_channel", method="min_max", batch_norm="keep")
    learn(module)
    save_file({name: item.contiguous() for name, item in module.state_dict().items()}, tmp_path / "state")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "state"), str(tmp_path / "result")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    other = load_file(tmp_path / "result")
    assert torch.equal(other["result"], result(module.eval()))
    assert int(other["steps"]) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_quantizes_in_float32(dtype: torch.dtype) -> None:
    module = prepare("int8_dsp_per_channel", batch_norm="keep")
    grids: list[torch.dtype] = []
    for item in module.modules():
        if isinstance(item, Quantizer):
            item.register_forward_hook(lambda item, arguments, result: grids.append(arguments[1].dtype))
    with torch.autocast("cpu", dtype):
        logits = result(module)
        loss = functional.cross_entropy(module(INPUTS), LABELS)
    loss.backward()
    assert logits.dtype == dtype
    assert set(grids) == {torch.float32}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert bool(parameter.grad.isfinite().all()), name
    full = result(copy.deepcopy(module))
    # Eleven layers of which each rounds to a grid of 256 codes: the noise of 8 bits of mantissa stays below it.
    assert float((full - logits.float()).abs().max()) < 0.1 * float(full.abs().max())
    module.eval()
    exact = result(module)
    with torch.autocast("cpu", dtype):
        assert torch.equal(result(module), exact), "autocast does not change codes"


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("int8_dsp", {"freezing": Freezing()}),
        ("int8_dsp_per_channel", {"batch_norm": "keep", "method": "lsq+"}),
        ("int8_dsp_per_channel", {"batch_norm": "double", "method": "min_max"}),
        ("w4a8_npu_blocks", {"method": "pact"}),
    ],
)
def test_nothing_stays_behind_on_another_device(target: str, options: dict[str, Any]) -> None:
    module = prepare(target, small(dropout=0.3), **options)
    with FakeTensorMode():  # a device that is not here: it has shapes, and refuses to meet tensors of another one
        places = {
            name: torch.empty(item.shape, dtype=item.dtype, device="cuda")
            for name, item in (*module.named_parameters(), *module.named_buffers())
        }
        found = functional_call(module, places, (torch.empty(INPUTS.shape, device="cuda"),))
        assert isinstance(found, Tensor)
        assert found.device.type == "cuda"


def test_copies_learn_apart() -> None:
    module = prepare()
    other = copy.deepcopy(module)
    assert torch.equal(result(module), result(other))
    before = result(other.eval())
    learn(module)
    assert torch.equal(result(other), before)
    assert not torch.equal(result(module.eval()), before)
    assert torch.equal(result(copy.deepcopy(module)), result(module))


def test_two_runs_give_the_same_bytes() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        module = prepare(model=small(dropout=0.3), method={"weights": "stochastic"})
        learn(module)
        states.append(module.state_dict())
    assert list(states[0]) == list(states[1])
    for name, item in states[0].items():
        assert item.numpy().tobytes() == states[1][name].numpy().tobytes(), name


def test_a_model_in_train_mode_is_taken_as_it_is() -> None:
    model = small().train()
    model.head.bias.requires_grad_(False)
    module = prepare(model=model)
    assert all(item.training for item in model.modules())
    assert module.training
    assert torch.equal(result(module.eval()), result(prepare(model=small()).eval()))
    assert not module.get_parameter("head.bias").requires_grad
    assert module.get_parameter("head.weight").requires_grad


def test_dropout_drops_in_train_mode_alone() -> None:
    module = prepare(model=small(dropout=0.5))
    assert not torch.equal(result(module), result(module))
    module.eval()
    assert torch.equal(result(module), result(module))
    plain = prepare(model=small())
    assert torch.equal(result(module), result(plain.eval()))
    assert torch.equal(qcompiler.compile(module).run(INPUTS), result(module))  # type: ignore[arg-type]
    module.get_submodule("drop").p = 0.0  # type: ignore[assignment]
    assert torch.equal(result(module.train()), result(plain.train()))


def test_methods_are_chosen_by_role_and_by_name() -> None:
    module = prepare(method={"weights": "ewgs", "activations": "ste", "depthwise": Method(ranges=LearnedClip())})
    found = {name: item for name, item in module.named_modules() if isinstance(item, Quantizer)}
    assert type(found["stem.0.weight_quantizer"].estimator).__name__ == "EWGS"
    assert isinstance(found["stem.2.quantizer"].ranges, FixedRange)
    assert isinstance(found["depthwise.0.weight_quantizer"].ranges, LearnedClip)
    assert isinstance(found["depthwise.2.quantizer"].ranges, LearnedClip)
    assert isinstance(found["stem.0.weight_quantizer"].ranges, LearnedScale)
    with pytest.raises(errors.InputError, match=r"no method 'lsk'.*Did you mean 'lsq'"):
        prepare(method="lsk")


def test_a_grid_that_the_target_dictates_never_learns() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 4, 3)).eval()
    module = qcompiler.prepare_qat(model, "int8_dsp", calibration_data=[INPUTS])
    sigmoid = module.get_submodule("1.quantizer")
    assert isinstance(sigmoid, Quantizer)
    assert isinstance(sigmoid.ranges, FixedRange)
    assert float(sigmoid.scale) == 2.0**-8


def test_shared_grids_are_one_module() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)
            self.c = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.c(torch.cat([self.a(x).relu(), self.b(x) * 3.0], 1))
            return found

    torch.manual_seed(0)
    module = qcompiler.prepare_qat(Joined().eval(), "int8_dsp", calibration_data=[INPUTS])
    learn_on(module)
    names = [name for name, item in module.named_modules() if isinstance(item, Quantizer)]
    assert sum(name in ("relu.quantizer", "mul.quantizer") for name in names) == 1, "one grid for both parts"
    assert torch.equal(result(module.eval()), qcompiler.compile(module).run(INPUTS))  # type: ignore[arg-type]


def learn_on(module: nn.Module) -> None:
    """One step of gradient descent towards nothing."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    module(INPUTS).square().mean().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    optimizer.step()


def test_one_weight_for_two_layers_has_two_grids() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(self.layer(x).relu())
            return found

    torch.manual_seed(0)
    module = qcompiler.prepare_qat(Tied().eval(), "int8_dsp", calibration_data=[INPUTS])
    learn_on(module)
    assert [name for name, _ in module.named_parameters() if name.endswith("weight")] == ["layer.weight"]
    assert torch.equal(result(module.eval()), qcompiler.compile(module).run(INPUTS))  # type: ignore[arg-type]


class Pairs(nn.Module):
    """A function of all pairs of channels, which has no integer form."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.Bilinear(4, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))
        result: Tensor = x + self.pairs(pooled, pooled)[:, :, None, None]
        return result


def test_norms_of_groups_learn() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    module = qcompiler.prepare_qat(model, "int8_dsp", calibration_data=[INPUTS])
    before = dict(module.named_parameters())["1.weight"].detach().clone()
    learn_on(module)
    assert not torch.equal(dict(module.named_parameters())["1.weight"], before)
    assert torch.equal(result(module.eval()), qcompiler.compile(module).run(INPUTS))  # type: ignore[arg-type]


def test_float_islands_learn_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Pairs(), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    target = qcompiler.load_target("int8_dsp").override(fallback="float")
    module = qcompiler.prepare_qat(model, target, calibration_data=[INPUTS])
    learn_on(module)
    assert "1.pairs.weight" in dict(module.named_parameters())
    assert torch.equal(result(module.eval()), qcompiler.compile(module).run(INPUTS))  # type: ignore[arg-type]


def test_arguments_go_by_position_and_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            return {"sum": self.layer(left) + right}

    module = qcompiler.prepare_qat(Two().eval(), "int8_dsp", calibration_data=[(INPUTS, 2 * INPUTS)])
    results = [module(INPUTS, 2 * INPUTS), module(INPUTS, right=2 * INPUTS), module(right=2 * INPUTS, left=INPUTS)]
    values = [item["sum"] for item in results if isinstance(item, Mapping)]
    assert len(values) == 3
    assert all(torch.equal(values[0], value) for value in values)
    with pytest.raises(errors.InputError, match="wrong"):
        module(INPUTS, wrong=INPUTS)
    with pytest.raises(errors.InputError, match="'left' has shape"):
        module(INPUTS[:, :1], INPUTS)


def test_compile_takes_a_learned_module_as_it_was_prepared() -> None:
    module = prepare()
    assert qcompiler.compile(module, "int8_dsp").target.name == "int8_dsp"
    with pytest.raises(errors.InputError, match="trained for int8_dsp, but target is ort_cpu"):
        qcompiler.compile(module, "ort_cpu")
    with pytest.raises(errors.InputError, match="prepare_qat"):
        qcompiler.compile(module, calibration_data=[INPUTS])
    compiled = qcompiler.compile(torch.nn.parallel.DataParallel(module).module)
    assert TRAINING in [record.pass_name for record in compiled.records]
    assert "calibrate-weights" in compiled.artifact.pipeline


def test_starts_from_any_pipeline() -> None:
    target = qcompiler.load_target("int8_dsp").override(weight_bits=4)
    module = prepare(target, effort="fast")  # which equalizes nothing: training and compile have other factors
    compiled = qcompiler.compile(small(), target, calibration_data=[INPUTS], effort="fast")
    assert torch.equal(result(module.eval()), compiled.run(INPUTS))  # type: ignore[arg-type]
    text = "default"
    by_text = prepare(target, pipeline=text)
    plain = qcompiler.compile(small(), target, calibration_data=[INPUTS], pipeline=text)
    assert torch.equal(result(by_text.eval()), plain.run(INPUTS))  # type: ignore[arg-type]
    with pytest.raises(errors.InputError, match="calibration_data"):
        qcompiler.prepare_qat(small(), target, example_inputs=INPUTS, effort="best")
    with pytest.raises(errors.PipelineError, match="insert-quantizers"):
        prepare(target, pipeline="canonicalize, fold-batch-norm")
    mixed = prepare(target, overrides={"head": {"weight_bits": 8}})
    head = mixed.get_submodule("head.weight_quantizer")
    assert isinstance(head, Quantizer)
    assert head.spec.bits == 8


def test_follows_oscillations_of_few_bits() -> None:
    target = qcompiler.load_target("int8_dsp").override(weight_bits=3)
    target = target.override(per_channel=True)
    module = prepare(target, freezing=Freezing(0.02, Tracking(momentum=0.1)), overrides={"head": {"weight_bits": 8}})
    assert set(module.oscillations()) == {"stem.0", "depthwise.0", "point.0"}
    learn(module, 25, lr=0.03)
    states = list(module.oscillations().values())
    assert all(isinstance(item, Oscillations) for item in states)
    assert sum(int(item.frozen.sum()) for item in states) > 0
    found = result(module.eval())
    assert torch.equal(found, qcompiler.compile(module).run(INPUTS))  # type: ignore[arg-type]
    for layer, item in module.oscillations().items():
        codes = module.latent(module.weights[layer]).codes
        assert torch.equal(codes[item.frozen], item.frozen_codes[item.frozen])


def test_a_scale_that_steps_over_zero_is_turned_round() -> None:
    module = prepare(method={"weights": "lsq", "activations": "pact"})
    with torch.no_grad():
        module.get_parameter("stem.0.weight_quantizer.scale").mul_(-1)
        module.get_parameter("stem.2.quantizer.clip").mul_(-1)
    expected = result(prepare(method={"activations": "pact"}))
    assert not torch.equal(result(module), expected)
    module.step()
    assert torch.equal(result(module), expected)

"""The summary after a compile: three lines for a clean network, and each problem with its name, place and remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler.ir.diagnostics import SUMMARY, Diagnostic
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.session.compile import Compiled
from qcompiler.session.pipeline import default_pipeline
from qcompiler.validation.metrics import sqnr_db


class Net(nn.Module):
    """Two layers with a batch norm; `tail` makes the outputs from the image, the first layer and the second."""

    def __init__(self, tail: Callable[..., object] | None = None, *, trained: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4
        self.norm.weight.data.fill_(1.0)
        if trained:
            self.norm(self.first(images()))
        self.tail = tail or (lambda x, first, second: second)
        self.eval()

    def forward(self, x: Tensor) -> object:
        first = functional.relu(self.norm(self.first(x)))
        return self.tail(x, first, self.second(first))


def images(factor: float = 1.0) -> Tensor:
    return factor * torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def compiled(model: nn.Module, target: object = "int8_dsp", **arguments: Any) -> Compiled:
    arguments.setdefault("calibration_data", [images()])
    return qcompiler.compile(model, target, verify="off", **arguments)  # type: ignore[arg-type]


def problems(found: Compiled) -> dict[str, Diagnostic]:
    return {item.code: item for item in found.diagnostics if item.code not in SUMMARY}


def test_a_clean_network_has_three_lines_of_quality() -> None:
    found = qcompiler.compile(Net(), "int8_dsp", calibration_data=[images()])
    first, second, third = repr(found).splitlines()[2:]
    assert re.fullmatch(r"int8_dsp: \d+ comparisons of forms agree with the exact simulation on 4 samples\.", first)
    assert re.search(r"against the float model: output 0 [34]\d\.\d dB\.", second)
    assert re.search(r"lose most by themselves .*: [\w.]+ \d+\.\d dB, [\w.]+ \d+\.\d dB, [\w.]+ \d+\.\d dB\.", third)
    assert [item.code for item in found.diagnostics] == list(SUMMARY)
    losses = found.diagnostics[2].data["losses"]
    assert {item["tensor"] for item in losses} <= {"x", "relu", "second", "first.weight", "second.weight"}
    assert all("test_quality" in item["where"] for item in losses if item["tensor"] != "x")


@pytest.mark.parametrize("axis", [1, 2])
def test_constant_channels_of_one_output_are_named(axis: int) -> None:
    """Boxes of hundreds of pixels next to scores from 0 to 1: all scores become one code."""

    def tail(x: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        rows = second.flatten(2)
        both = torch.cat([rows[:, :2] * 4000, torch.sigmoid(rows[:, 1:])], 1)
        return {"image": second, "found": both if axis == 1 else both.transpose(1, 2)}

    found = problems(compiled(Net(tail)))
    item = found["constant-channels"]
    assert item.data["output"] == "output 1 (found)"
    assert (item.data["axis"], item.data["places"], item.data["size"]) == (axis, [2, 3, 4], 5)
    assert 0.0 < item.data["low"] < item.data["high"] < 1.0
    assert f": indices 2 to 4 of 5 along axis {axis} are constant for all samples, while the float model gives" in str(
        item
    )
    assert "test_quality:" in item.where
    assert "poor-output" not in found, "the boxes alone have the power of the output"


def test_channels_that_are_rarely_above_zero_are_no_constants() -> None:
    def tail(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        rows = second.flatten(2)
        return torch.cat([rows[:, :2] * 4000, functional.relu(rows[:, 2:] - rows[:, 2:].amax((1, 2), True) * 0.5)], 1)

    assert "constant-channels" not in problems(compiled(Net(tail)))


def test_a_constant_output_is_named_with_place_and_remedy() -> None:
    def tail(x: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        return {"map": second, "scores": torch.sigmoid(second.mean((2, 3)) * 1e-4)}

    found = compiled(Net(tail))
    item = problems(found)["constant-output"]
    assert item.data["output"] == "output 1 (scores)"
    assert not item.data["in_float"]
    assert item.data["low"] < item.data["value"] < item.data["high"]
    assert "%sigmoid (" in item.where
    assert "test_quality:" in item.where
    assert str(item).startswith("Output 1 (scores), computed at %sigmoid")
    assert "effort='best'" in str(item)


def test_an_output_that_is_constant_in_the_float_model_is_named_unless_it_is_a_tensor_of_the_model() -> None:
    found = compiled(Net(lambda x, first, second: (second, second.clamp(5e6, 6e6))))
    item = problems(found)["constant-output"]
    assert item.data["output"] == "output 1"
    assert item.data["in_float"]
    assert "do not return it" in str(item)


def test_an_output_below_ten_decibels_is_named() -> None:
    def tail(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first[:, :1, 1:-1, 1:-1] * 300, second], 1)[:, 1:]

    item = problems(compiled(Net(tail), "hexagon_htp"))["poor-output"]
    assert item.data["output"] == "output 0"
    assert item.data["db"] < 10
    assert "%concat (" in item.where or "%slice" in item.where
    assert "Try overrides={'concat': 16}" in str(item), "the grid of the concat is the cause, not its operand"


@pytest.mark.parametrize(
    ("overrides", "node", "reason", "fix"),
    [
        ({"slice": 16}, "slice", "slice keeps the 8 bits of its operands", "Override what it reads: overrides={"),
        ({"relu": {"weight_bits": 4}}, "relu", "relu has no weight", "Name a layer with a weight."),
    ],
)
def test_an_override_without_effect_is_named(overrides: Mapping[str, Any], node: str, reason: str, fix: str) -> None:
    def tail(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([second, first[:, :, 1:-1, 1:-1].sigmoid()], 1)

    found = compiled(Net(tail), "hexagon_htp", overrides=overrides)
    item = problems(found)["refused-override"]
    assert item.data["node"] == node
    assert reason in str(item)
    assert f"overrides={{{next(iter(overrides))!r}: " in str(item)
    assert "test_quality:" in str(item)
    assert fix in str(item)


def _boxes_and_scores(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([second.relu() * 640, first[:, :, 1:-1, 1:-1].sigmoid()], 1)


@pytest.mark.parametrize(
    ("target", "fix"),
    [
        ("int8_dsp", "Try overrides={'concat': 16}, or return its parts separately from the model."),
        ("xnnpack", "Return its parts separately from the model."),
    ],
)
def test_a_part_that_the_grid_of_a_concat_cannot_hold_is_named(target: str, fix: str) -> None:
    item = problems(compiled(Net(_boxes_and_scores), target))["weak-part"]
    assert (item.data["concat"], item.data["part"], item.data["others"]) == ("concat", "sigmoid", [])
    assert item.data["db"] < 3
    assert item.data["own_db"] > 40
    assert item.where.startswith("%concat (tests.session.test_quality:")
    assert "of its part sigmoid" in str(item)
    assert str(item).endswith(fix)


def test_the_remedy_of_a_weak_part_works() -> None:
    found = compiled(Net(_boxes_and_scores), overrides={"concat": 16})
    assert "weak-part" not in problems(found)
    x = images()
    with torch.no_grad():
        scores, wanted = (item[:, 4:] for item in (found.run(x), Net(_boxes_and_scores)(x)))  # type: ignore[index]
    assert sqnr_db(wanted, scores) > 30


def test_a_weak_part_that_no_output_depends_on_is_not_named() -> None:
    def tail(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        joined = torch.cat([second.relu() * 640, first[:, :, 1:-1, 1:-1].sigmoid()], 1)
        return joined.sum(1, keepdim=True)

    assert "weak-part" not in problems(compiled(Net(tail)))


def test_a_class_token_before_wide_patches_is_named() -> None:
    token = torch.linspace(-0.05, 0.05, 4).reshape(1, 1, 4)

    def tail(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        patches = second.flatten(2).transpose(1, 2) * 8
        return torch.cat([token.expand(x.shape[0], -1, -1), patches], 1)

    item = problems(compiled(Net(tail)))["weak-part"]
    name = item.data["concat"]
    assert f"overrides={{{name!r}: 16}}" in str(item)
    assert "weak-part" not in problems(compiled(Net(tail), overrides={name: 16}))


def test_a_width_that_the_target_lacks_is_refused_for_a_concat_by_name() -> None:
    def tail(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([second, first[:, :, 1:-1, 1:-1].sigmoid()], 1)

    item = problems(compiled(Net(tail), "xnnpack", overrides={"concat": 16}))["refused-override"]
    assert item.data["node"] == "concat"
    assert "concat keeps the 8 bits of its operands" in str(item)
    assert "xnnpack has no 16-bit activations" in str(item)
    assert "refused-override" not in problems(compiled(Net(tail), "hexagon_htp", overrides={"concat": 16}))


def test_the_remedy_of_a_refused_override_works() -> None:
    def tail(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([second, first[:, :, 1:-1, 1:-1].sigmoid()], 1)

    overrides = {"second": 16, "sigmoid": 16, "concat": 16}
    assert "refused-override" not in problems(compiled(Net(tail), "hexagon_htp", overrides=overrides))


@pytest.mark.parametrize("overrides", [{"second": 16}, {"first": {"activation_bits": 16, "weight_bits": 8}}, {"*": 16}])
def test_an_override_with_an_effect_is_not_named(overrides: Mapping[str, Any]) -> None:
    tail = lambda x, first, second: torch.cat([second, second.flatten(1).reshape(second.shape)], 1)  # noqa: E731
    assert "refused-override" not in problems(compiled(Net(tail), "hexagon_htp", overrides=overrides))


def test_an_override_of_an_operator_in_a_float_island_is_named() -> None:
    target = qcompiler.load_target("hexagon_htp").override(fallback="float")
    found = compiled(Net(lambda x, first, second: second.cumsum(1)), target, overrides={"cumsum*": 16})
    assert "float island" in str(problems(found)["refused-override"])


def test_a_batch_norm_that_never_saw_data_is_named() -> None:
    item = problems(compiled(Net(trained=False)))["untrained-batch-norm"]
    assert item.data["nodes"] == ["norm"]
    assert "model.train()" in str(item)


def test_a_clipped_input_is_named() -> None:
    few = images()
    few[0, 0, 0, 0] = 1e5  # one element, which the percentile leaves out
    every = default_pipeline()
    passes = [CalibrateActivations("percentile") if isinstance(x, CalibrateActivations) else x for x in every]
    found = qcompiler.compile(Net(), "int8_dsp", calibration_data=[few, *[images()] * 12], passes=passes)
    item = problems(found)["clipped-input"]
    assert item.data["input"] == "x"
    assert item.data["seen_high"] == 1e5
    assert item.data["high"] < 1e4
    assert "effort='fast'" in str(item)


def test_inputs_unlike_the_calibration_are_named_when_they_are_verified() -> None:
    found = compiled(Net())
    assert not found.verify(images()).diagnostics
    (item,) = found.verify(images(0.02)).diagnostics
    assert item.code == "unlike-calibration"
    (item,) = found.artifact.verify(images(3.0)).diagnostics
    assert item.code == "clipped-input"
    assert "x: " in str(found.verify(images(3.0)))


@pytest.mark.parametrize("factor", [0.05, 20.0])
def test_a_first_batch_unlike_the_others_is_named(factor: float) -> None:
    found = compiled(Net(), calibration_data=[images(factor), *[images()] * 6])
    item = problems(found)["unlike-calibration"]
    assert [each.code for each in found.diagnostics].count("unlike-calibration") == 1
    assert item.data["seen_deviation"] == pytest.approx(factor, rel=0.1)
    assert "Shuffle calibration_data" in str(item)


def test_operators_that_the_target_is_uncertain_about_are_named() -> None:
    found = compiled(Net(lambda x, first, second: second.sigmoid()), "cmsis_nn")
    item = problems(found)["unknown-operator"]
    assert item.data["ops"] == ["sigmoid"]
    assert "computed differently" in str(item) or "compute them differently" in str(item)
    assert "qcompiler compare DUMP.npz FOLDER" in str(item)


def test_diagnostics_are_in_the_artifact_and_in_its_report(tmp_path: Any) -> None:
    found = compiled(Net(trained=False))
    loaded = qcompiler.load(found.save(tmp_path / "out"))
    assert loaded.diagnostics == found.diagnostics
    assert repr(loaded).splitlines()[1:] == repr(found).splitlines()[1:]
    page = loaded.report()
    assert all(str(item).split(":")[0] in page for item in found.diagnostics)


def test_a_trained_module_has_no_float_model_to_compare_with() -> None:
    module = qcompiler.prepare_qat(Net(), calibration_data=[images()])
    found = qcompiler.compile(module, verify="off")
    assert "no float model" in repr(found)


@pytest.mark.parametrize("target", ["int8_dsp", "lsq_paper"])
def test_training_tells_the_overrides_that_it_does_not_follow(target: str) -> None:
    overrides: dict[str, int] = {"reshape": 16, "second": 8}
    module = qcompiler.prepare_qat(
        Net(lambda x, first, second: second.flatten(1)), target, calibration_data=[images()], overrides=overrides
    )
    told = [item for item in module.diagnostics if item.code == "refused-override"]
    assert told[0].data["pattern"] == "reshape"
    assert "has no effect on %" in str(told[0])
    assert len(told) == (1 if target == "int8_dsp" else 2), "the paper quantizes no results of layers"
    assert "test_quality:" in told[0].where

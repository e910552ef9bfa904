"""`qcompiler.memory_movement`: bytes against the formula, the published layers, and a plain count by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from benchmarks.range_traffic import SHAPES, Shape, predicted
from qcompiler import cli
from qcompiler.analysis.traffic import Direction, Movement
from qcompiler.errors import InputError, TargetError, UnsupportedError

TABLE = {
    SHAPES[0]: (428, 1996, 366),
    SHAPES[1]: (340, 1124, 231),
    SHAPES[2]: (674, 1066, 58),
    SHAPES[3]: (2353, 2549, 8),
    SHAPES[4]: (1374, 10782, 685),
    SHAPES[5]: (2353, 11761, 400),
    SHAPES[6]: (518, 4046, 681),
    SHAPES[7]: (883, 4411, 399),
    SHAPES[8]: (100, 468, 366),
    SHAPES[9]: (204, 571, 180),
}
"""Static KB, dynamic KB and increase in percent of the layers of ResNet-18 and MobileNetV2, computed by the formula with
8-bit codes, 32-bit accumulators and 1 KB = 1,024 bytes."""

MEMORIES = """
schema = "qcompiler.hw/1"
extends = "int8_dsp"

[target]
name = "two_memories"

[[memory]]
name = "sram"
bytes = 4096
holds = ["activations"]
bytes_per_cycle = 8.0
picojoules_per_byte = 1.0

[[memory]]
name = "dram"
bytes = 1048576
bytes_per_cycle = 0.5
picojoules_per_byte = 100.0
"""


class Small(nn.Module):
    """Two convolutions, a residual addition and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        scores: Tensor = self.head((y + self.second(y)).flatten(1))
        return scores


def moved(**options: object) -> qcompiler.Traffic:
    options = {"target": "int8_dsp", **options}
    return qcompiler.memory_movement(Small().eval(), example_inputs=torch.zeros(1, 3, 4, 4), **options)  # type: ignore[arg-type]


def by_product(traffic: qcompiler.Traffic) -> dict[tuple[str, str], Movement]:
    return {(item.layer, item.direction): item for item in traffic.movements}


def sizes(traffic: qcompiler.Traffic) -> dict[tuple[str, str], tuple[int, int]]:
    return {(item.layer, item.direction): (item.static, item.dynamic) for item in traffic.movements}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_layers_of_the_table(shape: Shape) -> None:
    static, dynamic, increase = TABLE[shape]
    item = predicted(shape)
    assert item.static / 1024 == pytest.approx(static, abs=0.5)
    assert item.dynamic / 1024 == pytest.approx(dynamic, abs=0.5)
    assert 100 * item.increase == pytest.approx(increase, abs=1)


def test_all_products_of_a_network_counted_by_hand() -> None:
    image, features, weights = 3 * 16, 8 * 16, {"first": 8 * 3 * 9, "second": 8 * 8 * 9, "head": 5 * 128}
    static = {
        ("first", "forward"): weights["first"] + image + features,
        ("first", "weight gradient"): features + image + 4 * weights["first"],
        ("second", "forward"): weights["second"] + 2 * features,
        ("second", "input gradient"): weights["second"] + 2 * features,
        ("second", "weight gradient"): 2 * features + 4 * weights["second"],
        ("add", "forward"): 3 * features,
        ("head", "forward"): weights["head"] + features + 5,
        ("head", "input gradient"): weights["head"] + 5 + features,
        ("head", "weight gradient"): 5 + features + 4 * weights["head"],
    }
    results = {
        ("first", "forward"): features,
        ("second", "forward"): features,
        ("second", "input gradient"): features,
        ("add", "forward"): features,
        ("head", "forward"): 5,
        ("head", "input gradient"): features,
    }
    found = moved()
    assert sizes(found) == {key: (size, size + 2 * 4 * results.get(key, 0)) for key, size in static.items()}
    assert (found.static, found.dynamic) == (sum(static.values()), sum(static.values()) + 8 * sum(results.values()))
    assert found.increase == pytest.approx(found.dynamic / found.static - 1)


def test_a_batch_multiplies_activations_and_gradients_but_no_weights() -> None:
    one, many = moved(), moved(batch=16)
    for single, item in zip(one.movements, many.movements, strict=True):
        assert (item.read, item.accumulators) == (16 * single.read, 16 * single.accumulators)
        assert item.weights == single.weights
        grows = item.direction != Direction.WEIGHT_GRADIENT
        assert item.written == (16 if grows else 1) * single.written


def test_widths_of_weights_activations_gradients_and_accumulators() -> None:
    found = by_product(moved(accumulator_bits=64))
    plain = by_product(moved())
    assert all(found[key].accumulators == 2 * item.accumulators for key, item in plain.items())
    wide = by_product(moved(activation_bits=16))
    forward = ("second", Direction.FORWARD)
    assert (wide[forward].read, wide[forward].written) == (2 * plain[forward].read, 2 * plain[forward].written)
    gradient = by_product(moved(gradient_bits=16))
    back = ("second", Direction.INPUT_GRADIENT)
    assert (gradient[back].read, gradient[back].written) == (2 * plain[back].read, 2 * plain[back].written)
    assert gradient[forward] == plain[forward]
    mixed = {item.layer: item for item in moved(overrides={"second": 16}).of("forward")}
    assert (mixed["second"].read, mixed["second"].written) == (plain[forward].read, 2 * plain[forward].written)


def test_four_bit_weights_take_half_a_byte_only_where_the_target_packs_them() -> None:
    unpacked = moved(weight_bits=4).of("forward")[1]
    assert unpacked.weights == moved().of("forward")[1].weights
    packed = moved(target="w4a8_npu")
    packs = qcompiler.load_target("w4a8_npu").packing != "none"
    assert packed.of("forward")[1].weights == unpacked.weights // (2 if packs else 1)


def test_a_scale_per_channel_costs_a_second_copy_of_the_gradient() -> None:
    plain, scaled = moved(), moved(target="int8_dsp_per_channel")
    for item, other in zip(plain.movements, scaled.movements, strict=True):
        result = {"second": 8 * 16, "head": 5}.get(item.layer, 0)
        copies = result if item.direction == Direction.INPUT_GRADIENT else 0
        assert other.static == item.static + copies
        assert other.accumulators == item.accumulators


def test_a_dynamic_range_may_need_a_larger_memory(tmp_path: Path) -> None:
    path = tmp_path / "two_memories.toml"
    path.write_text(MEMORIES)
    found = {item.layer: item for item in moved(target=path, batch=6).of("forward")}
    second = found["second"]
    still, dynamic = second.static_place, second.dynamic_place
    assert still is not None and dynamic is not None
    assert (still.activations, still.constants) == ("sram", "dram"), "768 bytes in and out"
    assert (dynamic.activations, dynamic.constants) == ("sram", "dram"), "768 bytes in, 3,072 bytes of accumulators"
    assert still.cycles == -(-(2 * 768) // 8) + 2 * second.weights
    assert still.picojoules == 2 * 768 + 100.0 * second.weights
    crowded = {item.layer: item for item in moved(target=path, batch=7).of("forward")}["second"]
    assert crowded.dynamic_place is not None and crowded.static_place is not None
    assert (crowded.static_place.activations, crowded.dynamic_place.activations) == ("sram", "dram")
    assert crowded.dynamic_place.cycles == 2 * (crowded.dynamic - crowded.weights) + 2 * crowded.weights
    assert "sram -> dram" in str(moved(target=path, batch=7))
    nowhere = moved(target=path, batch=10_000).of("forward")[1]
    assert nowhere.static_place is not None
    assert (nowhere.static_place.activations, nowhere.static_place.cycles) == ("", None)


def test_text_json_and_forward_only() -> None:
    found = moved(gradient_bits=None)
    assert {item.direction for item in found.movements} == {Direction.FORWARD}
    assert json.loads(json.dumps(found.to_dict()))["static"] == found.static
    text = str(found)
    assert text.splitlines()[0].split()[:3] == ["layer", "operation", "product"]
    assert "int8_dsp, 1 sample, moved with static and with dynamic ranges: forward 2 KB and 5 KB" in text
    assert "<svg" in found.plot()


def test_float_islands_are_named() -> None:
    class WithIsland(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(self.conv(x), 1)

    target = qcompiler.load_target("int8_dsp").override(fallback="float")
    found = qcompiler.memory_movement(WithIsland().eval(), target, example_inputs=torch.zeros(1, 3, 4, 4))
    assert [item.layer for item in found.of("forward")] == ["conv"]
    assert "Not counted, because they run in float" in str(found)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"batch": 0}, InputError, "batch is 0"),
        ({"gradient_bits": 1}, InputError, "whole number from 2 to 16"),
        ({"accumulator_bits": True}, InputError, "accumulator_bits is True"),
        ({"weight_bits": 9}, TargetError, "no weights of 9 bits"),
        ({"target": "lsq_paper"}, UnsupportedError, "for simulation only"),
    ],
)
def test_refuses_what_cannot_be_counted(options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        moved(**options)


def test_a_fixed_batch_size_is_no_other_batch_size() -> None:
    example = (torch.zeros(3, 3, 4, 4),)
    program = torch.export.export(Small().eval(), example)
    assert qcompiler.memory_movement(program, batch=3).movements
    with pytest.raises(InputError, match="fixed batch size of 3"):
        qcompiler.memory_movement(program, batch=2)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    model = "examples.digits.model:load_digits_net"
    assert cli.main(["traffic", model, "--batch", "4"]) == 0
    assert "weight gradient" in capsys.readouterr().out
    assert cli.main(["traffic", model, "--gradient-bits", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dynamic"] > found["static"] > 0
    assert {item["direction"] for item in found["movements"]} == {"forward"}

"""`qcompiler.check` reports what `qcompiler.compile` does."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

import qcompiler
from qcompiler.analysis.checkup import NodeFate


class Various(nn.Module):
    """One node of each fate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 24, 3, padding=1)
        self.late = nn.BatchNorm2d(24)
        self.drop = nn.Dropout()
        self.head = nn.Linear(24 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        y = self.late(torch.nn.functional.max_pool2d(nn.functional.silu(self.second(y)), 2))
        return torch.cumsum(self.head(self.drop(y.flatten(1))), 1)


def images() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def fates(checkup: qcompiler.Checkup) -> dict[str, NodeFate]:
    return {node.name: node for node in checkup.nodes}


def test_every_node_has_a_fate_and_a_reason() -> None:
    found = qcompiler.check(Various().eval(), example_inputs=images())
    nodes = fates(found)
    assert {name: node.fate for name, node in nodes.items()} == {
        "conv": "fused",
        "norm": "folded",
        "relu": "quantized",
        "second": "quantized",
        "silu": "quantized",
        "max_pool2d": "moved",
        "late": "quantized",
        "reshape": "moved",
        "drop": "removed",
        "head": "quantized",
        "cumsum": "refused",
    }
    assert "into %conv" in nodes["norm"].detail
    assert nodes["second"].detail == "to s8, weight s8 symmetric narrow"
    assert "Various.forward" in nodes["cumsum"].where
    assert "cumsum of real numbers" in nodes["cumsum"].detail
    assert not found.passed


def test_the_advice_names_what_it_is_about() -> None:
    model = Various().eval()
    with torch.no_grad():
        model.second.weight[0] *= 100
    found = qcompiler.check(model, example_inputs=images())
    advice = {item.rule: item for item in found.advice}
    assert advice["not integer"].nodes == ("cumsum",)
    assert 'fallback="float"' in advice["not integer"].text
    assert advice["channel ranges"].nodes == ("second",)
    assert "per_channel=True" in advice["channel ranges"].text
    assert advice["batch norm"].nodes == ("late",)
    assert advice["channels"].nodes == ("second", "late")
    assert advice["activations"].nodes == ("silu",)
    assert advice["padding"].nodes == ("second",)
    assert "ranges" not in advice, "batch norms give them"


def test_no_advice_where_the_target_does_it() -> None:
    model = Various().eval()
    with torch.no_grad():
        model.second.weight[0] *= 100
    target = qcompiler.load_target("int8_dsp").override(per_channel=True, fallback="float")
    found = qcompiler.check(model, target, example_inputs=images(), overrides={"head": "float"})
    assert found.passed
    assert {name for name, node in fates(found).items() if node.fate == "float"} == {"head", "cumsum"}
    assert fates(found)["head"].detail == "an override selects float"
    assert "weight s8 symmetric narrow axis=0 per channel" in fates(found)["second"].detail
    assert "channel ranges" not in {item.rule for item in found.advice}


def test_shared_weights_long_sums_and_missing_ranges() -> None:
    layer = nn.Linear(70000, 70000 // 35000, bias=False)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            result: Tensor = self.layer(x) + self.layer(y)
            return result

    x = torch.randn(2, 70000)
    found = qcompiler.check(Twice().eval(), example_inputs=(x, x))
    advice = {item.rule: item for item in found.advice}
    assert advice["shared weights"].nodes == ("layer", "layer_1")
    assert advice["long sums"].nodes == ("layer", "layer_1")
    assert "calibration_data" in advice["ranges"].text


def test_what_passes_compiles_and_what_is_refused_does_not() -> None:
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v3_small().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = qcompiler.check(model)
    assert found.passed
    compiled = qcompiler.compile(model, calibration_data=[torch.randn(2, 3, 64, 64)], verify="off")
    origins = {origin for node in compiled.integer.main.nodes for origin in node.origins}
    kept = {node.name for node in found.nodes if node.fate != "removed"}
    assert kept <= origins
    assert not {node.name for node in found.of("removed")} & origins
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_text_and_the_data_say_the_same() -> None:
    found = qcompiler.check(Various().eval(), example_inputs=images())
    data = found.to_dict()
    assert data["passed"] is False
    assert len(data["nodes"]) == len(found.nodes)  # type: ignore[arg-type]
    assert "refused   %cumsum" in str(found)
    assert "advice, not integer (%cumsum)" in str(found)

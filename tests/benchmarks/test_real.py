"""The benchmark of networks with real weights, on a small network of our own; absent packages are skipped by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import real, real_networks
from benchmarks.real_networks import AbsentError, Network


def inputs(seed: int, count: int, is_test: bool) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed + is_test))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)).eval()


def absent() -> nn.Module:
    raise AbsentError("there is no package nowhere")


def test_every_row_is_measured_and_what_lacks_a_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real, "NETWORKS", (Network("small", network, inputs), Network("lost", absent, inputs)))
    arguments = ["--quick", "--output", str(tmp_path)]
    assert real.main(arguments) == 0
    page = capsys.readouterr().out
    rows = [line for line in page.splitlines() if line.startswith("| small |")]
    assert [line.split("|")[2].strip() for line in rows] == list(real.WIDTHS)
    assert "lost is skipped: there is no package nowhere." in page
    assert "ONNX Runtime's static tool: its QDQ tool has no layers of 4-bit weights." in page
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    eight = {key: item for key, item in found.items() if "W8A8" in key}
    assert len(eight) == 2 * len(real.ROWS)
    assert all(item["db"] > 25 and item["same"] >= 0.75 for item in eight.values())
    four = [item["db"] for key, item in found.items() if "W4A8" in key and "db" in item]
    assert max(four) < min(item["db"] for item in eight.values())
    monkeypatch.setitem(real.ROWS, "fast", lambda model, data, width: pytest.fail("measured again"))
    assert real.main(arguments) == 0
    assert capsys.readouterr().out == page


def test_crops_have_the_size_and_the_range_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_networks, "_photograph", lambda name: torch.full((3, 40, 30), len(name) / 100))
    found = real_networks.crops(12, 0.1, 0.5, 0, 7, True)
    assert found.shape == (7, 3, 12, 12)
    levels = [(len(name) / 100 - 0.1) / 0.5 for name in real_networks.TEST_PHOTOGRAPHS]
    torch.testing.assert_close(found[:6].mean((1, 2, 3)), torch.tensor(levels))
    assert not {*real_networks.TEST_PHOTOGRAPHS} & {*real_networks.CALIBRATION_PHOTOGRAPHS}


def test_tones_are_normalized_and_repeat() -> None:
    found = real_networks.tones(3, 4, False)
    assert found.shape == (4, 1024)
    torch.testing.assert_close(found.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(1), torch.ones(4))
    assert torch.equal(found, real_networks.tones(3, 4, True))


@pytest.mark.parametrize("name", real_networks.STAGES)
def test_stages_of_the_face_detector_have_their_heads(name: str) -> None:
    stage = real_networks.STAGES[name]
    size = {"PNet": 12, "RNet": 24, "ONet": 48}[name]
    heads = real_networks.FaceNetwork(stage).eval()(torch.randn(2, 3, size, size))
    assert [head.shape[1] for head in heads] == list(stage.heads)


def test_the_pitch_network_gives_a_probability_for_each_pitch() -> None:
    found = real_networks.PitchNetwork((8, 4, 4, 4, 8, 64)).eval()(real_networks.tones(0, 2, False))
    assert found.shape == (2, 360)
    assert bool(((found > 0) & (found < 1)).all())

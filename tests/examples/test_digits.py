"""The digits example: its data, its network and its committed weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from examples.digits.data import DigitsData, load_data
from examples.digits.model import WEIGHTS, DigitsNet, load_digits_net
from examples.digits.train import accuracy, main, shift_by_chance


@pytest.fixture(scope="module")
def data() -> DigitsData:
    return load_data()


def test_held_out_scans_are_no_training_scans(data: DigitsData) -> None:
    assert (len(data.train_images), len(data.calibration_images), len(data.test_images)) == (1352, 275, 445)
    training = {image.numpy().tobytes() for image in data.train_images}
    assert all(image.numpy().tobytes() in training for image in data.calibration_images)
    assert not any(image.numpy().tobytes() in training for image in data.test_images)


def test_every_class_has_its_share(data: DigitsData) -> None:
    held_out = torch.bincount(data.test_labels) / (torch.bincount(data.train_labels) + torch.bincount(data.test_labels))
    # One in four of 174 to 183 scans, rounded down.
    assert torch.all((held_out > 0.24) & (held_out <= 0.25))


def test_images_are_ink_in_sixteenths(data: DigitsData) -> None:
    images = data.train_images
    assert images.dtype == torch.float32
    assert images.shape[1:] == DigitsNet().example_input_array.shape[1:]
    assert torch.equal((images * 16).floor(), images * 16)
    assert (images.min().item(), images.max().item()) == (0.0, 1.0)


def test_committed_weights_reach_their_accuracy(data: DigitsData) -> None:
    # 443 of 445 where they were trained; another machine's convolutions may turn a scan or two.
    assert accuracy(load_digits_net(), data.test_images, data.test_labels) >= 0.985


def test_weights_are_small_and_example_input_is_no_buffer() -> None:
    assert WEIGHTS.stat().st_size < 1_000_000
    assert "example_input_array" not in DigitsNet().state_dict()
    assert 80_000 <= sum(parameter.numel() for parameter in DigitsNet().parameters()) <= 120_000


def test_shift_moves_by_one_pixel_at_most() -> None:
    image = torch.zeros(64, 1, 8, 8)
    image[:, 0, 3, 4] = 1.0
    _, _, rows, columns = torch.nonzero(shift_by_chance(image, torch.Generator().manual_seed(0)), as_tuple=True)
    assert sorted(set(rows.tolist())) == [2, 3, 4]
    assert sorted(set(columns.tolist())) == [3, 4, 5]


@pytest.fixture
def torch_restored() -> Iterator[None]:
    """The script seeds torch and selects deterministic algorithms: other tests must not be affected."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("torch_restored")
def test_training_is_reproducible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("first", "second"):
        main(["--epochs", "1", "--output", str(tmp_path / name)])
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert "held-out accuracy" in capsys.readouterr().out

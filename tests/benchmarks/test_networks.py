"""The committed networks: not saturated, small; their hard twins: the same function, and hard."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import qcompiler
from benchmarks.networks import DECADES, NETWORKS, TWINS, Block, hard_twin, load, pairs, weights_of
from benchmarks.ptq_tables import EQUALIZED, METHODS
from benchmarks.rendered import CLASSES, FAMILIES, SIZE, Scenes, split
from benchmarks.train import accuracy, is_segmenter, score, train

ROWS = {row.name: row for row in METHODS.rows}


def _validation(count: int) -> Scenes:
    return Scenes(*(part[:count] for part in split("validation")))


@pytest.mark.parametrize("name", NETWORKS)
def test_network_is_small_and_not_saturated(name: str) -> None:
    model = load(name)
    assert not model.training
    assert 50_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 120_000
    assert 0.80 <= accuracy(name, model, _validation(1000)) <= 0.97
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in load_file(weights_of(name)).values())


def test_weights_take_less_than_three_megabytes() -> None:
    assert sum(weights_of(name).stat().st_size for name in NETWORKS) < 3e6


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_of_results(name: str) -> None:
    expected = (2, FAMILIES, SIZE, SIZE) if is_segmenter(name) else (2, CLASSES)
    assert load(name)(torch.zeros(2, 3, SIZE, SIZE)).shape == expected


@pytest.mark.parametrize(("twin", "name"), TWINS.items())
def test_twin_computes_what_its_original_does(twin: str, name: str) -> None:
    images = _validation(200).images.double()
    with torch.no_grad():
        torch.testing.assert_close(load(twin).double()(images), load(name).double()(images), rtol=1e-4, atol=1e-4)


def test_twin_in_double_precision_is_exact() -> None:
    model = load("resnet").double()
    images = _validation(50).images.double()
    with torch.no_grad():
        torch.testing.assert_close(hard_twin(model)(images), model(images), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("twin", "name"), TWINS.items())
def test_every_pair_of_a_twin_spans_three_decades(twin: str, name: str) -> None:
    before, after = list(pairs(load(name))), list(pairs(load(twin)))
    blocks = [module for module in load(name).modules() if isinstance(module, Block)]
    assert len(before) == len(after) >= len(blocks)
    for (norm, conv), (hard_norm, hard_conv) in zip(before, after, strict=True):
        factors = (hard_norm.weight / norm.weight).detach()
        span = torch.log10(factors.max() / factors.min())
        assert float(span) == pytest.approx(DECADES, abs=1e-3)
        assert hard_conv.weight.shape == conv.weight.shape and not torch.equal(hard_conv.weight, conv.weight)


def test_a_twin_leaves_its_original_alone() -> None:
    model = load("resnet")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hard_twin(model, seed=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("twin", TWINS)
def test_twin_collapses_with_one_scale_per_tensor_and_equalization_saves_it(twin: str) -> None:
    model, scenes = load(twin), _validation(300)
    calibration = list(split("calibration").images[:128].split(64))

    def reached(row: str) -> float:
        compiled = qcompiler.compile(model, calibration_data=calibration, passes=ROWS[row].pipeline(8), verify="off")
        logits = compiled.run(scenes.images)
        assert isinstance(logits, torch.Tensor)
        return score(twin, logits, scenes)

    assert reached("plain") < 0.3
    assert reached(EQUALIZED) > accuracy(twin, model, scenes) - 0.03


def test_score_of_segmenters_is_the_mean_intersection_over_union() -> None:
    masks = torch.tensor([[[0, 0], [1, 2]], [[3, 3], [1, 0]]])
    found = torch.tensor([[[0, 1], [1, 2]], [[3, 0], [1, 0]]])
    logits = nn.functional.one_hot(found, FAMILIES).movedim(-1, 1).float()
    unions = []
    for family in range(FAMILIES):
        inside = ((masks == family) & (found == family)).sum().item()
        either = ((masks == family) | (found == family)).sum().item()
        unions.append(inside / either)
    scenes = Scenes(torch.zeros(2, 3, 2, 2), torch.zeros(2, dtype=torch.int64), masks)
    assert score("unet", logits, scenes) == pytest.approx(sum(unions) / FAMILIES)


def test_training_learns_and_repeats() -> None:
    scenes = _validation(512)
    learned = train("resnet", scenes, seed=3, epochs=20)
    assert accuracy("resnet", learned, scenes) > 3 / CLASSES, "80 steps: three times as often right as by chance"
    first, again, other = (train("resnet", scenes, seed=seed, epochs=1)(scenes.images[:8]) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)

"""The benchmark of fronts: the greedy search, what counts as a failure, and the page."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from benchmarks.mixed_precision import SHORT, Network, compare, failures, figure, greedy, key, networks, section
from benchmarks.rendered import split
from qcompiler.analysis.assignment import Operator, Problem, Table


def problem() -> Problem:
    """Two groups: the first saves little for much noise, the second much for little."""
    costs = ({8: 10.0, 16: 12.0}, {8: 10.0, 16: 30.0})
    operators = tuple(
        Operator(((Table((group,), {(bits,): cost for bits, cost in item.items()}),),))
        for group, item in enumerate(costs)
    )
    return Problem(({8: 5.0, 16: 0.0}, {8: 1.0, 16: 0.0}), operators)


def test_the_greedy_search_gives_up_the_least_noise_per_cost_first() -> None:
    assert greedy(problem(), 42.0) == (16, 16)
    assert greedy(problem(), 41.0) == (16, 8)
    assert greedy(problem(), 21.0) == (8, 8)
    assert greedy(problem(), 19.0) is None


def test_each_network_is_measured_with_both_kinds_of_scales() -> None:
    found = list(networks(SHORT))
    assert [network.name for network in found] == ["resnet", "resnet, per channel"]
    assert [network.target.per_channel for network in found] == [False, True]
    assert len({key(network, SHORT) for network in found}) == 2


def result(**changes: Any) -> dict[str, Any]:
    """The result of a network where the front is better than all else."""
    point = {"cost": 1.0, "score": 20.0, "unseen": 19.0, "accuracy": 0.9, "dominated": False}
    better = {"cost": 2.0, "score": 30.0, "unseen": 29.0, "accuracy": 0.95, "dominated": False}
    uniform = {"cost": 2.0, "score": 28.0, "accuracy": 0.94}
    return {
        "float": 0.955,
        "base": 2.0,
        "points": [point, better, {**point, "score": 10.0, "dominated": True}],
        "uniform": [{"widths": widths, "uniform": dict(uniform), "front": better} for widths in ("W8A8", "W8A16")],
        "greedy": [{"point": {"cost": 1.0, "score": 20.0}, "greedy": {**point, "score": 19.0}}],
        "correlation": 0.9,
        **changes,
    }


def test_a_front_that_is_beaten_is_a_failure() -> None:
    network = Network("resnet")
    assert failures({network: result()}) == []
    assert failures({network: result(correlation=0.5)}) == ["resnet: rank correlation 0.50"]
    worse = result()
    worse["uniform"][0]["uniform"]["score"] = 31.0
    assert failures({network: worse}) == ["resnet: W8A8 is better than the front at its cost"]
    worse = result()
    worse["greedy"][0]["greedy"]["score"] = 21.0
    assert failures({network: worse}) == ["resnet: the greedy search is better at 1"]


def test_the_page_and_the_picture_show_every_network() -> None:
    results = {Network("resnet"): result(), Network("mobilenet"): result()}
    peers = {Network("resnet"): {"version": "2.42.0", "points": [{"share": 1.0, "score": 25.0}]}}
    text = section(results, peers)
    assert "| resnet | 1 | +4.0 | +4.0 | +4.0 | 100% |" in text
    assert "was not measured" in section(results, {})
    assert "| resnet | 2 | 1 | 0.90 | 95.5% | 100% |" in text
    assert "| mobilenet | W8A8 | 100% | 28.0 dB | 30.0 dB | 94.0% | 95.0% |" in text
    assert "between +1.0 and +1.0 dB" in text
    assert "![Front of resnet](howto/images/front_resnet.svg)" in text
    per_channel = section({Network("resnet", per_channel=True): result()}, {})
    assert "![Front of resnet, per channel](howto/images/front_resnet_per_channel.svg)" in per_channel
    svg = figure("resnet", result(), peers[Network("resnet")])
    picture = ET.fromstring(svg)  # noqa: S314  # text of our own
    names = [node.text for node in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"resnet", "front", "W8A8", "AIMET"} <= set(names)
    markers = {node.get("id"): node for node in picture.iter("{http://www.w3.org/2000/svg}g")}
    assert len(list(markers["W8A8"].iter("{http://www.w3.org/2000/svg}use"))) == 1
    assert "currentColor" not in svg  # a file has no text around it


@pytest.mark.slow
def test_the_front_of_a_network_is_beaten_by_no_other_way() -> None:
    calibration = list(split("calibration").images[:64].split(32))
    scenes = split("test")
    found = compare(Network("resnet"), calibration, scenes.images[:200], scenes.labels[:200], SHORT)
    assert failures({Network("resnet"): found}) == []

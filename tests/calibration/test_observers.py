"""Observers: merging is associative, order and processes do not matter, and what is not finite is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qcompiler.calibration.observers import OBSERVERS, Observer, make_observer
from qcompiler.calibration.runner import observe
from qcompiler.calibration.spool import Spool, reiterable
from qcompiler.errors import CalibrationError, InputError
from qcompiler.frontends import capture
from qcompiler.ir.graph import Graph, Module, Value
from qcompiler.ir.types import DType, TensorType
from qcompiler.passes import PassContext, PassManager
from qcompiler.quant.spec import QuantSpec
from qcompiler.session.pipeline import quantization_passes
from qcompiler.targets import load_target
from tests.support.running import outputs_of

SPEC = QuantSpec.parse("s8")


def batches(seed: int, count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 2, generator=generator) * (1 + 3 * index) for index in range(count)]


def seen(observer: Observer, items: list[tuple[int, Tensor]]) -> Observer:
    for index, batch in items:
        observer.update(batch, index=index)
    return observer


def same(a: Observer, b: Observer) -> bool:
    return a.state().keys() == b.state().keys() and all(torch.equal(x, b.state()[k]) for k, x in a.state().items())


KINDS = [(method, axis) for method in OBSERVERS for axis in (None, 1) if (method, axis) != ("cross_entropy", 1)]


@given(st.sampled_from(KINDS), st.permutations(range(5)), st.integers(1, 4))
def test_order_and_grouping_do_not_matter(kind: tuple[str, int | None], order: list[int], cut: int) -> None:
    method, axis = kind
    data = batches(1)
    whole = seen(make_observer(method, SPEC, "x", axis), list(enumerate(data)))
    first = seen(make_observer(method, SPEC, "x", axis), [(i, data[i]) for i in order[:cut]])
    second = seen(make_observer(method, SPEC, "x", axis), [(i, data[i]) for i in order[cut:]])
    assert same(first.merge(second), whole)
    assert same(second.merge(first), whole)
    assert all(torch.equal(a, b) for a, b in zip(first.merge(second).range(), whole.range(), strict=True))


@pytest.mark.parametrize("method", OBSERVERS)
def test_merge_is_associative(method: str) -> None:
    a, b, c = (seen(make_observer(method, SPEC, "x"), [(i, x)]) for i, x in enumerate(batches(2, 3)))
    assert same(a.merge(b).merge(c), a.merge(b.merge(c)))


_PROCESS = """
import sys, torch
from safetensors.torch import load_file, save_file
from qcompiler.calibration.observers import make_observer
from qcompiler.quant.spec import QuantSpec
given, found, *methods = sys.argv[1:]
for method in methods:
    observer = make_observer(method, QuantSpec.parse("s8"), "x")
    for name, batch in load_file(given).items():
        observer.update(batch, index=int(name))
    save_file(observer.state(), found + method)
"""


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    data, methods = batches(3), ["percentile", "moving_average", "cross_entropy"]
    for number, indices in enumerate(([0, 3], [1, 2, 4])):
        given = tmp_path / f"given {number}"
        save_file({str(i): data[i] for i in indices}, given)
        command = [sys.executable, "-c", _PROCESS, str(given), str(tmp_path / f"found {number} "), *methods]
        subprocess.run(command, check=True)
    for method in methods:
        whole = seen(make_observer(method, SPEC, "x"), list(enumerate(data)))
        states = [load_file(tmp_path / f"found {number} {method}") for number in range(2)]
        first, second = (make_observer(method, SPEC, "x").from_state(state) for state in states)
        assert same(first.merge(second), whole), method


def test_ranges_are_those_of_the_definitions() -> None:
    data = [torch.tensor([-1.0, 3.0]), torch.tensor([-5.0, 1.0]), torch.tensor([0.0, 2.0])]
    items = list(enumerate(data))
    assert [float(end) for end in seen(make_observer("min_max", SPEC, "x"), items).range()] == [-5.0, 3.0]
    average = seen(make_observer("moving_average", SPEC, "x", options={"momentum": 0.5}), items)
    low = 0.5 * (0.5 * -1.0 + 0.5 * -5.0) + 0.5 * 0.0
    high = 0.5 * (0.5 * 3.0 + 0.5 * 1.0) + 0.5 * 2.0
    assert [float(end) for end in average.range()] == [low, high]
    full = seen(make_observer("percentile", SPEC, "x", options={"percentile": 100.0}), items)
    assert [float(end) for end in full.range()] == [-5.0, 3.0]


def test_one_outlier_in_ten_thousand_does_not_decide() -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    x[7] = 1000.0
    low, high = seen(make_observer("percentile", SPEC, "x", options={"percentile": 99.99}), [(0, x)]).range()
    assert -5.0 < float(low) < -3.0
    assert 3.0 < float(high) < 5.0


def test_what_is_not_finite_is_named() -> None:
    observer = make_observer("percentile", SPEC, "layer1.relu")
    with pytest.raises(CalibrationError, match=r"1 NaN and 2 infinite values among the 4 of a batch of 'layer1.relu'"):
        observer.update(torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0]))
    with pytest.raises(CalibrationError, match=r"no values of 'layer1\.relu'"):
        observer.range()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("percentil", {}, "Did you mean 'percentile'"),
        ("percentile", {"percentle": 99.0}, "Did you mean 'percentile'"),
        ("percentile", {"percentile": 30.0}, "above 50"),
        ("moving_average", {"momentum": 1.0}, r"in \[0, 1\)"),
    ],
)
def test_options_are_checked(method: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_observer(method, SPEC, "x", options=options)


def test_observers_of_different_kinds_do_not_merge() -> None:
    with pytest.raises(InputError, match="observers of the same kind"):
        make_observer("min_max", SPEC, "x").merge(make_observer("mse", SPEC, "x"))
    with pytest.raises(InputError, match="observers of the same kind"):
        make_observer("min_max", SPEC, "x").merge(make_observer("min_max", SPEC, "y"))


def graph() -> Graph:
    result = Module().add(Graph())
    x = result.add_input("x", TensorType(DType.F32, (2, 3)))
    result.set_outputs([result.append("relu", [x], name="r").output])
    return result


def test_the_runner_shows_every_batch_once() -> None:
    subject = graph()
    observer = make_observer("min_max", SPEC, "r")
    data = [[torch.full((2, 3), value)] for value in (-1.0, 4.0, 2.0)]
    assert observe(subject, iter(data), {subject.outputs[0]: observer})[0] == 3
    assert [float(end) for end in observer.range()] == [0.0, 4.0]
    with pytest.raises(CalibrationError, match="empty"):
        observe(subject, [], {})


def test_observers_see_what_the_graph_computes() -> None:
    """Whatever the runner does in place or once."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    net = nn.Sequential(conv, nn.ReLU6(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Hardtanh()).eval()
    x = torch.randn(2, 3, 6, 6) * 4
    module = capture(net, x).module
    PassManager(quantization_passes()[:-2]).run(module, PassContext(load_target("int8_dsp")))
    subject, known = module.main, dict[Value, Tensor]()
    outputs_of(subject, [x], lambda value, tensor: known.update({value: tensor.clone()}))
    values = [value for value in known if value.type.dtype is DType.F32 and value.type.rank == 4]
    for watched in (values, values[::2], values[1::2], [node.output for node in subject.nodes if "relu" in node.op]):
        observers = {value: make_observer("min_max", SPEC, value.name) for value in watched}
        observe(subject, [[x]], observers)
        for value, observer in observers.items():
            assert [float(end) for end in observer.range()] == [float(known[value].min()), float(known[value].max())]


def test_of_large_samples_a_part_is_counted_whatever_the_batches() -> None:
    data = torch.randn(6, 3, 50, 60)
    observer = make_observer("percentile", SPEC, "x", options={"per_sample": 1000})
    whole = seen(observer, [(0, data)])
    parts = seen(
        make_observer("percentile", SPEC, "x", options={"per_sample": 1000}), list(enumerate(data.split([1, 3, 2])))
    )
    assert same(whole, parts)
    state = whole.state()
    assert 6 * 1000 <= int(state["counts"].sum()) <= 6 * 1300  # 7 is the largest step that has no factor in common
    assert (float(state["low"]), float(state["high"])) == (float(data.min()), float(data.max()))
    everything = seen(make_observer("percentile", SPEC, "x", options={"per_sample": 9000}), [(0, data)])
    for end, other in zip(whole.range(), everything.range(), strict=True):
        assert abs(float(end) - float(other)) < 0.1 * float(data.abs().max())
    channels = make_observer("mse", SPEC, "w", 0, options={"per_sample": 10})
    channels.update(torch.randn(4, 500))
    assert int(channels.state()["counts"].sum() + channels.state()["zeros"].sum()) == 2000, "all weights are counted"


def test_a_spool_reads_its_source_once_and_leaves_nothing_behind() -> None:
    reads = 0

    def source() -> Iterator[list[Tensor]]:
        nonlocal reads
        for index in range(3):
            reads += 1
            yield [torch.full((2,), float(index)), torch.tensor([index])]

    spool = Spool(source())
    assert float(next(iter(spool))[0][0]) == 0.0
    assert reads == 1, "only as many as were requested"
    for _ in range(2):
        assert [int(batch[1]) for batch in spool] == [0, 1, 2]
    assert reads == 3
    folder = spool._folder
    assert len(list(folder.iterdir())) == 3
    del spool
    assert not folder.exists()
    items = [[torch.zeros(1)]]
    assert reiterable(items, once=False) is items

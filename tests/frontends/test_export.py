"""torch.export as a front end: programs, graph modules, and regions of settings."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from qcompiler.errors import UnsupportedError
from qcompiler.frontends import capture
from qcompiler.frontends.export import batch_bounds, export, is_flat, quiet_torch, trace_program, without_regions
from qcompiler.frontends.trace import PATH, SOURCE
from qcompiler.ir.hashing import module_hash
from tests.support.functions import bound, numbers
from tests.support.running import outputs_of
from tests.support.spellings import canonical


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shift = nn.Linear(3, 4), nn.Buffer(torch.ones(4))
        self.plain = torch.full((4,), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x) * self.plain + self.shift
        return y


def program(model: nn.Module, x: Tensor, **dims: int) -> ExportedProgram:
    shapes = ({0: torch.export.Dim("batch", **dims)},) if dims else None
    return torch.export.export(model.eval(), (x,), dynamic_shapes=shapes)


def test_tensors_keep_their_names_and_kinds_and_calls_their_places() -> None:
    model = Net().eval()
    for trace in (export(model, bound(model, numbers(2, 3)), True), trace_program(program(model, numbers(2, 3)), None)):
        kinds = {leaf.ref: leaf.kind for leaf in trace.leaves.values()}
        assert kinds == {"first.weight": "parameter", "first.bias": "parameter", "shift": "state", "": "constant"}
        places = {node.meta[PATH]: node.meta[SOURCE] for node in trace.graph.nodes if node.op == "call_function"}
        assert {*places} == {"first", ""}
        assert places[""].startswith(f"{__name__}:Net.forward:")


@pytest.mark.parametrize(
    ("dims", "bounds"), [({}, None), ({"min": 1, "max": 64}, (1, 64)), ({"min": 4, "max": 9}, (4, 9))]
)
def test_the_range_of_the_batch(dims: dict[str, int], bounds: tuple[int, int] | None) -> None:
    assert batch_bounds(program(Net(), numbers(5, 3), **dims)) == bounds


def test_a_graph_module_is_taken_as_given() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), numbers(2, 3, 8, 8)
    given = capture(torch.fx.symbolic_trace(model), x)
    assert given.route == "given"
    assert module_hash(canonical(given.module)) == module_hash(canonical(capture(model, x).module))


def test_a_graph_of_torch_calls_alone_is_flat() -> None:
    model, x = Net().eval(), numbers(3, 3)
    flat = program(model, x, min=1, max=64).module()
    assert is_flat(flat)
    assert not is_flat(model)
    assert not is_flat(torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())))
    captured = capture(flat, x)
    assert captured.route == "given"
    torch.testing.assert_close(outputs_of(captured.module.main, [x])[0], model(x))


class Regions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            y, z = x * 2, x + 1
        with torch.enable_grad():
            return y * z


def test_calls_within_settings_are_calls_like_others() -> None:
    x = numbers(2, 3)
    found = torch.export.export(Regions().eval(), (x,), strict=False)
    assert any("wrap_with" in node.name for node in found.graph.nodes)
    names = [node.name for node in without_regions(found.graph_module).nodes if node.op == "call_function"]
    assert names
    assert not any("wrap_with" in name for name in names)
    captured = capture(found, x)
    assert [node.op for node in captured.module.main.nodes if node.op != "constant"] == ["mul", "add", "mul"]
    assert torch.equal(outputs_of(captured.module.main, [x])[0], (x * 2) * (x + 1))


def test_a_graph_without_regions_stays_itself() -> None:
    graph_module = program(Net(), numbers(2, 3)).graph_module
    assert without_regions(graph_module) is graph_module.graph


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = nn.Buffer(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x * self.count


def test_a_program_that_writes_what_it_reads_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"the program writes to 'count'.*Return the new value as an output"):
        trace_program(program(Counts(), numbers(2, 3)).run_decompositions(), None)


def test_the_log_of_torch_is_quiet_inside_alone() -> None:
    logger = logging.getLogger("torch")
    before = logger.disabled
    with quiet_torch():
        assert logger.disabled
    assert logger.disabled is before

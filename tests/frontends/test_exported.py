"""An exported program as a source: its own call, its own example, its own bounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import InputError
from qcompiler.frontends import capture
from qcompiler.frontends.examples import bind_example
from qcompiler.frontends.exported import Exported
from tests.support.functions import numbers


class Pair(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor], z: Tensor, *, scale: Tensor) -> Tensor:
        return (pair[0] + pair[1]) * z * scale


X = numbers(3, 2)
LAYER = nn.Linear(2, 2).eval()


@pytest.fixture(scope="module")
def nested() -> torch.export.ExportedProgram:
    return torch.export.export(Pair().eval(), ((X, X), X), {"scale": X})


def test_the_call_is_that_which_was_exported(nested: torch.export.ExportedProgram) -> None:
    source = Exported(nested)
    assert list(source.signature().parameters) == ["input_0", "z", "scale"]
    example = source.example()
    assert isinstance(example, dict)
    assert list(example) == ["input_0", "z", "scale"]
    assert torch.equal(example["input_0"][1], X)


def test_the_inputs_of_the_program_are_the_example(nested: torch.export.ExportedProgram) -> None:
    found = capture(nested)
    assert found.route == "given"
    assert [value.name for value in found.module.main.inputs] == ["input_0.0", "input_0.1", "z", "scale"]


def test_a_program_with_a_fixed_batch_is_compiled_for_that_batch() -> None:
    captured = capture(torch.export.export(LAYER, (X,)), X)
    assert captured.module.main.inputs[0].type.shape == (3, 2)
    assert str(captured.diagnostics[0]).startswith("The batch size is fixed to 3: ")


def test_the_bounds_of_the_program_are_those_of_the_graph() -> None:
    shapes = ({0: torch.export.Dim("batch", min=2, max=9)},)
    captured = capture(torch.export.export(LAYER, (X,), dynamic_shapes=shapes), X)
    low, high = captured.module.main.bounds["N"]
    assert high == 9
    assert f"The graph is valid for batch sizes from {low} to 9, as the model is." in map(str, captured.diagnostics)


def test_the_tensors_are_copies() -> None:
    program = torch.export.export(LAYER, (X,))
    module = capture(program, X).module
    assert {*module.tensors} == {"weight", "bias"}
    held = program.state_dict["weight"]
    assert torch.equal(module.tensors["weight"], held)
    assert module.tensors["weight"].data_ptr() != held.data_ptr()


def test_a_program_cannot_be_moved() -> None:
    source = Exported(torch.export.export(LAYER, (X,)))
    binding = bind_example(source.signature(), X)
    assert source.place(binding, "cpu") == source.place(binding, None) == torch.device("cpu")
    with pytest.raises(InputError, match=r"the device is 'cuda:99'|the exported program is on cpu"):
        source.place(binding, "cuda:99")


def test_an_altered_program_says_that_it_cannot_run() -> None:
    program = torch.export.export(LAYER, (X,))
    del program.state_dict["weight"]
    with pytest.raises(InputError, match=r"the exported program cannot be run: .*Export the model again"):
        Exported(program).reference(torch.device("cpu"))

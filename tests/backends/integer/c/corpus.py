"""The cases of `tests/reference`, many of them put into one program, so that one build runs them all."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from qcompiler.backends.integer import emit
from qcompiler.ir.graph import Graph
from qcompiler.program.files import ProgramFiles
from qcompiler.program.program import Instruction, Program, Tensor
from tests.reference import test_operators_reference as fixed
from tests.reference import test_random_reference as random
from tests.reference.maker import Maker
from tests.support.running import outputs_of

Array = np.ndarray[Any, Any]
Case = tuple[Graph, list[Array]]

TESTS: dict[str, Sequence[Callable[..., None]]] = {
    "mac": [
        random.test_convolutions,
        random.test_transposed_convolutions,
        random.test_linear_layers_of_any_rank,
        fixed.test_convolution,
        fixed.test_transposed_convolution,
        fixed.test_linear_near_the_ends_of_the_accumulator,
        fixed.test_limits_per_channel,
    ],
    "requantize": [
        random.test_every_multiplier_meets_accumulators_at_the_edges_of_int32,
        random.test_multipliers_above_one_shift_left_first,
        random.test_float32_multipliers_meet_accumulators_at_the_edges_of_int32,
        random.test_ties_of_both_signs,
        fixed.test_rescale,
    ],
    "elementwise": [
        random.test_binary_operators_of_any_element_type,
        random.test_means_over_any_axes,
        random.test_layer_normalization,
        random.test_tables_of_any_element_type,
        random.test_tables_with_a_row_per_channel,
        random.test_tables_with_rows_that_channels_share,
        fixed.test_addition,
        fixed.test_multiplication,
        fixed.test_mean,
        fixed.test_lookup,
        fixed.test_clamp_of_codes,
    ],
    "windows": [
        random.test_movements_of_any_rank,
        random.test_averages_of_any_element_type,
        fixed.test_average_pooling,
        fixed.test_max_pooling,
        fixed.test_resampling,
        fixed.test_movement,
    ],
}


def collect(tests: Sequence[Callable[..., None]]) -> list[Case]:
    """The graphs that tests check, with their inputs; what they check is left out."""
    cases: list[Case] = []

    def remember(make: Maker) -> dict[str, Array]:
        values: dict[str, Array] = {}
        outputs_of(make.graph, make.inputs, lambda value, tensor: values.update({value.name: tensor.numpy()}))
        cases.append((make.graph, [x.numpy() for x in make.inputs]))
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Maker, "check", remember)
        for test in tests:
            for arguments in parameters(test):
                test(**arguments)
    return cases


def parameters(test: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """The arguments of each run of a parametrized test."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    sets = []
    for mark in marks:
        names = [mark.args[0]] if isinstance(mark.args[0], str) and "," not in mark.args[0] else mark.args[0]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        values = [value if len(names) > 1 else (value,) for value in mark.args[1]]
        sets.append([dict(zip(names, value, strict=True)) for value in values])
    assert marks or not [p for p in inspect.signature(test).parameters if p != "data"] or hasattr(test, "hypothesis")
    for chosen in itertools.product(*sets):
        yield {key: value for part in chosen for key, value in part.items()}


def merge(cases: Sequence[Case], layout: str) -> tuple[ProgramFiles, list[Array]]:
    """One program of all cases in sequence, and all their inputs."""
    programs = [emit(graph, layout, "OHWI" if layout == "NHWC" else "OIHW") for graph, _ in cases]  # type: ignore[arg-type]  # a layout
    tensors: dict[str, Tensor] = {}
    constants: dict[str, Array] = {}
    instructions: list[Instruction] = []
    inputs: list[str] = []
    outputs: list[str] = []
    for index, files in enumerate(programs):

        def renamed(name: str, index: int = index) -> str:
            return f"case{index}.{name}"

        program = files.program
        tensors |= {renamed(name): tensor for name, tensor in program.tensors.items()}
        constants |= {renamed(name): array for name, array in files.constants.items()}
        instructions += [
            Instruction(
                op=item.op,
                inputs=tuple(map(renamed, item.inputs)),
                outputs=tuple(map(renamed, item.outputs)),
                attributes=item.attributes,
            )
            for item in program.instructions
        ]
        inputs += map(renamed, program.inputs)
        outputs += map(renamed, program.outputs)
    program = Program(
        layout=programs[0].program.layout,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        tensors=tensors,
        constants={
            f"case{index}.{name}": constant
            for index, files in enumerate(programs)
            for name, constant in files.program.constants.items()
        },
        instructions=tuple(instructions),
    )
    return ProgramFiles(program, constants), [array for _, arrays in cases for array in arrays]

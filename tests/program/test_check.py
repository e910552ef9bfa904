"""A program from disk is refused for each thing that no program has, with its key."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

import qcompiler
from qcompiler.backends.integer import Executor
from qcompiler.errors import ArtifactError, InputError
from qcompiler.ir.registry import known_ops
from qcompiler.program.check import KINDS, RESTORED
from qcompiler.program.files import ProgramFiles
from qcompiler.program.kernels import KERNELS
from tests.support.bad_inputs import images, net

Change = Callable[[Any], object]


@pytest.fixture(scope="module")
def files() -> ProgramFiles:
    return qcompiler.compile(net(), "int8_dsp", calibration_data=[images()], verify="off").artifact.program


def of(tree: Any, op: str) -> Any:
    return next(item for item in tree["instructions"] if item["op"] == op)


def grid(name: str, **changes: object) -> Change:
    return lambda tree: tree["tensors"][name].update(changes)


def attribute(op: str, **changes: object) -> Change:
    return lambda tree: of(tree, op)["attributes"].update(changes)


def without(op: str, name: str) -> Change:
    return lambda tree: of(tree, op)["attributes"].pop(name)


def twice(tree: Any) -> None:
    tree["instructions"].insert(1, tree["instructions"][0])


def fewer(tree: Any) -> None:
    of(tree, "int_conv2d")["inputs"].pop()


FAULTS: dict[str, tuple[Change, str]] = {
    "a scale of 0": (grid("x.q", scale=[0.0]), r"a scale is 0\.0 \(at program\.json, tensors\.x\.q\)"),
    "a negative scale": (grid("x.q", scale=[-1.0]), r"a scale is -1\.0"),
    "a scale that float32 has not": (grid("x.q", scale=[1e-300]), "float32 numbers above 0"),
    "a zero point beyond its type": (grid("x.q", zero_point=[300]), "a zero point is 300"),
    "two zero points": (grid("x.q", zero_point=[0, 0]), "1 scales and 2 zero points"),
    "no grid": (grid("x.q", scale=[], zero_point=[]), "has 0 scales"),
    "an axis": (grid("x.q", axis=9), "its axis is 9"),
    "an element type": (grid("x.q", dtype="q7"), "the element type 'q7' is unknown"),
    "another element type": (grid("x.q", dtype="i32"), "instructions|overlap|is at bytes"),
    "10^15 bytes": (grid("x.q", shape=[-1, 3, 10**8, 10**7]), "the tensor 'x.q' needs 3000000000000000 bytes"),
    "a size of 0": (grid("x.q", shape=[-1, 0, 8, 8]), "its sizes are"),
    "other sizes": (grid("x.q", shape=[-1, 3, 8, 9]), "overlap|the result is|is at bytes"),
    "an unknown key": (grid("x.q", colour="red"), "tensors.x.q.colour"),
    "a text for a number": (grid("x.q", zero_point=["0"]), r"tensors\.x\.q\.zero_point\.0"),
    "a missing attribute": (without("int_conv2d", "mode"), "the attribute 'mode' is missing"),
    "an unknown attribute": (attribute("int_conv2d", colour=1), "int_conv2d has no attribute 'colour'"),
    "a step of 0": (attribute("int_conv2d", stride=[0, 1]), r"stride is \(0, 1\)"),
    "one step for two axes": (attribute("int_conv2d", stride=[1]), "expected 2 integers"),
    "a mode that is none": (attribute("int_conv2d", mode="fast"), "the mode is 'fast'"),
    "groups that do not divide": (attribute("int_conv2d", groups=7), "instructions"),
    "an axis of a concat": (attribute("concat", axis=7), "instructions|axis"),
    "an empty slice": (attribute("slice", start=12, stop=4), "instructions"),
    "a huge shift": (attribute("int_add", shift=10**6), "shift is 1000000"),
    "a table that begins elsewhere": (attribute("lookup", offset=5), "index a table of 256"),
    "an instruction that is none": (lambda tree: of(tree, "lookup").update(op="eval"), "'eval' is unknown"),
    "an operand too few": (fewer, "instructions|its role is"),
    "an instruction twice": (twice, "'x.q' is written twice"),
    "an output of another name": (lambda tree: tree.update(outputs=["y"]), "not declared"),
    "a plan beyond its array": (lambda tree: tree["memory"].update(bytes=1), "is at bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_when_the_program_is_read(fault: str, files: ProgramFiles) -> None:
    change, words = FAULTS[fault]
    tree = json.loads(files.program_json())
    change(tree)
    with pytest.raises(ArtifactError, match=words) as caught:
        ProgramFiles.parse(json.dumps(tree), files.weights())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", [(0, 2**30 - 1), (3, -1), (3, 2**30 + 1)])
def test_exponentials_whose_sum_has_no_logarithm_are_refused(entry: tuple[int, int]) -> None:
    compiled = qcompiler.compile(torch.nn.LogSoftmax(1).eval(), "int8_dsp", calibration_data=[images()], verify="off")
    files = compiled.artifact.program
    arrays = {name: array.copy() for name, array in load(files.weights()).items()}
    item = next(item for item in files.program.instructions if item.op == "int_log_softmax")
    arrays[item.inputs[1]][entry[0]] = entry[1]
    with pytest.raises(ArtifactError, match="no table of exponentials"):
        ProgramFiles.parse(files.program_json(), save(arrays))


@pytest.mark.parametrize("change", ["shape", "type", "name"])
def test_constants_are_those_that_are_declared(change: str, files: ProgramFiles) -> None:
    arrays = load(files.weights())
    name = next(name for name, array in arrays.items() if array.ndim == 4)
    array = arrays.pop(name)
    arrays[name + "x" * (change == "name")] = (
        array[:1] if change == "shape" else array.astype(np.int16) if change == "type" else array
    )
    if change == "name":
        arrays[name] = array
    with pytest.raises(ArtifactError, match=r"weights\.safetensors"):
        ProgramFiles.parse(files.program_json(), save(arrays))


def test_every_attribute_of_an_instruction_has_a_kind() -> None:
    ops = known_ops()
    missing = {
        (op, name) for op in (*KERNELS, "call") for name in ops[op].attributes if name not in {*KINDS, *RESTORED}
    }
    assert missing == set()


def test_a_batch_that_no_machine_holds_is_refused_before_it_is_computed(
    files: ProgramFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcompiler.backends.integer.executor.machine_memory", lambda: 10_000)
    with pytest.raises(InputError, match=r"the tensor '.*' needs \d+ bytes while it is computed"):
        Executor(files).run([images().numpy()])


def test_what_a_kernel_raises_names_its_instruction(files: ProgramFiles) -> None:
    broken = files.program.model_copy(
        update={
            "instructions": tuple(
                item.model_copy(update={"attributes": {**item.attributes, "offset": 10**6}})
                if item.op == "lookup"
                else item
                for item in files.program.instructions
            )
        }
    )
    with pytest.raises(ArtifactError, match=r"the instruction lookup cannot be run: IndexError.* \(at sigmoid\.q"):
        Executor(ProgramFiles(broken, files.constants)).run([torch.zeros(1, 3, 8, 8).numpy()])

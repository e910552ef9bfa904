"""The result of every layer: of the float model, of the exact simulation, and of the integer program.

A file of them has one array for each tensor, as the dump that the C of a device writes (`NAME_dump.c`): codes in the
order N, C, H, W under the name of the tensor, and in addition real numbers under `simulated/NAME` and `float/NAME`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qcompiler.backends.integer import Executor
from qcompiler.errors import InputError
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import interpret
from qcompiler.program.files import ProgramFiles
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.storage.writing import write_file
from qcompiler.validation.exact import Codes, Exact, simulate
from qcompiler.validation.layers import QUANTIZED_NAME

__all__ = ["LayerOutput", "LayerOutputs", "collect"]

Array: TypeAlias = npt.NDArray[Any]
SIMULATED, FLOAT = "simulated/", "float/"
_PLACE = re.compile(r"^/\* %(\S+) .*\*/\nstatic \w+ \*const (\w+) =", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class LayerOutput:
    """One tensor in all forms.

    Args:
        name: Name of the tensor in the program and in the ONNX file.
        model: Name of the operator of the model, which starts with its module path.
        c: Name of the pointer in model.c; empty if the C does not hold the tensor.
        codes: Result of the integer program.
        simulated: The same as real numbers of the exact simulation; None if the simulation does not show the tensor.
        floating: Result of the float model; None if the float model has no such tensor.
    """

    name: str
    model: str
    c: str
    codes: Array
    simulated: Array | None
    floating: Array | None


class LayerOutputs(Mapping[str, LayerOutput]):
    """The tensors of a run by name, in the order of the program.

    Args:
        tensors: The tensors.
    """

    def __init__(self, tensors: Sequence[LayerOutput]) -> None:
        self._tensors = {item.name: item for item in tensors}

    def __getitem__(self, name: str) -> LayerOutput:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def save(self, path: str | Path) -> Path:
        """Write all tensors to a file of NumPy, which `qcompiler compare` reads.

        Args:
            path: Path that ends in `.npz`.

        Raises:
            InputError: The path has another ending.
        """
        if Path(path).suffix != ".npz":
            raise InputError(f"the file is {Path(path).name!r}", expected="a name that ends in .npz")
        arrays: dict[str, Array] = {}
        for item in self._tensors.values():
            arrays[item.name] = item.codes
            for prefix, array in ((SIMULATED, item.simulated), (FLOAT, item.floating)):
                if array is not None:
                    arrays[prefix + item.name] = array
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        return write_file(path, buffer.getvalue())


def collect(
    program: ProgramFiles,
    quantized: Graph,
    floating: Graph,
    inputs: Sequence[Tensor],
    arithmetic: Arithmetic,
    sources: Mapping[str, bytes],
) -> LayerOutputs:
    """Run all forms on the same inputs.

    Args:
        program: Integer program.
        quantized: Calibrated graph before lowering.
        floating: Graph before quantizers were inserted.
        inputs: Flat real inputs.
        arithmetic: Arithmetic of the target.
        sources: Emitted C by name of file; empty without C.
    """
    codes: dict[str, Array] = {}
    executor = Executor(program)
    executor.run([x.numpy() for x in inputs], lambda name, array: codes.__setitem__(name, np.array(array)))
    simulated: dict[str, Array] = {}
    exact: dict[str, Array] = {}

    def observe_exact(value: Value, item: Exact) -> None:
        if isinstance(item, Codes):
            simulated[value.name] = item.real().numpy()

    def observe(value: Value, tensor: Tensor) -> None:
        exact[value.name] = tensor.numpy()

    with torch.no_grad():
        simulate(quantized, inputs, quantized.module.tensors, arithmetic, observe=observe_exact)
        interpret(floating, inputs, floating.module.tensors, observe=observe)
    places = dict(_PLACE.findall(sources.get("c/model.c", b"").decode()))
    found = []
    for name, array in codes.items():
        if program.program.tensors[name].scale:
            model = name.removesuffix(QUANTIZED_NAME)
            real = exact.get(model)
            same = real is not None and real.shape == array.shape
            found.append(
                LayerOutput(name, model, places.get(name, ""), array, simulated.get(name), real if same else None)
            )
    return LayerOutputs(found)

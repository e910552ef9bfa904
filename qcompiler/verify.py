"""The promise: the forms of a compiled model are run against each other, tensor by tensor.

The exact simulation of the quantized graph is the reference. The integer graph and the executor of the integer program
must equal it in every element. ONNX Runtime is compared end to end; on a target whose arithmetic is ONNX Runtime's own,
elements that differ are a failure too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qcompiler.backends.integer import Executor, ProgramFiles
from qcompiler.ir.graph import Graph
from qcompiler.ir.interpret import interpret
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.validation.exact import Codes, simulate

Status = Literal["equal", "differs", "not run"]
Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Form:
    """How one form compares with the exact simulation.

    Args:
        name: Of the form.
        status: `equal`: no element differs.
        required: Whether a difference is a failure.
        tensors: Tensors compared.
        elements: Elements compared.
        differing: Elements that differ.
        largest: Largest difference in steps of the grid.
        first: First tensor that differs.
        reason: Why it was not run.
    """

    name: str
    status: Status
    required: bool
    tensors: int = 0
    elements: int = 0
    differing: int = 0
    largest: int = 0
    first: str = ""
    reason: str = ""

    def __str__(self) -> str:
        if self.status == "not run":
            return f"{self.name}: not run ({self.reason})"
        text = f"{self.name}: {self.differing} of {self.elements} elements differ in {self.tensors} tensors"
        return text if self.status == "equal" else f"{text}, by {self.largest} at most, first in %{self.first}"


@dataclass(frozen=True)
class Report:
    """All forms of one verification."""

    forms: tuple[Form, ...]

    @property
    def passed(self) -> bool:
        """Whether every form that must be equal is. A form that did not run has not passed."""
        return all(form.status == "equal" for form in self.forms if form.required)

    def __str__(self) -> str:
        return "\n".join(map(str, self.forms))


def verify(
    quantized: Graph, integer: Graph, program: ProgramFiles, inputs: Sequence[Tensor], arithmetic: Arithmetic
) -> Report:
    """Compare the integer graph and the executor with the exact simulation on `inputs`.

    Args:
        quantized: The calibrated graph before lowering.
        integer: The lowered graph.
        program: The integer program.
        inputs: Float tensors, flat.
        arithmetic: Of the target.
    """
    reference: dict[str, Array] = {}

    def keep(name: str, item: object) -> None:
        if isinstance(item, Codes):
            reference[name] = item.codes.numpy()

    with torch.no_grad():
        simulate(quantized, inputs, arithmetic, lambda value, item: keep(value.name, item))

    def graph_form(observe: Callable[[str, Array], None]) -> None:
        with torch.no_grad():
            interpret(integer, inputs, lambda value, tensor: observe(value.name, tensor.detach().numpy()))

    def executor_form(observe: Callable[[str, Array], None]) -> None:
        Executor(program).run([tensor.numpy() for tensor in inputs], observe)

    return Report(
        (
            compare("integer graph", reference, graph_form),
            compare("integer program", reference, executor_form),
        )
    )


def compare(
    name: str,
    reference: dict[str, Array],
    run: Callable[[Callable[[str, Array], None]], None],
    *,
    required: bool = True,
) -> Form:
    """Run a form and count, over the tensors that it shares with the reference, the elements that differ."""
    tensors = elements = differing = largest = 0
    first = ""

    def observe(tensor: str, found: Array) -> None:
        nonlocal tensors, elements, differing, largest, first
        expected = reference.get(tensor)
        if expected is None:
            return
        tensors += 1
        elements += expected.size
        if found.shape != expected.shape:
            count, distance = expected.size, 1
        else:
            distances = np.abs(found.astype(np.int64) - expected.astype(np.int64))
            count, distance = int(np.count_nonzero(distances)), int(distances.max(initial=0))
        if count and not first:
            first = tensor
        differing += count
        largest = max(largest, distance)

    run(observe)
    if not tensors:
        return Form(name, "not run", required, reason="it has no tensor in common with the simulation")
    status: Status = "differs" if differing else "equal"
    return Form(name, status, required, tensors, elements, differing, largest, first)

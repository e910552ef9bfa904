"""The promise: the forms of a compiled model are run against each other, tensor by tensor.

The exact simulation of the quantized graph is the reference. Two experiments are made:

    end to end        all forms on the same real inputs; each layer reads what the layer before it gave
    layer by layer    each layer reads random codes over the whole range of its grid, the same in all forms, so that no
                      layer hides behind the one in front of it; an island that has no result for such codes,
                      because it reads them as indices, gets those of the real inputs

The integer graph, the executor of the integer program, and the C source, built with the compiler that is there, must
equal the simulation in every element of both. The artifact is written to memory and read back: the program that the
bytes hold must give the same codes, and nothing may be lost on the way. The program runs once more on one image inside
of the array that its memory plan lays out, freed bytes overwritten, and must give the codes that it gives with memory
of its own for each tensor: a result on bytes that are still read shows. ONNX Runtime computes with its own arithmetic:
fed the same integers it must stay within the bound of the target, but for elements that its one rounding explains (see
`rounded_once`). End to end, where a difference of one step in one layer may grow in the next, differences are counted.
It runs twice, as everybody runs it and with all optimisation off, because exports exist that are right in only one of
the two.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qcompiler.backends.integer import Executor
from qcompiler.backends.integer.c import form as c_form
from qcompiler.errors import ToolchainError
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import interpret
from qcompiler.passes.base import check_seed
from qcompiler.program import aliases, liveness
from qcompiler.program.files import ProgramFiles
from qcompiler.quant.arithmetic import ELEMENTWISE_FLOAT32
from qcompiler.targets import Target
from qcompiler.validation.exact import Codes, Exact, simulate
from qcompiler.verification.rounded_once import RoundedOnce

if TYPE_CHECKING:
    from qcompiler.backends.onnx_qdq import Layers

Status = Literal["equal", "within bound", "differs", "not run"]
Array = npt.NDArray[np.generic]
Tensors = dict[str, Array]

TRANSPOSED = ("int_conv_transpose1d", "int_conv_transpose2d", "int_conv_transpose3d")
MAC_INSTRUCTIONS = ("int_conv1d", "int_conv2d", "int_conv3d", *TRANSPOSED, "int_linear")
MAC_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators of a file that sum products."""
RUNTIME_EXACT = ("GlobalAveragePool", "Sigmoid")
"""Operators whose integer kernels a target of ONNX Runtime's arithmetic reproduces, beside those that multiply."""


@dataclass(frozen=True)
class Bound:
    """How far a tensor may be from the reference.

    Args:
        lsb: Largest difference, in steps of the grid.
        fraction: Share of the elements that may differ at all.
    """

    lsb: int = 0
    fraction: float = 0.0

    def allows(self, count: int, size: int, distance: int) -> bool:
        """Whether `count` of `size` elements may differ, by `distance` at most.

        Where elements may differ at all, a small tensor gets what chance may bring: three standard deviations and one.
        """
        expected = self.fraction * size
        return distance <= self.lsb and count <= expected + (3 * math.sqrt(expected) + 1 if expected else 0)


@dataclass(frozen=True)
class Form:
    """How one form compares with the reference.

    Args:
        name: Of the form.
        status: `equal`: no element differs. `within bound`: some do, no more and no further than the target allows.
        required: Whether `differs` is a failure.
        tensors: Tensors compared.
        elements: Elements compared.
        differing: Elements that differ.
        largest: Largest difference in steps of the grid.
        first: First tensor that differs; of those beyond their bound where there is one.
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
        if self.status == "differs" and not self.tensors:
            return f"{self.name}: {self.first}"
        text = f"{self.name}: {self.differing} of {self.elements} elements differ in {self.tensors} tensors"
        return text if not self.differing else f"{text}, by {self.largest} at most, first in %{self.first}"


@dataclass(frozen=True)
class Report:
    """All forms of one verification.

    Args:
        reference: The form with which the others are compared.
        forms: The others.
        samples: Samples in the batch on which the forms ran.
        integer_macs: Share of the multiply-accumulates that ONNX Runtime does in integer kernels; None when unknown.
    """

    reference: str
    forms: tuple[Form, ...]
    samples: int
    integer_macs: float | None = None

    @property
    def passed(self) -> bool:
        """Whether no required form differs from the reference, or failed to run."""
        return all(form.status in ("equal", "within bound") for form in self.forms if form.required)

    def form(self, name: str) -> Form:
        """The form called `name`."""
        return next(form for form in self.forms if form.name == name)

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return {
            "passed": self.passed,
            "reference": self.reference,
            "samples": self.samples,
            "onnxruntime_integer_macs": self.integer_macs,
            "forms": [dataclasses.asdict(form) for form in self.forms],
        }

    def __str__(self) -> str:
        lines = [f"compared with the {self.reference} on {self.samples} samples", *map(str, self.forms)]
        if self.integer_macs is not None:
            lines.append(f"ONNX Runtime does {100 * self.integer_macs:.1f} % of the products in integer kernels")
        return "\n".join(lines)


@dataclass(frozen=True)
class ReadBack:
    """An artifact as its files give it.

    Args:
        program: The integer program that was read; None where the files cannot be read.
        faults: What was lost or changed on the way, as sentences that name file and key.
    """

    program: ProgramFiles | None
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Forms:
    """What there is of a model.

    Args:
        program: The integer program.
        onnx: The ONNX file.
        quantized: The calibrated graph before lowering; None for an artifact from disk.
        integer: The lowered graph; None for an artifact from disk.
        c: The folder of C; empty where there is none.
        without_c: Why there is none.
        read_back: Writes the artifact to memory and reads it; None for a program alone.
    """

    program: ProgramFiles
    onnx: bytes | None = None
    quantized: Graph | None = None
    integer: Graph | None = None
    c: Mapping[str, bytes] = field(default_factory=dict)
    without_c: str = ""
    read_back: Callable[[], ReadBack] | None = None


@dataclass
class _Tally:
    """Counts the elements that differ."""

    name: str
    required: bool = True
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    tensors: int = 0
    elements: int = 0
    differing: int = 0
    largest: int = 0
    first: str = ""
    beyond: str = ""

    def compare(
        self,
        expected: Tensors,
        found: Tensors,
        steps: Mapping[str, float] | None = None,
        rounded: Callable[..., Array | None] | None = None,
    ) -> None:
        """Add the tensors that both have.

        Args:
            expected: Of the reference.
            found: Of the form.
            steps: Size of one step, for tensors of real numbers.
            rounded: Gives, for `name` and `reference`, codes that elements may have as well: see `rounded_once`. They
                count as different all the same, but not towards the share and the distance that a bound allows.
        """
        for name in (name for name in expected if name in found):
            old, new = expected[name], found[name]
            self.tensors += 1
            self.elements += old.size
            distances = np.ones(old.shape)
            if old.shape != new.shape:
                count, distance = old.size, 1
            else:
                distances = np.abs(new.astype(np.float64) - old.astype(np.float64)) / (steps or {}).get(name, 1.0)
                count, distance = int(np.count_nonzero(distances)), math.ceil(distances.max(initial=0) - 1e-3)
            if not count:
                continue
            self.first = self.first or name
            self.differing += count
            self.largest = max(self.largest, distance, 1)
            bound = self.bounds.get(name, Bound())
            if not bound.allows(count, old.size, distance) and rounded is not None and old.shape == new.shape:
                others = rounded(name, reference=old)
                if others is not None:
                    # A multiplier of 15 bits is some steps off at the end of 16 bits. An element that has neither code
                    # is as far as it is from the nearer one: both roundings are right.
                    nearest = np.minimum(distances, np.abs(new.astype(np.float64) - others.astype(np.float64)))
                    count, distance = int(np.count_nonzero(nearest)), math.ceil(nearest.max(initial=0))
            if not bound.allows(count, old.size, distance):
                self.beyond = self.beyond or name

    def form(self) -> Form:
        if not self.tensors:
            # Nothing to compare is no proof, but no failure either: a model may have nothing to quantize.
            return Form(self.name, "not run", required=False, reason="no tensor of the model is quantized")
        status: Status = "differs" if self.beyond else "within bound" if self.differing else "equal"
        first = self.beyond or self.first
        counts = (self.tensors, self.elements, self.differing, self.largest)
        return Form(self.name, status, self.required, *counts, first)


def verify(forms: Forms, inputs: Sequence[Tensor], target: Target, *, seed: int = 0) -> Report:
    """Compare the forms of a model.

    Args:
        forms: What there is. Without the graphs the executor is the reference.
        inputs: Float tensors, flat.
        target: Gives the arithmetic of the simulation, and the bound of ONNX Runtime.
        seed: Of the random codes.

    Raises:
        VerificationError: A form cannot be run at all.
        InputError: The seed is none.
    """
    check_seed(seed)
    return _Verification(forms, inputs, target, seed).report()


@dataclass(frozen=True)
class _Run:
    """What a form gave: codes by name of tensor, the limits of each, and the real outputs."""

    codes: Tensors
    outputs: Tensors
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def _named(outputs: Sequence[Array]) -> Tensors:
    return {f"output {index}": array for index, array in enumerate(outputs)}


def _simulate(graph: Graph, target: Target, inputs: Sequence[Tensor], given: Tensors | None) -> _Run:
    found: Tensors = {}
    limits: dict[str, tuple[int, int]] = {}

    def observe(value: Value, item: Exact) -> None:
        if isinstance(item, Codes):
            found[value.name] = item.codes.numpy().astype(np.int32)
            limits[value.name] = (item.qmin, item.qmax)

    def replace(value: Value, item: Exact) -> Exact:
        if given is None or value.name not in given or not isinstance(item, Codes):
            return item
        return dataclasses.replace(item, codes=torch.from_numpy(given[value.name].astype(np.int64)))

    with torch.no_grad():
        results, _ = simulate(graph, inputs, graph.module.tensors, target.arithmetic, observe=observe, replace=replace)
    real = [item.real() if isinstance(item, Codes) else cast("Tensor", item) for item in results]
    return _Run(found, _named([tensor.numpy() for tensor in real]), limits)


def _interpret(graph: Graph, inputs: Sequence[Tensor], given: Tensors | None) -> _Run:
    found: Tensors = {}

    def observe(value: Value, tensor: Tensor) -> None:
        if value.type.quant is not None:
            found[value.name] = tensor.numpy()

    def replace(value: Value, tensor: Tensor) -> Tensor:
        if given is None or value.name not in given:
            return tensor
        return torch.from_numpy(given[value.name]).to(tensor.dtype)

    with torch.no_grad():
        results, _ = interpret(graph, inputs, graph.module.tensors, observe=observe, replace=replace)
    return _Run(found, _named([tensor.numpy() for tensor in results]))


def _execute(executor: Executor, inputs: Sequence[Tensor], given: Tensors | None) -> _Run:
    found: Tensors = {}

    def observe(name: str, array: Array) -> None:
        if executor.program.tensors[name].scale:
            found[name] = array

    def replace(name: str, array: Array) -> Array:
        return array if given is None or name not in given else given[name].astype(array.dtype)

    results = executor.run([x.numpy() for x in inputs], observe, replace)
    # Without the graph nothing says which codes are in use but the codes themselves.
    limits = {name: (int(array.min()), int(array.max())) for name, array in found.items() if array.size}
    return _Run(found, _named(results), limits)


class _Verification:
    """The two experiments on one reference."""

    def __init__(self, forms: Forms, inputs: Sequence[Tensor], target: Target, seed: int) -> None:
        self.forms, self.inputs, self.target = forms, list(inputs), target
        self.program = forms.program.program
        self.executor = Executor(forms.program)
        self.rounded = RoundedOnce(self.executor, target)
        self.reference = "integer program" if forms.quantized is None else "exact simulation"
        self.real = self.refer(None)
        # What a clamp per channel reads is no layer's result, but a step within one.
        within = {item.inputs[0] for item in self.program.instructions if item.op == "int_clamp"}
        # Nor is what lies where its operand does: who changes one changes both.
        self.views = self.shown()
        written = [item.output for item in self.program.instructions if item.output not in (*within, *self.views)]
        activations = [name for name in written if name in self.real.limits]
        generator = np.random.default_rng(seed)
        self.codes: Tensors = {
            name: generator.integers(*self.real.limits[name], self.real.codes[name].shape, np.int32, endpoint=True)
            for name in activations
        }
        self.random = self.on_random_codes()
        self.steps = {
            f"output {index}": self.program.tensors[item.inputs[0]].scale[0]
            for index, name in enumerate(self.program.outputs)
            for item in self.program.instructions
            if item.output == name and item.op == "dequantize"
        }

    def shown(self) -> frozenset[str]:
        """Results that lie where their operand does, by the plan of memory."""
        plan = self.program.memory
        if plan is None:
            return frozenset()
        tensors = liveness.Tensors(self.program, plan.batch)
        return aliases.shown(tensors, aliases.find_homes(tensors, plan.alignment))

    def refer(self, given: Tensors | None) -> _Run:
        """Run the reference."""
        if self.forms.quantized is None:
            return self.execute(given)
        return _simulate(self.forms.quantized, self.target, self.inputs, given)

    def on_random_codes(self) -> _Run:
        """Run the reference on random codes; an island that has no result for them reads those of the real inputs.

        An index is made of numbers between certain ends: other codes than the model computes name rows that no table
        has.
        """
        try:
            return self.refer(self.codes)
        except Exception:  # whatever a function of the model raises
            sources = {item.output: item.inputs[0] for item in self.program.instructions if item.inputs}
            read = [name for item in self.program.instructions if item.op == "call" for name in item.inputs]
            for name in read:
                # An island reads the real numbers of codes, which may lie where others do.
                while name not in self.codes and name in sources:
                    name = sources[name]
                if name in self.codes:
                    self.codes[name] = self.real.codes[name]
            if not read:
                raise
        return self.refer(self.codes)

    def execute(self, given: Tensors | None) -> _Run:
        """Run the integer program."""
        return _execute(self.executor, self.inputs, given)

    def report(self) -> Report:
        """Run all forms."""
        graph = self.forms.integer
        if self.forms.quantized is None or graph is None:
            found = [Form(name, "not run", False, reason=_NO_GRAPH) for name in ("exact simulation", "integer graph")]
            found.append(self.planned())
        else:
            found = [
                self.exact("integer graph", lambda given: _interpret(graph, self.inputs, given)),
                self.exact("integer program", self.execute, planned=True),
            ]
        if self.forms.read_back is not None:
            found.append(self.read_back(self.forms.read_back))
        found += [self.source(), *self.runtime()]
        return Report(self.reference, tuple(found), self.samples, self.integer_macs())

    @property
    def samples(self) -> int:
        """Samples in the batch."""
        return len(self.inputs[0]) if self.inputs and self.inputs[0].dim() else 1

    def exact(self, name: str, run: Callable[[Tensors | None], _Run], *, planned: bool = False) -> Form:
        """A form that must equal the reference in both experiments, and in its real outputs.

        Args:
            name: Of the form.
            run: Runs it.
            planned: Whether it is the program, whose memory plan belongs to it.
        """
        tally = _Tally(name)
        real = run(None)
        tally.compare(self.real.codes, real.codes)
        tally.compare(self.real.outputs, real.outputs, self.steps)
        tally.compare(self.random.codes, run(self.codes).codes)
        if planned:
            self.compare_planned(tally)
        return tally.form()

    def read_back(self, read_back: Callable[[], ReadBack]) -> Form:
        """The program of the artifact as it is read from its bytes, which must hold all that was written."""
        name = "artifact read back"
        found = read_back()
        if found.program is None or found.faults:
            return Form(name, "differs", True, differing=len(found.faults), first=found.faults[0])
        executor = Executor(found.program)
        return self.exact(name, lambda given: _execute(executor, self.inputs, given))

    def planned(self) -> Form:
        """The program in its array, where the program itself is the reference."""
        tally = _Tally("integer program in one array")
        self.compare_planned(tally)
        if not tally.tensors:
            return Form(tally.name, "not run", required=False, reason="the program has no plan of its memory")
        return tally.form()

    def compare_planned(self, tally: _Tally) -> None:
        """Add what the program gives in the array of its plan, on as many images as that is for and random codes."""
        plan = self.program.memory
        if plan is None:
            return
        # On images taken one by one: what an island computes may round otherwise in a batch.
        executor = Executor(self.forms.program, plan)
        shapes = liveness.Tensors(self.program, plan.batch).shapes
        given = zip(executor.core.given, self.inputs, strict=True)
        inputs = [x[tuple(map(slice, shapes[name]))] for name, x in given]
        codes = {name: array[tuple(map(slice, shapes[name]))] for name, array in self.codes.items()}
        expected, found = _execute(self.executor, inputs, codes), _execute(executor, inputs, codes)
        tally.compare(expected.codes, found.codes)
        tally.compare(expected.outputs, found.outputs, self.steps)

    def source(self) -> Form:
        """The C source: built, and compared in both experiments, with its helpers for real numbers in the first."""
        reason = c_form.why_not_run() if self.forms.c else self.forms.without_c or "there is no C source"
        if reason:
            return Form("C", "not run", False, reason=reason)
        tally, inputs = _Tally("C"), [x.numpy() for x in self.inputs]
        try:
            with c_form.built(self.forms.c, 2 * self.samples * self.macs()[0]) as binary:
                real = binary.run(inputs, real=True)
                random = binary.run(c_form.codes_of_inputs(binary, inputs, self.codes), self.codes)
                computed = {step["tensor"]: random.codes[step["tensor"]] for step in binary.contract["steps"]}
        except ToolchainError as error:
            return Form("C", "not run", True, reason=error.found)
        tally.compare(self.real.codes, real.codes)
        tally.compare(self.real.outputs, _named(real.outputs), self.steps)
        tally.compare(self.random.codes, computed)
        return tally.form()

    def runtime(self) -> list[Form]:
        """ONNX Runtime, twice in each experiment."""
        from qcompiler.backends import onnx_qdq  # onnxruntime takes a while to import

        found: list[Form] = []
        inputs = [x.numpy() for x in self.inputs]
        fed = {**{name: self.random.codes[name] for name in self.views if name in self.random.codes}, **self.codes}
        unsigned = {name for name, tensor in self.program.tensors.items() if str(tensor.dtype) in ("u4", "u8")}
        for optimize in (True, False):
            session = "onnxruntime" if optimize else "onnxruntime unoptimized"
            if self.forms.onnx is None:
                found.append(Form(session, "not run", False, reason="there is no ONNX file"))
                continue
            whole = _Tally(f"{session}, end to end", required=False)
            codes, outputs = onnx_qdq.run_observed(self.forms.onnx, inputs, optimize=optimize, unsigned=unsigned)
            whole.compare(self.real.codes, codes)
            whole.compare(self.real.outputs, _named(outputs), self.steps)
            layers = onnx_qdq.Layers(self.forms.onnx, optimize=optimize, unsigned=unsigned)
            single = _Tally(f"{session}, layer by layer", bounds=self.bounds(layers, optimize))
            for given, expected in ((self.real.codes, self.real.codes), (fed, self.random.codes)):
                rounded = functools.partial(self.rounded.codes, given=given, in_float32=not optimize)
                single.compare(expected, layers.run(inputs, given), rounded=rounded)
            found += [single.form(), whole.form()]
        return found

    def bounds(self, layers: Layers, optimize: bool) -> dict[str, Bound]:
        """How far each layer of the file may be from the reference on the same integers."""
        allowed = self.target.descriptor.verify
        same_arithmetic = allowed.layer_fraction == 0
        if not optimize:  # sums in float32 round
            allowed = allowed.model_copy(update={"layer_fraction": max(allowed.layer_fraction, _FLOAT_FRACTION)})
        result: dict[str, Bound] = {}
        in_float32 = {i.output for i in self.program.instructions if i.attributes.get("mode") == ELEMENTWISE_FLOAT32}
        sums = {i.output for i in self.program.instructions if i.op in MAC_INSTRUCTIONS}
        for name, operator in layers.operators.items():
            if name in in_float32:
                result[name] = Bound()  # the same operations, each rounded
            elif operator in MAC_OPERATORS or name in sums:
                result[name] = Bound(allowed.layer_lsb, allowed.layer_fraction)
            elif operator in RUNTIME_EXACT and same_arithmetic and optimize:
                result[name] = Bound()
            else:
                result[name] = Bound(1 + self.steepness(name), 1.0)
        return result

    def steepness(self, name: str) -> int:
        """Steps of a result by which a function in float32 may be off because its argument is.

        The argument (code - zero point) * scale has two roundings, by 2^-24 each: with 2^16 codes up to 2^-7 of a step
        of the input. Where one step more gives a result that is hundreds of steps off, that shows.
        """
        item = next(item for item in self.program.instructions if name in item.outputs)
        if item.op != "lookup":
            return 0
        table = self.forms.program.constants[item.inputs[1]].astype(np.int64)
        return int(np.abs(np.diff(table)).max(initial=0) * table.shape[-1] * 2.0**-23)

    def integer_macs(self) -> float | None:
        """Share of the multiply-accumulates of one sample that ONNX Runtime does in integer kernels."""
        from qcompiler.backends import onnx_qdq

        if self.forms.onnx is None:
            return None
        total, inside = self.macs(onnx_qdq.integer_weights(self.forms.onnx))
        return inside / total if total else None

    def macs(self, weights: Collection[str] = ()) -> tuple[int, int]:
        """Multiply-accumulates of one sample: of all layers, and of those with these weights."""
        total = inside = 0
        for item in self.program.instructions:
            if item.op in MAC_INSTRUCTIONS:
                weight = item.inputs[1]
                # The weight meets each pixel of the result once; where it is transposed, each pixel of the input.
                shape = self.program.tensors[item.inputs[0] if item.op in TRANSPOSED else item.output].shape
                positions = shape[1:-1] if item.op == "int_linear" else shape[2:]
                macs = self.forms.program.constants[weight].size * math.prod(positions)
                total += macs
                inside += macs if weight in weights else 0
        return total, inside


_NO_GRAPH = "the artifact holds the program, not the graph"
_FLOAT_FRACTION = 0.005
"""Share of elements whose float32 sum may round to the other side of a tie."""

"""Verification: the forms of a compiled model are run against each other, tensor by tensor.

The exact simulation of the quantized graph is the reference. Two experiments are made:

    end to end        all forms on the same real inputs; each layer reads the result of the layer before it
    layer by layer    each layer reads random codes over the whole range of its grid, the same in all forms, so that no
                      layer's error is hidden by the layer before it; an island that has no result for such codes,
                      because it reads them as indices, gets those of the real inputs

The integer graph, the executor of the integer program and the artifact that is read back from its own bytes must equal
the simulation in every element of both. The program runs once more on one image inside the arena of its memory plan,
with freed bytes overwritten, and must give the same codes: a tensor that is overwritten too early shows.

The other forms are those of the back ends, see `backends.base`. A form without bounds must equal the reference in both
experiments, too. A form with bounds, such as ONNX Runtime's, is compared layer by layer: on the same integers it must
stay within them, except for elements that its single rounding explains (see `rounded_once`). End to end, where a
difference of one step in one layer may grow in the next, differences are counted.

A runtime does not fuse operators whose results are outputs, as all are in these experiments. So forms with an optimizer
are also run as their users run them: see `deployed`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor

from qcompiler.backends import known_backends
from qcompiler.backends.base import Backend, Emitted, Way, blaming
from qcompiler.backends.integer import Executor
from qcompiler.errors import ToolchainError
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import interpret
from qcompiler.passes.base import check_seed
from qcompiler.program import aliases, liveness
from qcompiler.program.files import ProgramFiles
from qcompiler.program.products import products
from qcompiler.targets import Target
from qcompiler.validation.exact import Codes, Exact, simulate
from qcompiler.verification.deployed import Trial, compare_deployed
from qcompiler.verification.inputs import input_diagnostics
from qcompiler.verification.report import Form, Report
from qcompiler.verification.rounded_once import RoundedOnce
from qcompiler.verification.tally import Array, Tally, Tensors

__all__ = ["Forms", "ReadBack", "verify"]


@dataclass(frozen=True)
class ReadBack:
    """An artifact that was read from its own files.

    Args:
        program: The integer program that was read; None if the files cannot be read.
        faults: Losses and changes, as sentences that name file and key.
    """

    program: ProgramFiles | None
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Forms:
    """The forms of a compiled model to be compared.

    Args:
        program: Integer program.
        emitted: Forms of the back ends, by name.
        quantized: Calibrated graph before lowering; None for an artifact from disk.
        integer: Lowered graph; None for an artifact from disk.
        read_back: Function that writes the artifact to memory and reads it; None for a program alone.
        trial: Inputs for forms as users run them, with the outputs of the float model; None: the verified inputs.
    """

    program: ProgramFiles
    emitted: Mapping[str, Emitted] = field(default_factory=dict)
    quantized: Graph | None = None
    integer: Graph | None = None
    read_back: Callable[[], ReadBack] | None = None
    trial: Trial | None = None


def verify(forms: Forms, inputs: Sequence[Tensor], target: Target, *, seed: int = 0) -> Report:
    """Compare the forms of a model.

    Args:
        forms: The forms. Without the graphs the executor is the reference.
        inputs: Float tensors, flat.
        target: Hardware target, which defines the arithmetic of the simulation and the bounds of forms.
        seed: Seed for random codes.

    Raises:
        VerificationError: A form cannot be run at all.
        InputError: The seed is invalid.
    """
    check_seed(seed)
    return _Verification(forms, inputs, target, seed).report()


@dataclass(frozen=True)
class _Run:
    """The results of a form: codes by tensor, real outputs, and the lowest and highest code of each tensor."""

    codes: Tensors
    outputs: Tensors
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def _narrowest(low: int, high: int) -> np.dtype[np.generic]:
    """The smallest integer type for codes in low..high: codes of all tensors are in memory several times at once."""
    return np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high if low >= 0 else -high - 1))


def _named(outputs: Sequence[Array]) -> Tensors:
    return {f"output {index}": array for index, array in enumerate(outputs)}


def _simulate(graph: Graph, target: Target, inputs: Sequence[Tensor], given: Tensors | None) -> _Run:
    found: dict[str, Array] = {}
    limits: dict[str, tuple[int, int]] = {}

    def observe(value: Value, item: Exact) -> None:
        if isinstance(item, Codes):
            found[value.name] = item.codes.numpy().astype(_narrowest(item.qmin, item.qmax))
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
    found: dict[str, Array] = {}

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
    found: dict[str, Array] = {}

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
        self.shares: dict[str, float] = {}
        # A trial has more samples; random inputs need not be like the calibration.
        given = self.inputs if forms.trial is None else forms.trial.inputs if forms.trial.real else None
        self.diagnostics = [] if given is None else list(input_diagnostics(self.program, given))
        self.real = self.refer(None)
        # The operand of a clamp per channel is a step within a layer, not the result of a layer.
        within = {item.inputs[0] for item in self.program.instructions if item.op == "int_clamp"}
        # A result in the place of its operand is excluded too: changing one would change both.
        self.views = self.shown()
        written = [item.output for item in self.program.instructions if item.output not in (*within, *self.views)]
        activations = [name for name in written if name in self.real.limits]
        generator = np.random.default_rng(seed)
        self.codes: dict[str, Array] = {
            name: generator.integers(*self.real.limits[name], codes.shape, np.int32, endpoint=True).astype(codes.dtype)
            for name, codes in ((name, self.real.codes[name]) for name in activations)
        }
        self.random = self.on_random_codes()
        self.steps = {
            f"output {index}": self.program.tensors[item.inputs[0]].scale[0]
            for index, name in enumerate(self.program.outputs)
            for item in self.program.instructions
            if item.output == name and item.op == "dequantize"
        }

    def shown(self) -> frozenset[str]:
        """Results that are in the place of their operand in the memory plan."""
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

        Indices are computed from numbers in a certain range; random codes can select rows that no table has.
        """
        try:
            return self.refer(self.codes)
        except Exception:  # a function of the model may raise any error
            sources = {item.output: item.inputs[0] for item in self.program.instructions if item.inputs}
            read = [name for item in self.program.instructions if item.op == "call" for name in item.inputs]
            for name in read:
                # An island reads the real numbers of codes, whose place other tensors may share.
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
        found += self.backends()
        return Report(self.reference, tuple(found), self.samples, self.shares, tuple(self.diagnostics))

    @property
    def samples(self) -> int:
        """Samples in the batch."""
        return len(self.inputs[0]) if self.inputs and self.inputs[0].dim() else 1

    def exact(self, name: str, run: Callable[[Tensors | None], _Run], *, planned: bool = False) -> Form:
        """A form that must equal the reference in both experiments, and in its real outputs.

        Args:
            name: Name of the form.
            run: Function that runs the form.
            planned: Whether the form is the program, which has the memory plan.
        """
        tally = Tally(name)
        real = run(None)
        tally.compare(self.real.codes, real.codes)
        tally.compare(self.real.outputs, real.outputs, self.steps)
        tally.compare(self.random.codes, run(self.codes).codes)
        if planned:
            self.compare_planned(tally)
        return tally.form()

    def read_back(self, read_back: Callable[[], ReadBack]) -> Form:
        """The program read back from the bytes of the artifact, which must contain everything that was written."""
        name = "artifact read back"
        found = read_back()
        if found.program is None or found.faults:
            return Form(name, "differs", True, differing=len(found.faults), first=found.faults[0])
        executor = Executor(found.program)
        return self.exact(name, lambda given: _execute(executor, self.inputs, given))

    def planned(self) -> Form:
        """The program in its arena, if the program itself is the reference."""
        tally = Tally("integer program in one array")
        self.compare_planned(tally)
        if not tally.tensors:
            return Form(tally.name, "not run", required=False, reason="the program has no plan of its memory")
        return tally.form()

    def compare_planned(self, tally: Tally) -> None:
        """Add the results of the program in the arena of its plan, for the planned batch and for random codes."""
        plan = self.program.memory
        if plan is None:
            return
        # One image at a time, because an island may round differently in a batch.
        executor = Executor(self.forms.program, plan)
        shapes = liveness.Tensors(self.program, plan.batch).shapes
        given = zip(executor.core.given, self.inputs, strict=True)
        inputs = [x[tuple(map(slice, shapes[name]))] for name, x in given]
        codes = {name: array[tuple(map(slice, shapes[name]))] for name, array in self.codes.items()}
        expected, found = _execute(self.executor, inputs, codes), _execute(executor, inputs, codes)
        tally.compare(expected.codes, found.codes)
        tally.compare(expected.outputs, found.outputs, self.steps)

    def backends(self) -> Iterator[Form]:
        """The forms of all back ends."""
        known = known_backends()
        for name, emitted in self.forms.emitted.items():
            backend = known.get(name)
            reason = emitted.reason or ("" if emitted.files else "it has no files")
            if backend is None:
                reason = reason or f"no back end called {name!r} is installed"
            else:
                reason = reason or backend.available() or ""
            if backend is None or reason:
                yield Form(name, "not run", False, reason=reason)
                continue
            try:
                with blaming(backend):
                    found = [*self.backend(backend, emitted), *self.deployed(backend, emitted)]
                yield from found
            except ToolchainError as error:
                yield Form(name, "not run", True, reason=error.found)

    def backend(self, backend: Backend, emitted: Emitted) -> Iterator[Form]:
        """One form, in each way to run it."""
        with contextlib.closing(backend.ways(emitted.files, self.forms.program, self.target, self.samples)) as ways:
            for way in ways:
                yield from self.way(way)
                if way.integer_weights is not None and (share := self.integer_macs(way.integer_weights())) is not None:
                    self.shares[way.name] = share
                del way  # its sessions, before the next one opens its own

    def deployed(self, backend: Backend, emitted: Emitted) -> Iterator[Form]:
        """One form as its user runs it, if that differs from the ways to run it."""
        deployed = backend.deployed(emitted.files, self.target)
        if deployed is not None:
            form, diagnostic = compare_deployed(deployed, self.forms.trial or Trial(self.inputs), self.steps)
            self.diagnostics += [] if diagnostic is None else [diagnostic]
            yield form

    def way(self, way: Way) -> Iterator[Form]:
        """One comparison for a form that must be equal or only runs as a whole; else one for each experiment."""
        inputs = [x.numpy() for x in self.inputs]
        must_be_equal = way.rounding == "target" and not way.bounds
        if not must_be_equal and way.run_layers is not None:
            whole = Tally(f"{way.name}, end to end", required=False)
            layers = Tally(f"{way.name}, layer by layer", bounds=way.bounds)
            for given, expected in ((self.real.codes, self.real.codes), (self.given, self.random.codes)):
                rounded = None
                if way.rounding != "target":
                    rounded = functools.partial(self._rounded, way=way, given=given)
                layers.compare(expected, way.run_layers(inputs, given), rounded=rounded)
            yield layers.form()
        else:
            whole = Tally(way.name, bounds=way.bounds)
        found = way.run(inputs)  # after the layers are compared: the results of both take the memory of all tensors
        whole.compare(self.real.codes, found.codes)
        whole.compare(self.real.outputs, _named(found.outputs), self.steps)
        del found
        if must_be_equal and way.run_layers is not None:
            whole.compare(self.random.codes, way.run_layers(inputs, self.given))
        yield whole.form()

    def _rounded(self, name: str, *, way: Way, given: Tensors, reference: Array) -> Array | None:
        """The other codes that elements of a result may have in a way that does not round as the target."""
        in_float32 = way.rounding == "float32" or name in way.in_float32
        return self.rounded.codes(name, given, reference, in_float32=in_float32)

    @functools.cached_property
    def given(self) -> Tensors:
        """Random codes of all tensors: those drawn, and views of them."""
        return {**{name: self.random.codes[name] for name in self.views if name in self.random.codes}, **self.codes}

    def integer_macs(self, weights: Collection[str]) -> float | None:
        """Share of the multiply-accumulates of one sample that are done with these weights; None without any."""
        layers = products(self.forms.program)
        weight_of = {item.output: item.inputs[1] for item in self.program.instructions if item.output in layers}
        inside = sum(count for name, count in layers.items() if weight_of[name] in weights)
        return inside / sum(layers.values()) if layers else None


_NO_GRAPH = "the artifact holds the program, not the graph"

"""The protocol of back ends: each writes one form of a compiled model, runs it, and states how exact it is."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from qcompiler.errors import PluginError, QCompilerError
from qcompiler.ir.graph import Graph
from qcompiler.program.files import ProgramFiles
from qcompiler.targets import Target

Array: TypeAlias = npt.NDArray[np.generic]
Files: TypeAlias = Mapping[str, bytes]
"""Content by path in the artifact: a file name, or a folder and a file name."""


@dataclass(frozen=True)
class Lowered:
    """A lowered model, which every back end reads.

    Args:
        name: Name of the model.
        graph: Graph at stage INTEGER.
        program: Integer program of the graph, with its constants.
        samples: One array of real numbers per input, for a self-test.
        seed: Seed for random codes of a self-test.
        io: Type at inputs and outputs: real numbers (`float`), or codes (`uint8`, `int8`) where the form has a choice.
    """

    name: str
    graph: Graph
    program: ProgramFiles
    samples: Sequence[Array] = ()
    seed: int = 0
    io: Literal["float", "uint8", "int8"] = "float"


@dataclass(frozen=True)
class Emitted:
    """One form of a model.

    Args:
        files: Files of the form; empty if the form cannot express the model.
        reason: Reason for the absence of files.
    """

    files: Files = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Bound:
    """Allowed distance of a tensor from the reference.

    Args:
        lsb: Largest difference, in steps of the grid.
        fraction: Share of elements that may differ, in [0, 1].
    """

    lsb: int = 0
    fraction: float = 0.0

    def allows(self, count: int, size: int, distance: int) -> bool:
        """Whether `count` of `size` elements may differ by up to `distance` steps.

        For a positive fraction, the count may exceed its expectation by three standard deviations plus one, so that
        small tensors pass.
        """
        expected = self.fraction * size
        return distance <= self.lsb and count <= expected + (3 * math.sqrt(expected) + 1 if expected else 0)


@dataclass(frozen=True)
class Results:
    """The results of a run.

    Args:
        outputs: Real numbers of each output, in order.
        codes: Codes of tensors inside the model, by name; empty if the form does not show them.
    """

    outputs: Sequence[Array]
    codes: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """One way to run the files of a form. A runtime with an optimizer has two: with and without optimization.

    Args:
        name: Name of the way in the verification report.
        run: Function from the model's inputs, as real numbers, to its results.
        run_layers: Function that runs each layer on given codes. Its arguments are the model's inputs and the codes of
            every tensor by name. It returns the codes that each layer computes. None: only whole runs are possible.
        bounds: Allowed distance of each tensor from the reference; a tensor without a bound must be equal. Outputs are
            called `output 0`, `output 1`, ...
        rounding: `target`: sums and results round as on the target. `once`: results are rounded once, to even, with the
            real multiplier. `float32`: sums are also rounded, to float32.
        in_float32: Layers whose sums are rounded to float32 although `rounding` is `once`: no integer kernel exists
            for their types.
        integer_weights: Function that returns the names of the weights multiplied in integer kernels; None if unknown.
    """

    name: str
    run: Callable[[Sequence[Array]], Results]
    run_layers: Callable[[Sequence[Array], Mapping[str, Array]], Mapping[str, Array]] | None = None
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    rounding: Literal["target", "once", "float32"] = "target"
    in_float32: frozenset[str] = frozenset()
    integer_weights: Callable[[], frozenset[str]] | None = None


@dataclass(frozen=True)
class Deployed:
    """The files of a form as their user runs them: with the runtime's default settings, and only the outputs visible.

    A runtime may fuse operators whose results are not visible, which the ways of `Way` do not cover, because they show
    every tensor.

    Args:
        name: Name of the form in the verification report.
        run: Function from the model's inputs, as real numbers, to its outputs.
        as_written: The same with each operator computed as it is written, without any optimization.
        doubt: Reason for which a difference on this machine is counted and not a failure; empty if there is none.
        kernels: Function that returns the kernels of the optimized model that may cause a difference, for messages.
        fix: Remedy for a difference, as text that can be typed.
    """

    name: str
    run: Callable[[Sequence[Array]], Sequence[Array]]
    as_written: Callable[[Sequence[Array]], Sequence[Array]]
    doubt: str = ""
    kernels: Callable[[], Sequence[str]] = tuple
    fix: str = ""


class Backend(ABC):
    """A back end, which writes and runs one form of a model.

    A subclass sets `name` and implements `emit` and `run`. It is published under the entry point group
    `qcompiler.backends` with the same name.
    """

    name: ClassVar[str]
    """Name of the form in manifest, report and command line."""
    on_request: ClassVar[bool] = False
    """Whether the form is written only for targets whose descriptor names it in `forms`."""

    @abstractmethod
    def emit(self, model: Lowered, target: Target) -> Files:
        """The files of the form. The same arguments give the same bytes.

        Raises:
            UnsupportedError: The form cannot express the model. The compile records the reason and continues.
        """

    @abstractmethod
    def run(self, files: Files, inputs: Sequence[Array]) -> list[Array]:
        """The outputs of the form, as real numbers.

        Args:
            files: Files written by `emit`.
            inputs: One array per input of the model, as real numbers.
        """

    def available(self) -> str | None:
        """The reason why the form cannot be run on this machine; None if it can."""
        return None

    def bound(self, target: Target) -> Bound:
        """Allowed distance of the outputs from those of the integer program."""
        del target
        return Bound()

    def check(self, files: Files) -> None:
        """Check files from disk before anything else reads them.

        Raises:
            ArtifactError: `emit` cannot have written the files.
        """
        del files

    def why_foreign(self, files: Files, program: ProgramFiles) -> str | None:
        """The reason why files from disk are not run: they contain code that `emit` does not write for `program`."""
        del files, program
        return None

    def deployed(self, files: Files, target: Target) -> Deployed | None:
        """The files as their user runs them; None if that is one of the `ways`."""
        del files, target
        return None

    def ways(self, files: Files, program: ProgramFiles, target: Target, samples: int) -> Generator[Way, None, None]:
        """The ways to run `files` that verification compares with the reference; by default `run` alone.

        Args:
            files: Files of the form.
            program: Integer program of the model.
            target: Hardware target.
            samples: Batch size of the inputs.

        Raises:
            ToolchainError: The files cannot be built.
        """
        del samples
        outputs = (f"output {index}" for index in range(len(program.program.outputs)))
        yield Way(
            self.name,
            lambda inputs: Results(self.run(files, inputs)),
            bounds=dict.fromkeys(outputs, self.bound(target)),
        )


@contextlib.contextmanager
def blaming(backend: Backend) -> Iterator[None]:
    """Name the back end of a plugin when its code fails in the block.

    Raises:
        PluginError: The code of another distribution raised an error that no caller expects.
    """
    try:
        yield
    except QCompilerError:
        raise
    except Exception as error:
        module = type(backend).__module__
        if module.partition(".")[0] == "qcompiler":
            raise
        raise PluginError(
            f"the back end {backend.name!r} fails: {type(error).__name__}: {error}",
            where=module,
            fix="Repair it, or uninstall its distribution.",
        ) from error

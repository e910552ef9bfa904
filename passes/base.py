"""The base class of passes and their context.

A pass is a frozen dataclass: its fields are its options, spelled the same in Python, on the command line and in
pipeline text. Each pass declares its preconditions, the facts that it establishes and invalidates, and its contract on
the numbers. The manager checks all of these; `run` only rewrites.

    @dataclass(frozen=True)
    class RemoveIdentity(Pass):
        '''identity(x)  ->  x'''
        name = "remove-identity"

        def run(self, graph: Graph, context: PassContext) -> None:
            rewriter = context.rewriter(graph)
            for node in graph.nodes:
                if node.op == "identity":
                    rewriter.note(node, "removed")
                    rewriter.replace(node, node.inputs[0])
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from qcompiler.calibration.journal import Journal
from qcompiler.calibration.processes import Processes
from qcompiler.calibration.spool import reiterable
from qcompiler.calibration.store import DEFAULT_MEMORY
from qcompiler.errors import InputError, PassError
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.quant.encoding import Encodings
from qcompiler.targets import Target
from qcompiler.validation.contracts import Contract, Exact

Override: TypeAlias = "int | str | Mapping[str, int] | Mapping[str, int | str]"
Progress: TypeAlias = Callable[[str, float, float], None]
"""Callback with the name of the current work, the finished work and the total work, in one unit."""


LARGEST_SEED = 2**63 - 1
"""Largest seed of a torch generator; NumPy accepts any seed that is not negative."""


def check_seed(seed: object) -> None:
    """Refuse a seed that one of the generators refuses.

    Raises:
        InputError: The seed is not an integer, negative or too large.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"the seed is {seed!r}", expected="an integer from 0 to 2^63 - 1")


@dataclass
class PassContext:
    """The context of a pipeline run, shared by its passes.

    Args:
        target: The hardware; None if no pass needs it.
        samples: Batches of flat inputs on which contracts are validated.
        calibration_data: Batches of flat inputs, read lazily by each pass that needs them. An iterator, which can be
            read only once, is kept on disk while it is first read. None without data.
        input_range: Assumed real range of float inputs without data.
        overrides: Bit widths or float per node, by name, glob or op; see `qcompiler.compile`.
        encodings: Encodings that calibration does not change; None without encodings.
        seed: Seed of the random generator.
        memory: Memory for the activations of a pass in MiB; the rest is stored on disk.
        processes: Processes of this compile; each sees all data and computes its share.
        journal: Saved results of finished work, from which an interrupted compile resumes.
        progress: Callback through which long passes report progress.
        start: Tensors of the module at the first `start-candidate`; None before it.
        candidates: Tensors of the previous candidates; see `start-candidate`.
    """

    target: Target | None = None
    samples: list[list[Tensor]] = field(default_factory=list)
    calibration_data: Iterable[list[Tensor]] | None = None
    input_range: tuple[float, float] | None = None
    overrides: Mapping[str, Override] = field(default_factory=dict)
    encodings: Encodings | None = None
    seed: int = 0
    memory: int = DEFAULT_MEMORY
    processes: Processes = field(default_factory=Processes)
    journal: Journal = field(default_factory=Journal)
    progress: Progress = lambda name, done, total: None
    record: Record = field(default_factory=lambda: Record(""))
    start: dict[str, Tensor] | None = None
    candidates: list[dict[str, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        self.generator = torch.Generator().manual_seed(self.seed)
        if self.calibration_data is not None:
            self.calibration_data = reiterable(self.calibration_data, once=isinstance(self.calibration_data, Iterator))

    def rewriter(self, graph: Graph) -> Rewriter:
        """An editor that writes into the record of the running pass."""
        return Rewriter(graph, self.record)

    def require_target(self, user: str) -> Target:
        """The target.

        Raises:
            PassError: There is no target; the message names `user`.
        """
        if self.target is None:
            raise PassError(f"{user} needs a target", fix="Give PassContext(target=load_target(...)).")
        return self.target

    def require_encodings(self, user: str) -> Encodings:
        """The encodings.

        Raises:
            PassError: There are no encodings; the message names `user`.
        """
        if self.encodings is None:
            raise PassError(f"{user} needs encodings", fix="Call compile(..., encodings=...).")
        return self.encodings


@dataclass(frozen=True)
class Pass(ABC):
    """Base class of passes. Subclasses are frozen dataclasses: class attributes declare, fields are options."""

    name: ClassVar[str]
    """Name in a pipeline, in kebab case."""
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.CANONICAL, Stage.QUANTIZED})
    """Stages of the graphs that the pass accepts."""
    becomes: ClassVar[Stage | None] = None
    """Stage of the graph after the pass; None if the pass keeps the stage."""
    requires: ClassVar[frozenset[str]] = frozenset()
    """Facts that must hold before the pass."""
    establishes: ClassVar[frozenset[str]] = frozenset()
    """Facts that hold after the pass."""
    invalidates: ClassVar[frozenset[str]] = frozenset()
    """Facts that no longer hold after the pass."""

    @property
    def contract(self) -> Contract:
        """The promise of the pass about the numbers: exact unless a subclass overrides it."""
        return Exact()

    def prepare(self, graph: Graph, context: PassContext) -> bool:
        """Remove facts that the pass invalidates, such as the ranges of values that change.

        The manager calls it before it computes the reference outputs for the contract: otherwise a pass that is exact
        in real numbers would seem to cause the noise of removed quantizers.

        Returns:
            Whether anything was removed.
        """
        return False

    @abstractmethod
    def run(self, graph: Graph, context: PassContext) -> None:
        """Rewrite `graph` in place through `context.rewriter(graph)`.

        Raises:
            PassError: The graph or the context lacks something that the pass needs.
        """

    def options(self) -> dict[str, object]:
        """Field names and values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def __str__(self) -> str:
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        changed = {key: value for key, value in self.options().items() if defaults[key] != value}
        text = ", ".join(f"{key.replace('_', '-')}={value}" for key, value in changed.items())
        return f"{self.name}{{{text}}}" if text else self.name


def only_user(node: Node) -> Node | None:
    """The only user of the only result of `node`; None if there are several users or the result is an output."""
    value = node.output
    if node.graph.is_output(value) or len(value.users) != 1:
        return None
    return next(iter(value.users))

"""Estimated time of a program on its target from the figures of the descriptor: a roofline, not a measurement.

For one image, instruction by instruction, from codes to codes:

    compute cycles    products / macs_per_cycle["8x8"], output channels rounded up to `channel_multiple`
                      elements / elementwise_per_cycle for everything else
    memory cycles     per memory: bytes / bytes_per_cycle, each tensor rounded up to bursts, + latency_cycles per tensor
    cycles            the largest of these: computation and all memories work in parallel
    energy            products x picojoules_per_mac + bytes x picojoules_per_byte

Each tensor is moved once per instruction: operands are read and the result is written; constants are read each time.
Aliases of their operands, such as a reshape, cost nothing. Activations are in the first memory that holds activations
and the arena, constants in the first with room left for all constants. Costs that no descriptor states, such
as reading an input twice or idle multipliers in a depthwise convolution, are not included: real cores take longer.
Figures that a descriptor omits are not estimated, and `reasons` lists what is missing.

Source: Williams, Waterman, Patterson 2009, Roofline, CACM 52(4).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from qcompiler.ir.registry import Trait, op
from qcompiler.ops.work import layer_products
from qcompiler.program.aliases import find_homes
from qcompiler.program.files import ProgramFiles
from qcompiler.program.liveness import Tensors
from qcompiler.program.program import Instruction, Program
from qcompiler.targets import Target
from qcompiler.targets.schema import Memory

ACTIVATIONS, CONSTANTS = "activations", "constants"
VIEWS = ("reshape", "permute", "slice", "concat")
"""Instructions without work if the plan has placed the operand inside the result."""


@dataclass(frozen=True)
class Layer:
    """The estimated cost of one instruction.

    Args:
        name: Name of the first result.
        op: Name of the instruction.
        macs: Number of multiply-accumulates.
        elements: Number of other elements computed or compared; 0 for layers.
        bytes: Bytes read and written, by `activations` and `constants`.
        compute_cycles: Cycles of computation; None if the descriptor has no figures.
        memory_cycles: Cycles by memory; empty if the descriptor has no figures.
        cycles: Largest of the above; None if one is unknown.
        picojoules: Energy; None if the descriptor has no figures.
    """

    name: str
    op: str
    macs: int
    elements: int
    bytes: Mapping[str, int]
    compute_cycles: int | None = None
    memory_cycles: Mapping[str, int] = field(default_factory=dict)
    cycles: int | None = None
    picojoules: float | None = None

    @property
    def bound(self) -> str:
        """The bottleneck: `compute`, the name of a memory, or empty if the cycles are unknown."""
        if self.cycles is None or not self.cycles:
            return ""
        if self.compute_cycles == self.cycles:
            return "compute"
        return next(name for name, cycles in self.memory_cycles.items() if cycles == self.cycles)

    @property
    def intensity(self) -> float | None:
        """Products per byte; None without products."""
        return self.macs / sum(self.bytes.values()) if self.macs else None


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a program for one image, or for a batch if the program has a fixed one.

    Args:
        target: The name of the hardware.
        layers: Costs of the instructions in order of execution.
        reasons: Quantities that are not estimated, each with the reason.
        clock_hz: Clock of the target.
        images: Number of images of one run.
    """

    target: str
    layers: tuple[Layer, ...]
    reasons: tuple[str, ...]
    clock_hz: float | None = None
    images: int = 1

    @property
    def subject(self) -> str:
        """The run that is estimated: one image, or a batch."""
        return "one image" if self.images == 1 else f"a batch of {self.images} images"

    @property
    def macs(self) -> int:
        """Products of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes moved, of activations and of constants."""
        return {kind: sum(layer.bytes[kind] for layer in self.layers) for kind in (ACTIVATIONS, CONSTANTS)}

    @property
    def cycles(self) -> int | None:
        """Sum of the cycles of all instructions; None if those of one are unknown."""
        known = [layer.cycles for layer in self.layers if layer.cycles is not None]
        return sum(known) if self.layers and len(known) == len(self.layers) else None

    @property
    def seconds(self) -> float | None:
        """Estimated time in seconds; None without cycles or a clock."""
        return None if self.cycles is None or self.clock_hz is None else self.cycles / self.clock_hz

    @property
    def picojoules(self) -> float | None:
        """Total energy; None if the energy of one instruction is unknown."""
        known = [layer.picojoules for layer in self.layers if layer.picojoules is not None]
        return sum(known) if self.layers and len(known) == len(self.layers) else None

    @property
    def bound_by(self) -> dict[str, int]:
        """Cycles by bottleneck: `compute`, or a memory."""
        found: dict[str, int] = {}
        for layer in self.layers:
            if layer.cycles and layer.bound:
                found[layer.bound] = found.get(layer.bound, 0) + layer.cycles
        return found

    def to_dict(self) -> dict[str, object]:
        """The estimate as plain data for JSON."""
        return {
            "target": self.target,
            "is_estimate": True,
            "images": self.images,
            "macs": self.macs,
            "bytes": self.bytes,
            "cycles": self.cycles,
            "seconds": self.seconds,
            "picojoules": self.picojoules,
            "bound_by": self.bound_by,
            "reasons": list(self.reasons),
            "layers": [
                {**dataclasses.asdict(layer), "bound": layer.bound, "intensity": layer.intensity}
                for layer in self.layers
            ],
        }

    def __str__(self) -> str:
        """One sentence, and one for each reason."""
        moved = f"{self.macs} multiply-accumulates, {sum(self.bytes.values())} bytes moved"
        if self.cycles is None:
            known = [layer.compute_cycles for layer in self.layers if layer.macs and layer.compute_cycles is not None]
            partly = f" but {sum(known)} to compute {len(known)} layers" if known else ""
            text = f"estimate for {self.subject}: {moved}; no cycles{partly}"
            return "\n".join((text, *(f"  {reason}" for reason in self.reasons)))
        spent = ", ".join(f"{100 * count / self.cycles:.0f} % {name}" for name, count in self.bound_by.items())
        time = "" if self.seconds is None else f" = {1e3 * self.seconds:.4g} ms"
        energy = "" if self.picojoules is None else f", {self.picojoules / 1e6:.4g} uJ"
        text = f"estimate for {self.subject}: {self.cycles} cycles{time} ({spent}){energy}; {moved}"
        return "\n".join((text, *(f"  {reason}" for reason in self.reasons)))


def estimate(files: ProgramFiles, target: Target) -> Estimate:
    """Estimate the cost of `files` on `target` for one image, the batch of the memory plan, or for a fixed batch.

    Args:
        files: The program and its constants.
        target: Target with the figures.
    """
    clock = target.descriptor.compute.clock_hz
    plan = files.program.memory
    if plan is None:
        return Estimate(target.name, (), ("the program has no memory plan for one image",), clock)
    return _Estimation(files, target, plan.batch, plan.alignment, plan.bytes).result()


def _images(program: Program, batch: int) -> int:
    """Images of one run: the batch of the plan, or that of a program whose inputs have a fixed one."""
    shapes = [program.tensors[name].shape for name in program.inputs]
    if any(-1 in shape for shape in shapes):
        return batch
    return next((shape[0] for shape in shapes if shape), 1)


class _Estimation:
    """One program on one target."""

    def __init__(self, files: ProgramFiles, target: Target, batch: int, alignment: int, arena: int) -> None:
        self.files, self.target, self.d = files, target, target.descriptor
        self.batch = batch
        self.tensors = Tensors(files.program, batch)
        self.homes = find_homes(self.tensors, alignment)
        self.reasons: dict[str, None] = {}
        compute = self.d.compute
        self.says_nothing = not (self.d.memory or compute.macs_per_cycle or compute.elementwise_per_cycle)
        if self.says_nothing:
            text = f"the descriptor of {target.name} has no figures: neither [compute] nor [[memory]]"
            self.reasons[text] = None
        self.places = self._places(arena)

    def result(self) -> Estimate:
        layers = tuple(map(self._layer, self.tensors.core.instructions))
        if self.d.compute.clock_hz is None and any(layer.cycles for layer in layers):
            self._miss("no time: compute.clock_hz is missing")
        clock = self.d.compute.clock_hz
        return Estimate(self.target.name, layers, tuple(self.reasons), clock, _images(self.files.program, self.batch))

    def _miss(self, reason: str) -> None:
        if not self.says_nothing:
            self.reasons[reason] = None

    def _places(self, arena: int) -> dict[str, Memory]:
        """The memories of activations and of constants."""
        sizes = {ACTIVATIONS: arena, CONSTANTS: sum(map(self._stored, self.files.constants))}
        left = {memory.name: memory.bytes for memory in self.d.memory}
        found: dict[str, Memory] = {}
        for kind, size in sizes.items():
            holding = [memory for memory in self.d.memory if kind in memory.holds]
            place = next((memory for memory in holding if left[memory.name] >= size), None)
            if not holding:
                self._miss(f"no memory cycles of {kind}: the descriptor has no memory that holds them")
            elif place is None:
                self._miss(f"no memory cycles of {kind}: they need {size} bytes, and no memory is large enough")
            elif place.bytes_per_cycle is None:
                self._miss(f"no memory cycles of {kind}: memory {place.name} has no bytes_per_cycle")
            else:
                found[kind] = place
            if place is not None:
                left[place.name] -= size
        return found

    def _stored(self, name: str) -> int:
        """Bytes of a constant; 4-bit codes take half a byte if the target packs them."""
        size = self.files.constants[name].nbytes
        packed = self.files.program.packing != "none" and self.files.program.tensors[name].dtype in ("i4", "u4")
        return -(-size // 2) if packed else size

    def _layer(self, item: Instruction) -> Layer:
        moved = self._moved(item)
        macs = self._macs(item)
        elements = 0 if macs or not moved[ACTIVATIONS] else self._elements(item)
        totals = {kind: sum(sizes) for kind, sizes in moved.items()}
        compute = self._compute_cycles(item, macs, elements)
        memory = self._memory_cycles(moved)
        known = compute is not None and all(kind in self.places for kind, sizes in moved.items() if sizes)
        cycles = max((compute or 0, *memory.values())) if known else None
        return Layer(
            item.output, item.op, macs, elements, totals, compute, memory, cycles, self._picojoules(macs, moved)
        )

    def _moved(self, item: Instruction) -> dict[str, list[int]]:
        """Bytes moved, by tensor."""
        read = list(dict.fromkeys(item.inputs))
        constants = [self._stored(name) for name in read if name in self.tensors.constants]
        read = [name for name in read if name not in self.tensors.constants]
        written = list(item.outputs)
        if item.op in VIEWS:  # an alias is not moved
            place = self.homes[item.output][0]
            read = [name for name in read if self.homes[name][0] != place]
            written = read if item.op == "concat" else written if read else []
        return {ACTIVATIONS: [self.tensors.bytes(name) for name in (*read, *written)], CONSTANTS: constants}

    def _macs(self, item: Instruction) -> int:
        """Products of a layer."""
        if not op(item.op).has(Trait.WEIGHTED, Trait.CONTRACTION):
            return 0
        x, weight, y = (self.tensors.shape(name) for name in (*item.inputs[:2], item.output))
        return layer_products(op(item.op), x, weight, y)

    def _elements(self, item: Instruction) -> int:
        """Numbers that are computed or compared: for windows, the elements of each window."""
        shapes = [self.tensors.shape(name) for name in (*item.inputs[:1], item.output)]
        read, written = map(math.prod, shapes)
        kernel = item.integers("kernel", ())
        return written * math.prod(kernel) if kernel else max(read, written)

    def _compute_cycles(self, item: Instruction, macs: int, elements: int) -> int | None:
        compute = self.d.compute
        if item.op == "call":
            self._miss(f"no cycles of float islands: {self.target.name} runs them on another processor")
            return None
        if macs:
            pair = "x".join(str(_bits(self.files.program.tensors[name].dtype)) for name in item.inputs[:2])
            rate = compute.macs_per_cycle.get(pair)
            if rate is None:
                self._miss(f"no compute cycles of {pair}-bit layers: compute.macs_per_cycle has no entry {pair}")
                return None
            channels = self.tensors.shape(item.output)[1 if op(item.op).has(Trait.CONVOLUTION) else -1]
            whole = -(-channels // self.d.layout.channel_multiple) * self.d.layout.channel_multiple
            return math.ceil(Fraction(macs * whole, channels * rate))
        if not elements:
            return 0
        if compute.elementwise_per_cycle is None:
            self._miss("compute cycles only of layers: compute.elementwise_per_cycle is missing")
            return None
        return -(-elements // compute.elementwise_per_cycle)

    def _memory_cycles(self, moved: Mapping[str, Iterable[int]]) -> dict[str, int]:
        """Cycles by memory. Sizes are summed exactly before division."""
        total: dict[str, Fraction] = {}
        for kind, sizes in moved.items():
            memory = self.places.get(kind)
            if memory is None or memory.bytes_per_cycle is None:
                continue
            burst = memory.burst_bytes or 1
            for size in sizes:
                transfer = Fraction(-(-size // burst) * burst) / Fraction(memory.bytes_per_cycle)
                total[memory.name] = total.get(memory.name, Fraction(0)) + transfer + (memory.latency_cycles or 0)
        return {name: math.ceil(cycles) for name, cycles in total.items()}

    def _picojoules(self, macs: int, moved: Mapping[str, Iterable[int]]) -> float | None:
        each = self.d.compute.picojoules_per_mac
        if macs and each is None:
            return None
        found = macs * (each or 0.0)
        for kind, sizes in moved.items():
            place = self.places.get(kind)
            if place is None or place.picojoules_per_byte is None:
                return None
            found += sum(sizes) * place.picojoules_per_byte
        return found


def _bits(dtype: str) -> int:
    """Width of the storage type of a code: 8 for a 6-bit code."""
    return int(dtype[1:])

"""Draws random models: every kind of line in `kinds`, in random order, each tried on numbers before it is kept."""

from __future__ import annotations

import dataclasses
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree

from tests.fuzz.programs import Case, Program, Statement

if TYPE_CHECKING:
    from tests.fuzz.table import Kind

T = TypeVar("T")

LARGEST_TENSOR = 6000
"""Elements of one tensor, so that a compile takes tenths of a second."""
LARGEST_NUMBER = 1e4
"""Magnitude above which a line is not kept: the next products would leave float32."""
LONGEST = 12
"""Lines of a forward."""
UNFIT = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, AttributeError, Warning)
"""Exceptions by which torch refuses an expression, and warnings."""


class NotHereError(Exception):
    """A kind of line does not fit the tensor that was chosen."""


class Drawing:
    """A program while it is drawn.

    Args:
        seed: Seed for what is drawn, and for the weights and inputs of the program.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.samples: dict[str, Tensor] = {}
        self.inputs: dict[str, str] = {}
        self.made: list[tuple[str, str]] = []
        self.statements: list[Statement] = []
        self.holder = nn.Module()
        self.odd = self.wild = False
        self.counts: dict[str, int] = {}

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random.random() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of `items`."""
        return self.random.choice(items)

    def number(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return self.random.randint(low, high)

    def sizes(self, count: int, low: int, high: int) -> tuple[int, ...]:
        """Whole numbers."""
        return tuple(self.number(low, high) for _ in range(count))

    def few(self, low: int, high: int, count: int) -> str:
        """One number for all axes, or one for each, as text."""
        return str(self.number(low, high)) if self.chance(0.6) else str(self.sizes(count, low, high))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor at the drawn batch size."""
        return tuple(self.samples[name].shape)

    def needs(self, condition: bool) -> None:
        """Give the line up where `condition` does not hold."""
        if not condition:
            raise NotHereError

    def make(self, kind: str, text: str, *more: str) -> str:
        """An attribute of the module.

        Args:
            kind: First part of its name.
            text: Source text of the line.
            more: Further lines of `__init__`, which call the attribute `@`.

        Returns:
            How the forward reads it.
        """
        self.counts[kind] = self.counts.get(kind, 0) + 1
        name = f"{kind}{self.counts[kind]}"
        for line in (f"@ = {text}", *more):
            line = line.replace("@", f"self.{name}")
            exec(line, self.namespace())  # noqa: S102  # text that was drawn here
            self.made.append((name, line))
        return f"self.{name}"

    def tensor(self, shape: Sequence[int], scale: float = 0.5) -> str:
        """A parameter or a buffer of random numbers."""
        shown = f"torch.randn({', '.join(map(str, shape))}) * {scale:g}" if shape else f"torch.tensor({scale:g})"
        if self.chance(0.6):
            return self.make("p", f"nn.Parameter({shown})")
        self.counts["b"] = number = self.counts.get("b", 0) + 1
        line = f'self.register_buffer("b{number}", {shown})'
        exec(line, self.namespace())  # noqa: S102  # as above
        self.made.append((f"b{number}", line))
        return f"self.b{number}"

    def namespace(self) -> dict[str, object]:
        """Names that the text of a line may mention."""
        return {"torch": torch, "F": functional, "nn": nn, "self": self.holder, **self.samples}

    def other(self, name: str) -> str:
        """A tensor that may be combined with `name` element by element."""
        fitting = [other for other in self.samples if self.broadcasts(name, other)]
        return self.pick(fitting)

    def broadcasts(self, name: str, other: str) -> bool:
        """Whether two tensors can be combined element by element, into one that is not too large."""
        try:
            shape = torch.broadcast_shapes(self.shape(name), self.shape(other))
        except RuntimeError:
            return False
        return math.prod(map(int, shape)) <= LARGEST_TENSOR

    def fits(self, name: str, axis: int) -> list[str]:
        """Tensors with the sizes of `name` on all axes but one."""
        sizes = self.shape(name)
        return [
            other
            for other in self.samples
            if len(self.shape(other)) == len(sizes)
            and all(i == axis or a == b for i, (a, b) in enumerate(zip(sizes, self.shape(other), strict=True)))
        ]

    def operand(self) -> str:
        """A tensor for the next line to read: mostly the last, so that models become deep."""
        names = list(self.samples)
        return names[-1] if self.chance(0.7) else self.pick(names)

    def gives_numbers(self, text: str) -> bool:
        """Whether an expression can be computed, and gives nothing but tensors of finite numbers."""
        try:
            with torch.no_grad():
                leaves = _pytree.tree_leaves(eval(text, self.namespace()))  # noqa: S307  # text that was drawn here
        except UNFIT:
            return False
        return all(isinstance(item, Tensor) and bool(torch.isfinite(item).all()) for item in leaves)

    def keep(self, text: str) -> bool:
        """Run a line, and keep it where its results are numbers to go on with."""
        try:
            self.holder.eval()
            with torch.no_grad():
                found = eval(text, self.namespace())  # noqa: S307  # text that was drawn here
        except UNFIT:
            return False
        parts = [found] if isinstance(found, Tensor) else list(found)
        if not parts or len(parts) > 4 or not all(map(self._goes_on, parts)):
            return False
        first = sum(len(item.results) for item in self.statements) + 1
        names = tuple(f"v{first + index}" for index in range(len(parts)))
        self.statements.append(Statement(names, text, self.odd))
        self.samples.update(zip(names, parts, strict=True))
        return True

    def _goes_on(self, found: object) -> bool:
        if not isinstance(found, Tensor) or not 0 < found.numel() <= LARGEST_TENSOR or found.dim() > 5:
            return False
        if found.dim() == 0 and not self.wild:
            return False
        return bool(torch.isfinite(found).all()) and float(found.abs().max()) <= LARGEST_NUMBER


def all_kinds() -> Sequence[Kind]:
    """All kinds of lines."""
    from tests.fuzz import islands, kinds  # noqa: F401  # they fill the table
    from tests.fuzz.table import KINDS

    return KINDS


def draw_program(seed: int) -> Program:
    """The random model of a seed: the same one at every call."""
    from tests.fuzz.ends import draw_input, draw_output

    drawing = Drawing(seed)
    drawing.wild = drawing.chance(0.2)
    fitting = [kind for kind in all_kinds() if drawing.wild or not kind.wild]
    with torch.random.fork_rng(devices=[]), _warnings_raised():
        torch.manual_seed(seed)
        for _ in range(2 if drawing.chance(0.12) else 1):
            draw_input(drawing)
        wanted = drawing.number(1, LONGEST) if drawing.chance(0.5) else drawing.number(2, 6)
        for _ in range(8 * wanted):
            if len(drawing.statements) >= wanted:
                break
            kind = drawing.random.choices(fitting, [kind.weight for kind in fitting])[0]
            made, drawing.odd = len(drawing.made), False
            try:
                kept = drawing.keep(kind.draw(drawing, drawing.operand()))
            except (NotHereError, *UNFIT):
                kept = False
            if not kept:
                del drawing.made[made:]
        output = draw_output(drawing)
    batches = drawing.pick([1, 2, 2, 3])
    statements, made_lines = tuple(drawing.statements), tuple(drawing.made)
    plain = Program(seed, drawing.inputs, made_lines, statements, output, batches, drawing.wild).trimmed()
    dtype = drawing.pick(["double", "double", "half", "bfloat16"]) if drawing.chance(0.06) else ""
    odd = dataclasses.replace(plain, dtype=dtype, smaller_last=batches > 1 and drawing.chance(0.1))
    return odd if odd != plain and _runs(odd) else plain


@contextmanager
def _warnings_raised() -> Iterator[None]:
    """Raise warnings of torch in the block, also those that it gives once only, so that no model is drawn that warns."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(action="error"):
            yield
    finally:
        torch.set_warn_always(before)


def _runs(program: Program) -> bool:
    try:
        with _warnings_raised():
            return program.built.is_finite()
    except UNFIT:
        return False


LAYERS = ("conv", "deconv", "fc")
"""First parts of the names of modules with a weight."""


def draw_case(program: Program, target: str) -> Case:
    """How a program is compiled for a target."""
    source = random.Random(f"{program.seed} {target}")
    fallback = source.random() < (0.9 if program.wild else 0.25)
    effort = source.choices(["fast", "default", "best"], [45, 47, 8])[0]
    overrides: dict[str, object] = {}
    layers = sorted(
        name
        for statement in program.live()
        for name in statement.attributes
        if name.rstrip("0123456789") in LAYERS and f"self.{name}(" in statement.text
    )
    if layers and source.random() < 0.15:
        values: list[object] = [16, 8, {"weight_bits": 4}, {"activation_bits": 16}]
        values += ["float"] * 2 * fallback
        overrides[source.choice(layers)] = source.choice(values)
    if any("torch.cat(" in statement.text for statement in program.live()) and source.random() < 0.1:
        overrides["concat"] = 16
    # An exported program is of one batch size here.
    exported = random.Random(program.seed).random() < 0.05 and not program.smaller_last
    return Case(program, target, effort, overrides, fallback, exported)

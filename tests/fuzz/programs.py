"""A random model as a program: Python text that can be pasted and run, and pieces of it that can be taken away."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import linecache
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

_NAME = re.compile(r"\b[xv]\d+\b")
_WHOLE = re.compile(r"randint|>")
"""Inputs of integers or truth values."""
_ATTRIBUTE = re.compile(r"\bself\.([a-z]+\d+)\b")

IMPORTS = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"


@dataclass(frozen=True)
class Statement:
    """One line of a forward.

    Args:
        results: Names that the line binds.
        text: Expression, such as `self.conv1(v2)`.
        odd: Whether it may lose its accuracy in integers without anybody's fault: a scale of 1e-6, an unbounded inverse.
    """

    results: tuple[str, ...]
    text: str
    odd: bool = False

    @functools.cached_property
    def reads(self) -> tuple[str, ...]:
        """Tensors that the line reads."""
        return tuple(dict.fromkeys(_NAME.findall(self.text)))

    @functools.cached_property
    def attributes(self) -> frozenset[str]:
        """Modules, parameters and buffers that the line reads."""
        return frozenset(_ATTRIBUTE.findall(self.text))

    def __str__(self) -> str:
        return f"{', '.join(self.results)} = {self.text}"


@dataclass(frozen=True)
class Program:
    """A model, and random inputs for it.

    Args:
        seed: Seed for its weights and inputs.
        inputs: By name, the expression that draws one batch, such as `torch.randn(2, 3, 8, 8)`.
        made: Lines of `__init__` by the attribute that they concern, in order.
        statements: Lines of the forward, in order.
        output: Expression that is returned.
        batches: Batches of calibration data.
        wild: Whether it calls functions that have no operator, so that most targets need float islands.
        dtype: Method that gives the model and its inputs another type, such as `half`; empty for float32.
        smaller_last: Whether the last batch of calibration data holds one sample only.
    """

    seed: int
    inputs: Mapping[str, str]
    made: tuple[tuple[str, str], ...]
    statements: tuple[Statement, ...]
    output: str
    batches: int = 2
    wild: bool = False
    dtype: str = ""
    smaller_last: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """Tensors that are returned."""
        return tuple(dict.fromkeys(_NAME.findall(self.output)))

    def live(self) -> tuple[Statement, ...]:
        """The statements on which an output depends."""
        needed, kept = set(self.outputs), []
        for statement in reversed(self.statements):
            if needed.intersection(statement.results):
                kept.append(statement)
                needed.update(statement.reads)
        return tuple(reversed(kept))

    def trimmed(self) -> Program:
        """Without what the forward does not mention."""
        used = frozenset[str]().union(*(statement.attributes for statement in self.statements))
        return dataclasses.replace(self, made=tuple(line for line in self.made if line[0] in used))

    def source(self) -> str:
        """The class, the model and its data, as text."""
        # Parameters that no line of `__init__` makes may be left out; an empty one may not.
        made = ["super().__init__()", *(line for _, line in self.made)]
        forward = [*map(str, self.statements), f"return {self.output}"]
        lines = ["class Model(nn.Module):", "    def __init__(self):"]
        lines += [f"        {line}" for line in made]
        lines += ["", f"    def forward(self, {', '.join(self.inputs)}):"]
        lines += [f"        {line}" for line in forward]
        convert = f".{self.dtype}()" if self.dtype else ""
        batch = "".join(
            f"({text}){convert}, " if convert and not _WHOLE.search(text) else f"{text}, "
            for text in self.inputs.values()
        ).strip()
        lines += ["", "", f"torch.manual_seed({self.seed})", f"model = Model().eval(){convert}"]
        lines += [f"data = [({batch}) for _ in range({self.batches})]"]
        lines += ["data[-1] = tuple(x[:1] for x in data[-1])"] * self.smaller_last
        return "\n".join(lines) + "\n"

    @functools.cached_property
    def built(self) -> Built:
        """The model and its data, made by running the text.

        Raises:
            Exception: Whatever the text raises.
        """
        text = f"{IMPORTS}\n\n{self.source()}"
        name = f"model_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        linecache.cache[f"{name}.py"] = (len(text), None, text.splitlines(keepends=True), f"{name}.py")
        module = ModuleType(name)
        with torch.random.fork_rng(devices=[]):
            exec(compile(text, f"{name}.py", "exec"), vars(module))  # noqa: S102  # text that was made here
            data: list[tuple[Tensor, ...]] = module.data
            model: nn.Module = module.model
            with torch.no_grad():
                expected = model(*(x.clone() for x in data[0]))
        return Built(model, data, expected)


@dataclass(frozen=True)
class Built:
    """A program that runs.

    Args:
        model: In eval mode.
        data: Batches, each a tuple of inputs.
        expected: Results of the model for the first batch.
    """

    model: nn.Module
    data: Sequence[tuple[Tensor, ...]]
    expected: object

    @property
    def leaves(self) -> list[object]:
        """The flat outputs."""
        return list(_pytree.tree_leaves(self.expected))

    def is_finite(self) -> bool:
        """Whether every batch gives tensors of finite numbers."""
        found = list(self.leaves)
        with torch.no_grad():
            for batch in self.data[1:]:
                found += _pytree.tree_leaves(self.model(*(x.clone() for x in batch)))
        return all(isinstance(item, Tensor) and bool(torch.isfinite(item).all()) for item in found)


@dataclass(frozen=True)
class Case:
    """A program, and how it is compiled.

    Args:
        program: The model and its data.
        target: Name of the target.
        effort: See `qcompiler.compile`.
        overrides: See `qcompiler.compile`.
        fallback: Whether the target lets float islands be.
        exported: Whether the model is captured with torch.export first.
    """

    program: Program
    target: str
    effort: str = "fast"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    fallback: bool = False
    exported: bool = False

    def source(self) -> str:
        """A program that compiles the model."""
        target, model, arguments = f'"{self.target}"', "model", ""
        if self.fallback:
            target = f'qcompiler.load_target({target}).override(fallback="float")'
        if self.exported:
            model = "torch.export.export(model, data[0])"
        if self.effort != "default":
            arguments += f', effort="{self.effort}"'
        if self.overrides:
            arguments += f", overrides={dict(self.overrides)!r}"
        call = f"qcompiler.compile({model}, {target}, calibration_data=data{arguments})"
        return f"{IMPORTS}\nimport qcompiler\n\n\n{self.program.source()}{call}\n"

    @property
    def digest(self) -> str:
        """Distinguishes two cases."""
        return hashlib.sha256(self.source().encode()).hexdigest()[:16]

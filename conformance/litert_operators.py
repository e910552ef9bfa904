"""LiteRT's reference kernels against the instructions of compiled programs: one model of one operator for each.

A small network is compiled; each instruction then gets random codes over its whole grid, and so does the operator of
LiteRT that says the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qcompiler
from conformance import tflite_models
from conformance.environments import ask
from conformance.lines import Line, Tally
from qcompiler.backends.integer import Executor
from qcompiler.ir.graph import Value
from qcompiler.ir.interpret import interpret
from qcompiler.targets import load_target

__all__ = ["lines"]

Array = npt.NDArray[Any]

TARGET = "tflite_int8"
"""Target with the arithmetic of the reference kernels."""
SEEDS = (0, 1, 2)
IMAGES, SIDE, CHANNELS = 24, 16, 16

EXACT = (
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "ADD",
    "SUB",
    "MUL",
    "MAXIMUM",
    "MINIMUM",
    "MEAN",
    "MAX_POOL_2D",
    "LOGISTIC",
    "TANH",
    "CONCATENATION",
    "QUANTIZE",
    "FULLY_CONNECTED",
    "BATCH_MATMUL",
    "SOFTMAX",
    "AVERAGE_POOL_2D",
)
"""Operators that compute what the target says."""
_SINGLE = ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "SUB", "MUL", "MEAN", "QUANTIZE")
"""Operators that requantize, and how far one rounding for all of them is from theirs."""


class _Operators(nn.Module):
    """Each operator at least once, of random weights."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        n = CHANNELS
        self.first = nn.Conv2d(3, n, 3, padding=1)
        self.depthwise = nn.Conv2d(n, n, 3, padding=1, groups=n)
        self.point = nn.Conv2d(n, n, 1)
        self.strided = nn.Conv2d(n, n, 3, stride=2, padding=1)
        self.multiplied = nn.Conv2d(n, 2 * n, 5, stride=2, padding=2, groups=n)
        self.dilated = nn.Conv2d(3 * n, n, 3, dilation=2)
        self.linear = nn.Linear(n, 8 * n)
        self.last = nn.Linear(8 * n, 10)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.parameters():
                reach = 1.0 if weight.dim() == 1 else 3.0 / weight[0].numel() ** 0.5
                spread = 2.0 ** (4 * torch.rand(len(weight), generator=generator) - 2)  # scales per channel that differ
                drawn = (torch.rand(weight.shape, generator=generator) - 0.5) * reach
                weight.copy_(drawn * spread.reshape(-1, *[1] * (weight.dim() - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 10]."""
        x = self.first(x)
        y = F.relu(self.point(self.depthwise(x)))
        x = x + y
        x = x * torch.sigmoid(x) - y
        x = F.max_pool2d(x, 2)
        x = torch.cat([self.strided(x), torch.tanh(self.multiplied(x))], 1)
        x = self.dilated(F.interpolate(x, scale_factor=2.0))
        average, largest = F.avg_pool2d(x, 2), F.max_pool2d(x, 2)
        x = torch.maximum(average, torch.minimum(average, largest))
        rows = x.flatten(2)
        scores = torch.softmax(0.02 * (rows @ rows.transpose(1, 2)), 2) + torch.softmax(rows @ rows.transpose(1, 2), 2)
        x = x.mean((2, 3)) + scores.mean(2)
        logits: Tensor = self.last(F.relu(self.linear(x)))
        return logits


@lru_cache(maxsize=2)
def _results(mode: str) -> dict[str, Tally]:
    """By operator, the comparison on every instruction that LiteRT has.

    Args:
        mode: Requantization mode in place of the target's; empty: that of the target.
    """
    tallies = {name: Tally() for name in EXACT}
    for seed in SEEDS:
        requests, arrays, found = _requests(mode, seed)
        answers = ask("litert", {"models": requests}, arrays)
        for index, (request, implementations) in enumerate(zip(requests, found, strict=True)):
            code = request["operators"][0]["code"]
            expected = answers[f"{index}.0"]
            if expected.ndim == 4:
                expected = expected.transpose(0, 3, 1, 2)
            for name, result in implementations.items():
                tallies[code].compare(f"seed {seed}, {name}", result, expected)
    return tallies


def _requests(mode: str, seed: int) -> tuple[list[Any], dict[str, Array], list[dict[str, Array]]]:
    """Models for the worker, the arrays of all, and what our implementations give."""
    generator = np.random.default_rng(seed)
    images = torch.from_numpy(generator.normal(size=(IMAGES, 3, SIDE, SIDE)).astype(np.float32))
    target = load_target(TARGET)
    if mode:
        target = target.override(requantize=mode)
    compiled = qcompiler.compile(_Operators(seed).eval(), target, calibration_data=[images], verify="off")
    files = compiled.artifact.program
    executor, graph = Executor(files), compiled.integer.main
    drawn = _random_codes(executor, images, generator)
    by_numpy: dict[str, Array] = {}
    executor.run([images.numpy()], by_numpy.__setitem__, drawn.get)
    by_torch: dict[str, Array] = {}

    def observe(value: Value, tensor: Tensor) -> None:
        by_torch[value.name] = tensor.numpy()

    def replace(value: Value, tensor: Tensor) -> Tensor:
        return torch.from_numpy(drawn[value.name]) if value.name in drawn else tensor

    with torch.no_grad():
        interpret(graph, [images], graph.module.tensors, observe=observe, replace=replace)
    functions = {node.output.name: str(node.attributes["function"]) for node in graph.nodes if node.op == "lookup"}
    requests: list[Any] = []
    arrays: dict[str, Array] = {}
    found: list[dict[str, Array]] = []
    for instruction in files.program.instructions:
        name = functions.get(instruction.output, instruction.op)
        if name not in tflite_models.OPERATORS:
            continue
        operands = [drawn[item] if item in drawn else by_torch[item] for item in instruction.inputs]
        shape = by_numpy[instruction.output].shape
        request, feeds = tflite_models.model(files, instruction, operands, shape, functions.get(instruction.output, ""))
        index = len(requests)
        _rename(request, index)
        requests.append({**request, "resolver": "BUILTIN_REF"})
        arrays.update({f"{index}.{key}": array for key, array in feeds.items()})
        found.append({"numpy": by_numpy[instruction.output], "torch": by_torch[instruction.output]})
    return requests, arrays, found


def _rename(request: Any, index: int) -> None:
    """Arrays of all models are in one file."""
    request["feeds"] = {name: f"{index}.{key}" for name, key in request["feeds"].items()}
    for tensor in request["tensors"].values():
        if "data" in tensor:
            tensor["data"] = f"{index}.{tensor['data']}"


def _random_codes(executor: Executor, images: Tensor, generator: np.random.Generator) -> dict[str, Array]:
    """Codes for every activation, between the limits of the instruction that writes it."""
    seen: dict[str, Array] = {}
    executor.run([images.numpy()], seen.__setitem__)
    drawn = {}
    for instruction in executor.program.instructions:
        tensor = executor.program.tensors[instruction.output]
        if tensor.scale:
            array = seen[instruction.output]
            limits = np.iinfo(array.dtype)
            low, high = (instruction.attributes.get(key) for key in ("qmin", "qmax"))
            low, high = (
                end if isinstance(end, int) else other for end, other in ((low, limits.min), (high, limits.max))
            )
            drawn[instruction.output] = generator.integers(low, high + 1, array.shape).astype(array.dtype)
    return drawn


def _check(mode: str, operators: Sequence[str]) -> Tally:
    results = [_results(mode)[name] for name in operators]
    return Tally(
        sum(item.compared for item in results),
        sum(item.mismatches for item in results),
        [note for item in results for note in item.notes],
    )


def lines() -> list[Line]:
    """One line for each operator in the arithmetic of the target, and one for its distance from one rounding."""
    exact = [Line(f"litert/{TARGET}/{name}", partial(_check, "", [name]), ("litert",)) for name in EXACT]
    return exact + [
        Line(f"litert/single/{name}", partial(_check, "single", [name]), ("litert",), exact=False) for name in _SINGLE
    ]

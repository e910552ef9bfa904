"""Graphs as text before and after a pass."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from qcompiler.ir.events import Record
from qcompiler.ir.graph import Module
from qcompiler.ir.text import parse_module, print_graph
from qcompiler.ir.types import DType
from qcompiler.ir.verify import verify_module
from qcompiler.passes import Pass, PassContext
from qcompiler.session.pipeline import quantization_passes
from qcompiler.targets import load_target
from tests.support.running import outputs_of

GEOMETRY = "{stride = (1, 1), padding = (0, 0, 0, 0), dilation = (1, 1)} "
PADDED = "{stride = (1, 1), padding = (1, 1, 1, 1), dilation = (1, 1)} "

_LEAF = re.compile(r'ref = "(?P<ref>[^"]+)", dtype = "(?P<dtype>\w+)", shape = \((?P<shape>[^)]*)\)')


def module(
    stage: str,
    *lines: str,
    inputs: str = "%x : f32[N, 4, 6, 6]",
    tensors: dict[str, torch.Tensor] | None = None,
) -> Module:
    """A module from the lines of its main graph; leaves hold positive random numbers.

    Args:
        stage: Stage of the graph.
        lines: Nodes, with the value returned in the last.
        inputs: Separated by semicolons.
        tensors: Values that matter.
    """
    head = [f"graph @main stage={stage} {{", *(f"input {item.strip()}" for item in inputs.split(";"))]
    if "N" in inputs:
        head.append("bound N 1 64")
    text = "\n".join([*head, *lines[:-1], f"return {lines[-1]}", "}"])
    generator = torch.Generator().manual_seed(0)
    found: dict[str, torch.Tensor] = dict(tensors or {})
    for match in _LEAF.finditer(text):
        shape = [int(size) for size in match["shape"].split(",") if size.strip()]
        dtype = DType(match["dtype"]).torch
        values = torch.rand(shape, generator=generator) + 0.5
        found.setdefault(match["ref"], values if dtype.is_floating_point else values.to(dtype))
    result = parse_module(text, found)
    verify_module(result)
    return result


def leaf(name: str, dtype: str, *sizes: int, kind: str = "parameter") -> str:
    """The line of a leaf."""
    shape = ", ".join(map(str, sizes))
    trailing = "," if len(sizes) == 1 else ""
    return f'%{name} = {kind}() {{ref = "{name}", dtype = "{dtype}", shape = ({shape}{trailing})}} : {dtype}[{shape}]'


def norm(name: str, source: str, type: str, channels: int) -> list[str]:
    """A batch norm called `name` and its four tensors."""
    parts = ("gamma", "beta", "mean", "var")
    tensors = [leaf(f"{name}.{part}", "f32", channels, kind="state") for part in parts]
    return [*tensors, f"%{name} = batch_norm({source}, {', '.join(f'%{name}.{p}' for p in parts)}) : {type}"]


def conv(name: str, source: str, out: int, type: str, attributes: str = "", inputs: int = 4) -> list[str]:
    """A convolution of 3 by 3 called `name`, and its weight."""
    weight = leaf(f"{name}.weight", "f32", out, inputs, 3, 3)
    return [weight, f"%{name} = conv2d({source}, %{name}.weight) {attributes}: {type}"]


def run(item: Pass, subject: Module, context: PassContext | None = None) -> Record:
    """Run a pass alone, without the manager's checks but those of structure."""
    context = context or PassContext()
    context.record = Record(item.name)
    item.run(subject.main, context)
    subject.main.stage = item.becomes or subject.main.stage
    verify_module(subject, after=item.name)
    return context.record


def lines(subject: Module) -> list[str]:
    """The nodes of the main graph and what it returns, without leaves and locations."""
    text = print_graph(subject.main, locations=False).splitlines()
    return [line.strip() for line in text if re.match(r"  (%|return)", line) and not _LEAF.search(line)]


def shown(subject: Module) -> list[str]:
    """The lines without attributes."""
    return [line.partition(" {")[0] if " {" in line else line.partition(" :")[0] for line in lines(subject)]


def computes_the_same(before: Module, after: Module, rtol: float) -> None:
    """Compare the outputs of two modules on random inputs, relative to the largest output; 0 requires the same bits."""
    generator = torch.Generator().manual_seed(7)
    shapes = [[3 if not isinstance(size, int) else size for size in v.type.shape] for v in before.main.inputs]
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    for old, new in zip(outputs_of(before.main, inputs), outputs_of(after.main, inputs), strict=True):
        torch.testing.assert_close(new, old, rtol=rtol, atol=rtol * float(old.abs().max()))


def refusals(record: Record) -> Sequence[str]:
    """Why nodes were left alone."""
    return [event.detail for event in record.events if event.kind == "refusal"]


def quantized(*text: str, upto: type[Pass], target: str = "int8_dsp") -> tuple[Module, PassContext, Record]:
    """A graph after the passes of the default pipeline up to one, and the record of the last of them."""
    subject = module("float", *text)
    context = PassContext(load_target(target), calibration_data=[[torch.randn(2, 4, 6, 6)]])
    for item in quantization_passes():
        record = run(item, subject, context)
        if isinstance(item, upto):
            return subject, context, record
    raise AssertionError(f"{upto.name} is not in the default pipeline")

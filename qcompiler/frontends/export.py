"""torch.export as a front end, for models that torch.fx cannot trace and for exported programs."""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.fx.graph import CodeGen
from torch.utils import _pytree

from qcompiler.errors import UnsupportedError
from qcompiler.frontends.examples import Binding
from qcompiler.frontends.locations import source_of_stack
from qcompiler.frontends.table import plain_name
from qcompiler.frontends.trace import GUARDS, PATH, SOURCE, Leaf, Trace, containers_of, named_leaves


def export(model: nn.Module, binding: Binding, dynamic: bool) -> Trace:
    """Export `model`.

    Args:
        model: The model.
        binding: The call to export.
        dynamic: Whether the first size of the batched inputs may change.

    Raises:
        Exception: torch.export fails; its errors have no common class.
    """
    # torch.export treats a size of 1 as a constant, so the batch must hold two samples or more.
    batch = binding.batch
    batch = max(batch, 2) if dynamic and batch is not None else batch
    tensors = binding.tensors if batch is None else binding.resized(batch)
    call = binding.nest([x.clone() for x in tensors])
    shapes = None
    if dynamic:
        batched = [{0: torch.export.Dim.AUTO} if x.dim() and x.shape[0] == batch else None for x in tensors]
        shapes = dict(binding.nest(batched).arguments)
    with quiet_torch():
        program = torch.export.export(model, call.args, call.kwargs, dynamic_shapes=shapes, strict=False)
    return trace_program(program, model)


def _written(program: ExportedProgram) -> str | None:
    """The tensor to which `program` writes, except buffers that do not affect its results, such as counters."""
    specs = program.graph_signature.output_specs
    (output,) = program.graph.find_nodes(op="output")
    ends = list(zip(specs, cast("Sequence[object]", output.args[0]), strict=True))
    needed: set[fx.Node] = set()
    open_ones = [end for spec, end in ends if spec.kind is OutputKind.USER_OUTPUT and isinstance(end, fx.Node)]
    while open_ones:
        node = open_ones.pop()
        if node not in needed:
            needed.add(node)
            open_ones += node.all_input_nodes
    for spec, end in ends:
        unused = spec.kind is OutputKind.BUFFER_MUTATION and end not in needed
        if spec.kind is not OutputKind.USER_OUTPUT and not unused:
            return str(spec.target)
    return None


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Silence the log of torch.export, which repeats the errors that it raises."""
    logger = logging.getLogger("torch")
    children = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith("torch.")]
    before = [(item, item.disabled) for item in (logger, *children)]
    for item, _ in before:
        item.disabled = True
    try:
        yield
    finally:
        for item, disabled in before:
            item.disabled = disabled


def without_regions(root: fx.GraphModule) -> fx.Graph:
    """The graph of `root` in which regions of autocast and of gradients are calls like all others.

    torch.export keeps the calls within `with torch.autocast(...)` and `with torch.no_grad()` as graphs of their own.
    The settings themselves take no part: graphs compute in float32, and have no gradients of their own.

    Args:
        root: The graph module; not changed.

    Returns:
        Its own graph where there is no region; else a copy with the same placeholders and results.
    """
    if not any(_is_region(node) for node in root.graph.nodes):
        return root.graph
    graph = fx.Graph()
    output = _copy_calls(graph, root, "", {})
    (end,) = root.graph.find_nodes(op="output")
    graph.output(output).meta = dict(end.meta)
    return graph


def _is_region(node: fx.Node) -> bool:
    return node.op == "call_function" and str(getattr(node.target, "__name__", "")) in _REGIONS


_REGIONS: Mapping[str, int] = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}
"""Operators of torch that call a graph within settings, with the position of the graph among their arguments."""


def _copy_calls(graph: fx.Graph, root: fx.GraphModule, path: str, held: dict[fx.Node, Any]) -> Any:
    """Append the calls of `root`, found at `path`, to `graph`; `held` has what its placeholders stand for, where known.

    Returns:
        What its output node holds.
    """
    for node in root.graph.nodes:
        if node.op == "output":
            return fx.node.map_arg(node.args[0], held.__getitem__)
        if node in held:
            continue
        if _is_region(node):
            at = _REGIONS[node.target.__name__]
            inner = str(cast("fx.Node", node.args[at]).target)
            region = cast("fx.GraphModule", root.get_submodule(inner))
            given = [held[item] if isinstance(item, fx.Node) else item for item in node.args[at + 1 :]]
            places = region.graph.find_nodes(op="placeholder")
            name = f"{path}{inner}."
            held[node] = _copy_calls(graph, region, name, dict(zip(places, given, strict=True)))
        elif plain_name(node.target) == "getitem" and not isinstance(held[node.args[0]], fx.Node):
            held[node] = held[node.args[0]][node.args[1]]
        else:
            held[node] = graph.node_copy(node, held.__getitem__)
            if node.op == "get_attr":
                held[node].target = f"{path}{node.target}"
    return None


def trace_program(program: ExportedProgram, model: nn.Module | None) -> Trace:
    """The graph of an exported program.

    Args:
        program: The program.
        model: The exported model, to whose tensors the trace then refers; None for a program given by the user.

    Raises:
        UnsupportedError: The program writes to buffers, or takes arguments other than tensors.
    """
    signature = program.graph_signature
    written = _written(program)
    if written is not None:
        raise UnsupportedError(
            f"the program writes to {written!r}",
            where=written,
            expected="a program that does not change the model, for example exported with batch norms in eval mode",
            fix="Return the new value as an output.",
        )
    named = named_leaves(model) if model is not None else _program_leaves(program)
    by_name = _by_name(program, model, named)
    leaves: dict[str, Leaf] = {}
    user: list[str | None] = []
    constants: dict[int, Leaf] = {}
    for spec in signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            user.append(None if isinstance(spec.arg, ConstantArgument) else spec.arg.name)
            if isinstance(spec.arg, ConstantArgument):
                leaves.pop(spec.arg.name, None)
            continue
        assert spec.target is not None
        tensor = by_name.get(spec.target)
        if not isinstance(tensor, Tensor):
            raise UnsupportedError(
                f"the program reads {spec.target!r}, a {type(tensor).__name__}",
                where=spec.target,
                expected="tensors",
                fix="Register it as a buffer, or make it a constant of the forward.",
            )
        known = named.get(id(tensor))
        leaves[spec.arg.name] = known or constants.setdefault(id(tensor), Leaf("constant", "", tensor))
    graph = without_regions(program.graph_module)
    _locate(graph, model)
    flat_names = [spec.arg.name for spec in signature.input_specs if spec.kind is InputKind.USER_INPUT]

    def bind(call: inspect.BoundArguments) -> dict[str, object]:
        flat = _pytree.tree_flatten((call.args, call.kwargs))[0]
        return dict(zip(flat_names, flat, strict=True))

    results = [index for index, spec in enumerate(signature.output_specs) if spec.kind is OutputKind.USER_OUTPUT]

    def nest(result: Any) -> object:
        leaves = [result[index] for index in results]
        return _pytree.tree_unflatten(leaves, cast("_pytree.TreeSpec", program.call_spec.out_spec))

    containers = containers_of(model) if model is not None else _containers_in(graph)
    return Trace(program.graph_module, graph, containers, named, leaves, bind, nest, batch_bounds(program), constants)


def trace_graph_module(model: fx.GraphModule) -> Trace:
    """The graph of a module that holds torch calls alone, such as `ExportedProgram.module()`, as it is."""
    graph = without_regions(model)
    _locate(graph, model)
    placeholders = graph.find_nodes(op="placeholder")
    nested = type(model.graph._codegen) is not CodeGen

    def bind(call: inspect.BoundArguments) -> dict[str, object]:
        if nested:
            flat = _pytree.tree_flatten((call.args, call.kwargs))[0]
            return dict(zip([node.name for node in placeholders], flat, strict=True))
        arguments = call.arguments
        return {node.name: arguments.get(str(node.target), *node.args[:1]) for node in placeholders}

    return Trace(model, graph, _containers_in(graph), named_leaves(model), {}, bind, model.graph.process_outputs)


def is_flat(model: nn.Module) -> bool:
    """Whether `model` is a graph of torch calls without modules, except torch.export's own input checks."""
    return isinstance(model, fx.GraphModule) and all(
        node.target == GUARDS for node in model.graph.find_nodes(op="call_module")
    )


def _program_leaves(program: ExportedProgram) -> dict[int, Leaf]:
    """The leaves of the program's own tensors: copies would lose the sharing of tensors under two names."""
    signature = program.graph_signature
    buffers = set(signature.buffers)
    leaves: dict[int, Leaf] = {}
    for name, tensor in {**program.state_dict, **program.constants}.items():
        if isinstance(tensor, Tensor) and (name in program.state_dict or name in buffers):
            leaves.setdefault(id(tensor), Leaf("state" if name in buffers else "parameter", name, tensor))
    return leaves


def _by_name(program: ExportedProgram, model: nn.Module | None, named: dict[int, Leaf]) -> dict[str, object]:
    tensors: dict[str, object] = {**program.constants, **program.state_dict}
    if model is not None:
        tensors |= dict(model.named_buffers(remove_duplicate=False))
        tensors |= dict(model.named_parameters(remove_duplicate=False))
    return tensors


def _containers_in(graph: fx.Graph) -> frozenset[str]:
    """Paths of the parents of the modules that contain the nodes."""
    containers = {""}
    for node in graph.nodes:
        parts = str(node.meta[PATH]).split(".")
        containers |= {".".join(parts[:count]) for count in range(1, len(parts))}
    return frozenset(containers)


def _locate(graph: fx.Graph, model: nn.Module | None) -> None:
    """Note module path and source line on each node, like the torch.fx tracer."""
    first_name: dict[int, str] = {}
    if model is not None:
        first_name = {id(module): name for name, module in model.named_modules()}
    for node in graph.nodes:
        stack = [
            entry[0] for entry in node.meta.get("nn_module_stack", {}).values() if not entry[0].startswith("_empty")
        ]
        # The second call of one module is written `path@1`.
        path = stack[-1].partition("@")[0] if stack else ""
        if model is not None and path:
            path = first_name.get(id(_submodule(model, path)), path)
        node.meta[PATH] = path
        node.meta[SOURCE] = source_of_stack(str(node.meta.get("stack_trace") or ""))


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def batch_bounds(program: ExportedProgram) -> tuple[int, int] | None:
    """The range of the first size of the inputs, if it is dynamic."""
    user = set(program.graph_signature.user_inputs)
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        has_sizes = node.name in user and isinstance(value, Tensor) and value.dim()
        size: object = value.shape[0] if has_sizes else None
        if not isinstance(size, torch.SymInt) or size.node.expr not in program.range_constraints:
            continue
        limits = program.range_constraints[size.node.expr]
        # torch.export excludes 0 and 1 by default; a run shows whether 1 works.
        low = 1 if limits.lower <= 2 else int(limits.lower)
        return low, int(limits.upper) if limits.upper.is_Integer else sys.maxsize
    return None

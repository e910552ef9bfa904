"""torch.fx symbolic trace as a front end: every module is traced into, down to torch's functions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from qcompiler.errors import CaptureError, QCompilerError
from qcompiler.frontends.builder import Builder, plain_name
from qcompiler.ir import tree
from qcompiler.ir.dims import Dim, as_dim, symbol
from qcompiler.ir.graph import Graph, Location, Module, Value
from qcompiler.ir.types import DType, Stage, TensorType

BATCH = "N"
BATCH_BOUNDS = (1, 65536)
_PATH, _SOURCE = "qcompiler_path", "qcompiler_source"


class _Tracer(fx.Tracer):
    """Traces into all modules and notes on each node the module path and the user's source line."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[str] = [""]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.paths.append(self.path_of_module(m))
        try:
            if isinstance(m, _BatchNorm):
                return _batch_norm(m, *args)
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.paths.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta[_PATH] = self.paths[-1]
        node.meta[_SOURCE] = _source(sys._getframe(1))
        return node


def _batch_norm(m: _BatchNorm, x: fx.Proxy) -> object:
    """The forward of a batch norm without its check of the input's rank, which branches on a traced value."""
    statistics = m.training or m.running_mean is None
    momentum = 0.0 if m.momentum is None else m.momentum
    return functional.batch_norm(
        x,  # type: ignore[arg-type]  # a proxy stands for a tensor
        m.running_mean,
        m.running_var,
        m.weight,
        m.bias,
        statistics,
        momentum,
        m.eps,
    )


def _source(frame: FrameType | None) -> str:
    """The innermost line outside of torch and of this package, as `module:qualified_name:line`."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if not module.startswith(("torch.", "qcompiler.")) and module not in ("torch", "qcompiler"):
            return f"{module}:{frame.f_code.co_qualname}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def trace(model: nn.Module) -> fx.GraphModule:
    """Trace `model`.

    Raises:
        CaptureError: The forward depends on values: the construct and its line are given.
    """
    if isinstance(model, fx.GraphModule):
        return model
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except QCompilerError:
        raise
    except Exception as error:  # whatever the user's forward raises on proxies
        raise CaptureError(
            f"torch.fx cannot trace the model: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=_failing_line(error),
            expected="a forward without branches on tensor values",
        ) from error
    return fx.GraphModule(model, graph)


def _failing_line(error: BaseException) -> str | None:
    place = None
    traceback = error.__traceback__
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__", ""))
        if not module.startswith(("torch.", "qcompiler.")):
            place = f"{module}:{traceback.tb_frame.f_code.co_qualname}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


class _Shapes(fx.Interpreter):
    """Runs a traced module and keeps the shape of each tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n.name] = tuple(result.shape)
        return result


def symbolic(small: tuple[int, ...], large: tuple[int, ...], batches: tuple[int, int]) -> tuple[Dim, ...]:
    """The shape that is `small` at the first batch size and `large` at the second, linear in the batch."""
    first, second = batches
    dims: list[Dim] = []
    for a, b in zip(small, large, strict=True):
        if a == b:
            dims.append(a)
            continue
        factor, rest = divmod(b - a, second - first)
        offset = a - factor * first
        if rest:
            raise CaptureError(f"a size is {a} at batch {first} and {b} at batch {second}", expected="a linear law")
        dims.append(as_dim(factor * symbol(BATCH) + offset))
    return tuple(dims)


def resize_batch(inputs: Sequence[Tensor], batch: int) -> list[Tensor]:
    """`inputs` repeated or cut along the first axis to `batch` samples."""
    return [x[torch.arange(batch, device=x.device) % x.shape[0]] if x.dim() else x for x in inputs]


def build(
    traced: fx.GraphModule,
    arguments: Sequence[object],
    inputs: Sequence[Tensor],
    input_tree: tree.Tree,
    names: list[str],
) -> Module:
    """Turn a traced model into a graph at stage FLOAT.

    Args:
        traced: From `trace`.
        arguments: Example arguments of forward, one per placeholder, nested as the model takes them.
        inputs: Their tensors, flat.
        input_tree: Tree of all arguments together.
        names: Names of the arguments.
    """
    batch = inputs[0].shape[0] if inputs and inputs[0].dim() else 1
    batches = (batch, batch + 1)
    runs: list[dict[str, tuple[int, ...]]] = []
    for size in batches:
        shapes = _Shapes(traced)
        nested = tree.unflatten(input_tree, resize_batch(inputs, size))
        with torch.no_grad():
            shapes.run(*nested)  # type: ignore[misc]  # the top level of the tree is a tuple
        runs.append(shapes.shapes)
    module = Module()
    graph = module.add(Graph("main", Stage.FLOAT))
    graph.bounds[BATCH] = BATCH_BOUNDS
    graph.input_tree, graph.input_names = input_tree, names
    named = {id(t): name for name, t in [*traced.named_parameters(), *traced.named_buffers()]}
    builder = Builder(graph, named, frozenset(name for name, _ in traced.named_parameters()))
    bigger = resize_batch(inputs, batches[1])
    leaves = [
        graph.add_input(
            names[index] if len(names) == len(inputs) else f"input_{index}",
            TensorType(DType.of(x.dtype), symbolic(tuple(x.shape), tuple(y.shape), batches)),
        )
        for index, (x, y) in enumerate(zip(inputs, bigger, strict=True))
    ]
    nested = tree.unflatten(input_tree, leaves)
    environment: dict[fx.Node, Any] = {}
    pending = iter(nested)  # type: ignore[call-overload]  # the top level of the tree is a tuple
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            environment[node] = next(pending)
        elif node.op == "get_attr":
            environment[node] = _attribute(traced, node.target)
        elif node.op == "output":
            values, output_tree = _flatten_outputs(fx.node.map_arg(node.args[0], lambda n: environment[n]), builder)
            graph.set_outputs(values, output_tree)
        else:
            path = str(node.meta.get(_PATH, ""))
            function = plain_name(node.target)
            shape = None
            if all(node.name in run for run in runs):
                shape = symbolic(runs[0][node.name], runs[1][node.name], batches)
            arguments_ = fx.node.map_arg(node.args, lambda n: environment[n])
            keywords = fx.node.map_arg(node.kwargs, lambda n: environment[n])
            if function in ("size", "shape", "getattr", "dim"):
                environment[node] = _size(arguments_, keywords, node, runs[0])
                continue
            environment[node] = builder.call(
                function,
                arguments_,
                keywords,
                name=_node_name(path, function, traced),
                location=Location(path, str(node.meta.get(_SOURCE, ""))),
                output_shape=shape,
            )
    return module


def _node_name(path: str, function: str, model: nn.Module) -> str:
    """The module path for modules without children, path and function otherwise."""
    if not path:
        return function
    is_leaf = next(model.get_submodule(path).children(), None) is None if _has(model, path) else True
    return path if is_leaf else f"{path}.{function}"


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _attribute(model: nn.Module, target: str) -> Any:
    item: Any = model
    for part in target.split("."):
        item = getattr(item, part)
    return item


def _size(arguments: Any, keywords: Any, node: fx.Node, shapes: dict[str, tuple[int, ...]]) -> Any:
    """Sizes only feed reshapes, whose results are known from the runs: any stand-in will do."""
    source = node.args[0]
    shape = shapes.get(source.name, ()) if isinstance(source, fx.Node) else ()
    if plain_name(node.target) == "dim":
        return len(shape)
    if len(arguments) > 1 and isinstance(arguments[1], int):
        return shape[arguments[1]]
    return shape


def _flatten_outputs(result: Any, builder: Builder) -> tuple[list[Value], tree.Tree]:
    values: list[Value] = []

    def walk(item: Any) -> tree.Tree:
        if item is None:
            return None
        if isinstance(item, dict):
            return ("dict", [(str(key), walk(part)) for key, part in item.items()])
        if isinstance(item, list | tuple):
            return ("list" if isinstance(item, list) else "tuple", [walk(part) for part in item])
        values.append(builder.value(item))
        return len(values) - 1

    output_tree = walk(result)
    return values, output_tree

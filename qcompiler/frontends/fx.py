"""torch.fx symbolic tracing as a front end: all modules are traced, down to torch's functions."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Container, Iterator
from types import FrameType
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from qcompiler.errors import CaptureError
from qcompiler.frontends.locations import source_of_frame
from qcompiler.frontends.trace import PATH, SOURCE, Trace, containers_of, named_leaves


class _Tracer(fx.Tracer):
    """Traces into all modules and notes on each node the module path and the user's source line."""

    # A buffer is a state of the graph: a value computed from a buffer must not become a constant.
    proxy_buffer_attributes = True

    def __init__(self, outermost: FrameType) -> None:
        super().__init__()
        self.outermost = outermost
        self.paths: list[str] = [""]
        self.names: dict[int, tuple[str, Tensor]] = {}

    def trace(self, root: nn.Module, concrete_args: dict[str, Any] | None = None) -> fx.Graph:  # type: ignore[override]
        leaves = [*root.named_parameters(), *root.named_buffers()]
        self.names = {id(tensor): (name, tensor) for name, tensor in reversed(leaves)}
        return super().trace(root, concrete_args)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        # torch.fx goes through all parameters of the model at every access to one: quadratic time.
        name, tensor = self.names.get(id(attr_val), ("", None))
        if tensor is not attr_val or tensor is None:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.paths.append(self.path_of_module(m))
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.paths.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta[PATH] = self.paths[-1]
        node.meta[SOURCE] = source_of_frame(sys._getframe(1), self.outermost)
        return node


@contextlib.contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Restore the attributes of all modules: a forward that stores values in its module would leave proxies there."""
    held = [(m, dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    try:
        yield
    finally:
        for module, attributes, parameters, buffers in held:
            for name in [name for name, item in vars(module).items() if isinstance(item, fx.Proxy)]:
                del vars(module)[name]
            vars(module).update(attributes)
            for name, parameter in parameters.items():
                module._parameters[name] = parameter
            for name, buffer in buffers.items():
                module._buffers[name] = buffer


@contextlib.contextmanager
def _without_rank_checks(model: nn.Module) -> Iterator[None]:
    """Disable the rank checks of batch norms, which branch on a traced value; the shapes are checked later."""
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and "_check_input_dim" not in vars(m)]
    for norm in norms:
        vars(norm)["_check_input_dim"] = lambda input: None
    try:
        yield
    finally:
        for norm in norms:
            del vars(norm)["_check_input_dim"]


def trace(model: nn.Module, bound: inspect.BoundArguments) -> Trace:
    """Trace `model` with torch.fx.

    Args:
        model: A copy of the user's model, whose plain tensors may gain names.
        bound: The call to trace; missing parameters keep their defaults.

    Raises:
        CaptureError: The forward has variadic parameters.
        Exception: The model's forward fails on traced values; any class is possible.
    """
    parameters = inspect.signature(model.forward).parameters
    starred = [p.name for p in parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    given = bound.arguments
    if any(given.get(name) for name in starred):
        raise CaptureError(
            "torch.fx cannot trace a forward with *args or **kwargs",
            where=f"{type(model).__name__}.forward",
            fix="Name the arguments of forward.",
        )
    # None stays None: with a proxy in its place, `x is None` in the forward would be False.
    defaults = {
        name: given.get(name, parameter.default)
        for name, parameter in parameters.items()
        if given.get(name) is None and name not in starred
    }
    with _kept(model), _without_rank_checks(model):
        graph = _Tracer(sys._getframe(0)).trace(model, concrete_args=defaults or None)
    placeholders = {n.name: _parameter(str(n.target), parameters) for n in graph.nodes if n.op == "placeholder"}

    def bind(call: inspect.BoundArguments) -> dict[str, object]:
        return {name: call.arguments.get(target, defaults.get(target)) for name, target in placeholders.items()}

    return Trace(model, graph, containers_of(model), named_leaves(model), {}, bind, lambda result: result)


def _parameter(target: str, parameters: Container[str]) -> str:
    """The parameter of a placeholder: torch.fx numbers parameters that keep their defaults, `scale` as `scale_2`."""
    name = target.lstrip("*")
    return name if name in parameters else name.rpartition("_")[0]

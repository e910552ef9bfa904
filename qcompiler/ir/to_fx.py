"""A graph as torch calls: the same operators, written down once instead of interpreted at every run.

The evaluation of each operator runs on proxies that record its calls, as torch.fx traces a model. Queries of a tensor's
type are answered from the graph; an evaluation that needs a tensor, for example to read sizes into Python, is recorded
as one call.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

from torch import Tensor, fx

from qcompiler.ir.attributes import dims
from qcompiler.ir.graph import Graph, Module, Node
from qcompiler.ir.interpret import interpret_with
from qcompiler.ir.types import TensorType


class Recorded(fx.Proxy):
    """A proxy of a tensor, with the type of a value of the graph, or an unknown type inside an evaluation."""

    type: TensorType | None = None

    def dim(self) -> int:
        """Number of dimensions.

        Raises:
            TraceError: The type is unknown.
        """
        if self.type is None:
            raise fx.proxy.TraceError("the rank of an intermediate result is unknown")
        return self.type.rank

    def is_floating_point(self) -> bool:
        """Whether elements are floating point.

        Raises:
            TraceError: The type is unknown.
        """
        if self.type is None:
            raise fx.proxy.TraceError("the type of an intermediate result is unknown")
        return self.type.dtype.is_float


class _Evaluation:
    """The evaluation of a node as a function, which can be pickled with its graph."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.__name__ = self.__qualname__ = _identifier(f"evaluate_{node.op}_{node.name}")
        self.__module__ = __name__

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.node.definition.evaluate(self.node, tensors)

    def __reduce__(self) -> tuple[object, ...]:
        return _evaluation, (self.node.graph.module, self.node.graph.name, self.node.name)


def _evaluation(module: Module, graph: str, name: str) -> _Evaluation:
    return _Evaluation(next(node for node in module.graphs[graph].nodes if node.name == name))


class Recorder(fx.proxy.GraphAppendingTracer):
    """Recorder of torch calls.

    Args:
        graph: Graph that receives the calls.
    """

    def proxy(self, node: fx.Node) -> Recorded:
        """The proxy for the result of a call."""
        return Recorded(node, self)

    def input(self, name: str, type: TensorType) -> Recorded:
        """Append an input."""
        return self._of(self.create_proxy("placeholder", _identifier(name), (), {}), type)

    def attribute(self, path: str, type: TensorType | None = None) -> Recorded:
        """Read a tensor or a module of the root by its path."""
        return self._of(self.create_proxy("get_attr", path, (), {}), type)

    def module(self, path: str, *arguments: object) -> Recorded:
        """Call a module of the root."""
        return cast("Recorded", self.create_proxy("call_module", path, arguments, {}))

    def method(self, name: str, owner: Recorded, *arguments: object) -> Recorded:
        """Call a method."""
        return cast("Recorded", self.create_proxy("call_method", name, (owner, *arguments), {}))

    def function(self, function: Callable[..., object], *arguments: object) -> Recorded:
        """Call a function."""
        return cast("Recorded", self.create_proxy("call_function", function, arguments, {}))

    def evaluate(self, node: Node, operands: Sequence[Recorded]) -> tuple[Recorded, ...]:
        """The results of `node` by the evaluation of its operator; optional operands may be omitted."""
        for value, operand in zip(node.inputs, operands, strict=False):
            operand.type = value.type
        mark = next(iter(reversed(self.graph.nodes)), None)
        if node.op == "reshape":
            results: tuple[Recorded, ...] = (self._reshape(node, operands[0]),)
        else:
            try:
                results = cast("Any", node.definition.evaluate)(node, operands)
            except Exception:  # noqa: BLE001  # an evaluation that needs the tensors themselves
                self._forget_since(mark)
                results = self._call(node, operands)
        for value, result in zip(node.outputs, results, strict=True):
            result.type = value.type
        return results

    def _reshape(self, node: Node, x: Recorded) -> Recorded:
        shape = dims(node.attributes, "shape")
        symbolic = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
        if len(symbolic) > 1:
            return self._call(node, [x])[0]
        return cast("Recorded", x.reshape([size if isinstance(size, int) else -1 for size in shape]))

    def _call(self, node: Node, operands: Sequence[Recorded]) -> tuple[Recorded, ...]:
        called: Any = self.function(_Evaluation(node), *operands)
        return tuple(cast("Recorded", called[index]) for index in range(len(node.outputs)))

    def _forget_since(self, mark: fx.Node | None) -> None:
        for call in reversed(list(self.graph.nodes)):
            if call is mark:
                return
            self.graph.erase_node(call)

    @staticmethod
    def _of(proxy: object, type: TensorType | None) -> Recorded:
        found = cast("Recorded", proxy)
        found.type = type
        return found


def record(
    graph: Graph, rule: Callable[[Recorder, Node, Sequence[Any]], tuple[Any, ...]]
) -> tuple[fx.Graph, Callable[..., list[Tensor]]]:
    """Record the computation of `graph` as torch calls.

    Args:
        graph: Graph at any float stage.
        rule: Function from a node and the proxies of its operands to the proxies of its results. Proxies are
            `Recorded`, or any object that the rules of its users accept; outputs must be `Recorded`.

    Returns:
        The calls, and the function that makes them, from the root, which holds the tensors and modules, and the flat
        inputs to the flat outputs.
    """
    calls = fx.Graph()
    recorder = Recorder(calls)
    inputs = [recorder.input(value.name, value.type) for value in graph.inputs]
    outputs = interpret_with(graph, inputs, lambda node, operands: rule(recorder, node, operands))
    calls.output([recorder.create_arg(output) for output in outputs])
    calls.lint()
    return calls, compiled(calls)


def compiled(calls: fx.Graph) -> Callable[..., list[Tensor]]:
    """The function of the root and the inputs described by `calls`."""
    return Source.of(calls).function()


@dataclass(frozen=True)
class Source:
    """The text of recorded calls, from which another process can rebuild the function.

    Args:
        text: Python source of a function `forward`.
        names: The functions and other objects used in the text.
        modules: The modules used in the text, by the names under which they are imported.
    """

    text: str
    names: Mapping[str, object]
    modules: Mapping[str, str]

    @classmethod
    def of(cls, calls: fx.Graph) -> Source:
        """The text of `calls`."""
        code = calls.python_code(root_module="self")
        modules = {name: item.__name__ for name, item in code.globals.items() if isinstance(item, ModuleType)}
        return cls(code.src, {name: item for name, item in code.globals.items() if name not in modules}, modules)

    def function(self) -> Callable[..., list[Tensor]]:
        """The function of the root and the inputs."""
        names: dict[str, Any] = dict(self.names)
        names |= {name: importlib.import_module(path) for name, path in self.modules.items()}
        # torch registers the source under its name, so that tracebacks and torch.compile show the lines.
        fx.graph_module._exec_with_source(self.text, names)
        return cast("Callable[..., list[Tensor]]", names["forward"])


def _identifier(name: str) -> str:
    text = "".join(character if character.isalnum() else "_" for character in name)
    return text if text[:1].isalpha() else f"_{text}"

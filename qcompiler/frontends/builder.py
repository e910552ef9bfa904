"""Appends operators to a graph, one torch call at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor

from qcompiler.errors import GraphError, QCompilerError, UnsupportedError
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.dims import Shape
from qcompiler.ir.graph import Graph, Location, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.registry import op as definition_of
from qcompiler.ir.types import DType, TensorType
from qcompiler.storage.tensors import row_major

Operand: TypeAlias = "Value | Leaf"
Rule: TypeAlias = Callable[..., object]
"""A function of a Builder and the arguments of a torch function, with operands for tensors; returns operands."""


@dataclass(frozen=True)
class Observed:
    """The result of a call in a run of the traced model.

    Args:
        shape: Sizes, symbolic in the batch.
        dtype: Element type.
        constant: The value of a result that depends neither on the inputs nor on the batch size.
        sample: One sample, [1, ...], of a result that does not depend on the inputs and is the same for all samples.
    """

    shape: Shape
    dtype: torch.dtype
    constant: Tensor | None = None
    sample: Tensor | None = None


@dataclass(frozen=True)
class Refusal:
    """Placeholder for a result that no operator computes.

    Args:
        error: Error that is raised when a call reads the result.
    """

    error: QCompilerError


class Builder:
    """Appends nodes to a graph.

    Args:
        graph: Graph to which the nodes are appended.
        containers: Paths of modules with children: a node directly in such a module is named after its operator.
        device: Device of the constants.
    """

    def __init__(self, graph: Graph, containers: frozenset[str], device: torch.device) -> None:
        self.graph = graph
        self.containers = containers
        self.device = device
        self.location = Location()
        self.function = ""
        self.observed: object = None
        self.parts_read: frozenset[int] | None = None
        self._leaves: dict[int, tuple[Leaf, Value]] = {}

    def call(
        self,
        rule: Rule,
        function: str,
        arguments: Sequence[object],
        keywords: Mapping[str, object],
        location: Location,
        observed: object,
        parts_read: frozenset[int] | None = None,
    ) -> object:
        """Append the operators that compute a torch function.

        Args:
            rule: The rule of the function.
            function: Name of the function, for messages.
            arguments: Positional arguments.
            keywords: Keyword arguments.
            location: Location of the call in the user's code.
            observed: Result of the call in the traced run: `Observed` for tensors.
            parts_read: Positions of the parts of a tuple that the model reads; None if it reads the whole.

        Returns:
            The result: an operand, or operands in lists and tuples.

        Raises:
            UnsupportedError: No operator implements the function with these arguments.
        """
        self.function, self.location, self.observed = function, location, observed
        self.parts_read = parts_read
        keywords = {_KEYWORDS.get(name, name): value for name, value in keywords.items()}
        try:
            inspect.signature(rule).bind(self, *arguments, **keywords)
            result = rule(self, *arguments, **keywords)
        except GraphError as error:
            fix = error.fix or "Use fixed sizes, or compute it before or after the compiled model."
            raise UnsupportedError(
                f"{function}: {error.found}",
                where=error.where or str(location) or None,
                expected=error.expected,
                fix=fix,
            ) from error
        except (TypeError, ValueError, IndexError) as error:
            raise self.unsupported(
                f"{function} has arguments that no operator accepts: {error}",
                "Write it with other functions, or compute it before or after the compiled model.",
            ) from error
        if isinstance(observed, list) and isinstance(result, list) and len(observed) == len(result):
            for part, seen in zip(result, observed, strict=True):
                self._check(part, seen)
        else:
            self._check(result, observed)
        return result

    def _check(self, result: object, observed: object) -> None:
        if not isinstance(observed, Observed) or not isinstance(result, Value | Leaf):
            return
        shape = observed.shape
        if isinstance(result, Value):
            self.check_batch(result.type)
        if self.function in SAMPLES and result.type.shape[:1] == (1,) and shape and not isinstance(shape[0], int):
            shape = (1, *shape[1:])
        if result.type.shape != shape or result.type.dtype.torch != observed.dtype:
            sizes = ", ".join(map(str, observed.shape))
            raise self.unsupported(
                f"{self.function} gives {DType.of(observed.dtype)}[{sizes}] in torch and {result.type} as an operator",
                "Convert the operands to one element type in the model.",
            )

    def check_batch(self, result: TensorType) -> None:
        """Refuse a result of the current call that combines each sample with each.

        Raises:
            UnsupportedError: The batch is the size of several axes.
        """
        if sum(not isinstance(size, int) for size in result.shape) > 1:
            raise self.unsupported(
                f"{self.function} gives {result}, with sizes of the batch along several axes",
                "Give all operands the batch as their first axis, and compute each sample by itself.",
            )

    @property
    def shape(self) -> Shape:
        """The shape of the call's result."""
        if not isinstance(self.observed, Observed):
            raise self.unsupported(f"{self.function} does not return a single tensor", "Use one of its results.")
        return self.observed.shape

    def parts(self) -> list[Observed]:
        """The results of a call that returns several tensors."""
        if not isinstance(self.observed, list | tuple):
            raise self.unsupported(f"{self.function} does not return several tensors", "Use its result.")
        return [part for part in self.observed if isinstance(part, Observed)]

    def unsupported(self, found: str, fix: str) -> UnsupportedError:
        """An error about the current call, with a remedy."""
        return UnsupportedError(found, where=str(self.location) or self.function, fix=fix)

    def refused_part(self, position: int, found: str, fix: str) -> Refusal:
        """A part of a tuple that no operator computes.

        Raises:
            UnsupportedError: The model reads the part: the call stays as it is, in an island if there may be one.
        """
        if self.parts_read is None or position in self.parts_read:
            raise self.unsupported(found, fix)
        return self.refusal(found, fix)

    def refusal(self, found: str, fix: str) -> Refusal:
        """A placeholder for one of several results that no operator computes: only reading it is an error."""
        return Refusal(self.unsupported(found, fix))

    def node(self, op: str, inputs: Sequence[object], **attributes: Attribute) -> Value:
        """Append one node; tensors and numbers among `inputs` become leaves, of the type of the first operand."""
        dtype = next((item.type.dtype.torch for item in inputs if isinstance(item, Value | Leaf)), torch.float32)
        path = self.location.path
        name = path if path not in self.containers else f"{path}.{op}" if path else op
        if all(isinstance(item, Leaf) and item.ref for item in inputs):
            name = f"{cast('Leaf', inputs[0]).ref}.{op}"  # the module's name is kept for its result
        if self.location.place:  # with a number after it: the same names for every number of steps
            name = f"{self.location.place}.moved" if definition_of(op).has(Trait.MOVEMENT) else self.location.place
        values = [self.value(item, dtype, name) for item in inputs]
        try:
            return self.graph.append(op, values, attributes, name=name, location=self.location).output
        except GraphError as error:
            raise UnsupportedError(
                f"{self.function}: {error.found}", where=error.where, expected=error.expected, fix=error.fix
            ) from error

    def expanded(self, item: Operand, shape: Shape) -> Operand:
        """`item` with its axes of one element repeated to `shape`, also along the batch.

        Raises:
            UnsupportedError: No input of the graph has a symbolic size of `shape`.
        """
        unknown = [size for size in shape if not isinstance(size, int)]
        like = next((x for x in self.graph.inputs if all(size in x.type.shape for size in unknown)), None)
        if like is None:
            raise self.unsupported(
                f"{self.function} repeats a tensor of shape {list(item.type.shape)} to {list(shape)}",
                "Remove it before +, -, * and /, which broadcast.",
            )
        lead = len(shape) - item.type.rank
        if lead:
            item = self.node("reshape", [item], shape=(*(1,) * lead, *item.type.shape))
        return item if item.type.shape == shape else self.node("expand", [item, like], shape=tuple(shape))

    def custom(self, function: str, operands: Sequence[Value], attributes: Mapping[str, Attribute]) -> list[Value]:
        """Append a function without an operator as a custom op; see `ops.custom`."""
        path = self.location.path
        name = path if path not in self.containers else f"{path}.{function}" if path else function
        return self.graph.append("custom", operands, attributes, name=name, location=self.location).outputs

    def value(self, item: object, dtype: torch.dtype = torch.float32, user: str = "") -> Value:
        """`item` as a value of the graph; a leaf is appended at its first use.

        Args:
            item: An operand or a number.
            dtype: Element type of a number.
            user: Name of the node that reads the value; a constant is named after it.
        """
        if isinstance(item, Value):
            return item
        if isinstance(item, bool | int | float):
            if isinstance(item, float) and not dtype.is_floating_point:
                raise self.unsupported(
                    f"{self.function} mixes {dtype} with the number {item}", "Convert to float first."
                )
            item = Leaf("constant", "", torch.tensor(item, dtype=dtype, device=self.device))
        if not isinstance(item, Leaf):
            if hasattr(item, "free_symbols"):
                raise self.unsupported(
                    f"{self.function} computes with the number {item}, which depends on the batch size N",
                    "Use a mean over the batch, or a fixed number: only shapes may depend on the batch size.",
                )
            raise self.unsupported(
                f"{self.function} has a {type(item).__name__} in place of a tensor", "Pass a tensor or a number."
            )
        if id(item) not in self._leaves:
            module = self.graph.module
            ref = item.ref or module.unique_tensor_name(f"{user}.constant" if user else "constant")
            module.tensors[ref] = row_major(item.tensor.detach())
            attributes: dict[str, Attribute] = {
                "ref": ref,
                "dtype": str(DType.of(item.tensor.dtype)),
                "shape": tuple(item.tensor.shape),
            }
            leaf = self.graph.append(item.kind, [], attributes, name=ref, location=self.location)
            # The pair keeps the leaf alive: an id is valid only as long as its object lives.
            self._leaves[id(item)] = (item, leaf.output)
        return self._leaves[id(item)][1]


SAMPLES = ("fill", "zero", "copy")
"""Functions whose result may be one sample for the whole batch."""

_KEYWORDS = {"axis": "dim", "keepdims": "keepdim"}
"""Spellings that torch accepts for compatibility with NumPy."""

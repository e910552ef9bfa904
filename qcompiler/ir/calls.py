"""A call of a compiled model: arguments by position or by name, tensors or NumPy arrays, as flat tensors."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.ir import tree


@dataclass(frozen=True)
class Call:
    """The arguments of a call.

    Args:
        tensors: All tensors of the arguments, flat, in the element types of the graph.
        arrays: Whether the arguments were NumPy arrays; the results are then arrays, too.
    """

    tensors: list[Tensor]
    arrays: bool

    def results(self, output_tree: tree.Tree, leaves: Sequence[object]) -> object:
        """The result nested as in the model, in tensors or arrays like the arguments.

        Args:
            output_tree: Nesting of the model's outputs.
            leaves: Flat outputs.
        """
        return tree.unflatten(output_tree, leaves, arrays=self.arrays)


def bind(
    input_tree: tree.Tree, names: Sequence[str], arguments: tuple[object, ...], keywords: Mapping[str, object]
) -> Call:
    """Bind the arguments of a call as the model's forward would.

    Args:
        input_tree: Nesting of the arguments: a tuple with one entry per argument.
        names: Names of the arguments; `*name` and `**name` for variadic ones. Empty if unknown.
        arguments: Arguments by position. Keyword-only parameters of the forward are accepted by position, too, in their
            order.
        keywords: Arguments by name; see `by_parameter` for names that Python does not allow.

    Raises:
        InputError: The arguments do not fit the names or the nesting, mix tensors and arrays, or hold an empty batch.
    """
    if keywords or any(name.startswith("*") for name in names):
        arguments = _in_order(names, arguments, by_parameter(keywords, names))
    tensors, arrays = tree.match_arrays(input_tree, arguments)
    for index, tensor in enumerate(tensors):
        if not tensor.numel():
            raise InputError(f"input {index} is empty: {list(tensor.shape)}", expected="at least one sample")
    return Call(tensors, arrays)


def parameter_name(name: str) -> str:
    """A name that Python allows: other characters are underscores, and one precedes digits and keywords."""
    word = re.sub(r"\W", "_", name)
    return f"_{word}" if not word or word[0].isdigit() or keyword.iskeyword(word) else word


def by_parameter(keywords: Mapping[str, object], names: Iterable[str]) -> dict[str, object]:
    """Arguments by the name of their parameter; `input.1` of an ONNX file stands for the parameter `input_1`.

    Args:
        keywords: Arguments by name.
        names: Names of the parameters.

    Raises:
        InputError: Two names stand for one parameter.
    """
    known = set(names)
    found: dict[str, object] = {}
    for key, value in keywords.items():
        word = key if key in known or key.isidentifier() or parameter_name(key) not in known else parameter_name(key)
        if word in found:
            raise InputError(
                f"{key!r} and another argument are both the parameter {word!r}",
                expected=", ".join(names),
                fix="Use the names of the parameters.",
            )
        found[word] = value
    return found


def _in_order(
    names: Sequence[str], arguments: tuple[object, ...], keywords: Mapping[str, object]
) -> tuple[object, ...]:
    """Bind one value to each name."""
    left, rest = list(arguments), dict(keywords)
    values: dict[str, object] = {}
    for name in names:
        if name.startswith("**"):
            values[name], rest = rest, {}
        elif name.startswith("*"):
            values[name], left = tuple(left), []
        elif left:
            values[name] = left.pop(0)
        elif name in rest:
            values[name] = rest.pop(name)
    missing = [name for name in names if name not in values]
    if left or rest or missing:
        wrong = [*(f"{len(left)} more" for _ in left[:1]), *map(repr, rest), *(f"no {name!r}" for name in missing)]
        raise InputError(
            f"the arguments do not fit: {', '.join(wrong)}",
            expected=", ".join(names) or "arguments by position, because their names are unknown",
        )
    return tuple(values[name] for name in names)

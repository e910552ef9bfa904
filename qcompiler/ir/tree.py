"""The nesting of a model's inputs and outputs, kept beside the flat lists of values that the graph works on.

A tree is a plain value: an int is a leaf (its position in the flat list), None is None, and containers are
`("tuple", [...])`, `("list", [...])`, `("dict", [[key, tree], ...])`. It is JSON as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

from qcompiler.errors import InputError

Tree: TypeAlias = "int | tuple[str, Sequence[Tree]] | tuple[str, Sequence[tuple[str, Tree]]] | None"


def flatten(value: object, what: str = "value") -> tuple[list[torch.Tensor], Tree]:
    """Flat list of the tensors in `value` and the tree that `unflatten` needs.

    Raises:
        InputError: A leaf is not a tensor, or a dict key is not a string.
    """
    leaves: list[torch.Tensor] = []
    return leaves, _flatten(value, leaves, what)


def _flatten(value: object, leaves: list[torch.Tensor], what: str) -> Tree:
    match value:
        case torch.Tensor():
            leaves.append(value)
            return len(leaves) - 1
        case None:
            return None
        case Mapping():
            items: list[tuple[str, Tree]] = []
            for key, item in value.items():
                if not isinstance(key, str):
                    raise InputError(f"the {what} has the dict key {key!r}", expected="keys that are strings")
                items.append((key, _flatten(item, leaves, what)))
            return ("dict", items)
        case list():
            return ("list", [_flatten(item, leaves, what) for item in value])
        case tuple():
            return ("tuple", [_flatten(item, leaves, what) for item in value])
    raise InputError(
        f"the {what} holds a {type(value).__name__}", expected="tensors in tuples, lists and dicts with string keys"
    )


def unflatten(tree: Tree, leaves: Sequence[object]) -> object:
    """The nested value whose leaves are `leaves`."""
    match tree:
        case None:
            return None
        case int():
            return leaves[tree]
        case ["dict", items]:
            return {str(key): unflatten(item, leaves) for key, item in items}  # type: ignore[misc,arg-type]
        case ["list", items]:
            return [unflatten(item, leaves) for item in items]  # type: ignore[arg-type]
        case ["tuple", items]:
            return tuple(unflatten(item, leaves) for item in items)  # type: ignore[arg-type]
    raise InputError(f"{tree!r} is not a tree")


def leaves(tree: Tree) -> list[int]:
    """The positions of the leaves, from the first to the last."""
    match tree:
        case int():
            return [tree]
        case ["dict", items]:
            return [place for _, item in items for place in leaves(item)]  # type: ignore[misc,arg-type]
        case [_, items]:
            return [place for item in items for place in leaves(item)]  # type: ignore[arg-type]
    return []


def single(count: int = 1) -> Tree:
    """The tree of one leaf, or of a tuple of `count` leaves."""
    leaves: list[Tree] = list(range(count))
    return 0 if count == 1 else ("tuple", leaves)


def from_plain(data: object) -> Tree:
    """A tree from what JSON makes of it.

    Raises:
        InputError: It is no tree.
    """
    match data:
        case None:
            return None
        case int() if not isinstance(data, bool):
            return data
        case ["dict", list() | tuple() as items] if all(isinstance(i, list | tuple) and len(i) == 2 for i in items):
            return ("dict", [(str(item[0]), from_plain(item[1])) for item in items])
        case [("list" | "tuple") as kind, list() | tuple() as items]:
            return (str(kind), [from_plain(item) for item in items])
    raise InputError(f"{data!r} is not a tree", expected='a number, null, or ["tuple" | "list" | "dict", [...]]')


def match(tree: Tree, arguments: tuple[object, ...]) -> list[torch.Tensor]:
    """The tensors of a call's `arguments`, flat, when they nest as `tree` says.

    Args:
        tree: A tuple with one entry per argument.
        arguments: Of the call, in order.

    Raises:
        InputError: They nest in another way.
    """
    leaves, found = flatten(arguments, "input")
    if found != tree:
        raise InputError(f"the inputs nest as {_describe(found)}", expected=_describe(tree))
    return leaves


def _describe(tree: Tree) -> str:
    match tree:
        case ["dict", items]:
            return "{" + ", ".join(f"{key}: {_describe(item)}" for key, item in items) + "}"  # type: ignore[misc,arg-type]
        case [kind, items]:
            left, right = "[]" if kind == "list" else "()"
            return left + ", ".join(_describe(item) for item in items) + right  # type: ignore[arg-type]
    return "None" if tree is None else "tensor"

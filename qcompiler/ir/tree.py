"""The nesting of a model's inputs and outputs, kept next to the flat lists of values of the graph.

A tree is a plain value, valid JSON:

    0                               a leaf: its position in the flat list
    null                            None
    ["tuple", [tree, ...]]          likewise "list"
    ["dict", [[key, tree], ...]]
    ["record", [name, dict]]        fields with names: a NamedTuple, a dataclass, a result of `torch.max(x, dim)`
    ["container", [name, tree]]     another tuple, list or dict of its own class, such as an OrderedDict
    ["value", 3]                    a number that is the same for all inputs
    ["f16", 0]                      a leaf that the graph holds as float32 and the model's caller as float16, or "u8"

The text does not hold the class of a record or container. A tree made from a value remembers the class (`Own`); a tree
read from text gives a namedtuple of the same fields for a record, and the plain tuple, list or dict for a container.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import keyword
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import torch

from qcompiler.errors import InputError
from qcompiler.ir.types import DType

Tree: TypeAlias = "int | tuple[str, Any] | None"

_OUTSIDE = (DType.F16, DType.BF16, DType.F64, DType.U8)
"""Element types of a caller that the graph holds as float32: other floats, and bytes that the model makes floats."""


class Own(tuple[str, Any]):  # noqa: SLOT001  # a tuple has a size of its own: no slots but empty ones
    """The tree of a record or container, with the function that makes the class from the plain form.

    Equal to any tree of the same text: the class is not compared.
    """

    make: Callable[[Any], object]

    def __new__(cls, tree: tuple[str, Any], make: Callable[[Any], object]) -> Own:
        """Create the tuple; `make` takes the children in a tuple or list, or in a dict if they have names."""
        own = super().__new__(cls, tree)
        own.make = make
        return own

    def __reduce__(self) -> tuple[object, ...]:
        return Own, (tuple(self), self.make)


def flatten(value: object, what: str = "value", *, values: bool = False) -> tuple[list[torch.Tensor], Tree]:
    """Flat list of the tensors in `value` and the tree that `unflatten` needs.

    Args:
        value: Tensors in tuples, lists and dicts, and in classes of these; NamedTuples and dataclasses.
        what: Name of the value, for messages.
        values: Whether numbers are allowed, as constants.

    Raises:
        InputError: A leaf is not a tensor, or a dict key is not a string.
    """
    flat = _Flat(what, values=values)
    tree = flat.of(value)
    return flat.leaves, tree


@dataclasses.dataclass
class _Flat:
    """The leaves found so far."""

    what: str
    values: bool = False
    arrays: bool = False
    """Whether NumPy arrays are leaves, too."""
    leaves: list[torch.Tensor] = dataclasses.field(default_factory=list)
    kinds: set[str] = dataclasses.field(default_factory=set)
    path: list[str] = dataclasses.field(default_factory=list)
    """Keys that lead to the value that is looked at."""

    def _child(self, key: object, value: object) -> Tree:
        self.path.append(f"[{key!r}]")
        found = self.of(value)
        self.path.pop()
        return found

    def _refusal(self, found: str, expected: str) -> InputError:
        return InputError(f"the {self.what} {found}", where="".join(self.path) or None, expected=expected)

    def of(self, value: object) -> Tree:
        match value:
            case torch.Tensor():
                return self._leaf(value, "tensors")
            case None:
                return None
            case np.ndarray() | np.generic() if self.arrays:
                return self._leaf(_from_numpy(value, self.what), "NumPy arrays")
            case bool() | int() | float() if self.values and math.isfinite(value):
                return ("value", value)
        kind = type(value)
        if isinstance(value, Mapping):
            return self._mapping(value)
        if isinstance(value, tuple) and kind is not tuple:
            names = getattr(kind, "_fields", None) or _structseq_fields(kind)
            if names is not None:
                make = functools.partial(_from_fields, kind)
                return self._record(kind, dict(zip(names, value, strict=True)), make)
        if isinstance(value, tuple | list):
            name = "tuple" if isinstance(value, tuple) else "list"
            items: Tree = (name, [self._child(index, item) for index, item in enumerate(value)])
            return items if kind in (tuple, list) else Own(("container", (kind.__name__, items)), kind)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
            return self._record(kind, found, functools.partial(_dataclass, kind))
        what = f"the number {value}" if isinstance(value, float) and self.values else f"a {kind.__name__}"
        raise self._refusal(
            f"holds {what}", "tensors in tuples, lists, dicts with string keys, NamedTuples and dataclasses"
        )

    def _leaf(self, tensor: torch.Tensor, kind: str) -> int:
        self.leaves.append(tensor)
        self.kinds.add(kind)
        return len(self.leaves) - 1

    def _mapping(self, value: Mapping[Any, object]) -> Tree:
        kind: type = cast("type", type(value))
        items: list[tuple[str, Tree]] = []
        for key, item in value.items():
            if not isinstance(key, str):
                raise self._refusal(f"has the dict key {key!r}", "string keys")
            items.append((key, self._child(key, item)))
        plain: Tree = ("dict", items)
        if kind is dict:
            return plain
        make = cast("Callable[[Any], object]", kind)
        if dataclasses.is_dataclass(kind):  # such as the outputs of transformers, which are both
            make = functools.partial(_keywords, make)
        elif issubclass(kind, collections.defaultdict):
            make = functools.partial(make, cast("Any", value).default_factory)
        return Own(("container", (kind.__name__, plain)), make)

    def _record(self, kind: type, fields: Mapping[str, object], make: Callable[[Any], object]) -> Tree:
        return Own(
            ("record", (kind.__name__, ("dict", [(key, self._child(key, item)) for key, item in fields.items()]))), make
        )


def _structseq_fields(kind: type) -> tuple[str, ...] | None:
    """The names of the types of torch functions with several results, `torch.return_types`."""
    return getattr(kind, "__match_args__", None) if hasattr(kind, "n_sequence_fields") else None


def _from_fields(kind: Callable[..., object], fields: dict[str, object]) -> object:
    return kind(*fields.values()) if hasattr(kind, "_fields") else kind(tuple(fields.values()))


def _keywords(kind: Callable[..., object], fields: dict[str, object]) -> object:
    return kind(**fields)


def _dataclass(kind: Callable[..., object], fields: dict[str, object]) -> object:
    given = {item.name: fields[item.name] for item in dataclasses.fields(cast("Any", kind)) if item.init}
    made = kind(**given)
    for name in fields.keys() - given.keys():
        object.__setattr__(made, name, fields[name])
    return made


def _from_numpy(array: np.ndarray | np.generic, what: str) -> torch.Tensor:
    """A tensor with its own memory: an array may be read-only, or run backwards."""
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError:
        raise InputError(
            f"the {what} contains an array of type {array.dtype}", expected="a type of numbers that torch has"
        ) from None


def unflatten(tree: Tree, leaves: Sequence[object], *, arrays: bool = False) -> object:
    """The nested value whose leaves are `leaves`.

    Args:
        tree: Tree of the value.
        leaves: Tensors, or placeholders of them.
        arrays: Whether to convert the tensors to NumPy arrays. NumPy has no bfloat16: such leaves stay float32.
    """
    match tree:
        case None:
            return None
        case int():
            return _as_array(leaves[tree]) if arrays else leaves[tree]
        case ("value", value):
            return value
        case (("record" | "container") as kind, (name, inner)):
            made = unflatten(inner, leaves, arrays=arrays)
            if isinstance(tree, Own):
                return tree.make(made)
            return _named(name, cast("dict[str, object]", made)) if kind == "record" else made
        case ("dict", items):
            return {str(key): unflatten(item, leaves, arrays=arrays) for key, item in items}
        case ("list", items):
            return [unflatten(item, leaves, arrays=arrays) for item in items]
        case ("tuple", items):
            return tuple(unflatten(item, leaves, arrays=arrays) for item in items)
        case (str() as dtype, int() as index) if dtype in _OUTSIDE:
            tensor = cast("torch.Tensor", leaves[index])
            if not arrays or dtype != DType.BF16:
                tensor = tensor.to(DType(dtype).torch)
            return _as_array(tensor) if arrays else tensor
    raise InputError(f"{tree!r} is not a tree")


def leaves(tree: Tree) -> list[int]:
    """The positions of the leaves, from the first to the last."""
    return [place for place, _ in leaf_types(tree)]


def _as_array(leaf: object) -> object:
    return leaf.detach().cpu().numpy() if isinstance(leaf, torch.Tensor) else leaf


def _named(name: str, fields: dict[str, object]) -> object:
    """The plain form of a record, without its class."""
    return _named_class(name, tuple(fields))(*fields.values())


@functools.lru_cache
def _named_class(name: str, fields: tuple[str, ...]) -> Callable[..., object]:
    fits = name.isidentifier() and not keyword.iskeyword(name)
    return collections.namedtuple(name if fits else "Record", fields, rename=True)


def single(count: int = 1) -> Tree:
    """The tree of one leaf, or of a tuple of `count` leaves."""
    leaves: list[Tree] = list(range(count))
    return 0 if count == 1 else ("tuple", leaves)


def from_plain(data: object) -> Tree:
    """A tree from parsed JSON.

    Raises:
        InputError: The data is not a tree.
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
        case ["record", [str() as name, ["dict", _] as inner]]:
            return ("record", (name, from_plain(inner)))
        case ["container", [str() as name, [("dict" | "list" | "tuple"), _] as inner]]:
            return ("container", (name, from_plain(inner)))
        case ["value", bool() | int() | float() as value] if math.isfinite(value):
            return ("value", value)
        case [str() as dtype, int() as index] if dtype in _OUTSIDE and not isinstance(index, bool):
            return (dtype, index)
    raise InputError(f"{data!r} is not a tree", expected='a number, null, or ["tuple" | "list" | "dict", [...]]')


def children(tree: Tree) -> list[tuple[str, Tree]]:
    """The children of a container, each with its key, field or position; none for a leaf."""
    match tree:
        case ("record" | "container", (_, inner)):
            return children(inner)
        case ("dict", items):
            return [(str(key), item) for key, item in items]
        case ("list" | "tuple", items):
            return [(str(index), item) for index, item in enumerate(items)]
    return []


def leaf_types(tree: Tree) -> Iterator[tuple[int, DType | None]]:
    """Each leaf of `tree`, with the caller's element type if it differs from the graph's."""
    match tree:
        case int():
            yield tree, None
        case (str() as dtype, int() as index) if dtype in _OUTSIDE:
            yield index, DType(dtype)
    for _, child in children(tree):
        yield from leaf_types(child)


def bytes_of(tree: Tree) -> frozenset[int]:
    """The leaves that the caller holds as bytes and the graph as the same whole numbers in float32."""
    return frozenset(index for index, dtype in leaf_types(tree) if dtype is DType.U8)


def with_types(tree: Tree, types: Sequence[torch.dtype | None]) -> Tree:
    """`tree` with the element types of the caller.

    Args:
        tree: Tree without element types.
        types: Type of each leaf; None for the type of the graph.
    """
    match tree:
        case int():
            dtype = types[tree]
            return tree if dtype is None else (str(DType.of(dtype)), tree)
        case ("dict", items):
            return ("dict", [(key, with_types(item, types)) for key, item in items])
        case (("list" | "tuple") as kind, items):
            return (kind, [with_types(item, types) for item in items])
        case (("record" | "container") as kind, (name, inner)):
            typed = (kind, (name, with_types(inner, types)))
            return Own(typed, tree.make) if isinstance(tree, Own) else typed
    return tree


def same_nesting(left: Tree, right: Tree) -> bool:
    """Whether two trees have the same leaves at the same places, ignoring the classes of containers."""
    if isinstance(left, int) or isinstance(right, int) or left is None or right is None:
        return left == right
    if not {left[0], right[0]}.isdisjoint({"value", *_OUTSIDE}):
        return left == right
    ours, theirs = children(left), children(right)
    return len(ours) == len(theirs) and all(same_nesting(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True))


def match(tree: Tree, arguments: tuple[object, ...]) -> list[torch.Tensor]:
    """The tensors of a call's `arguments`, flat and in the types of the graph, when they nest as `tree` says.

    For a record, a plain tuple or dict of its fields will do, for a container the plain one; keys come in any order.

    Args:
        tree: A tuple with one entry per argument.
        arguments: Arguments of the call, in order.

    Raises:
        InputError: The arguments nest differently.
    """
    return match_arrays(tree, arguments, arrays=False)[0]


def match_arrays(tree: Tree, arguments: tuple[object, ...], *, arrays: bool = True) -> tuple[list[torch.Tensor], bool]:
    """Like `match`, but the leaves may be NumPy arrays.

    Returns:
        The tensors, and whether the arguments were arrays.

    Raises:
        InputError: The arguments nest differently, or mix arrays and tensors.
    """
    flat = _Flat("input", arrays=arrays)
    found = flat.of(arguments)
    if len(flat.kinds) > 1:
        raise InputError(
            "the inputs are tensors and NumPy arrays",
            expected="either",
            fix="Convert with torch.from_numpy.",
        )
    places: dict[int, int] = {}
    if not _aligned(tree, found, places):
        raise InputError(f"the inputs have the structure {_describe(found)}", expected=_describe(tree))
    tensors = []
    for index, dtype in sorted(leaf_types(tree)):
        tensor = flat.leaves[places[index]]
        given_as = dtype is not None and tensor.dtype == dtype.torch
        tensors.append(tensor.to(torch.float32) if given_as else tensor)
    return tensors, "NumPy arrays" in flat.kinds


def _aligned(wanted: Tree, found: Tree, places: dict[int, int]) -> bool:
    """Whether `found` matches `wanted`; records the position of each wanted leaf among the found ones."""
    if isinstance(wanted, tuple) and wanted[0] in _OUTSIDE:
        wanted = cast("int", wanted[1])
    if isinstance(wanted, int) and isinstance(found, int):
        places[wanted] = found
        return True
    if not isinstance(wanted, tuple) or not isinstance(found, tuple):
        return wanted is None and found is None
    kind, within = _plain_kind(wanted), _plain_kind(found)
    ours, theirs = children(wanted), children(found)
    if wanted[0] == "record" and within == "tuple":
        theirs = [(key, item) for (key, _), (_, item) in zip(ours, theirs, strict=False)]
    elif kind != within:
        return False
    named = dict(theirs)
    if len(children(found)) != len(ours) or named.keys() != {key for key, _ in ours}:
        return False
    return all(_aligned(item, named[key], places) for key, item in ours)


def _plain_kind(tree: tuple[str, Any]) -> str:
    return str(tree[1][1][0]) if tree[0] in ("record", "container") else tree[0]


def _describe(tree: Tree) -> str:
    match tree:
        case ("record", (name, inner)):
            return f"{name}({', '.join(f'{key}={_describe(item)}' for key, item in children(inner))})"
        case ("container", (name, inner)):
            return f"{name}{_describe(inner)}"
        case ("dict", items):
            return "{" + ", ".join(f"{key}: {_describe(item)}" for key, item in items) + "}"
        case (("list" | "tuple") as kind, items):
            left, right = "[]" if kind == "list" else "()"
            return left + ", ".join(_describe(item) for item in items) + right
        case ("value", value):
            return repr(value)
    return "None" if tree is None else "tensor"

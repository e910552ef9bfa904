"""Read a `.pt2` file without running code from it.

`torch.export.load` unpickles sample inputs, weights and constants without limits, evaluates the text of symbolic sizes
as Python, looks up operators by any dotted name below `torch`, imports modules that the nesting of inputs names, and
loads compiled libraries. So torch never reads the user's file. Its members are read and checked here, and the members
that an exported program needs are put into a new archive in memory, which torch then loads:

    models/model.json                graph: operators of namespaces, sizes as arithmetic, nesting of plain containers
    data/weights, data/constants     raw bytes; pickles that `weights_only=True` reads
    data/sample_inputs/model.pt      the same
    serialized_*.pt, .json           the same, in the archives of torch 2.6 and 2.7

Compiled libraries, custom objects and everything else that needs code from the file are refused; extra files are left
out. Guards are left out too: torch would run their text, and the range constraints already hold the allowed sizes.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch.export import ExportedProgram

from qcompiler.errors import InputError
from qcompiler.frontends.export import quiet_torch
from qcompiler.storage.reading import machine_memory, parse_json, read_file

_FIX = "Write it with torch.export.save, from a model whose inputs and weights are plain tensors."
_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = {folder: f"data/{folder}/model_{folder}_config.json" for folder in ("weights", "constants")}
_LEGACY = {folder: f"data/{folder}/model.pt" for folder in ("weights", "constants")}
_MARKS = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id", "version")
"""Members of a few bytes that identify the archive."""
_COMPILED = ("data/aotinductor/", "data/executorch/")
_OLD_GRAPH = "serialized_exported_program.json"
_OLD_TENSORS = ("serialized_state_dict", "serialized_constants", "serialized_example_inputs")

_OPERATOR = re.compile(r"torch\.ops\.(?P<namespace>[a-z]\w*)\.(?P<name>[A-Za-z_]\w*)(\.\w+)?", re.ASCII)
_ARITHMETIC = re.compile(
    r"_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|xor|lshift|rshift)"
    r"|math\.(ceil|floor|trunc|sqrt|log2)|torch\.(sym_\w+|_sym_\w+)",
    re.ASCII,
)
_READS_FILES = ("from_file", "save", "load", "_load", "load_tensor", "call_torchbind")
"""Operators that open files, or run methods of objects from the file."""
_SYMBOL = re.compile(r"(u|s|z|zf|zuf|f)\d+|[A-Za-z]\w{0,30}", re.ASCII)
_CONSTRUCTORS = """
    Symbol Integer Float Rational Add Mul Pow Mod Max Min Abs floor ceiling And Or Not Eq Ne Lt Le Gt Ge Equality
    Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan Relational FloorDiv ModularIndexing Where PythonMod
    CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv TruncToFloat
    TruncToInt RoundToInt RoundDecimal ToFloat Identity IsNonOverlappingAndDenseIndicator OpaqueUnaryFn_sqrt
    OpaqueUnaryFn_log2
"""
_FUNCTIONS = frozenset(_CONSTRUCTORS.split())
"""Functions allowed in the text of a symbolic size: constructors of sympy and torch's functions of integers."""
_ASSUMPTIONS = "positive integer nonnegative real negative even odd zero nonzero finite"
_FLAGS = frozenset(_ASSUMPTIONS.split())
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Call, ast.Name, ast.Constant, ast.keyword,
    ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.Load,
)  # fmt: skip
_LONGEST_SIZE = 4000
"""Maximum length of the text of one symbolic size, in characters."""
_LARGEST_POWER = 16


def load_exported(path: Path) -> ExportedProgram:
    """The exported program in a `.pt2` file.

    Raises:
        InputError: The file is not an exported program, would run its own code, or cannot be read by torch.
    """
    data = read_file(path, InputError)
    clean = checked_archive(data, str(path))
    del data
    try:
        with warnings.catch_warnings(), quiet_torch():  # older archives are read, but torch warns about them
            warnings.simplefilter("ignore")
            return torch.export.load(io.BytesIO(clean))
    except Exception as error:  # the archive reader may raise any error
        text = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise InputError(f"the file {str(path)!r} is not an exported program: {text}", fix=_FIX) from error


def checked_archive(data: bytes, where: str) -> bytes:
    """An archive with the checked members of `data` that an exported program needs.

    Args:
        data: The bytes of the file.
        where: Name of the file, for messages.

    Raises:
        InputError: The file is not such an archive, or a member would run code, has a wrong size, or has contents of
            another kind than its name says.
    """
    members = _members(data, where)
    if _OLD_GRAPH in members:
        kept = _old_archive(members, where)
        root = ""
    else:
        kept = _archive(members, where)
        root = "model/"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in kept.items():
            archive.writestr(zipfile.ZipInfo(root + name), content)
    return stream.getvalue()


def _refuse(found: str, where: str, member: str = "", expected: str | None = None) -> NoReturn:
    raise InputError(found, where=f"{where}, {member}" if member else where, expected=expected, fix=_FIX)


def _members(data: bytes, where: str) -> dict[str, bytes]:
    """The members of a zip archive by name, without the folder that contains all of them."""
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            total = sum(info.file_size for info in infos)
            if total > len(data):
                found_text = f"its members need {total} bytes, but the file has {len(data)}"
                _refuse(found_text, where, expected="uncompressed members, as torch.export.save writes them")
            names = [info.filename for info in infos]
            roots = {name.partition("/")[0] for name in names}
            cut = len(roots.pop()) + 1 if len(roots) == 1 and all("/" in name for name in names) else 0
            for info in infos:
                name = info.filename[cut:]
                if name in found:
                    _refuse(f"it has two members {name!r}", where)
                if info.compress_type != zipfile.ZIP_STORED:
                    _refuse(
                        "it is compressed",
                        where,
                        name,
                        expected="uncompressed members, as torch.export.save writes them",
                    )
                found[name] = archive.read(info)
    except InputError:
        raise
    except Exception as error:  # a broken archive raises errors of many classes: struct, zlib, ...
        raise InputError(f"the file {where!r} is not an exported program: {error}", fix=_FIX) from None
    return found


def _archive(members: Mapping[str, bytes], where: str) -> dict[str, bytes]:
    compiled = next((name for name in members if name.startswith(_COMPILED)), None)
    if compiled is not None:
        _refuse("it contains a compiled library, which loading would run", where, compiled, "an exported program")
    if _MODEL not in members:
        models = [name for name in members if name.startswith("models/")]
        _refuse(
            f"it has no {_MODEL}" + (f", but {models[0]}" if models else ""),
            where,
            expected="one program with the name model",
        )
    kept = {name: members[name] for name in _MARKS if name in members and len(members[name]) < 100}
    kept[_MODEL] = _graph(members[_MODEL], where, _MODEL)
    if _SAMPLES not in members:
        _refuse(f"it has no {_SAMPLES}", where)
    kept[_SAMPLES] = _pickle(members[_SAMPLES], where, _SAMPLES)
    for folder, config in _CONFIGS.items():
        legacy = _LEGACY[folder]
        if legacy in members:
            kept[legacy] = _pickle(members[legacy], where, legacy)
        elif config in members:
            kept[config] = members[config]
            kept |= dict(_payloads(members, folder, config, where))
        else:
            _refuse(f"it has no {config}", where)
    return kept


def _old_archive(members: Mapping[str, bytes], where: str) -> dict[str, bytes]:
    kept = {"version": members.get("version", b"")[:100], _OLD_GRAPH: _graph(members[_OLD_GRAPH], where, _OLD_GRAPH)}
    for stem in _OLD_TENSORS:
        for name in (f"{stem}.pt", f"{stem}.json"):
            if name in members:
                kept[name] = _pickle(members[name], where, name)
    return kept


def _pickle(content: bytes, where: str, member: str) -> bytes:
    """A pickle that holds only tensors: torch's restricted and unrestricted readers read it alike.

    Raises:
        InputError: The pickle holds other objects.
    """
    if not content:
        return content
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")  # noqa: TID251  # runs no code
    except Exception as error:  # the reader of pickles may raise any error
        reason = str(error).strip().partition("\n")[0][:200]
        _refuse(f"it contains objects other than tensors, and reading them may run code: {reason}", where, member)
    return content


def _payloads(members: Mapping[str, bytes], folder: str, config: str, where: str) -> Iterator[tuple[str, bytes]]:
    """The members named in a table of weights or constants."""
    table = parse_json(members[config], f"{where}, {config}", InputError)
    entries = table.get("config") if isinstance(table, dict) else None
    if not isinstance(entries, dict):
        _refuse("it contains no table of tensors", where, config)
    for key, entry in entries.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("path_name"), str):
            _refuse(f"{key!r} has no path_name", where, config)
        path = entry["path_name"]
        name = f"data/{folder}/{path}"
        if "/" in path or name not in members:
            _refuse(f"{key!r} refers to {path!r}, which is missing", where, config)
        if folder == "constants" and not path.startswith("tensor_"):
            _refuse(f"the constant {key!r} is an object, and reading it may run code", where, name, "only tensors")
        if entry.get("use_pickle") is not False:
            yield name, _pickle(members[name], where, name)
            continue
        _check_sizes(entry.get("tensor_meta"), len(members[name]), key, f"{where}, {config}")
        yield name, members[name]


def _check_sizes(meta: object, stored: int, key: str, where: str) -> None:
    """Refuse a tensor with more elements than its stored bytes hold, for any strides."""
    sizes = meta.get("sizes") if isinstance(meta, dict) else None
    items = sizes if isinstance(sizes, list) else [None]
    numbers = [item.get("as_int") if isinstance(item, dict) else None for item in items]
    if not all(isinstance(n, int) and n >= 0 for n in numbers):
        _refuse(f"the sizes of {key!r} are {sizes}", where, expected="numbers")
    count = math.prod(n for n in numbers if isinstance(n, int))
    if 8 * count > machine_memory() or (count and not stored):
        _refuse(
            f"the tensor {key!r} has {count} elements in {stored} bytes",
            where,
            expected="no more elements than are stored",
        )


def _graph(content: bytes, where: str, member: str) -> bytes:
    """The graph without its guards, after checks of each text that torch would evaluate, look up or import."""
    place = f"{where}, {member}"
    tree = parse_json(content, place, InputError)
    if not isinstance(tree, dict):
        _refuse("it contains no program", where, member)
    checks: dict[str, Callable[[Any, str], None]] = {
        "expr_str": _check_size,
        "target": _check_operator,
        "as_operator": _check_operator,
        "in_spec": _check_nesting,
        "out_spec": _check_nesting,
    }
    waiting: list[object] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            for key, value in node.items():
                if key in checks and isinstance(value, str):
                    checks[key](value, place)
                elif key in ("as_custom_obj", "custom_obj", "class_fqn") and value:
                    _refuse("it contains an object of an unknown class", where, member, "only tensors")
                else:
                    waiting.append(value)
        elif isinstance(node, list):
            waiting.extend(node)
    ranges = tree.get("range_constraints")
    for name in ranges if isinstance(ranges, dict) else ():
        _check_size(name, place)
    if "guards_code" in tree:
        tree["guards_code"] = []
    return json.dumps(tree).encode()


def _check_operator(target: str, where: str) -> None:
    """Refuse names other than operators: torch looks up any dotted name, even `torch.hub.load`."""
    match = _OPERATOR.fullmatch(target)
    if match is not None:
        namespace = getattr(torch.ops, match["namespace"], None)
        if isinstance(namespace, ModuleType) and match["name"] not in _READS_FILES:
            return
    elif _ARITHMETIC.fullmatch(target):
        return
    raise InputError(
        f"the program calls {target[:100]!r}", where=where, expected="operators such as torch.ops.aten.add"
    )


def _check_size(text: str, where: str) -> None:
    """Refuse text other than arithmetic on sizes: torch lets sympy evaluate the text as Python."""
    try:
        if len(text) > _LONGEST_SIZE:
            raise ValueError(text)
        for node in ast.walk(ast.parse(text, mode="eval")):
            _check_node(node)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(f"a size is {text[:100]!r}", where=where, expected="integer arithmetic") from None


def _check_node(node: ast.AST) -> None:
    """Raise ValueError if `node` is not allowed in arithmetic on sizes."""
    fine = isinstance(node, _NODES)
    match node:
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
            fine = name in _FUNCTIONS and all(item.arg in _FLAGS for item in keywords)
            texts = [item for item in arguments if isinstance(item, ast.Constant) and isinstance(item.value, str)]
            fine = fine and (not texts or name in ("Symbol", "Float"))
            if name in ("Pow", "PowByNatural", "FloatPow") and len(arguments) == 2:
                fine = fine and _is_small(arguments[1])
        case ast.Call():
            fine = False
        case ast.Name(id=name):
            fine = bool(_SYMBOL.fullmatch(name))
        case ast.BinOp(op=ast.Pow() | ast.LShift(), right=right):
            fine = _is_small(right)
        case ast.Constant(value=str(text)):
            fine = bool(_SYMBOL.fullmatch(text) or re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text, re.ASCII))
        case ast.Constant(value=value):
            fine = isinstance(value, bool | int | float) and abs(value) < 2**64
    if not fine:
        raise ValueError(node)


def _is_small(node: ast.expr) -> bool:
    """Whether an exponent is a small number: evaluating a power with a large exponent may not end."""
    inner = node
    if isinstance(inner, ast.Call) and inner.args:
        inner = inner.args[0]
    if isinstance(inner, ast.UnaryOp):
        inner = inner.operand
    return isinstance(inner, ast.Constant) and isinstance(inner.value, int) and inner.value <= _LARGEST_POWER


def _check_nesting(text: str, where: str) -> None:
    """Refuse containers for which torch would import a module named in the text."""
    waiting: list[object] = [parse_json(text, where, InputError)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if node.get("type") == "collections.defaultdict" or "__enum__" in node:
                raise InputError(
                    "the nesting of inputs or outputs uses classes that would have to be imported",
                    where=where,
                    expected="tuples, lists and dicts with string keys",
                )
            if isinstance(node.get("context"), str):
                waiting.append(parse_json(node["context"], where, InputError))
            waiting += [value for key, value in node.items() if key != "context"]
        elif isinstance(node, list):
            waiting.extend(node)

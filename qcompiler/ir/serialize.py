"""Modules on disk: a `.qir` folder.

model.qir/  module.txt            all graphs in their text form
            tensors.safetensors   tensors of the leaves
            provenance.json       events and figures of each pass
            hash                  `module_hash` of it, and the sha256 of each of the other files
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from qcompiler.errors import ArtifactError, QCompilerError
from qcompiler.ir.events import Event, Message, Record
from qcompiler.ir.graph import Module
from qcompiler.ir.hashing import module_hash
from qcompiler.ir.text import parse_module, print_module
from qcompiler.storage.destination import Destination, read_whole
from qcompiler.storage.occupant import Kind
from qcompiler.storage.reading import decode, exists, parse_json, read_file

TEXT, TENSORS, PROVENANCE, HASH = "module.txt", "tensors.safetensors", "provenance.json", "hash"


def save_module(module: Module, path: str | Path, records: Sequence[Record] = ()) -> Path:
    """Write `module`; `path` is replaced in one step. The same module gives the same bytes.

    Args:
        module: Module to write.
        path: A folder that ends in `.qir`; an existing module is replaced.
        records: Records of the passes run on the module.

    Raises:
        ArtifactError: The path has another ending, holds anything but an unaltered module, or cannot be
            written.
        GraphError: A node refers to a tensor that the module does not hold.
    """
    folder = Path(path)
    if folder.suffix != ".qir":
        raise ArtifactError(
            f"the folder of a module cannot have the name {folder}", expected="a name that ends in .qir"
        )
    # Clones: safetensors refuses tensors that share memory.
    tensors = {name: module.tensors[name].detach().cpu().clone().contiguous() for name in sorted(module.tensors)}
    provenance = json.dumps([record.plain() for record in records], indent=1, sort_keys=True) + "\n"
    content = {
        TEXT: print_module(module).encode(),
        TENSORS: save(tensors),
        PROVENANCE: provenance.encode(),
    }
    hashes = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in content.items()]
    content[HASH] = "".join([f"{module_hash(module)}\n", *hashes]).encode()
    with Destination(folder, KIND) as destination:
        return destination.replace(content)


def _named_files(hashes: bytes) -> dict[str, str]:
    """The sha256 of each file by the file of hashes.

    Raises:
        ValueError: The file names no files, as in older releases.
    """
    lines = [line.split("  ") for line in hashes.decode().splitlines()[1:]]
    if not lines or any(len(line) != 2 for line in lines):
        raise ValueError("it lists no files")
    return {name: digest for digest, name in lines if name != HASH}


KIND = Kind("a module", HASH, _named_files, frozenset({TEXT, TENSORS, PROVENANCE, HASH}))


def load_module(path: str | Path) -> tuple[Module, list[Record]]:
    """Read a folder written by `save_module`.

    Returns:
        The module, and the records of its passes.

    Raises:
        ArtifactError: A file is missing or damaged, or the hash differs.
    """
    return read_whole(Destination(path, KIND), _read)


def _read(path: Path) -> tuple[Module, list[Record]]:
    folder = path
    content: dict[str, bytes] = {}
    for name in (TEXT, TENSORS, PROVENANCE, HASH):
        if not exists(folder / name):
            raise ArtifactError(f"{name} is missing", where=str(path), expected="a folder written by save_module")
        content[name] = read_file(folder / name, where=str(path))
    reading = TENSORS
    try:
        # Sorted: safetensors gives them in an order that changes from process to process.
        tensors = dict(sorted(load(content[TENSORS]).items()))
        reading = PROVENANCE
        records = _records(parse_json(content[PROVENANCE], PROVENANCE))
        reading = TEXT
        module = parse_module(decode(content[TEXT], TEXT), tensors)
        found = module_hash(module)
    # KeyError: an element type that torch lacks.
    except (SafetensorError, QCompilerError, ValueError, KeyError) as error:
        raise ArtifactError(f"{reading} cannot be read: {error}", where=str(path)) from error
    written = content[HASH].decode(errors="replace").partition("\n")[0].strip()
    if found != written:
        raise ArtifactError(f"the module was altered: its hash is {found}", where=str(path), expected=written)
    return module, records


def _records(data: object) -> list[Record]:
    """The records of passes, from plain data.

    Raises:
        ArtifactError: A record has another form than ours.
    """
    if not isinstance(data, list):
        raise ArtifactError("it is not a list of records")
    return [_record(item, f"record {index}") for index, item in enumerate(data)]


def _record(item: object, where: str) -> Record:
    if not isinstance(item, dict) or set(item) != {"pass_name", "events", "metrics"}:
        raise ArtifactError(f"the {where} has another form", expected="pass_name, events and metrics")
    name, events, metrics = item["pass_name"], item["events"], item["metrics"]
    plain = isinstance(metrics, dict) and all(isinstance(value, str | int | float) for value in metrics.values())
    if not (isinstance(name, str) and isinstance(events, list) and plain):
        raise ArtifactError(f"the {where} has another form", expected="a name, a list and a table of numbers")
    return Record(name, [_event(event, where) for event in events], metrics)


_TEXTS, _CODED = ("kind", "node", "where", "detail"), ("code", "data")


def _event(item: object, where: str) -> Event:
    known = {*_TEXTS, "origins"}
    fits = isinstance(item, dict) and set(item) in (known, {*known, *_CODED}) and isinstance(item["origins"], list)
    if (
        not isinstance(item, dict)
        or not fits
        or not all(isinstance(text, str) for text in (*(item[key] for key in _TEXTS), *item["origins"]))
    ):
        raise ArtifactError(f"an event of {where} has another form", expected=", ".join((*_TEXTS, "origins")))
    code, data = item.get("code", ""), item.get("data", {})
    if not isinstance(code, str) or not isinstance(data, dict):
        raise ArtifactError(f"an event of {where} has another form", expected="a code and a table")
    if not all(map(_is_fact, data.values())):
        raise ArtifactError(f"an event of {where} has another form", expected="a table of texts, numbers and names")
    message = Message.from_plain(item["detail"], code, data)
    return Event(item["kind"], item["node"], tuple(item["origins"]), item["where"], message)


def _is_fact(value: object) -> bool:
    names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return names or isinstance(value, str | int | float)

"""Modules on disk: a `.qir` folder.

model.qir/  module.txt            all graphs in their text form
            tensors.safetensors   what the leaves refer to
            provenance.json       what each pass did
            hash                  `module_hash` of it
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from qcompiler.errors import ArtifactError
from qcompiler.ir.graph import Module
from qcompiler.ir.hashing import module_hash
from qcompiler.ir.rewrite import Event, Record
from qcompiler.ir.text import parse_module, print_module

TEXT, TENSORS, PROVENANCE, HASH = "module.txt", "tensors.safetensors", "provenance.json", "hash"


def save_module(module: Module, path: str | Path, records: Sequence[Record] = ()) -> Path:
    """Write `module`; it appears under `path` by one rename. The same module gives the same bytes.

    Args:
        module: What to write.
        path: A folder that ends in `.qir`; one that is there already is replaced.
        records: What passes did to it.

    Raises:
        ArtifactError: The path has another ending, holds something else, or cannot be written.
    """
    folder = Path(path)
    if folder.suffix != ".qir":
        raise ArtifactError(f"{folder} is no name for a module", expected="a name that ends in .qir")
    if folder.exists() and not (folder / TEXT).is_file():
        raise ArtifactError(f"{folder} exists and holds no module", fix="Choose another name, or remove it.")
    # Clones: safetensors refuses tensors that share memory.
    tensors = {name: module.tensors[name].detach().cpu().clone().contiguous() for name in sorted(module.tensors)}
    provenance = json.dumps([asdict(record) for record in records], indent=1, sort_keys=True) + "\n"
    content = {
        TEXT: print_module(module).encode(),
        TENSORS: save(tensors),
        PROVENANCE: provenance.encode(),
        HASH: f"{module_hash(module)}\n".encode(),
    }
    work = folder.with_name(folder.name + ".work")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for name, data in content.items():
            (work / name).write_bytes(data)
        if folder.exists():
            shutil.rmtree(folder)
        work.replace(folder)
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def load_module(path: str | Path) -> tuple[Module, list[Record]]:
    """Read what `save_module` wrote.

    Returns:
        The module, and what passes did to it.

    Raises:
        ArtifactError: A file is missing or damaged, or the hash is another.
        ParseError: The text is not a module.
    """
    folder = Path(path)
    content: dict[str, bytes] = {}
    for name in (TEXT, TENSORS, PROVENANCE, HASH):
        try:
            content[name] = (folder / name).read_bytes()
        except OSError:
            raise ArtifactError(f"{name} is missing", where=str(path), expected="a folder of save_module") from None
    try:
        tensors = load(content[TENSORS])
        provenance = json.loads(content[PROVENANCE])
        module = parse_module(content[TEXT].decode(), tensors)
    except (SafetensorError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"the module cannot be read: {error}", where=str(path)) from None
    missing = [
        str(node.attributes["ref"])
        for graph in module.graphs.values()
        for node in graph.nodes
        if "ref" in node.attributes and str(node.attributes["ref"]) not in tensors
    ]
    if missing:
        raise ArtifactError(f"the tensor {missing[0]!r} is missing", where=f"{path}, {TENSORS}")
    if module_hash(module) != content[HASH].decode().strip():
        raise ArtifactError("the module is not the one that was written", where=str(path))
    records = [
        Record(
            item["pass_name"],
            [Event(**{**event, "origins": tuple(event["origins"])}) for event in item["events"]],
            item["metrics"],
        )
        for item in provenance
    ]
    return module, records

"""Plugins: passes, back ends and operators of other distributions, found by entry points.

`qcompiler.targets` finds the targets of plugins itself, without importing their code.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata
from types import ModuleType

from qcompiler.errors import PluginError
from qcompiler.ir.registry import OpDef, known_ops, register
from qcompiler.passes.base import Pass

PASSES, BACKENDS, OPS = "qcompiler.passes", "qcompiler.backends", "qcompiler.ops"


def load_entry_points(group: str, taken: Mapping[str, object]) -> dict[str, object]:
    """The entry points of installed distributions under `group`, by name.

    Args:
        group: Name of the group.
        taken: Names that are built in.

    Raises:
        PluginError: Two distributions use one name, or an entry point cannot be imported.
    """
    found: dict[str, object] = {}
    owners = dict.fromkeys(taken, "qcompiler")
    for entry in sorted(metadata.entry_points(group=group), key=lambda entry: (entry.name, entry.value)):
        owner = entry.dist.name if entry.dist is not None else entry.value
        if entry.name in owners:
            raise PluginError(
                f"two entries of {group} are called {entry.name!r}",
                where=f"{owners[entry.name]} and {owner}",
                fix="Rename or uninstall one of them.",
            )
        owners[entry.name] = owner
        try:
            found[entry.name] = entry.load()
        except Exception as error:  # importing a plugin may raise anything
            raise PluginError(
                f"the entry {entry.name!r} of {group} cannot be loaded: {type(error).__name__}: {error}",
                where=f"{entry.value} of {owner}",
                fix=f"Repair or uninstall {owner}.",
            ) from error
    return found


def load_passes(taken: Mapping[str, object]) -> dict[str, type[Pass]]:
    """Passes of plugins by the name that pipelines use.

    Raises:
        PluginError: See `load_entry_points`; or an entry is not a pass, or its class has another name.
    """
    passes: dict[str, type[Pass]] = {}
    for name, item in load_entry_points(PASSES, taken).items():
        if not (isinstance(item, type) and issubclass(item, Pass)):
            raise PluginError(f"the entry {name!r} of {PASSES} is {item!r}", expected="a subclass of Pass")
        if item.name != name:
            raise PluginError(f"the entry {name!r} of {PASSES} is a pass called {item.name!r}", expected="one name")
        passes[name] = item
    return passes


def load_ops() -> list[str]:
    """Register the operators of plugins and return their names. A second call changes nothing.

    Raises:
        PluginError: See `load_entry_points`; or an entry is not an operator definition.
    """
    ours = {name: item for name, item in known_ops().items() if not _is_plugin(item)}
    definitions = load_entry_points(OPS, ours)
    for name, item in definitions.items():
        if not isinstance(item, OpDef) or item.name != name:
            raise PluginError(f"the entry {name!r} of {OPS} is {item!r}", expected=f"an OpDef called {name!r}")
        if name not in known_ops():
            register(item)
    return list(definitions)


def load_backends() -> dict[str, ModuleType]:
    """Back ends by name, built-in and of plugins: modules with `emit` and `run`.

    Raises:
        PluginError: See `load_entry_points`; or a module lacks one of the two functions.
    """
    ours = {name: importlib.import_module(f"qcompiler.backends.{name}") for name in ("integer", "onnx_qdq")}
    found = load_entry_points(BACKENDS, ours)
    for name, item in found.items():
        if not isinstance(item, ModuleType) or not callable(getattr(item, "emit", None)) or not hasattr(item, "run"):
            raise PluginError(f"the entry {name!r} of {BACKENDS} is {item!r}", expected="a module with emit and run")
        ours[name] = item
    return ours


def _is_plugin(definition: OpDef) -> bool:
    return not definition.infer.__module__.startswith("qcompiler.")

"""What other distributions add: passes, targets, back ends and operators, found by entry points.

Targets are found by `qcompiler.targets` itself, which needs no code of theirs.
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
    """What installed distributions publish under `group`, by name.

    Args:
        group: Name of the group.
        taken: Names that are ours.

    Raises:
        PluginError: Two owners claim one name, or what an entry names cannot be imported.
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
        except Exception as error:  # whatever the plugin's import raises
            raise PluginError(
                f"the entry {entry.name!r} of {group} cannot be loaded: {type(error).__name__}: {error}",
                where=f"{entry.value} of {owner}",
                fix=f"Repair or uninstall {owner}.",
            ) from error
    return found


def load_passes(taken: Mapping[str, object]) -> dict[str, type[Pass]]:
    """Passes of plugins by the name that pipelines use.

    Raises:
        PluginError: See `load_entry_points`; or an entry is no pass, or its class has another name.
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
    """Register the operators of plugins; their names. Loading twice does no harm.

    Raises:
        PluginError: See `load_entry_points`; or an entry is no operator definition.
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
    """Back ends by name, ours and those of plugins: modules with `emit` and `run`.

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

"""Passes and back ends of other distributions. Targets and operators load theirs themselves."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType

from qcompiler.errors import PluginError
from qcompiler.passes.base import Pass
from qcompiler.plugins import load_entries

PASSES, BACKENDS = "qcompiler.passes", "qcompiler.backends"


def load_passes(taken: Iterable[str]) -> dict[str, type[Pass]]:
    """Passes of plugins by the name that pipelines use.

    Args:
        taken: Names of built-in passes.

    Raises:
        PluginError: See `load_entries`; or an entry is not a pass, or its class has another name.
    """
    passes: dict[str, type[Pass]] = {}
    for name, item in load_entries(PASSES, dict.fromkeys(taken, "qcompiler")).items():
        if not (isinstance(item, type) and issubclass(item, Pass)):
            raise PluginError(f"the entry {name!r} of {PASSES} is {item!r}", expected="a subclass of Pass")
        if item.name != name:
            raise PluginError(f"the entry {name!r} of {PASSES} is a pass called {item.name!r}", expected="one name")
        passes[name] = item
    return passes


def load_backends() -> dict[str, ModuleType]:
    """Back ends by name, built-in and of plugins: modules with `emit` and `run`.

    Raises:
        PluginError: See `load_entries`; or a module lacks one of the two functions.
    """
    ours = {name: importlib.import_module(f"qcompiler.backends.{name}") for name in ("integer", "onnx_qdq")}
    found = load_entries(BACKENDS, dict.fromkeys(ours, "qcompiler"))
    for name, item in found.items():
        if not isinstance(item, ModuleType) or not callable(getattr(item, "emit", None)) or not hasattr(item, "run"):
            raise PluginError(f"the entry {name!r} of {BACKENDS} is {item!r}", expected="a module with emit and run")
        ours[name] = item
    return ours

"""Passes of other distributions. Targets, operators and back ends load theirs themselves."""

from __future__ import annotations

from collections.abc import Iterable

from qcompiler.errors import PluginError
from qcompiler.passes.base import Pass
from qcompiler.plugins import load_entries

PASSES = "qcompiler.passes"


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
            raise PluginError(f"the entry point {name!r} of {PASSES} is {item!r}", expected="a subclass of Pass")
        if item.name != name:
            raise PluginError(
                f"the entry point {name!r} of {PASSES} is a pass with the name {item.name!r}", expected="one name"
            )
        passes[name] = item
    return passes

"""Back ends, which write and run the forms of an artifact, and their registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qcompiler.backends.base import Backend

PROGRAM = "integer program"
"""Name of the form that every artifact has and that back ends read: the integer program."""

if __name__ != "qcompiler.backends":
    raise ImportError(
        f"imported as {__name__!r}: import qcompiler.backends instead, "
        "a second copy of each class would not match the first"
    )

ENTRY_POINTS = "qcompiler.backends"
"""Entry point group of the back ends of other distributions."""


def known_backends() -> dict[str, Backend]:
    """All back ends by name: those of qcompiler, then those of installed plugins.

    Raises:
        PluginError: A plugin cannot be imported, is not a back end, or has a name that is taken.
    """
    from qcompiler.backends.base import Backend
    from qcompiler.backends.integer.c.form import CSource
    from qcompiler.backends.onnx_qdq.form import Onnx
    from qcompiler.backends.tflite.form import TFLite
    from qcompiler.errors import PluginError
    from qcompiler.plugins import load_entries

    found: dict[str, Backend] = {item.name: item() for item in (CSource, Onnx, TFLite)}
    for name, item in load_entries(ENTRY_POINTS, dict.fromkeys((PROGRAM, *found), "qcompiler")).items():
        if not (isinstance(item, type) and issubclass(item, Backend)):
            raise PluginError(
                f"the entry point {name!r} of {ENTRY_POINTS} is {item!r}", expected="a subclass of Backend"
            )
        if item.name != name:
            raise PluginError(f"the entry point {name!r} of {ENTRY_POINTS} is a back end with the name {item.name!r}")
        found[name] = item()
    return found

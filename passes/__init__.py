"""Rewrites of the graph, one per file; this module exports the classes that your own pass needs."""

if __name__ != "qcompiler.passes":
    raise ImportError(
        f"imported as {__name__!r}: import qcompiler.passes instead, "
        "a second copy of each class would not match the first"
    )

from qcompiler.passes.base import Pass, PassContext, only_user
from qcompiler.passes.manager import PassManager

__all__ = ["Pass", "PassContext", "PassManager", "only_user"]

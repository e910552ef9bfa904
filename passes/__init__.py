"""Rewrites of the graph, one per file."""

if __name__ != "qcompiler.passes":
    raise ImportError(
        f"imported as {__name__!r}: import qcompiler.passes instead, "
        "a second copy of each class would not match the first"
    )

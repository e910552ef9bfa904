"""Back ends, which write and run the forms of an artifact: each one offers `emit` and `run`."""

if __name__ != "qcompiler.backends":
    raise ImportError(
        f"imported as {__name__!r}: import qcompiler.backends instead, "
        "a second copy of each class would not match the first"
    )

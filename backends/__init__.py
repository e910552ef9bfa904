"""What leaves the compiler: each back end offers `emit` and `run`."""

if __name__ != "qcompiler.backends":
    raise ImportError(
        f"imported as {__name__!r}: import qcompiler.backends instead, "
        "a second copy of each class would not match the first"
    )

"""The typed graph and the tools that read and rewrite it."""

import qcompiler.ir.pickling  # noqa: F401  # for the effect: every module can be pickled and copied

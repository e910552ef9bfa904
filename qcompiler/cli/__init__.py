"""The command line."""

from qcompiler.cli.commands import main

__all__ = ["main"]

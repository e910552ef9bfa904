"""Functions by the names of what they translate."""

from __future__ import annotations

import difflib
from typing import TypeVar

from qcompiler.errors import PluginError

__all__ = ["Named"]

FunctionT = TypeVar("FunctionT")


class Named(dict[str, FunctionT]):
    """Functions by name, each name taken once.

    Args:
        title: Words for an entry before its name, such as `rules for the torch function`.
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    def add(self, function: FunctionT, *names: str) -> None:
        """Enter a function.

        Raises:
            PluginError: A name is taken.
        """
        for name in names:
            if name in self:
                raise PluginError(
                    f"there are two {self.title} {name!r}",
                    where=f"{self[name].__module__} and {function.__module__}",
                    fix="Remove one of them.",
                )
            self[name] = function

    def near(self, name: str) -> str:
        """Names that are spelled almost like one that is missing, at most two, for a sentence; empty without any."""
        return " and ".join(difflib.get_close_matches(name, self, n=2, cutoff=0.8))

"""Functions by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qcompiler.errors import PluginError
from qcompiler.frontends.named import Named


def double(x: int) -> int:
    return 2 * x


def test_a_name_is_taken_once() -> None:
    found: Named[Callable[[int], int]] = Named("rules for the function")
    found.add(double, "double", "twice")
    assert found == {"double": double, "twice": double}
    with pytest.raises(PluginError, match=rf"two rules for the function 'twice' \(at {__name__} and {__name__}\)"):
        found.add(double, "twice")


def test_names_that_are_near() -> None:
    found: Named[Callable[[int], int]] = Named("rules for the function")
    found.add(double, "double", "doubled", "twice")
    assert found.near("doubl") == "double and doubled"
    assert found.near("relu") == ""

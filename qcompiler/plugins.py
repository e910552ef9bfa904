"""Entry points of other distributions: passes, targets, back ends and operators that they add."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from qcompiler.errors import PluginError

__all__ = ["find_entries", "load_entries"]


def find_entries(group: str, taken: Mapping[str, str]) -> dict[str, metadata.EntryPoint]:
    """The entry points of installed distributions under `group`, by name and in the order of names; none is imported.

    Args:
        group: Name of the group, such as `qcompiler.passes`.
        taken: Names that are in use, each with its owner.

    Raises:
        PluginError: Two owners use one name.
    """
    found: dict[str, metadata.EntryPoint] = {}
    owners = dict(taken)
    for entry in sorted(_installed(group, _state()), key=lambda entry: (entry.name, entry.value)):
        owner = _owner(entry)
        if entry.name in owners:
            raise PluginError(
                f"two entry points of {group} have the name {entry.name!r}",
                where=f"{owners[entry.name]} and {owner}",
                fix="Rename or uninstall one of them.",
            )
        owners[entry.name] = owner
        found[entry.name] = entry
    return found


def load_entries(group: str, taken: Mapping[str, str]) -> dict[str, object]:
    """The imported objects of the entry points of `find_entries`.

    Raises:
        PluginError: Two owners use one name, or an entry point cannot be imported.
    """
    return {name: _load(entry, group) for name, entry in find_entries(group, taken).items()}


@lru_cache(maxsize=8)
def _installed(group: str, state: Hashable) -> metadata.EntryPoints:
    """Entry points of a group; `state` is that of the folders they were read from.

    A compile asks several times, and each time the metadata of every distribution would be read.
    """
    del state
    return metadata.entry_points(group=group)


def _state() -> Hashable:
    """State of the path, which changes when a distribution is installed or removed: the folders and their times."""
    places: list[Hashable] = [tuple(map(id, sys.meta_path))]
    for place in sys.path:
        try:
            found = Path(place or ".").stat()
        except (OSError, ValueError):  # no folder, or a name that no folder can have
            places.append(place)
        else:
            places.append((place, found.st_dev, found.st_ino, found.st_mtime_ns))
    return tuple(places)


def _load(entry: metadata.EntryPoint, group: str) -> object:
    try:
        return entry.load()
    except Exception as error:  # importing a plugin may raise anything
        raise PluginError(
            f"the entry point {entry.name!r} of {group} cannot be loaded: {type(error).__name__}: {error}",
            where=f"{entry.value} of {_owner(entry)}",
            fix=f"Repair or uninstall {_owner(entry)}.",
        ) from error


def _owner(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value

"""Find and read descriptors: shipped descriptors, files and plugins."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Any

from qcompiler.errors import TargetError, UnsupportedError
from qcompiler.plugins import find_entries
from qcompiler.targets.lines import Spot, find_spots
from qcompiler.targets.schema import SCHEMA
from qcompiler.targets.target import Target, changes_in

ENTRY_POINT_GROUP = "qcompiler.targets"
_KEYED_LISTS = {"op": "names", "tie": "ops"}

RENAMED = {"int8_ort": "ort_cpu"}
"""Former names of shipped targets, which still load."""


def targets() -> list[str]:
    """Names that `load_target` accepts: shipped descriptors and those of installed plugins.

    Raises:
        PluginError: Two owners claim one name.
    """
    return sorted(_sources())


def load_target(
    target: str | Path | Target, base: str | Path | Target | None = None, *, ignore: Collection[str] = ()
) -> Target:
    """Load a target by name, TOML path or AIMET runtime configuration on a base; a `Target` is returned as is.

    Args:
        target: Name, also with changes, such as `int8_dsp[weight_bits=4]`, path of a `.toml` file or of a `.json`
            runtime configuration, or a target.
        base: Target that completes a runtime configuration; not allowed otherwise.
        ignore: Keys of a runtime configuration without effect, such as `op_type.LayerNormalization` or `supergroups.3`,
            for keys that cannot be honoured and are not needed.

    Raises:
        TargetError: The name or file is unknown, the descriptor is malformed or contradictory, a runtime configuration
            has no base, or a base is given without a runtime configuration.
    """
    is_configuration = not isinstance(target, Target) and str(target).endswith(".json")
    if is_configuration and base is None:
        raise TargetError(
            "a runtime configuration needs a base, because it does not describe the arithmetic of the hardware",
            where=Path(str(target)).name,
            fix='Name a target as base: load_target("config.json", base="int8_dsp"), or --base int8_dsp.',
        )
    if base is not None:
        if not is_configuration:
            raise TargetError(f"base was given with the target {target!r}", expected="a runtime configuration in JSON")
        # Imported on demand: the schema takes as long to build as that of descriptors.
        from qcompiler.targets.aimet_config import read_aimet_config

        return read_aimet_config(str(target), load_target(base), ignore=ignore)
    if ignore:
        raise TargetError(f"ignore was given with the target {target!r}", expected="a runtime configuration in JSON")
    if isinstance(target, Target):
        return target
    if isinstance(target, str) and target.endswith("]"):
        name, changes = changes_in(target)
        return load_target(name).override(**dict(changes))
    path = _find(str(target))
    data, spot = _read(path, ())
    return Target.of(data, path.name, spot)


def load_hardware(target: str | Path | Target) -> Target:
    """Load a target that describes hardware; see `load_target`.

    Raises:
        TargetError: The target cannot be loaded.
        UnsupportedError: The target is for simulation only.
    """
    hardware = load_target(target)
    if hardware.simulation is not None:
        raise UnsupportedError(
            f"the target {hardware.name} is for simulation only: {hardware.simulation.reason}",
            fix="Choose a target that describes hardware, such as int8_dsp.",
        )
    return hardware


def _sources() -> dict[str, Path]:
    folder = Path(str(resources.files("qcompiler.targets")))
    found = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    for name, entry in find_entries(ENTRY_POINT_GROUP, dict.fromkeys(found, "qcompiler")).items():
        package = resources.files(entry.value.partition(":")[0])
        found[name] = Path(str(package / f"{name}.toml"))
    return found


def _find(name: str, folder: Path | None = None, where: Spot | None = None) -> Path:
    place = None if where is None else str(where)
    if name.endswith(".toml"):
        path = Path(name) if folder is None else folder / name
        try:
            found = path.is_file()
        except (OSError, ValueError):  # a name that no file can have
            found = False
        if not found:
            raise TargetError(f"there is no file {name!r}", where=place, expected="the path of a descriptor in TOML")
        return path
    sources = _sources()
    name = RENAMED.get(name, name)
    if name in sources:
        return sources[name]
    near = difflib.get_close_matches(name, sources, n=3)
    raise TargetError(
        f"there is no target {name!r}",
        where=place,
        expected="one of " + ", ".join(sorted(sources)) + ", or the path of a .toml file",
        fix=f"Did you mean {', '.join(near)}?" if near else None,
    )


def _read(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], Spot]:
    """The content of a file merged with its bases, and the position of each key."""
    if path in seen:
        raise TargetError("descriptors extend each other in a cycle", where=" -> ".join(p.name for p in (*seen, path)))
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise TargetError(f"not TOML: {error}", where=path.name) from error
    except (ValueError, RecursionError) as error:  # invalid TOML, numbers of thousands of digits, deep nesting
        raise _no_toml(error, path.name) from error
    except OSError as error:
        raise TargetError(f"the descriptor cannot be read: {error.strerror}", where=path.name) from error
    spot = find_spots(text, path.name)
    if data.get("schema") != SCHEMA:
        found = f"the schema is {data['schema']!r}" if "schema" in data else "the key 'schema' is missing"
        raise TargetError(found, where=str(spot.find(("schema",))), expected=f"schema = {SCHEMA!r}")
    base = data.pop("extends", None)
    if base is None:
        return data, spot
    place = spot.children.pop("extends")
    if not isinstance(base, str):
        raise TargetError(f"extends is {base!r}", where=str(place), expected="the name or path of a descriptor")
    merged, merged_spot = _read(_find(base, path.parent, place), (*seen, path))
    _merge(merged, merged_spot, data, spot)
    return merged, merged_spot


def _no_toml(error: BaseException, file: str) -> TargetError:
    """The error for text that is not TOML, with the line if the reader reports one."""
    text = str(error) if isinstance(error, ValueError) else "the nesting is too deep"
    message, _, place = text.partition(" (at line ")
    line = place.partition(",")[0]
    where = f"{file}:{line}" if line.isdigit() else file
    return TargetError(f"not TOML: {message if line.isdigit() else text}", where=where)


def _merge(base: dict[str, Any], base_spot: Spot, child: dict[str, Any], spot: Spot) -> None:
    """Merge `child` into `base`: tables merge, rules replace rules for the same ops, other values are replaced."""
    for key, value in child.items():
        mine = spot.children.get(key, spot)
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], base_spot.children.setdefault(key, mine), value, mine)
        elif key in _KEYED_LISTS and isinstance(value, list) and isinstance(base.get(key), list):
            kept, places = _without(base[key], base_spot.children[key], value, _KEYED_LISTS[key])
            rows = [*places, *(mine.find((index,)) for index in range(len(value)))]
            base[key] = kept + value
            base_spot.children[key] = Spot(mine.file, mine.line, dict(enumerate(rows)))
        else:
            base[key] = value
            base_spot.children[key] = mine


def _without(rules: list[Any], spot: Spot, replacing: list[Any], field: str) -> tuple[list[Any], list[Spot]]:
    """The rules for ops that `replacing` does not cover, and their positions."""
    replaced = [name for rule in replacing for name in _named(rule, field)]
    kept, places = [], []
    for index, rule in enumerate(rules):
        names = [name for name in _named(rule, field) if name not in replaced]
        if names or not _named(rule, field):
            kept.append({**rule, field: names} if names else rule)
            places.append(spot.find((index,)))
    return kept, places


def _named(rule: object, field: str) -> list[object]:
    names = rule.get(field) if isinstance(rule, dict) else None
    return names if isinstance(names, list) else []

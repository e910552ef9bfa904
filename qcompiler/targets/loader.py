"""Find and read descriptors: shipped ones, files, and those of plugins."""

from __future__ import annotations

import difflib
import tomllib
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from qcompiler.errors import PluginError, TargetError
from qcompiler.targets.aimet_config import read_aimet_config
from qcompiler.targets.target import Target

ENTRY_POINT_GROUP = "qcompiler.targets"
_KEYED_LISTS = {"op": "names", "tie": "ops"}


def targets() -> list[str]:
    """Names that `load_target` knows: shipped descriptors and those of installed plugins.

    Raises:
        PluginError: Two owners claim one name.
    """
    return sorted(_sources())


def load_target(target: str | Path | Target, base: str | Path | Target | None = None) -> Target:
    """A target by name, by path of a TOML file, or as it is; or a runtime configuration of AIMET on a base.

    Args:
        target: Name, path of a `.toml` file or of a `.json` runtime configuration, or a target.
        base: What a runtime configuration does not say; for nothing else.

    Raises:
        TargetError: The name or file is unknown, or the descriptor is malformed or contradictory; a runtime
            configuration without a base, or a base without one.
    """
    is_configuration = not isinstance(target, Target) and str(target).endswith(".json")
    if is_configuration and base is None:
        raise TargetError(
            "a runtime configuration does not say how the hardware computes",
            where=Path(str(target)).name,
            fix='Name the target that does: load_target("config.json", base="int8_dsp"), or --base int8_dsp.',
        )
    if base is not None:
        if not is_configuration:
            raise TargetError(f"base is given for {target!r}", expected="a runtime configuration in JSON")
        return read_aimet_config(str(target), base)
    if isinstance(target, Target):
        return target
    path = _find(str(target))
    return Target.of(_read(path, ()), path.name)


def _sources() -> dict[str, Path]:
    folder = Path(str(resources.files("qcompiler.targets")))
    found = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    owners = dict.fromkeys(found, "qcompiler")
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        owner = entry.dist.name if entry.dist is not None else entry.value
        if entry.name in owners:
            raise PluginError(f"two targets are called {entry.name!r}", where=f"{owners[entry.name]} and {owner}")
        package = resources.files(entry.value.partition(":")[0])
        found[entry.name] = Path(str(package / f"{entry.name}.toml"))
        owners[entry.name] = owner
    return found


def _find(name: str, beside: Path | None = None) -> Path:
    if name.endswith(".toml"):
        path = Path(name) if beside is None else beside / name
        if not path.is_file():
            raise TargetError(f"there is no file {name!r}", expected="a descriptor in TOML")
        return path
    sources = _sources()
    if name in sources:
        return sources[name]
    near = difflib.get_close_matches(name, sources, n=3)
    raise TargetError(
        f"there is no target {name!r}",
        expected="one of " + ", ".join(sorted(sources)) + ", or the path of a .toml file",
        fix=f"Did you mean {', '.join(near)}?" if near else None,
    )


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise TargetError("descriptors extend each other in a circle", where=" -> ".join(p.name for p in (*seen, path)))
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TargetError(f"not TOML: {error}", where=path.name) from error
    except OSError as error:
        raise TargetError(f"the descriptor cannot be read: {error.strerror}", where=path.name) from error
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise TargetError(f"extends is {base!r}", where=path.name, expected="the name or path of a descriptor")
    merged = _read(_find(base, path.parent), (*seen, path))
    _merge(merged, data)
    return merged


def _merge(base: dict[str, Any], child: dict[str, Any]) -> None:
    """Lay `child` over `base`: tables merge, rules replace those for the same ops, everything else is replaced."""
    for key, value in child.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        elif key in _KEYED_LISTS and isinstance(value, list) and isinstance(base.get(key), list):
            base[key] = _without(base[key], value, _KEYED_LISTS[key]) + value
        else:
            base[key] = value


def _without(rules: list[Any], replacing: list[Any], field: str) -> list[Any]:
    replaced = {name for rule in replacing if isinstance(rule, dict) for name in rule.get(field, ())}
    kept = []
    for rule in rules:
        names = [name for name in rule[field] if name not in replaced]
        if names:
            kept.append({**rule, field: names})
    return kept

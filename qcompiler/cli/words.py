"""Messages in the words of the command line: options in place of arguments of Python functions.

load_target("t").override(per_channel=True)    --set per_channel=true
overrides={'add': 16}                          --override add=16
effort='best'                                  --effort best
calibration_data                               --calibration
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping

OPTIONS: Mapping[str, str] = {
    "calibration_data": "--calibration",
    "overrides": "--override",
    "effort": "--effort",
    "pipeline": "--pipeline",
    "encodings": "--encodings",
    "fixed_inputs": "--fixed-input",
    "io": "--io",
    "seed": "--seed",
    "memory": "--memory",
    "verify": "--verify",
    "output": "--output",
}
"""Option of each argument of `compile`; the others have none."""


def in_options(text: str) -> str:
    """`text` with the spellings of Python replaced by those of the command line."""
    for pattern, spell in _RULES:
        text = pattern.sub(spell, text)
    return text


def _target(match: re.Match[str]) -> str:
    """A call of `override` on a target; unchanged if it is none that `--set` can make."""
    changes = _keywords(match["arguments"])
    return match[0] if changes is None else " ".join(f"--set {key}={_value(value)}" for key, value in changes.items())


def _keywords(text: str) -> dict[str, object] | None:
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        return {str(item.arg): ast.literal_eval(item.value) for item in call.keywords if not call.args} or None
    except (SyntaxError, ValueError):
        return None


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _overrides(match: re.Match[str]) -> str:
    """Bit widths by pattern; `{...: 'float'}`, which leaves the pattern open, becomes a word."""
    try:
        found = ast.literal_eval(match["items"])
    except (SyntaxError, ValueError):
        return match[0]
    return " ".join(f"--override {_pattern(key)}={_widths(value)}" for key, value in found.items())


def _pattern(key: object) -> str:
    text = "PATTERN" if key is ... else str(key)
    return text if re.fullmatch(r"[\w.]+", text) else f"'{text}'"


def _widths(value: object) -> str:
    """The spelling of one width, or of those of activations and weights."""
    if not isinstance(value, Mapping):
        return str(value)
    letters = {"activation_bits": "a", "weight_bits": "w"}
    return "".join(f"{letter}{value[key]}" for key, letter in letters.items() if key in value)


def _option(match: re.Match[str]) -> str:
    return f"{OPTIONS[match['name']]} {match['value']}"


_EXAMPLE = "Give --input-shape, or let the function return the model and its example inputs"
_Spelling = str | Callable[[re.Match[str]], str]
_NAMES = "|".join(OPTIONS)
_RULES: tuple[tuple[re.Pattern[str], _Spelling], ...] = (
    (re.compile(r"unmatched_encodings='ignore', or --ignore-unmatched"), "--ignore-unmatched"),
    (re.compile(r'load_target\("[^"]*", base="(?P<base>\w+)"\), or --base (?P=base)'), r"--base \g<base>"),
    (re.compile(r'(?:load_target\("[^"]*"\)|\btarget)\.override\((?P<arguments>[^()]*)\)'), _target),
    (re.compile(r"\boverrides=(?P<items>\{(?:[^{}]|\{[^{}]*\})*\})"), _overrides),
    (re.compile(rf"\b(?P<name>{_NAMES})=(?P<quote>['\"])(?P<value>[\w.]+)(?P=quote)"), _option),
    (re.compile(r"Pass example_inputs=: .*?(?=\.(?:\s|$))"), _EXAMPLE),
    (re.compile(rf"\b(?P<name>{_NAMES})=(?![\w'\"{{])"), lambda m: OPTIONS[m["name"]]),
    (re.compile(r"\bcalibration_data\b(?!=)"), OPTIONS["calibration_data"]),
    (re.compile(r"\bexample_inputs\b(?!=)"), "example inputs"),
)  # fmt: skip
"""Patterns of Python, and what the command line has for them; earlier ones first."""

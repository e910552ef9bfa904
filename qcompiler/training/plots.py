"""Plots as SVG text, without a plotting library: curves over a common axis, and bars by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bars", "Curves"]

COLOURS = ("#1f6fb4", "#d9662b", "#2f9150", "#8a4fb3", "#b3263d", "#5d6b78", "#a08400", "#007f8c")
"""Of curves and of kinds of bars, in turn. Readable on white, and told apart in grey."""

_STYLE = (
    "<style>text{font:11px system-ui,sans-serif;fill:#333}"
    ".axis{stroke:#888;fill:none}.grid{stroke:#ddd;fill:none}.curve{fill:none;stroke-width:1.4}</style>"
)
_TICKS = 5
"""About how many numbers an axis has."""


@dataclass(frozen=True)
class Curves:
    """Lines over one horizontal axis.

    Args:
        title: Above the plot.
        horizontal: What the horizontal axis counts.
        curves: Points (x, y) by name. Points that are not finite end a line; the next ones begin another.
        width: Pixels.
        height: Pixels.
        numbered: Whether the vertical axis has numbers.
    """

    title: str
    horizontal: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    width: int = 640
    height: int = 260
    numbered: bool = True

    def svg(self) -> str:
        """An `svg` document."""
        points = [point for curve in self.curves.values() for point in curve if all(map(math.isfinite, point))]
        left, top, right, bottom = 56, 30, self.width - 150, self.height - 40
        x_axis = _Axis.of([x for x, _ in points], left, right)
        y_axis = _Axis.of([y for _, y in points], bottom, top)
        parts = [_text(left, 18, self.title)]
        for value in y_axis.ticks() if self.numbered else ():
            y = y_axis.place(value)
            parts.append(f'<path class="grid" d="M{left},{y:.1f}H{right}"/>')
            parts.append(_text(left - 6, y + 4, _number(value), anchor="end"))
        parts += [_text(x_axis.place(x), bottom + 16, _number(x), anchor="middle") for x in x_axis.ticks()]
        parts.append(f'<path class="axis" d="M{left},{top}V{bottom}H{right}"/>')
        parts.append(_text((left + right) / 2, bottom + 32, self.horizontal, anchor="middle"))
        for index, (name, curve) in enumerate(self.curves.items()):
            colour = COLOURS[index % len(COLOURS)]
            path = _path(curve, x_axis, y_axis)
            parts.append(f'<path class="curve" stroke="{colour}" d="{path}"/>')
            y = top + 6 + 16 * index
            parts.append(f'<path class="curve" stroke="{colour}" d="M{right + 12},{y}h18"/>')
            parts.append(_text(right + 36, y + 4, name))
        return _document(self.width, self.height, self.title, parts)


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, one row for each name, one bar in it for each kind.

    Args:
        title: Above the plot.
        names: Of the rows.
        kinds: Numbers of at least 0 by kind, as many as there are names.
        width: Pixels.
    """

    title: str
    names: Sequence[str]
    kinds: Mapping[str, Sequence[float]]
    width: int = 640

    def svg(self) -> str:
        """An `svg` document."""
        thick, gap, top = 8, 8, 52
        row = thick * len(self.kinds) + gap
        left = 20 + 6 * max((len(name) for name in self.names), default=0)
        right = max(self.width - 60, left + 100)
        axis = _Axis.of([0.0, *(value for values in self.kinds.values() for value in values)], left, right)
        parts = [_text(16, 18, self.title)]
        for index, kind in enumerate(self.kinds):
            x = 16 + 110 * index
            parts.append(f'<rect x="{x}" y="28" width="10" height="10" fill="{COLOURS[index % len(COLOURS)]}"/>')
            parts.append(_text(x + 15, 37, kind))
        for place, name in enumerate(self.names):
            y = top + place * row
            parts.append(_text(left - 6, y + (row - gap) / 2 + 4, name, anchor="end"))
            for index, values in enumerate(self.kinds.values()):
                end, upper = axis.place(values[place]), y + index * thick
                colour = COLOURS[index % len(COLOURS)]
                parts.append(
                    f'<rect x="{left}" y="{upper}" width="{end - left:.1f}" height="{thick - 1}" fill="{colour}"/>'
                )
                parts.append(_text(end + 4, upper + 8, _number(values[place])))
        height = top + row * len(self.names) + 8
        parts.append(f'<path class="axis" d="M{left},{top - 4}V{height - 8}"/>')
        return _document(right + 60, height, self.title, parts)


@dataclass(frozen=True)
class _Axis:
    """Numbers low..high on pixels begin..end."""

    low: float
    high: float
    begin: float
    end: float

    @classmethod
    def of(cls, values: Sequence[float], begin: float, end: float) -> _Axis:
        """An axis that holds `values`; where there is one of them, or none, one of length 1."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        return cls(low, high if high > low else low + 1.0, begin, end)

    def place(self, value: float) -> float:
        """Pixel of a number."""
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Round numbers within the axis."""
        rough = (self.high - self.low) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def _path(curve: Sequence[tuple[float, float]], x_axis: _Axis, y_axis: _Axis) -> str:
    parts, begins = [], True
    for x, y in curve:
        if not (math.isfinite(x) and math.isfinite(y)):
            begins = True
            continue
        parts.append(f"{'M' if begins else 'L'}{x_axis.place(x):.1f},{y_axis.place(y):.1f}")
        begins = False
    return "".join(parts)


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _document(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(label)}">{_STYLE}'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )

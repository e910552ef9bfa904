"""Plots as SVG text: curves over a common axis, bars by name, histograms, and points with a front.

matplotlib, in the extra `plots`, is imported only when a plot is drawn. Figures are created without pyplot, and need
no display and leave no global state. The same numbers and the same matplotlib version give the same text. The id of a
curve is its name, the id of a bar is its name and kind. Curves and bars are files with white paper. Histograms and
points usually stand in pages: their text and axes have the colour of the text around, for light and for dark paper.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Bars", "Curves", "Histogram", "Histograms", "Points"]

_INCH = 72.0
"""Points per inch; matplotlib writes one SVG pixel per point."""
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
_GREY = "#888888"
_FILL = "#4a90c2"
_LIMIT = "#d0223c"
_LONGEST_NAME = 40
_INK = "#010203"
"""Stands for the colour of the text around, which matplotlib cannot name."""


@dataclass(frozen=True)
class Curves:
    """Lines over one horizontal axis.

    Args:
        title: Title of the plot.
        horizontal: Label of the horizontal axis.
        curves: Points (x, y) by name of the curve. A point that is not finite interrupts the line.
        width: Width in pixels.
        height: Height in pixels.
        numbered: Whether the vertical axis has numbers.
    """

    title: str
    horizontal: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    width: int = 640
    height: int = 260
    numbered: bool = True

    def svg(self) -> str:
        """An `svg` document.

        Raises:
            InputError: matplotlib is not installed.
        """

        def draw(figure: Figure) -> None:
            axes = figure.add_subplot()
            for name, curve in self.curves.items():
                # NaN makes a gap; an infinity would stretch the axis.
                points = [point if all(map(math.isfinite, point)) else (math.nan, math.nan) for point in curve]
                axes.plot([x for x, _ in points], [y for _, y in points], label=_plain(name), linewidth=1.2, gid=name)
            axes.set_title(_plain(self.title), loc="left")
            axes.set_xlabel(_plain(self.horizontal))
            axes.spines[["top", "right"]].set_visible(False)
            if self.numbered:
                axes.grid(axis="y", color=_GREY, alpha=0.3)
            else:
                axes.set_yticks([])
            if self.curves:
                figure.legend(loc="outside right upper", frameon=False)

        return _drawn(self.width, self.height, draw)


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, one row for each name, one bar in it for each kind.

    Args:
        title: Title of the plot.
        names: Names of the rows, from the top.
        kinds: Values of at least 0 by kind, one per name.
        width: Width in pixels.
    """

    title: str
    names: Sequence[str]
    kinds: Mapping[str, Sequence[float]]
    width: int = 640

    def svg(self) -> str:
        """An `svg` document.

        Raises:
            InputError: matplotlib is not installed.
        """
        thick = 0.8 / max(1, len(self.kinds))

        def draw(figure: Figure) -> None:
            axes = figure.add_subplot()
            for index, (kind, values) in enumerate(self.kinds.items()):
                shift = (index - (len(self.kinds) - 1) / 2) * thick
                places = [row + shift for row in range(len(self.names))]
                bars = axes.barh(places, list(values), height=0.9 * thick, label=_plain(kind))
                for bar, name in zip(bars, self.names, strict=True):
                    bar.set_gid(f"{name} {kind}")
                axes.bar_label(bars, [f"{value:.4g}" for value in values], padding=2, fontsize=8)
            axes.set_yticks(range(len(self.names)), [_plain(name) for name in self.names])
            axes.invert_yaxis()
            axes.margins(x=0.1, y=0.01)
            axes.set_title(_plain(self.title), loc="left")
            axes.spines[["top", "right"]].set_visible(False)
            figure.legend(loc="outside lower left", ncols=max(1, len(self.kinds)), frameon=False)

        return _drawn(self.width, 90 + len(self.names) * (8 + 10 * len(self.kinds)), draw)


@dataclass(frozen=True)
class Histogram:
    """The counts of a tensor.

    Args:
        name: Name of the tensor, which is the id of its plot.
        counts: Counts in bins of equal width over `reach`.
        reach: Smallest and largest number.
        limits: Smallest and largest number of the grid: numbers outside are clipped.
        note: Text under the name.
    """

    name: str
    counts: Sequence[int]
    reach: tuple[float, float]
    limits: tuple[float, float]
    note: str = ""


@dataclass(frozen=True)
class Histograms:
    """Histograms side by side, with logarithmic counts and the limits of their grids as lines.

    Args:
        parts: The histograms, row by row.
        columns: Number of histograms in a row.
        width: Width in pixels.
    """

    parts: Sequence[Histogram]
    columns: int = 3
    width: int = 960

    def svg(self) -> str:
        """An `svg` document.

        Raises:
            InputError: matplotlib is not installed.
        """
        rows = max(1, -(-len(self.parts) // self.columns))

        def draw(figure: Figure) -> None:
            for place, part in enumerate(self.parts):
                axes = figure.add_subplot(rows, self.columns, place + 1)
                low, high = part.reach
                step = (high - low) / len(part.counts) or 1.0
                edges = [low + step * index for index in range(len(part.counts) + 1)]
                axes.stairs(list(part.counts), edges, fill=True, color=_FILL, gid=part.name)
                for end in part.limits:
                    axes.axvline(end, color=_LIMIT, linewidth=1.0, linestyle="--")
                if max(part.counts, default=0) > 0:
                    axes.set_yscale("log")
                axes.set_yticks([], minor=False)
                axes.set_yticks([], minor=True)
                axes.set_title(
                    _plain("\n".join(filter(None, (_shortened(part.name), part.note)))), loc="left", fontsize=8
                )
                axes.tick_params(labelsize=7)
                axes.spines[["top", "right", "left"]].set_visible(False)

        return _drawn(self.width, 130 * rows, draw, in_page=True)


@dataclass(frozen=True)
class Points:
    """Points by name of a group, and a front: the best point of each budget, as a staircase.

    Args:
        title: Title of the plot.
        horizontal: Label of the horizontal axis.
        vertical: Label of the vertical axis.
        groups: Points (x, y) by name of the group, which is its id.
        front: Points that no other point dominates, by rising x; empty for none.
        width: Width in pixels.
        height: Height in pixels.
        in_page: Whether the plot stands in a page, and is no file by itself.
    """

    title: str
    horizontal: str
    vertical: str
    groups: Mapping[str, Sequence[tuple[float, float]]]
    front: Sequence[tuple[float, float]] = ()
    width: int = 640
    height: int = 320
    in_page: bool = True

    def svg(self) -> str:
        """An `svg` document.

        Raises:
            InputError: matplotlib is not installed.
        """

        def draw(figure: Figure) -> None:
            axes = figure.add_subplot()
            if self.front:
                axes.step(
                    [x for x, _ in self.front], [y for _, y in self.front], where="post", color=_GREY, gid="front"
                )
            for name, points in self.groups.items():
                finite = [point for point in points if all(map(math.isfinite, point))]
                places = [x for x, _ in finite], [y for _, y in finite]
                axes.plot(*places, "o", markersize=5, label=_plain(name), gid=name)
            axes.set_title(_plain(self.title), loc="left")
            axes.set_xlabel(_plain(self.horizontal))
            axes.set_ylabel(_plain(self.vertical))
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color=_GREY, alpha=0.3)
            figure.legend(loc="outside lower left", ncols=max(1, len(self.groups)), frameon=False)

        return _drawn(self.width, self.height, draw, in_page=self.in_page)


def _drawn(width: float, height: float, draw: Callable[[Figure], None], *, in_page: bool = False) -> str:
    """SVG text of a figure of the given size, in pixels, filled by `draw`."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "plots need matplotlib, which is not installed", fix="Run `pip install 'qcompiler[plots]'`."
        ) from error
    with mpl.rc_context():
        mpl.rcdefaults()  # ignore the settings of the user
        mpl.rcParams.update(
            {
                "svg.hashsalt": "qcompiler",  # deterministic ids
                "svg.fonttype": "none",  # text stays text: searchable and accessible
                "font.size": 9.0,
                "path.simplify": False,  # keep every point of a staircase
            }
        )
        if in_page:
            mpl.rcParams.update({"text.color": _INK, "axes.edgecolor": _INK, "axes.labelcolor": _INK})
            mpl.rcParams.update({"xtick.color": _INK, "ytick.color": _INK})
        figure = Figure(figsize=(width / _INCH, height / _INCH), layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=_NO_METADATA, transparent=in_page)
    # Drop the XML prolog, so that the text can be embedded in a page, and trailing blanks.
    _, opening, rest = text.getvalue().partition("<svg")
    return "".join(f"{line.rstrip()}\n" for line in (opening + rest).replace(_INK, "currentColor").splitlines())


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _plain(text: str) -> str:
    """Text with dollar signs escaped, so that matplotlib does not parse a formula."""
    return text.replace("$", r"\$")

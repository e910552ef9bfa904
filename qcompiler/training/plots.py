"""Plots as SVG text: curves over a common axis, and bars by name.

matplotlib draws them. It is not needed to train, and so belongs to the extra `plots` and is imported where something is
drawn. A figure is made by hand and not through pyplot: no display, no state that outlasts the call. The same numbers
give the same text, on every machine that has the same matplotlib. Curves have their name as their id, bars name and
kind.
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

__all__ = ["Bars", "Curves"]

_INCH = 72.0
"""Points, which are the pixels of an SVG that matplotlib writes."""
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
_GREY = "#888888"


@dataclass(frozen=True)
class Curves:
    """Lines over one horizontal axis.

    Args:
        title: Above the plot.
        horizontal: What the horizontal axis counts.
        curves: Points (x, y) by name. A point that is not finite ends a line; the next ones begin another.
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
        """An `svg` document.

        Raises:
            InputError: matplotlib is not installed.
        """

        def draw(figure: Figure) -> None:
            axes = figure.add_subplot()
            for name, curve in self.curves.items():
                # A gap is a not-a-number; an infinity would stretch the axis.
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
        title: Above the plot.
        names: Of the rows, from the top.
        kinds: Numbers of at least 0 by kind, as many as there are names.
        width: Pixels.
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


def _drawn(width: float, height: float, draw: Callable[[Figure], None]) -> str:
    """What `draw` puts on an empty sheet of so many pixels."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "plots are drawn by matplotlib, which is not installed", fix="pip install 'qcompiler[plots]'"
        ) from error
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever this machine or its user has set
        mpl.rcParams.update(
            {
                "svg.hashsalt": "qcompiler",  # else the ids of its parts are drawn by chance
                "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
                "font.size": 9.0,
                "path.simplify": False,  # what is a staircase stays one
            }
        )
        figure = Figure(figsize=(width / _INCH, height / _INCH), layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=_NO_METADATA)
    # Without what stands in front of the picture, so that it may be put into a page, and without blanks at line ends.
    _, opening, rest = text.getvalue().partition("<svg")
    return "".join(f"{line.rstrip()}\n" for line in (opening + rest).splitlines())


def _plain(text: str) -> str:
    """Text in which a dollar does not begin a formula."""
    return text.replace("$", r"\$")

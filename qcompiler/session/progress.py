"""Progress display on stderr, active only if stderr is a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


class Steps:
    """The steps of a compile: displays the current step and records the seconds of each.

    Args:
        total: Number of steps.
        display: Progress display; None: no display.
    """

    def __init__(self, total: int, display: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        """Wall-clock seconds by name of the step, summed over steps of the same name."""
        self._display = display
        self._task = None if display is None else display.add_task("", total=total)
        self._begun = time.perf_counter()
        self._inner = None if display is None else display.add_task("", total=None, visible=False)

    def within(self, name: str, done: float, total: float) -> None:
        """Show the progress of the current step: `done` of `total` in any unit, now at `name`; total 0 is unknown."""
        if self._display is None or self._inner is None:
            return
        if not done:
            self._display.reset(self._inner, visible=True)
        self._display.update(self._inner, description=f"  {name}", completed=done, total=total or None)

    def finished(self, name: str) -> None:
        """Record the end of the step `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._begun
        self._begun = now
        if self._display is not None and self._task is not None:
            self._display.update(self._task, advance=1, description=name)
        if self._display is not None and self._inner is not None:
            self._display.update(self._inner, visible=False)


@contextlib.contextmanager
def steps(total: int, *, show: bool = True) -> Iterator[Steps]:
    """Show the progress of `total` steps and the remaining time on stderr while the block runs."""
    if not show or not sys.stderr.isatty():
        yield Steps(total, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as display:
        yield Steps(total, display)

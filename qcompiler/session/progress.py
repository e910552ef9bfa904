"""Progress of long work on the terminal: silent where stderr is none, and out of the way of what is printed."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


class Steps:
    """The steps of one piece of work: shows the current one, and keeps the seconds that each took.

    Args:
        total: Number of steps.
        display: Where to show them, None for nowhere.
    """

    def __init__(self, total: int, display: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        """Wall-clock seconds by name of the step; those of one name add up."""
        self._display = display
        self._task = None if display is None else display.add_task("", total=total)
        self._begun = time.perf_counter()
        self._inner = None if display is None else display.add_task("", total=None, visible=False)

    def within(self, name: str, done: float, total: float) -> None:
        """Show how far the current step is: `done` of `total` in any unit, now at `name`. A total of 0: unknown."""
        if self._display is None or self._inner is None:
            return
        if not done:
            self._display.reset(self._inner, visible=True)
        self._display.update(self._inner, description=f"  {name}", completed=done, total=total or None)

    def finished(self, name: str) -> None:
        """Note that the step `name` has just ended."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._begun
        self._begun = now
        if self._display is not None and self._task is not None:
            self._display.update(self._task, advance=1, description=name)
        if self._display is not None and self._inner is not None:
            self._display.update(self._inner, visible=False)


@contextlib.contextmanager
def steps(total: int, *, show: bool = True) -> Iterator[Steps]:
    """Show the progress of `total` steps, and the time that is left, on stderr while the block runs."""
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

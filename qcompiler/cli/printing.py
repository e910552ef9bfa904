"""Printing of results, for people and for machines."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

import typer


def say(text: str) -> None:
    """Print to stderr; ignore a closed stream."""
    with contextlib.suppress(OSError):
        typer.echo(text, err=True)


def one_line(error: BaseException) -> str:
    """The message of an error in one line."""
    return " ".join(str(error).split())


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns of whole numbers are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(head):
        numbers = bool(rows) and all(isinstance(row[index], int) or row[index] == "" for row in rows)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a pipe has no width; folded lines would be hard to parse
    console.print(table)


def print_json(data: object) -> None:
    """Print plain data as JSON."""
    typer.echo(json.dumps(data, indent=1))

"""Accuracy of a network or an integer program, finished cells in files, and the tables made of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import qcompiler
from qcompiler.errors import ArtifactError, InputError, VerificationError

__all__ = [
    "Accuracy",
    "Json",
    "Line",
    "Place",
    "Sheet",
    "Store",
    "accuracy",
    "key",
    "program",
    "shipped",
    "slug",
    "write",
]

Json = dict[str, Any]
Place = Sequence[str]
"""Names of the cells whose mean stands in one place of a table: one cell per seed."""
FEW = 5
"""Number of answers of which one must be right in top-5."""


@dataclass(frozen=True)
class Accuracy:
    """Counts of right answers.

    Args:
        first: Images whose largest output is that of the label.
        few: Images whose label is among the five largest outputs.
        images: Number of images.
    """

    first: int
    few: int
    images: int

    def record(self) -> Json:
        """Shares from 0 to 1, and the number of images."""
        return {"top1": self.first / self.images, "top5": self.few / self.images, "images": self.images}


@torch.no_grad()
def accuracy(run: Callable[[Tensor], object], data: Iterable[tuple[Tensor, Tensor]]) -> Accuracy:
    """Count right answers; of equal outputs the one with the lower index counts as larger.

    Codes are often equal, so the order of equal outputs must not depend on a sorting algorithm.
    """
    first = few = images = 0
    for inputs, labels in data:
        logits = run(inputs)
        assert isinstance(logits, Tensor)
        logits = logits.detach().cpu()
        own = logits.gather(1, labels[:, None])
        before = torch.arange(logits.shape[1]) < labels[:, None]
        rank = ((logits > own) | ((logits == own) & before)).sum(1)
        first, few, images = first + int((rank < 1).sum()), few + int((rank < FEW).sum()), images + len(labels)
    return Accuracy(first, few, images)


def program(compiled: qcompiler.Compiled, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The function that evaluates an integer program.

    On the CPU the program itself runs. On another device its exact simulation runs, which gives the same bits; for the
    first batch both run.

    Raises:
        VerificationError: The simulation on the device differs from the program.
    """

    def run(images: Tensor) -> Tensor:
        logits = compiled.run(images)
        assert isinstance(logits, Tensor)
        return logits

    if device.type == "cpu":
        return run
    module = compiled.module().to(device).eval()
    checked = False

    def simulate(images: Tensor) -> Tensor:
        nonlocal checked
        found = module(images.to(device))
        assert isinstance(found, Tensor)
        logits = found.cpu()
        if not checked:
            differing = int((logits != run(images)).sum())
            if differing:
                found_text = f"{differing:,} of {logits.numel():,} outputs differ between {device} and the program"
                raise VerificationError(found_text, expected="equal bits", fix="Use --device cpu.")
            checked = True
        return logits

    return simulate


class Store:
    """Finished cells: a JSON file each, so that several processes can share a folder.

    Args:
        folder: Folder of the files.
        fresh: Whether cells of earlier calls count for nothing.
    """

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        self.folder, self.fresh = folder, fresh
        self._made: set[str] = set()

    def path(self, name: str) -> Path:
        """File of a cell."""
        return self.folder / f"{name}.json"

    def find(self, name: str) -> Json | None:
        """A finished cell; None if there is none.

        Raises:
            ArtifactError: The file is damaged.
        """
        if self.fresh and name not in self._made:
            return None
        try:
            found: Json = json.loads(self.path(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            fix = "Remove it to measure this cell again."
            raise ArtifactError(f"the finished cell {self.path(name)} cannot be read: {error}", fix=fix) from None
        return found

    def put(self, name: str, found: Json) -> None:
        """Keep a finished cell."""
        write(self.path(name), json.dumps(found, indent=1) + "\n")
        self._made.add(name)


def write(path: Path, content: str | bytes) -> None:
    """Write a file in one step: a reader or a killed run finds the complete old or new file.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.new")
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}", fix="Choose another --output.") from None


def slug(*parts: object) -> str:
    """A name for files: letters, digits, points and underscores, parts joined by hyphens."""
    words = ("_".join("".join(c if c.isalnum() or c == "." else " " for c in str(part)).split()) for part in parts)
    return "-".join(words)


def key(*parts: object) -> str:
    """Hash of everything on which a result depends, 12 hexadecimal digits."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Args:
        labels: Text on the left.
        places: Cells of each column.
    """

    labels: tuple[str, ...]
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Sheet:
    """A table of accuracies.

    Args:
        title: Title.
        about: A sentence or two below the title.
        labels: Headings of the text on the left.
        columns: Headings of the cells.
        lines: Lines.
        figures: Figure of a cell that each column shows; empty: `top1`.
    """

    title: str
    about: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    figures: tuple[str, ...] = ()

    def names(self) -> Iterator[str]:
        """Names of all cells, line by line."""
        for line in self.lines:
            for place in line.places:
                yield from place

    def text(self, found: Mapping[str, Json]) -> str:
        """The table as Markdown."""
        head = [f"| {' | '.join((*self.labels, *self.columns))} |", f"|{'---|' * len(self.labels)}"]
        head[1] += "---:|" * len(self.columns)
        notes: dict[str, None] = {}
        rows = []
        for line in self.lines:
            cells = []
            figures = self.figures or ("top1",) * len(self.columns)
            for place, column, figure in zip(line.places, self.columns, figures, strict=True):
                cells.append(_shown(place, found, figure))
                reasons = (found[name]["error"] for name in place if "error" in found.get(name, {}))
                notes |= {f"{' '.join((*line.labels, column))}: {reason}.": None for reason in reasons}
            rows.append(f"| {' | '.join((*line.labels, *cells))} |")
        return "\n".join([f"### {self.title}", "", self.about, "", *head, *rows, *(f"\n{note}" for note in notes)])


def _shown(place: Place, found: Mapping[str, Json], figure: str) -> str:
    cells = [found[name] for name in place if name in found]
    values = [100.0 * item[figure] for item in cells if item.get(figure) is not None]
    if len(values) < len(place):
        return "–" if len(cells) == len(place) else "..."
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.2f}"
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return f"{mean:.2f} ({spread:.2f})"


def shipped(sheets: Sequence[Sheet], store: Store, output: Path, name: str, heading: str) -> str:
    """Write the tables and the cells of finished work to `output`, and return the tables.

    Args:
        sheets: Tables.
        store: Finished cells.
        output: Folder of `<name>.md` and `<name>.json`.
        name: Name of the files.
        heading: Text before the tables.
    """
    names = dict.fromkeys(item for sheet in sheets for item in sheet.names())
    cells = {item: found for item in names if (found := store.find(item)) is not None}
    text = "\n\n".join([heading, *(sheet.text(cells) for sheet in sheets)]) + "\n"
    write(output / f"{name}.md", text)
    # Times differ from run to run; without them an interrupted run ends in the same bytes.
    kept = {item: {k: v for k, v in found.items() if k != "seconds"} for item, found in cells.items()}
    tables = [dataclasses.asdict(sheet) for sheet in sheets]
    write(output / f"{name}.json", json.dumps({"tables": tables, "cells": kept}, indent=1) + "\n")
    return text

"""Positions of the keys in a TOML text, which Python's reader does not report.

The text has already been read by `tomllib`, so it is known to be TOML; only lines have to be counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Spot", "find_spots"]

Key = Sequence[str | int]

_BARE_END = " \t\r\n=.]"
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "\\": "\\"}


@dataclass
class Spot:
    """Position of a key, or of an element of a list.

    Args:
        file: Name of the file.
        line: Line number, from 1.
        children: Positions of the contained keys or elements, by key or by index.
    """

    file: str
    line: int
    children: dict[str | int, Spot] = field(default_factory=dict)

    def find(self, key: Key) -> Spot:
        """The spot of `key`, or of its longest existing prefix."""
        spot = self
        for part in key:
            if part not in spot.children:
                return spot
            spot = spot.children[part]
        return spot

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def find_spots(text: str, file: str) -> Spot:
    """The spots of all keys of a TOML document.

    Args:
        text: TOML that `tomllib` has read.
        file: Name of the file.
    """
    return _Scanner(text, file).document()


class _Scanner:
    def __init__(self, text: str, file: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.file = file
        self.at = 0

    def spot(self) -> Spot:
        return Spot(self.file, self.text.count("\n", 0, self.at) + 1)

    def document(self) -> Spot:
        root = table = Spot(self.file, 1)
        while self.skip("\n"):
            if self.text.startswith("[", self.at):
                table = self.header(root)
            else:
                self.pair(table)
        return root

    def skip(self, also: str = "") -> bool:
        """Skip blanks and comments; return whether any text is left."""
        while self.at < len(self.text):
            if self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif self.text[self.at] in " \t\r" + also:
                self.at += 1
            else:
                return True
        return False

    def header(self, root: Spot) -> Spot:
        """`[a.b]` or `[[a.b]]`: the table of the following pairs."""
        place, many = self.spot(), self.text.startswith("[[", self.at)
        self.at += 1 + many
        *parents, last = self.key()
        self.at += 1 + many
        table = root
        for part in parents:
            table = _latest(table.children.setdefault(part, Spot(place.file, place.line)))
        if not many:
            return table.children.setdefault(last, place)
        rows = table.children.setdefault(last, Spot(place.file, place.line)).children
        return rows.setdefault(len(rows), place)

    def pair(self, table: Spot) -> None:
        """`a.b = value`."""
        place = self.spot()
        *parents, last = self.key()
        for part in parents:
            table = table.children.setdefault(part, Spot(place.file, place.line))
        self.at += 1  # the equals sign
        self.value(table.children.setdefault(last, place))

    def key(self) -> list[str]:
        """The parts of a key; moves past the key and blanks."""
        parts = []
        while True:
            self.skip()
            if self.text[self.at] in "\"'":
                parts.append(self.string())
            else:
                begin = self.at
                while self.text[self.at] not in _BARE_END:
                    self.at += 1
                parts.append(self.text[begin : self.at])
            self.skip()
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def value(self, place: Spot) -> None:
        """Scan a value; enter contained positions into `place`."""
        self.skip()
        first = self.text[self.at]
        if first in "\"'":
            self.string()
        elif first == "[":
            self.elements(place, "]")
        elif first == "{":
            self.elements(place, "}")
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}\n#":
                self.at += 1

    def elements(self, place: Spot, end: str) -> None:
        """Elements of a list, or pairs of an inline table."""
        self.at += 1
        while self.skip("\n,") and self.text[self.at] != end:
            if end == "}":
                self.pair(place)
            else:
                self.value(place.children.setdefault(len(place.children), self.spot()))
        self.at += 1

    def string(self) -> str:
        """A string of any of the four kinds, as it stands but for the common escapes."""
        quote = self.text[self.at]
        closing = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self.at += len(closing)
        content = ""
        while not self.text.startswith(closing, self.at):
            if quote == '"' and self.text[self.at] == "\\":
                self.at += 1
                content += _ESCAPES.get(self.text[self.at], self.text[self.at])
            else:
                content += self.text[self.at]
            self.at += 1
        self.at += len(closing)
        # A string of several lines may end in one or two quotes of its own.
        while len(closing) == 3 and self.text.startswith(quote, self.at):
            self.at += 1
        return content


def _latest(spot: Spot) -> Spot:
    """The last table of an array of tables, or the table itself."""
    rows: Mapping[str | int, Spot] = spot.children
    return rows[len(rows) - 1] if rows and len(rows) - 1 in rows else spot

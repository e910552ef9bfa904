"""The parts of a run that several processes share."""

from __future__ import annotations

import argparse

__all__ = ["shard"]


def shard(text: str) -> tuple[int, int]:
    """Index, from 0, and number of the parts of a run, for argparse.

    Args:
        text: `1/2` for the first of two parts.

    Raises:
        ArgumentTypeError: The text is no part of a run.
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part of a run: expected 1/2 for the first of two")
    return int(part) - 1, int(parts)

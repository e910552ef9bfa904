"""The work folder of an analysis: finished measurements, so that a killed analysis goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from qcompiler.calibration.journal import Journal
from qcompiler.errors import ArtifactError
from qcompiler.ir.hashing import tensor_digest
from qcompiler.storage.destination import PIECE, resolved

__all__ = ["digest_of", "work_journal"]

SHOWN = 3
"""Foreign files that an error names."""


def work_journal(work: str | Path | None) -> Journal:
    """The journal in a work folder; one that keeps nothing for None.

    Args:
        work: Folder that does not exist, is empty, or holds the measurements of an earlier call.

    Raises:
        ArtifactError: The path holds anything else.
    """
    if work is None:
        return Journal()
    folder = resolved(work)
    if folder.exists():
        foreign = ["it is no folder"] if not folder.is_dir() else _foreign(folder)
        if foreign:
            raise ArtifactError(
                f"{folder} is not the work folder of an analysis: {', '.join(foreign)}",
                expected="a new folder, or that of an earlier call",
                fix="Choose another folder.",
            )
    return Journal(folder)


def _foreign(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if not PIECE.fullmatch(entry.name))
    return [*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])]


def digest_of(batches: Iterable[Sequence[Tensor]]) -> str:
    """A digest of data, for the keys of a journal."""
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in batch:
            digest.update(tensor_digest(tensor).encode())
    return digest.hexdigest()

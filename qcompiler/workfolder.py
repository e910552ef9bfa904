"""The folder beside an artifact where it is made, and where what long steps have finished waits for the next try.

    out.work/finished/    the journal of a compile that runs, or that was ended
             artifact/    files before the one rename that makes them `out/`

It goes when the artifact is there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from qcompiler.errors import ArtifactError

PARTS = ("artifact", "finished")


class WorkFolder:
    """The work folder of the artifact folder `output`."""

    def __init__(self, output: str | Path) -> None:
        output = Path(output)
        self.path = output.with_name(output.name + ".work")

    @property
    def finished(self) -> Path:
        """For the journal."""
        return self.path / "finished"

    @property
    def artifact(self) -> Path:
        """For the files of the artifact."""
        return self.path / "artifact"

    def check(self) -> None:
        """Refuse what somebody else put there.

        Raises:
            ArtifactError: There is a file, or a folder that holds anything but ours.
        """
        if not self.path.exists():
            return
        foreign = not self.path.is_dir() or any(entry.name not in PARTS for entry in self.path.iterdir())
        if foreign:
            raise ArtifactError(
                f"{self.path} exists and is no work folder of a compile",
                expected="nothing there, or what a compile that was ended left",
                fix="Choose another output, or remove it.",
            )

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.path, ignore_errors=True)

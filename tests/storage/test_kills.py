"""Processes that are killed while they write: see `tests.support.kills`, which does the same by the hundred."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_what_is_killed_leaves_the_whole_old_or_new_artifact() -> None:
    command = [sys.executable, "-m", "tests.support.kills", "--count", "20", "--seed", "2"]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(re.findall(r"^(?:.*, )?20 killed, ", result.stdout, re.MULTILINE)) == 2, result.stdout
    assert len(re.findall(r"^0 faults$", result.stdout, re.MULTILINE)) == 2, result.stdout
    assert "went on from finished pieces" in result.stdout


@pytest.mark.slow
def test_of_writers_at_once_one_writes_and_the_others_are_told() -> None:
    command = [sys.executable, "-m", "tests.support.kills", "--writers", "12"]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (told|written)", result.stdout)}
    # One that waits while the first one ends may write after it.
    assert sum(counts.values()) == 12 and counts["told"] >= 6, result.stdout

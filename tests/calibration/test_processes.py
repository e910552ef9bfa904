"""Several processes at one compile: who has what, sums in one order, and the same files as one process writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qcompiler.calibration.processes import SHARDS, Processes
from tests.calibration import together

ROOT = Path(__file__).parents[2]


@given(index=st.integers(0, 100), count=st.integers(1, 12))
def test_each_piece_of_work_has_one_owner(index: int, count: int) -> None:
    owners = [rank for rank in range(count) if Processes(rank, count).owns(index)]
    assert owners == [Processes(0, count).owner(index)]


@given(batches=st.integers(1, 40))
def test_a_sum_is_that_of_the_shards_along_one_tree(batches: int) -> None:
    generator = torch.Generator().manual_seed(batches)
    parts = [torch.randn(5, generator=generator) for _ in range(batches)]
    (found,) = Processes().sum(batches, lambda index: [parts[index]])
    shards: list[Tensor | None] = []
    for shard in range(SHARDS):
        total: Tensor | None = None
        for part in parts[shard::SHARDS]:
            total = part if total is None else total + part
        shards.append(total)
    while len(shards) > 1:
        pairs = zip(shards[::2], shards[1::2], strict=True)
        shards = [a if b is None else b if a is None else a + b for a, b in pairs]
    assert shards[0] is not None
    assert torch.equal(found, shards[0])
    torch.testing.assert_close(found, torch.stack(parts).sum(0))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of three processes that were started as torchrun does."""
    folder = tmp_path_factory.mktemp("together")
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", "-m"]
    found = subprocess.run(
        [*command, together.__name__, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["3.0", "3.1", "3.2", "best", "default"]
    return folder


def test_sums_over_processes_have_the_same_bits(written: Path) -> None:
    parts = together.parts()
    one = Processes().sum(11, lambda index: [parts[index], parts[index][:, 0].double()])
    for name in ("3.0", "3.1", "3.2"):
        assert all(torch.equal(a, b) for a, b in zip(one, torch.load(written / name), strict=True)), name


def test_three_processes_write_the_files_that_one_writes(written: Path, tmp_path: Path) -> None:
    """The one has two threads; of several, each has one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together.compile_into(str(tmp_path))
    finally:
        torch.set_num_threads(threads)
    for name in ("default", "best"):
        assert contents(tmp_path / name) == contents(written / name)


def contents(folder: Path) -> dict[str, bytes]:
    """By path within a folder, the bytes of each file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

"""Several processes at one compile: who has what, sums in one order, and the same files as one process writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qcompiler.calibration.processes import SHARDS, Processes

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


SUM = """
import sys, torch
from qcompiler.calibration.processes import processes
with processes() as group:
    parts = [torch.randn(3, 4, generator=torch.Generator().manual_seed(i)) for i in range(11)]
    seen = []
    def part(index):
        seen.append(index)
        return [parts[index], parts[index][:, 0].double()]
    total = group.sum(11, part)
    assert seen == sorted(seen, key=lambda i: (i % 8, i)) and all(group.owns(i) for i in seen), seen
    assert len(seen) < 11 or group.count == 1
    assert group.gather(group.rank) == list(range(group.count))
    torch.save(total, f"{sys.argv[1]}/{group.count}.{group.rank}")
"""

COMPILE = """
import sys, torch
import qcompiler
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
).eval()
batches = [torch.randn(4, 3, 8, 8) for _ in range(5)]
for effort in ("default", "best"):
    target = qcompiler.load_target("int8_dsp").override(weight_bits=4)
    out = f"{sys.argv[1]}/{effort}"
    compiled = qcompiler.compile(net, target, calibration_data=batches, effort=effort, output=out)
    assert qcompiler.load(out).files() == compiled.artifact.files()
"""


def launch(script: str, count: int, folder: Path) -> None:
    """Run `script` in `count` processes, as torchrun does."""
    path = folder / "script.py"
    path.write_text(script)
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", str(path)]
    found = subprocess.run(
        [*command, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr


def test_sums_over_processes_have_the_same_bits(tmp_path: Path) -> None:
    parts = [torch.randn(3, 4, generator=torch.Generator().manual_seed(i)) for i in range(11)]
    one = Processes().sum(11, lambda index: [parts[index], parts[index][:, 0].double()])
    launch(SUM, 3, tmp_path)
    for name in ("3.0", "3.1", "3.2"):
        assert all(torch.equal(a, b) for a, b in zip(one, torch.load(tmp_path / name), strict=True)), name


def test_two_processes_write_the_files_that_one_writes(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for count, folder in enumerate(folders, start=1):
        folder.mkdir()
        launch(COMPILE, count, folder)
        assert sorted(path.name for path in folder.iterdir()) == ["best", "default", "script.py"]
    for name in ("default", "best"):
        files = [contents(folder / name) for folder in folders]
        assert files[0] == files[1]


def contents(folder: Path) -> dict[str, bytes]:
    """By path within a folder, the bytes of each file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

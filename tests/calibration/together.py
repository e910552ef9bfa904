"""Work that several processes share: `torchrun --nproc-per-node=3 -m tests.calibration.together FOLDER`."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.calibration.processes import processes


def parts() -> list[Tensor]:
    """The statistics of eleven batches."""
    return [torch.randn(3, 4, generator=torch.Generator().manual_seed(i)) for i in range(11)]


def compile_into(folder: str) -> None:
    """Compile a network with each effort, into folders of their names."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()]
    net = nn.Sequential(*stem, nn.Flatten(), nn.Linear(128, 4)).eval()
    batches = [torch.randn(4, 3, 8, 8) for _ in range(5)]
    target = qcompiler.load_target("int8_dsp").override(weight_bits=4)
    for effort in ("default", "best"):
        out = f"{folder}/{effort}"
        compiled = qcompiler.compile(net, target, calibration_data=batches, effort=effort, output=out)
        assert qcompiler.load(out).files() == compiled.artifact.files()


def main(folder: str) -> None:
    """Add up what the batches give, into a file for each process, and compile."""
    with processes() as group:
        seen: list[int] = []

        def part(index: int) -> list[Tensor]:
            seen.append(index)
            return [parts()[index], parts()[index][:, 0].double()]

        total = group.sum(11, part)
        assert seen == sorted(seen, key=lambda i: (i % 8, i)) and all(group.owns(i) for i in seen), seen
        assert len(seen) < 11
        assert group.gather(group.rank) == list(range(group.count))
        torch.save(total, f"{folder}/{group.count}.{group.rank}")
    compile_into(folder)


if __name__ == "__main__":
    main(sys.argv[1])

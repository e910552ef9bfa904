"""Two processes that learn together end with the same scales and the same statistics."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]

LEARN = """
import sys, torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
import qcompiler
from qcompiler.training.freezing import Freezing, Tracking
from tests.training.networks import INPUTS, LABELS, small

dist.init_process_group("gloo")
rank = dist.get_rank()
target = qcompiler.load_target("int8_dsp_per_channel").override(weight_bits=3)
module = qcompiler.prepare_qat(
    small(), target, calibration_data=[INPUTS], batch_norm=sys.argv[2], method="lsq+",
    freezing=Freezing(0.02, Tracking(momentum=0.1)),
)
parallel = DistributedDataParallel(module)
optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05, momentum=0.9)
mine = slice(12 * rank, 12 * rank + 12)
for _ in range(8):
    optimizer.zero_grad()
    loss = functional.cross_entropy(parallel(INPUTS[mine]), LABELS[mine]) + module.regularization()
    loss.backward()
    optimizer.step()
    module.step()
if sys.argv[2] != "fold":
    # Three batches of rank 0, one of rank 1.
    batches = list(INPUTS[mine].split(6 if rank else 4))[: 3 - 2 * rank]
    assert qcompiler.reestimate_batch_norm(parallel, batches) == 4
save_file({name: item.contiguous() for name, item in module.state_dict().items()}, f"{sys.argv[1]}/{rank}")
module.eval()
result = parallel(INPUTS)
compiled = qcompiler.compile(parallel)
assert torch.equal(compiled.run(INPUTS), result)
torch.save(result, f"{sys.argv[1]}/result{rank}")
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    "style", [pytest.param("fold", marks=pytest.mark.slow), "keep", pytest.param("double", marks=pytest.mark.slow)]
)
def test_two_processes_agree_to_the_bit(style: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LEARN, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    found = subprocess.run(
        [*command, str(tmp_path), style], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    first, second = (load_file(tmp_path / str(rank)) for rank in (0, 1))
    assert list(first) == list(second)
    assert any("scale" in name for name in first)
    assert any(name.endswith("oscillation.frequency") and bool(item.any()) for name, item in first.items())
    assert ("stem.1.running_mean" in first) == (style != "fold")
    for name, item in first.items():
        assert torch.equal(item, second[name]), name
    results = [torch.load(tmp_path / f"result{rank}") for rank in (0, 1)]
    assert torch.equal(*results)

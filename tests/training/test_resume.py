"""A run that was killed goes on from its checkpoint with the losses of one that was not."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import qcompiler
from qcompiler.training.batch_norm import Style
from qcompiler.training.freezing import Freezing, Tracking
from qcompiler.training.regularizers import Dampening, Weighted
from qcompiler.training.schedules import Cosine
from tests.training.networks import INPUTS, LABELS, small

ROOT = Path(__file__).parents[2]
STEPS = 6


def prepared(style: Style = "keep", seed: int = 0) -> qcompiler.QATModule:
    """With all that has a state: dropout, chance, frequencies, frozen codes, schedules, running statistics."""
    return qcompiler.prepare_qat(
        small(dropout=0.3, seed=seed),
        qcompiler.load_target("int8_dsp_per_channel").override(weight_bits=3),
        calibration_data=[INPUTS[: 12 + seed]],
        method={"weights": "stochastic", "activations": "lsq+"},
        batch_norm=style,
        regularizers=[Weighted(Dampening(), Cosine(0.0, 0.1))],
        freezing=Freezing(Cosine(0.1, 0.02, begin=0.0), Tracking(momentum=0.2)),
        total_steps=STEPS,
    )


class Run:
    """A training whose whole state is one dictionary."""

    def __init__(self, module: qcompiler.QATModule) -> None:
        self.module = module
        groups = [dict(group) for group in module.parameter_groups(lr=0.03, scale_lr=1e-3)]
        self.optimizer = torch.optim.SGD(groups, momentum=0.9)
        self.losses: list[float] = []

    def step(self) -> None:
        step = int(self.module.steps)
        chosen = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(step))[:12]
        self.optimizer.zero_grad()
        logits = self.module(INPUTS[chosen])
        loss = functional.cross_entropy(logits, LABELS[chosen]) + self.module.regularization()
        loss.backward()
        self.optimizer.step()
        self.module.step()
        self.losses.append(float(loss.detach()))

    def state(self) -> dict[str, Any]:
        return {
            "module": {name: item.clone() for name, item in self.module.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "losses": list(self.losses),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.losses = list(state["losses"])


@pytest.mark.parametrize(
    "style", [pytest.param("fold", marks=pytest.mark.slow), "keep", pytest.param("double", marks=pytest.mark.slow)]
)
def test_a_checkpoint_of_any_step_goes_on_with_the_same_losses(style: Style, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        run = Run(prepared(style))
        for step in range(STEPS):
            torch.save(run.state(), tmp_path / str(step))
            run.step()
        frozen = sum(int(item.frozen.sum()) for item in run.module.oscillations().values())
        assert frozen > 0
        end, blank = run.state(), prepared(style, seed=1)
        for step in range(STEPS):
            # Prepared from other weights and other data: what counts is in the checkpoint.
            other = Run(copy.deepcopy(blank))
            other.load(torch.load(tmp_path / str(step)))
            while len(other.losses) < STEPS:
                other.step()
            assert other.losses == run.losses, f"from step {step} on"
            for name, item in other.module.state_dict().items():
                assert torch.equal(item, end["module"][name]), name


def train(folder: Path, killed_at: int = -1) -> None:
    """Go on from the checkpoint of a folder, where there is one, to the end, or be killed in the middle of a step."""
    torch.manual_seed(0)
    run = Run(prepared())
    if (folder / "checkpoint").exists():
        run.load(torch.load(folder / "checkpoint"))
    while len(run.losses) < STEPS:
        if int(run.module.steps) == killed_at:
            result = run.module(torch.randn(2, 3, 8, 8))
            assert isinstance(result, torch.Tensor)
            result.sum().backward()
            os.kill(os.getpid(), signal.SIGKILL)
        run.step()
        torch.save(run.state(), folder / "checkpoint.part")
        (folder / "checkpoint.part").replace(folder / "checkpoint")


TRAIN = """
import sys
from pathlib import Path
from tests.training.test_resume import train
train(Path(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.mark.parametrize("steps", [(2,), pytest.param((1, 3, 5), marks=pytest.mark.slow)])
def test_a_process_that_was_killed_ends_where_another_one_does(steps: tuple[int, ...], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    for step in steps:
        command = [sys.executable, "-c", TRAIN, str(broken), str(step)]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == -signal.SIGKILL
        assert len(torch.load(broken / "checkpoint")["losses"]) == step
    with torch.random.fork_rng():
        train(broken)
        train(whole)
    first, second = (torch.load(folder / "checkpoint") for folder in (whole, broken))
    assert first["losses"] == second["losses"]
    assert all(torch.equal(item, second["module"][name]) for name, item in first["module"].items())

"""What holds for every test: the same examples at each run, one thread per worker, no GPU where there is none."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Read when torch is imported, and inherited by the processes that tests start. Workers that each take a thread per
    # core would spend their time waiting for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

settings.register_profile("qcompiler", deadline=None, derandomize=True)
settings.load_profile("qcompiler")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` where no CUDA device is found."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch finds none")

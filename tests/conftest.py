"""Settings for every test: the same numbers at each run, one thread per worker, no GPU where there is none."""

from __future__ import annotations

import gc
import os
import random

if "PYTEST_XDIST_WORKER" in os.environ:
    # Read when torch is imported, and inherited by the processes that tests start. Workers that each take a thread per
    # core would spend their time waiting for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("qcompiler", deadline=None, derandomize=True)
settings.load_profile("qcompiler")


def pytest_collection_finish() -> None:
    """Search for cycles less often, and never among what imports and collection have made: that stays to the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_unconfigure() -> None:
    """Python takes all down at the end, and libraries look for what is left."""
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin with the same random state, whichever tests ran before; skip what needs a GPU where there is none."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # the state that code under test may read
    # torch.manual_seed remembers the call, with its stack, for each kind of device that may be used later.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch finds none")

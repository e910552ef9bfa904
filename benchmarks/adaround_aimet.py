"""Adaptive rounding by `aimet-torch`, for comparison: run by `benchmarks.adaround` in an environment that has it.

`python -m benchmarks.adaround_aimet network images seed output` folds batch norms, rounds the weights to four
bits with a scale per channel, ranges as is the default there, and writes the seconds and the accuracy with rounded
weights on the test split. Activations are float: what is compared is rounding.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import aimet_torch
import torch
from aimet_torch.adaround import Adaround, AdaroundParameters
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.networks import load
from benchmarks.rendered import split
from benchmarks.train import accuracy

BATCH = 32
CONFIGURATION = Path(aimet_torch.__file__).parent / "common" / "quantsim_config" / "default_config_per_channel.json"


def forward(model: nn.Module, batch: Tensor) -> Tensor:
    """How a batch of the loader goes through the model."""
    result: Tensor = model(batch)
    return result


def main() -> int:
    """See the module."""
    name, images, seed, output = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.manual_seed(seed)
    model, data = load(name), load_file(images)["images"]
    dummy = data[:1]
    fold_all_batch_norms(model, dummy.shape, dummy_input=dummy)
    loader: DataLoader[Tensor] = DataLoader(data, batch_size=BATCH)  # type: ignore[arg-type]
    parameters = AdaroundParameters(loader, len(loader), forward_fn=forward)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rounded = Adaround.apply_adaround(
            model, dummy, parameters, folder, "rounded", default_param_bw=4, default_config_file=str(CONFIGURATION)
        )
    seconds = time.perf_counter() - begun
    found = accuracy(name, rounded.eval(), split("test"))
    result = {"version": aimet_torch.__version__, "seconds": seconds, "accuracy": found}
    output.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

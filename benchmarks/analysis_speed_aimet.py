"""QuantAnalyzer of `aimet-torch`, for comparison: run by `benchmarks.analysis_speed` in an environment that has it.

`python -m benchmarks.analysis_speed_aimet network output [images]` writes the seconds of the CPU of one analysis, and
the number of its evaluations.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from pathlib import Path

import aimet_torch
import torch
from aimet_torch.common.defs import CallbackFunc, QuantScheme
from aimet_torch.quant_analyzer import QuantAnalyzer
from torch import nn

from benchmarks.analysis_speed import IMAGES, SAMPLES, network, pictures

CONFIGURATION = Path(aimet_torch.__file__).parent / "common" / "quantsim_config" / "default_config.json"


def main() -> int:
    """See the module."""
    name, output = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    data = pictures(int(sys.argv[3]) if len(sys.argv) > 3 else IMAGES)
    model = network(name, data[0])
    samples = data[0][:SAMPLES]
    evaluations = 0
    with torch.no_grad():
        wanted = model(samples)

    @torch.no_grad()
    def calibrate(candidate: nn.Module, *_: object) -> None:
        for batch in data:
            candidate(batch)

    @torch.no_grad()
    def evaluate(candidate: nn.Module, *_: object) -> float:
        nonlocal evaluations
        evaluations += 1
        noise = float((candidate(samples) - wanted).double().square().sum() / wanted.double().square().sum())
        return -10.0 * math.log10(noise) if noise > 0.0 else math.inf

    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        callbacks = CallbackFunc(calibrate), CallbackFunc(evaluate)  # it reads their fields
        QuantAnalyzer(model, data[0][:1], *callbacks).analyze(
            quant_scheme=QuantScheme.post_training_tf, config_file=str(CONFIGURATION), results_dir=folder
        )
    seconds = time.process_time() - begun
    result = {"version": aimet_torch.__version__, "analyze": seconds, "evaluations": evaluations}
    output.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Automatic mixed precision of `aimet-torch`, for comparison: run in an environment that has it.

`python -m benchmarks.mixed_precision_aimet network output [--per-channel]` folds batch norms, lets AIMET search for
widths of the same candidates on the same calibration images, and writes its points: bit operations as a share of those
of 16-bit activations and 8-bit weights, and the signal-to-noise ratio of the outputs on unseen images, dB. Its
simulation is float fake quantization with its default ranges.
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
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from aimet_torch.common.amp.utils import AMPSearchAlgo
from aimet_torch.common.defs import CallbackFunc, QuantizationDataType
from aimet_torch.mixed_precision import choose_mixed_precision
from aimet_torch.quantsim import QuantizationSimModel
from torch import Tensor, nn

from benchmarks.networks import load
from benchmarks.rendered import split

CALIBRATION, IMAGES = 64, 250
INTEGER = QuantizationDataType.int
CANDIDATES = [((a, INTEGER), (w, INTEGER)) for a, w in ((16, 8), (16, 4), (8, 8), (8, 4))]
CONFIGURATIONS = Path(aimet_torch.__file__).parent / "common" / "quantsim_config"


def main() -> int:
    """See the module."""
    name, output, per_channel = sys.argv[1], Path(sys.argv[2]), "--per-channel" in sys.argv[3:]
    configuration = CONFIGURATIONS / ("default_config_per_channel.json" if per_channel else "default_config.json")
    torch.set_num_threads(1)
    model = load(name)
    calibration = list(split("calibration").images[:CALIBRATION].split(32))
    unseen = split("test").images[:IMAGES]
    fold_all_batch_norms(model, calibration[0][:1].shape, dummy_input=calibration[0][:1])

    @torch.no_grad()
    def outputs(candidate: nn.Module, images: Tensor) -> Tensor:
        found: list[Tensor] = [candidate(batch) for batch in images.split(250)]
        return torch.cat(found)

    few, wanted = outputs(model, calibration[0]), outputs(model, unseen)

    def decibels(exact: Tensor, found: Tensor) -> float:
        noise = float((exact - found).double().square().sum() / exact.double().square().sum())
        return -10.0 * math.log10(noise) if noise > 0.0 else math.inf

    @torch.no_grad()
    def calibrate(candidate: nn.Module, *_: object) -> None:
        for batch in calibration:
            candidate(batch)

    sim = QuantizationSimModel(
        model, calibration[0][:1], default_output_bw=16, default_param_bw=8, config_file=str(configuration)
    )
    sim.compute_encodings(calibrate, None)
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        front = choose_mixed_precision(
            sim,
            calibration[0][:1],
            CANDIDATES,
            CallbackFunc(lambda candidate, _: decibels(few, outputs(candidate, calibration[0]))),
            CallbackFunc(lambda candidate, _: decibels(wanted, outputs(candidate, unseen))),
            None,
            folder,
            True,
            CallbackFunc(calibrate),
            amp_search_algo=AMPSearchAlgo.BruteForce,  # all points of the front
        )
    points = [{"share": float(point[0]), "score": float(point[1])} for point in front or []]
    seconds = time.process_time() - begun
    result = {"version": aimet_torch.__version__, "seconds": seconds, "points": points}
    output.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

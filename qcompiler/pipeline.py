"""The default pipeline: which passes run, in which order."""

from __future__ import annotations

from qcompiler.passes.base import Pass
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from qcompiler.passes.fix_ranges import FixRanges
from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from qcompiler.passes.fold_constants import FoldConstants
from qcompiler.passes.fuse_activations import FuseActivations
from qcompiler.passes.fuse_requantization import FuseRequantization
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.lower_to_integer import LowerToInteger
from qcompiler.passes.unify_scales import UnifyScales


def quantization_passes() -> tuple[Pass, ...]:
    """From a captured graph to a calibrated QUANTIZED one."""
    return (
        Canonicalize(),
        EliminateDeadCode(),
        FoldConstants(),
        FoldBatchNorm(),
        FuseActivations(),
        EliminateDeadCode(),
        InsertQuantizers(),
        FixRanges(),
        UnifyScales(),
        CalibrateWeights(),
        CalibrateActivations(),
        FuseRequantization(),
    )


def default_pipeline() -> tuple[Pass, ...]:
    """From a captured graph to an INTEGER one."""
    return (*quantization_passes(), LowerToInteger(), EliminateDeadCode())

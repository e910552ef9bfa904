"""A quantization compiler: a PyTorch model goes in, a verified integer deployment comes out."""

from qcompiler import errors, frontends
from qcompiler.announced import analyze, prepare_quantized_training
from qcompiler.api import Compiled, compile
from qcompiler.artifact import Artifact, load
from qcompiler.checkup import Checkup, check
from qcompiler.errors import QCompilerError
from qcompiler.qat import QATModule, batch_norm_divergence, prepare_qat, reestimate_batch_norm
from qcompiler.roofline import Estimate
from qcompiler.targets import Target, load_target, targets
from qcompiler.verify import Report

__all__ = [
    "Artifact",
    "Checkup",
    "Compiled",
    "Estimate",
    "QATModule",
    "QCompilerError",
    "Report",
    "Target",
    "analyze",
    "batch_norm_divergence",
    "check",
    "compile",
    "errors",
    "frontends",
    "load",
    "load_target",
    "prepare_qat",
    "prepare_quantized_training",
    "reestimate_batch_norm",
    "targets",
]

"""A quantization compiler: a PyTorch model goes in, a verified integer deployment comes out."""

from qcompiler.api import Compiled, compile
from qcompiler.artifact import Artifact, load
from qcompiler.errors import QCompilerError
from qcompiler.targets import Target, load_target, targets
from qcompiler.verify import Report

__all__ = ["Artifact", "Compiled", "QCompilerError", "Report", "Target", "compile", "load", "load_target", "targets"]

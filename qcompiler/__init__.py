"""A quantization compiler: compiles PyTorch models to verified integer programs.

Public names are imported on first use, so that `import qcompiler` and reading target descriptors need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from qcompiler import errors
from qcompiler.errors import QCompilerError

# Imported eagerly: a function and a package share the name `targets`, and a later import of the package would win.
from qcompiler.targets import Target, load_target, targets

if TYPE_CHECKING:
    from qcompiler import frontends
    from qcompiler.analysis.analyze import analyze
    from qcompiler.analysis.autoquant import autoquant
    from qcompiler.analysis.checkup import Checkup, check
    from qcompiler.analysis.diagnosis import Diagnosis
    from qcompiler.analysis.findings import Analysis, Finding
    from qcompiler.analysis.front import Front
    from qcompiler.analysis.memory_movement import memory_movement
    from qcompiler.analysis.mixed_precision import mixed_precision
    from qcompiler.analysis.search import Search
    from qcompiler.analysis.traffic import Traffic
    from qcompiler.artifact.artifact import Artifact, load
    from qcompiler.frontends.hosts import HostSplit, split_host
    from qcompiler.frontends.onnx.source import OnnxModel
    from qcompiler.program.roofline import Estimate
    from qcompiler.session.compile import Compiled, compile
    from qcompiler.session.qat import QATModule, batch_norm_divergence, prepare_qat, reestimate_batch_norm
    from qcompiler.session.quantized_training import prepare_quantized_training
    from qcompiler.verification.report import Report

    __version__: str

__all__ = [
    "Analysis",
    "Artifact",
    "Checkup",
    "Compiled",
    "Diagnosis",
    "Estimate",
    "Finding",
    "Front",
    "HostSplit",
    "OnnxModel",
    "QATModule",
    "QCompilerError",
    "Report",
    "Search",
    "Target",
    "Traffic",
    "analyze",
    "autoquant",
    "batch_norm_divergence",
    "check",
    "compile",
    "errors",
    "frontends",
    "load",
    "load_target",
    "memory_movement",
    "mixed_precision",
    "prepare_qat",
    "prepare_quantized_training",
    "reestimate_batch_norm",
    "split_host",
    "targets",
]

_HOMES = {
    "Analysis": "analysis.findings",
    "Artifact": "artifact.artifact",
    "Checkup": "analysis.checkup",
    "Compiled": "session.compile",
    "Diagnosis": "analysis.diagnosis",
    "Estimate": "program.roofline",
    "Finding": "analysis.findings",
    "Front": "analysis.front",
    "HostSplit": "frontends.hosts",
    "OnnxModel": "frontends.onnx.source",
    "QATModule": "session.qat",
    "Report": "verification.forms",
    "Search": "analysis.search",
    "Traffic": "analysis.traffic",
    "analyze": "analysis.analyze",
    "autoquant": "analysis.autoquant",
    "batch_norm_divergence": "session.qat",
    "check": "analysis.checkup",
    "compile": "session.compile",
    "load": "artifact.artifact",
    "memory_movement": "analysis.memory_movement",
    "mixed_precision": "analysis.mixed_precision",
    "prepare_qat": "session.qat",
    "prepare_quantized_training": "session.quantized_training",
    "reestimate_batch_norm": "session.qat",
    "split_host": "frontends.hosts",
}
"""The module of each public name that is imported on first use."""


def __getattr__(name: str) -> object:
    """Import the public name or the module `name` on first use (PEP 562)."""
    home = _HOMES.get(name)
    if name == "__version__":
        from importlib import metadata

        found: object = metadata.version(__name__)
    elif home is not None:
        found = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    elif name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:
        full = f"{__name__}.{name}"
        try:
            found = importlib.import_module(full)
        except ModuleNotFoundError as error:
            if error.name != full:
                raise  # the module exists, but a module that it imports does not
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

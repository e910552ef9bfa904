"""A quantization compiler: a PyTorch model goes in, a verified integer deployment comes out.

Names are imported when they are first used, so that `import qcompiler` takes no longer than reading descriptions of
targets does: torch is imported with the first name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from qcompiler import errors
from qcompiler.errors import QCompilerError

# Not late: a function and a package share this name, and the package would take it when something imports it.
from qcompiler.targets import Target, load_target, targets

if TYPE_CHECKING:
    from qcompiler import frontends
    from qcompiler.analysis.checkup import Checkup, check
    from qcompiler.artifact.artifact import Artifact, load
    from qcompiler.program.roofline import Estimate
    from qcompiler.session.announced import analyze, prepare_quantized_training
    from qcompiler.session.compile import Compiled, compile
    from qcompiler.session.qat import QATModule, batch_norm_divergence, prepare_qat, reestimate_batch_norm
    from qcompiler.verification.forms import Report

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

_HOMES = {
    "Artifact": "artifact.artifact",
    "Checkup": "analysis.checkup",
    "Compiled": "session.compile",
    "Estimate": "program.roofline",
    "QATModule": "session.qat",
    "Report": "verification.forms",
    "analyze": "session.announced",
    "batch_norm_divergence": "session.qat",
    "check": "analysis.checkup",
    "compile": "session.compile",
    "load": "artifact.artifact",
    "prepare_qat": "session.qat",
    "prepare_quantized_training": "session.announced",
    "reestimate_batch_norm": "session.qat",
}
"""The module of each public name that is imported when it is used."""


def __getattr__(name: str) -> object:
    """The public name or the module `name`, imported now (PEP 562)."""
    home = _HOMES.get(name)
    if home is not None:
        found: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    elif name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:
        full = f"{__name__}.{name}"
        try:
            found = importlib.import_module(full)
        except ModuleNotFoundError as error:
            if error.name != full:
                raise  # the module is there, and something that it imports is not
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

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
    from qcompiler.announced import analyze, prepare_quantized_training
    from qcompiler.api import Compiled, compile
    from qcompiler.artifact import Artifact, load
    from qcompiler.checkup import Checkup, check
    from qcompiler.qat import QATModule, batch_norm_divergence, prepare_qat, reestimate_batch_norm
    from qcompiler.roofline import Estimate
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

_HOMES = {
    "Artifact": "artifact",
    "Checkup": "checkup",
    "Compiled": "api",
    "Estimate": "roofline",
    "QATModule": "qat",
    "Report": "verify",
    "analyze": "announced",
    "batch_norm_divergence": "qat",
    "check": "checkup",
    "compile": "api",
    "load": "artifact",
    "prepare_qat": "qat",
    "prepare_quantized_training": "announced",
    "reestimate_batch_norm": "qat",
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

"""Settings for processors whose fast kernels are inexact."""

from __future__ import annotations

import onnxruntime
import pytest

from qcompiler.backends.onnx_qdq import form
from qcompiler.backends.onnx_qdq.runtime import run, saturates


def exact_default_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the default session of ONNX Runtime be exact, as it is on most processors.

    On x86 without VNNI its fast kernels saturate. Slower kernels compute the same fused graph without saturation.
    """
    if saturates():
        monkeypatch.setattr(form, "run_default", run)
        monkeypatch.setattr(form, "saturates", lambda: False)


def exact_options() -> onnxruntime.SessionOptions:
    """Options of a session that is exact on this processor."""
    options = onnxruntime.SessionOptions()
    if saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options

"""ONNX with QuantizeLinear and DequantizeLinear pairs."""

from qcompiler.backends.onnx_qdq.check import check_file
from qcompiler.backends.onnx_qdq.emit import emit
from qcompiler.backends.onnx_qdq.emitter import UNSIGNED_SHIFT, OnnxOptions
from qcompiler.backends.onnx_qdq.functions import FUNCTIONS
from qcompiler.backends.onnx_qdq.runtime import Layers, integer_weights, run, run_observed

__all__ = [
    "FUNCTIONS",
    "UNSIGNED_SHIFT",
    "Layers",
    "OnnxOptions",
    "check_file",
    "emit",
    "integer_weights",
    "run",
    "run_observed",
]

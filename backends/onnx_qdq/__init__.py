"""ONNX with QuantizeLinear and DequantizeLinear pairs."""

from qcompiler.backends.onnx_qdq.emit import UNSIGNED_SHIFT, OnnxOptions, emit

__all__ = ["UNSIGNED_SHIFT", "OnnxOptions", "emit"]

"""All translations; importing this module fills the table."""

from qcompiler.frontends.onnx import elementwise, layers, movement, quantization, reductions, resize, sampling

__all__ = ["elementwise", "layers", "movement", "quantization", "reductions", "resize", "sampling"]

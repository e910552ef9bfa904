"""All translations; importing this module fills the table."""

from qcompiler.frontends.onnx import elementwise, layers, movement, reductions, resize

__all__ = ["elementwise", "layers", "movement", "reductions", "resize"]

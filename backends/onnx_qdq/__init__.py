"""ONNX with QuantizeLinear and DequantizeLinear pairs."""

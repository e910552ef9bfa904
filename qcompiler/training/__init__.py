"""Quantization-aware training: quantizers that learn, estimators of their gradients, regularizers, batch norms."""

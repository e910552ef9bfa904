"""Telling what quantization does to a model."""

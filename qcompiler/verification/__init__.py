"""Verification: comparison of the forms of a compiled model."""

"""Artifacts: the output folders of the compiler."""

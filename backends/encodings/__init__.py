"""Encodings: the grids of all tensors as JSON, in three versions of AIMET's format, written and read."""

from qcompiler.backends.encodings.emit import CODES, About, collect, emit, stored_as
from qcompiler.backends.encodings.read import load, parse
from qcompiler.backends.encodings.write import VERSIONS, write

__all__ = ["CODES", "VERSIONS", "About", "collect", "emit", "load", "parse", "stored_as", "write"]

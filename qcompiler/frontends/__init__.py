"""Front ends, which turn a model into a graph."""

from qcompiler.frontends.builder import Builder
from qcompiler.frontends.capture import Capture, capture
from qcompiler.frontends.rules_elementwise import unary_rule
from qcompiler.frontends.source import Source
from qcompiler.frontends.sources import Subject, find_example_inputs, source_of
from qcompiler.frontends.table import rule

__all__ = [
    "Builder",
    "Capture",
    "Source",
    "Subject",
    "capture",
    "find_example_inputs",
    "rule",
    "source_of",
    "unary_rule",
]

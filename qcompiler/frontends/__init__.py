"""Front ends, which turn a model into a graph."""

from qcompiler.frontends.builder import Builder
from qcompiler.frontends.capture import Capture, capture
from qcompiler.frontends.examples import bind_example, find_example_inputs
from qcompiler.frontends.rules_elementwise import unary_rule
from qcompiler.frontends.table import rule

__all__ = ["Builder", "Capture", "bind_example", "capture", "find_example_inputs", "rule", "unary_rule"]

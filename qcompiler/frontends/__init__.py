"""How a model becomes a graph."""

from qcompiler.frontends.capture import Capture, capture
from qcompiler.frontends.examples import bind_example, find_example_inputs

__all__ = ["Capture", "bind_example", "capture", "find_example_inputs"]

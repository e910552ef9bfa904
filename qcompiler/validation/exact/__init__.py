"""Exact evaluation of a quantized graph: on integer codes, with the target's arithmetic.

The evaluation reads the graph before lowering. It is therefore a second, independent definition of the results of the
integer graph, the integer program and the exported file. A value is one of

    Tensor     real numbers: graph inputs, parameters, scales
    Codes      integers with scale and zero point: the result of a quantizer
    Pending    the result of integer arithmetic that waits for its quantizer, because an accumulator becomes a code
               only when the grid of the output is known

An activation between an op and its quantizer becomes a clamp within the pending value.
"""

from qcompiler.validation.exact.simulate import output_codes, simulate
from qcompiler.validation.exact.values import Codes, Exact, Pending

__all__ = ["Codes", "Exact", "Pending", "output_codes", "simulate"]

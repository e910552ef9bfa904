"""One kernel per instruction, in NumPy.

A kernel receives its operands in logical order (N, C, H, W) as int64 arrays, or views of them, and returns its result
in logical order; the executor keeps the physical order. Sums of products run in float32 or float64 only if the real
weights prove that every partial sum, in any order, stays below 2^24 or 2^53 and is therefore exact.
"""

from qcompiler.program.kernels.call import Array, Call
from qcompiler.program.kernels.mac import channels_second, layer_multiplier, layer_reach
from qcompiler.program.kernels.rules import KERNELS, LAYERS

__all__ = ["KERNELS", "LAYERS", "Array", "Call", "channels_second", "layer_multiplier", "layer_reach"]

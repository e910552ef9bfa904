"""Lower a quantized graph to integer ops: quantization moves from ops into types.

    fq(conv(fq(x), fq(W), fq_bias(b)))   becomes   int_conv2d(x', W', b', multiplier, exponent) : i8[...] q(scale:zero)

Each quantizer and the op before it become one integer op, whose multiplier is computed here, in double from the
float32 scales. Weights and biases become integer constants, functions become lookup tables. Overflows that the target
forbids are proven absent: accumulators are bounded from the real weights, per channel.

Source: Jacob et al. 2018, arXiv:1712.05877, section 2.2 (integer-arithmetic-only matrix multiplication).
"""

from qcompiler.passes.lower_to_integer.lower import LowerToInteger

__all__ = ["LowerToInteger"]

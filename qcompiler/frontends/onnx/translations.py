"""All translations; importing this module fills the table."""

from qcompiler.frontends.onnx import (
    attention,
    elementwise,
    layers,
    movement,
    quantization,
    recurrent,
    reductions,
    resize,
    sampling,
)

MODULES = (attention, elementwise, layers, movement, quantization, recurrent, reductions, resize, sampling)

"""Members that kernels of windows share."""

from __future__ import annotations

from qcompiler.backends.integer.c.text import Value
from qcompiler.backends.integer.c.writer import Step, Writer
from qcompiler.program.kernels import Call


def images(writer: Writer, step: Step, call: Call) -> tuple[dict[str, Value], dict[str, Value]]:
    """Members for the sizes of both images, and for the distances in them."""
    x, y = call.inputs[0].shape, call.output.shape
    sizes: dict[str, Value] = {"batch": x[0], "channels": x[1], "out_height": y[2], "out_width": y[3]}
    distances: dict[str, Value] = {}
    for letter, tensor in (("x", step.item.inputs[0]), ("y", step.item.output)):
        steps = writer.steps(tensor)
        for axis, name in ((0, "image"), (1, "channel"), (2, "line"), (3, "pixel")):
            distances[f"{letter}_{name}"] = steps[axis]
    return sizes, distances


def window_of(call: Call) -> dict[str, Value]:
    """Members for the position of a window on the image."""
    kernel, stride, padding = call["kernel"], call["stride"], call["padding"]
    x = call.inputs[0].shape
    return {
        "height": x[2],
        "width": x[3],
        "kernel_height": kernel[0],
        "kernel_width": kernel[1],
        "stride_y": stride[0],
        "stride_x": stride[1],
        "top": padding[0],
        "left": padding[1],
    }

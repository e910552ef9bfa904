"""One contender of `benchmarks.inference` in a process of its own: made ready once, then timed whenever it is asked.

`python -m benchmarks.contenders kind folder`; the folder holds `model.onnx`, `model.pt2` or `c/`, and `images.npy`. It
prints a line when it is ready, and then, for each line that it reads, the median milliseconds of the runs of a quarter
of a second. One image at a time, one thread. Needs nothing of ours: peers run it in environments of their own.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SECONDS = 0.25
LEAST = 3
"""Runs, however long they take."""

Array = npt.NDArray[Any]
Run = Callable[[], Array]


def c_program(folder: Path, images: Array) -> tuple[Run, str]:
    """The emitted C as a shared library: real numbers in, real numbers out."""
    contract = json.loads((folder / "c" / "contract.json").read_text(encoding="utf-8"))
    name, (given,), taken = contract["name"], contract["inputs"], contract["outputs"][0]
    library = ctypes.CDLL(str(folder / "model.so"))
    order = (0, 2, 3, 1) if contract["layout"] == "NHWC" else (0, 1, 2, 3)
    x = np.asarray(images[:1].transpose(order), np.float32, order="C")
    axes = order if len(taken["shape"]) == 4 else range(len(taken["shape"]))
    y = np.zeros([taken["shape"][axis] for axis in axes], np.float32)
    quantize, run = getattr(library, f"{name}_quantize_input_{given['index']}"), getattr(library, f"{name}_run")
    dequantize = getattr(library, f"{name}_dequantize_output_{taken['index']}")
    source, result = x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p)

    def once() -> Array:
        quantize(source)
        run()
        dequantize(result)
        return y.transpose(np.argsort(axes))

    return once, ""


def onnxruntime_float(folder: Path, images: Array, model: str = "model.onnx") -> tuple[Run, str]:
    """The float model in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / model), options, providers=["CPUExecutionProvider"])
    x = {session.get_inputs()[0].name: images[:1]}
    return lambda: np.asarray(session.run(None, x)[0]), onnxruntime.__version__


def onnxruntime_int8(folder: Path, images: Array) -> tuple[Run, str]:
    """The float model quantized by ONNX Runtime's own tool: QDQ, unsigned activations, signed weights."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types
        """The images one by one."""

        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, Array] | None:
            """Feeds, until there are none."""
            image = next(self.left, None)
            return None if image is None else {"x": image[None]}

    quantize_static(
        folder / "model.onnx",
        folder / "model.ort.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return onnxruntime_float(folder, images, "model.ort.onnx")


def openvino_int8(folder: Path, images: Array) -> tuple[Run, str]:
    """The float model quantized by NNCF, in OpenVINO."""
    import nncf
    import openvino

    model = openvino.convert_model(str(folder / "model.onnx"))
    quantized = nncf.quantize(model, nncf.Dataset([image[None] for image in images]))
    compiled = openvino.compile_model(
        quantized, "CPU", {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    )
    request, x = compiled.create_infer_request(), np.asarray(images[:1], order="C")

    def once() -> Array:
        return np.asarray(request.infer([x], share_inputs=True, share_outputs=True)[0])

    return once, openvino.__version__


def eager(folder: Path, images: Array) -> tuple[Run, str]:
    """The float model in PyTorch."""
    import torch

    torch.set_num_threads(1)
    model, x = torch.export.load(folder / "model.pt2").module(), torch.from_numpy(images[:1])

    def once() -> Array:
        with torch.inference_mode():
            result: Array = model(x).numpy()
            return result

    return once, torch.__version__


KINDS: dict[str, Callable[[Path, Array], tuple[Run, str]]] = {
    "c": c_program,
    "onnxruntime_float": onnxruntime_float,
    "onnxruntime_int8": onnxruntime_int8,
    "openvino_int8": openvino_int8,
    "eager": eager,
}


def main() -> int:
    """See the module."""
    if hasattr(os, "sched_setaffinity"):  # all on one core, of which some are faster than others
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    kind, folder = sys.argv[1], Path(sys.argv[2])
    once, version = KINDS[kind](folder, np.load(folder / "images.npy"))
    np.save(folder / f"{kind}.npy", once())
    print(json.dumps({"version": version}), flush=True)
    for _ in sys.stdin:
        times: list[float] = []
        end = time.perf_counter() + SECONDS
        once()
        while len(times) < LEAST or time.perf_counter() < end:
            begun = time.perf_counter()
            once()
            times.append(time.perf_counter() - begun)
        print(json.dumps(1e3 * statistics.median(times)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.real`: networks with real weights, quantized by every effort and by ONNX Runtime's own tool.

Every figure is that of the integer program: the signal-to-noise ratio of its outputs against the float model, dB, over
all test inputs and outputs, and the share of inputs whose largest element is the same. `--install` gets the packages
that carry the weights. What they lack is skipped, and the reason is printed.

Finished cells are kept in a file, so that the same call continues an interrupted run; `--fresh` measures anew.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import qcompiler
from benchmarks.pages import PERFORMANCE, write_section
from benchmarks.ptq_accuracy import Store
from benchmarks.real_networks import NETWORKS, AbsentError, Data, Network, install
from qcompiler.errors import QCompilerError
from qcompiler.passes.base import Pass
from qcompiler.passes.cross_layer_equalization import CrossLayerEqualization
from qcompiler.session.pipeline import default_pipeline

__all__ = ["ROWS", "WIDTHS", "Cell", "main"]

OUTPUT = Path(__file__).resolve().parents[1] / "out" / "benchmarks" / "real.json"
SECTION = "networks with real weights"
TARGET = "int8_dsp"
RUN_BATCH = 32
WIDTHS = {
    "W8A8 per channel": (8, True),
    "W8A8 per tensor": (8, False),
    "W4A8 per channel": (4, True),
}
"""Bits of weights, and whether they have a scale per channel."""

Json = dict[str, Any]
Effort = Literal["fast", "default", "best"]
Run = Callable[[Tensor], Sequence[Tensor]]


def _compiled(model: nn.Module, data: Data, width: str, effort: Effort, *, equalized: bool = True) -> Run:
    bits, per_channel = WIDTHS[width]
    target = qcompiler.load_target(TARGET).override(weight_bits=bits, per_channel=per_channel)
    passes: Sequence[Pass] | None = None
    if not equalized:
        every = default_pipeline(effort, per_channel=per_channel, weight_bits=bits)
        passes = [item for item in every if not isinstance(item, CrossLayerEqualization)]
    compiled = qcompiler.compile(
        model, target, calibration_data=data.calibration, effort=effort, passes=passes, verify="off"
    )
    return lambda x: _tensors(compiled.run(x))


def _onnxruntime(model: nn.Module, data: Data, width: str) -> Run:
    """ONNX Runtime's static quantization: QDQ, unsigned activations, signed weights, min-max ranges."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    bits, per_channel = WIDTHS[width]
    if bits != 8:
        raise AbsentError(f"its QDQ tool has no layers of {bits}-bit weights")
    samples = torch.cat(data.calibration)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types
        """The samples one by one."""

        def __init__(self) -> None:
            self.left = iter(samples.numpy())

        def get_next(self) -> dict[str, Any] | None:
            """Feeds, until there are none."""
            sample = next(self.left, None)
            return None if sample is None else {"x": sample[None]}

    options = onnxruntime.SessionOptions()
    # x86 processors without VNNI saturate sums of two products in the fast kernels.
    options.add_session_config_entry("session.x64quantprecision", "1")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        written, prepared, quantized = (Path(folder) / name for name in ("float.onnx", "prepared.onnx", "int8.onnx"))
        batch = ({0: torch.export.Dim("batch", min=1, max=4096)},)
        torch.onnx.export(
            model,
            (samples[:2],),
            str(written),
            input_names=["x"],
            dynamo=True,
            dynamic_shapes=batch,
            verbose=False,
            external_data=False,
        )
        quant_pre_process(str(written), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=per_channel,
        )
        session = onnxruntime.InferenceSession(str(quantized), options, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(np.asarray(item)) for item in session.run(None, {"x": x.numpy()})]


Make = Callable[[nn.Module, Data, str], Run]
ROWS: dict[str, Make] = {
    "fast": lambda model, data, width: _compiled(model, data, width, "fast"),
    "default": lambda model, data, width: _compiled(model, data, width, "default"),
    "default without equalization": lambda model, data, width: _compiled(
        model, data, width, "default", equalized=False
    ),
    "best": lambda model, data, width: _compiled(model, data, width, "best"),
    "ONNX Runtime's static tool": _onnxruntime,
}
"""How a network is quantized."""


@dataclass(frozen=True)
class Cell:
    """One network, quantized in one way."""

    network: Network
    width: str
    row: str

    def key(self, calibration: int, test: int) -> str:
        """Everything on which the result depends, except the sources."""
        return f"{self.network.name}, {self.width}, {self.row}, {calibration} and {test} inputs"

    def measure(self, model: nn.Module, data: Data) -> Json:
        """Quantize, and compare with the float model."""
        try:
            run = ROWS[self.row](model, data, self.width)
        except (AbsentError, QCompilerError) as error:
            return {"why": str(error)}
        signal = noise = 0.0
        same = 0
        for part in data.test.split(RUN_BATCH):
            with torch.no_grad():
                wanted = _tensors(model(part))
            for index, (x, y) in enumerate(zip(wanted, run(part), strict=True)):
                signal += float(x.to(torch.float64).square().sum())
                noise += float((y.to(torch.float64) - x.to(torch.float64)).square().sum())
                if index == 0:
                    same += int((x.argmax(1) == y.argmax(1)).reshape(len(x), -1).all(1).sum())
        return {"db": round(10.0 * math.log10(signal / noise), 2), "same": round(same / len(data.test), 4)}


def _tensors(found: object) -> Sequence[Tensor]:
    items = found if isinstance(found, tuple) else (found,)
    return [item for item in items if isinstance(item, Tensor)]


def section(found: dict[tuple[str, str, str], Json], absent: dict[str, str], calibration: int, test: int) -> str:
    """The section of the page."""
    about = (
        f"`python -m benchmarks.real` on `{TARGET}`, with {calibration} inputs to calibrate and {test} others to test: "
        "crops of photographs of which none is in both sets, and rendered tones for the pitch network. dB of the "
        "outputs of the integer program against the float model, and share of inputs with the same largest element. "
        "ONNX Runtime runs without saturating kernels."
    )
    head = [f"| network | width | {' | '.join(ROWS)} |", f"|---|---|{'---|' * len(ROWS)}"]
    lines = ["## Networks with real weights", "", about, "", *head]
    notes: dict[str, None] = {}
    for network in dict.fromkeys(place[0] for place in found):
        for width in WIDTHS:
            cells = [found[network, width, row] for row in ROWS]
            notes |= dict.fromkeys(
                f"{row}: {item['why']}" for row, item in zip(ROWS, cells, strict=True) if "why" in item
            )
            texts = ["–" if "why" in item else f"{item['db']:.1f} dB, {item['same']:.1%}" for item in cells]
            lines.append(f"| {network} | {width} | {' | '.join(texts)} |")
    lines += ["", *(f"{text}." for text in notes), *(f"{name} is skipped: {why}." for name, why in absent.items())]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the page if all of it was measured."""
    parser = argparse.ArgumentParser(prog="benchmarks.real", description=__doc__)
    parser.add_argument("--install", action="store_true", help="get the packages and end")
    parser.add_argument("--networks", nargs="+", choices=[item.name for item in NETWORKS], help="only these")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="only these")
    parser.add_argument("--widths", nargs="+", choices=list(WIDTHS), default=list(WIDTHS), help="only these")
    parser.add_argument("--calibration", type=int, default=128, help="inputs to calibrate")
    parser.add_argument("--test", type=int, default=512, help="inputs to test")
    parser.add_argument("--fresh", action="store_true", help="forget finished cells")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file of the finished cells")
    options = parser.parse_args(arguments)
    if options.install:
        install()
        return 0
    logging.getLogger().setLevel(logging.ERROR)
    store = Store(options.output, fresh=options.fresh)
    found: dict[tuple[str, str, str], Json] = {}
    absent: dict[str, str] = {}
    for network in NETWORKS:
        if options.networks and network.name not in options.networks:
            continue
        try:
            model, data = network.load(), network.data(options.calibration, options.test)
        except AbsentError as error:
            absent[network.name] = str(error)
            print(f"{network.name} is skipped: {error}", file=sys.stderr)
            continue
        for width in options.widths:
            for row in options.rows:
                cell = Cell(network, width, row)

                def make(cell: Cell = cell, model: nn.Module = model, data: Data = data) -> Json:
                    return cell.measure(model, data)

                result = store.get(cell.key(options.calibration, options.test), make)
                found[network.name, width, row] = result
                print(f"{network.name:<20}{width:<18}{row:<30}{json.dumps(result)}", file=sys.stderr, flush=True)
    if not (options.networks or options.rows != list(ROWS) or options.widths != list(WIDTHS)):
        text = section(found, absent, options.calibration, options.test)
        print(text)
        if not absent:
            write_section(PERFORMANCE, SECTION, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

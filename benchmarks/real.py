"""`python -m benchmarks.real`: networks with real weights, quantized by every effort and by ONNX Runtime's own tool.

Every figure is that of the integer program: the signal-to-noise ratio of its outputs against the float model, dB, over
all test inputs and outputs, and the share of inputs whose largest element is the same. `--install` gets the packages
that carry the weights. What they lack is skipped, and the reason is printed.

Each finished cell is a file in out/benchmarks/real, so that the same call continues an interrupted run. `--collect`
writes finished cells to benchmarks/results, which is committed, and the page. One call ends within 100 minutes; two
processes share a run with `--shard 1/2` and `--shard 2/2`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import qcompiler
from benchmarks.finished import Json, Store, plain
from benchmarks.pages import PERFORMANCE
from benchmarks.real_networks import NETWORKS, AbsentError, Data, Network, install
from benchmarks.trainings import parser, publish, train_missing
from qcompiler.errors import QCompilerError
from qcompiler.passes.base import Pass
from qcompiler.passes.cross_layer_equalization import CrossLayerEqualization
from qcompiler.session.pipeline import default_pipeline

__all__ = ["COMMITTED", "NUMERICS", "ROWS", "WIDTHS", "Cell", "Run", "cells", "main", "section"]

OUTPUT = Path(__file__).resolve().parents[1] / "out" / "benchmarks" / "real"
COMMITTED = Path(__file__).with_name("results") / "real.jsonl"
"""Finished cells of the whole run."""
NUMERICS = 1
"""To be raised with every change of what an effort computes, rounding aside."""
SECTION = "networks with real weights"
TARGET = "int8_dsp"
RUN_BATCH = 32
WIDTHS = {
    "W8A8 per channel": (8, True),
    "W8A8 per tensor": (8, False),
    "W4A8 per channel": (4, True),
}
"""Bits of weights, and whether they have a scale per channel."""

Effort = Literal["fast", "default", "best"]
Runner = Callable[[Tensor], Sequence[Tensor]]


def _compiled(model: nn.Module, data: Data, width: str, effort: Effort, *, equalized: bool = True) -> Runner:
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


def _onnxruntime(model: nn.Module, data: Data, width: str) -> Runner:
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


Make = Callable[[nn.Module, Data, str], Runner]
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
class Run:
    """Numbers of inputs to calibrate and to test."""

    calibration: int = 128
    test: int = 512


WHOLE, QUICK = Run(), Run(8, 16)


@dataclass(frozen=True)
class Cell:
    """One network, quantized in one way."""

    network: Network
    width: str
    row: str

    @property
    def name(self) -> str:
        """Name of the cell."""
        return plain(self.network.name, self.width, self.row)

    def key(self, run: Run) -> str:
        """Everything on which the result depends, except the sources."""
        return hashlib.sha256(repr((NUMERICS, self.name, run)).encode()).hexdigest()[:16]

    def measure(self, model: nn.Module, data: Data) -> Json:
        """Quantize, and compare with the float model."""
        begun = time.perf_counter()
        try:
            run = ROWS[self.row](model, data, self.width)
        except (AbsentError, QCompilerError) as error:
            return {"why": str(error), "seconds": round(time.perf_counter() - begun, 1)}
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
        return {
            "db": round(10.0 * math.log10(signal / noise), 2),
            "same": round(same / len(data.test), 4),
            "seconds": round(time.perf_counter() - begun, 1),
        }


def _tensors(found: object) -> Sequence[Tensor]:
    items = found if isinstance(found, tuple) else (found,)
    return [item for item in items if isinstance(item, Tensor)]


def cells(run: Run) -> Iterator[Cell]:
    """All cells; those of all runs are the same."""
    for network in NETWORKS:
        for width in WIDTHS:
            for row in ROWS:
                yield Cell(network, width, row)


def section(found: Mapping[Cell, Json], absent: Mapping[str, str], run: Run) -> str:
    """The section of the page."""
    about = (
        f"`python -m benchmarks.real` on `{TARGET}`, with {run.calibration} inputs to calibrate and {run.test} others "
        "to test: crops of photographs of which none is in both sets, and rendered tones for the pitch network. dB of "
        "the outputs of the integer program against the float model, and share of inputs with the same largest "
        "element. ONNX Runtime runs without saturating kernels."
    )
    wanted = [cell for cell in cells(run) if cell.network.name not in absent]
    if len(found) < len(wanted):
        about += f" {len(found)} of {len(wanted)} cells are finished; a question mark stands for one that is missing."
    head = [f"| network | width | {' | '.join(ROWS)} |", f"|---|---|{'---|' * len(ROWS)}"]
    lines = ["## Networks with real weights", "", about, "", *head]
    reasons = {f"{cell.row}: {item['why']}": None for cell, item in found.items() if "why" in item}
    for network in dict.fromkeys(cell.network for cell in found):
        for width in WIDTHS:
            texts = [_text(found.get(Cell(network, width, row))) for row in ROWS]
            lines.append(f"| {network.name} | {width} | {' | '.join(texts)} |")
    lines += ["", *(f"{text}." for text in reasons), *(f"{name} is skipped: {why}." for name, why in absent.items())]
    return "\n".join(lines)


def _text(item: Json | None) -> str:
    if item is None:
        return "?"
    return "–" if "why" in item else f"{item['db']:.1f} dB, {item['same']:.1%}"


class _Loaded:
    """Networks and their inputs, loaded when they are asked for.

    Args:
        run: Numbers of inputs.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.absent: dict[str, str] = {}
        self.load = functools.lru_cache(maxsize=1)(self._load)

    def _load(self, network: Network) -> tuple[nn.Module, Data] | None:
        try:
            return network.load(), network.data(self.run.calibration, self.run.test)
        except AbsentError as error:
            self.absent[network.name] = str(error)
            print(f"{network.name} is skipped: {error}", file=sys.stderr)
            return None

    def measure(self, cell: Cell) -> Json:
        """The result of a cell of a network that is there."""
        loaded = self.load(cell.network)
        assert loaded is not None
        return cell.measure(*loaded)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, print, and write the page if all of it was measured."""
    found = parser("benchmarks.real", __doc__, OUTPUT)
    found.add_argument("--install", action="store_true", help="get the packages and end")
    options = found.parse_args(arguments)
    if options.install:
        install()
        return 0
    logging.getLogger().setLevel(logging.ERROR)
    torch.set_num_threads(1)  # sums of other threads come in another order
    run = QUICK if options.quick else WHOLE
    store: Store[Cell, Run] = Store(options.output, Cell.key, cells, WHOLE, rows=COMMITTED, fresh=options.fresh)
    loaded = _Loaded(run)
    missing = 0
    if not (options.page or options.collect):
        missing = train_missing(
            options,
            run,
            store,
            loaded.measure,
            lambda cell, item: f"{cell.name:<64}{json.dumps(item)}",
            among=lambda cell: store.find(cell, run) is not None or loaded.load(cell.network) is not None,
        )
    if missing or options.only or options.shard[1] > 1:
        return 0
    done = store.done(run)
    text = section(done, loaded.absent, run)
    print(text)
    if options.collect or (run == WHOLE and len(done) == len(list(cells(run)))):
        publish(store, PERFORMANCE, SECTION, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

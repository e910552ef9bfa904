"""Whole networks in C: here, on other processors under an emulator, and on a microcontroller.

The integer graph, the executor of the program and the compiled C must have the same code in every element of every
tensor. The microcontroller, which has no operating system, runs the self-test that is part of the emitted folder.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from conformance.lines import Line, Tally
from conformance.networks import LARGE, SMALL, Network, compiled, large, small
from qcompiler.backends.integer import Executor
from qcompiler.backends.integer.c import Binary, emit, record
from qcompiler.backends.integer.memory import plan
from qcompiler.ir.graph import Value
from qcompiler.ir.interpret import interpret
from qcompiler.program.files import ProgramFiles
from qcompiler.targets import Target, load_target

__all__ = ["BOARDS", "MACHINES", "ON_DIGITS", "TARGETS", "Board", "Machine", "lines"]

Array = npt.NDArray[Any]

TARGETS: dict[str, Callable[[], Target]] = {
    "single": lambda: load_target("int8_dsp"),
    "double": lambda: load_target("int8_dsp_per_channel").override(requantize="double"),
    "double_hu": lambda: load_target("int8_dsp").override(requantize="double_hu"),
    "f32_rne": lambda: load_target("ort_cpu"),
}
"""One target for each arithmetic in which all small networks run."""
ON_DIGITS: dict[str, Callable[[], Target]] = {
    "tosa16": lambda: load_target("hexagon_htp_a16w8"),
    "s64_16": lambda: load_target("int16x8"),
    "nvdla_cvt": lambda: load_target("nvdla"),
    "pow2_shift": lambda: load_target("pow2_mcu"),
    "blocks": lambda: load_target("w4a8_npu_blocks"),
}
"""And in which the digits network does: 16-bit codes, saturating sums, shifts alone, 4-bit weights with factors."""
NAME = "network"
NOISE = 8
"""Images of noise in addition to the images of the network: they reach both ends of the grid."""
VECTORS = 8
"""Images of the self-test on a microcontroller."""


@dataclass(frozen=True)
class Machine:
    """A processor that runs programs of Linux.

    Args:
        compiler: C compiler of the processor.
        runner: The emulator; empty for the processor that this runs on.
        cflags: Options of the compiler.
    """

    compiler: str
    runner: tuple[str, ...] = ()
    cflags: tuple[str, ...] = ("-O2",)

    @property
    def needs(self) -> tuple[str, ...]:
        """Programs without which it cannot be used."""
        return (self.compiler, *self.runner[:1])


MACHINES = {
    "host": Machine("cc"),
    "native": Machine("cc", cflags=("-O3", "-march=native")),  # on vectors, where this processor has them
    "aarch64": Machine("aarch64-linux-gnu-gcc", ("qemu-aarch64",), ("-O2", "-static")),
    "arm": Machine("arm-linux-gnueabihf-gcc", ("qemu-arm",), ("-O2", "-static")),
    "riscv64": Machine("riscv64-linux-gnu-gcc", ("qemu-riscv64",), ("-O2", "-static")),
}


@dataclass(frozen=True)
class Board:
    """A microcontroller.

    Args:
        machine: Name of the board in the emulator.
        cflags: Options that say which processor it has.
    """

    machine: str
    cflags: tuple[str, ...]


BOARDS = {
    "cortex_m3": Board("mps2-an385", ("-mcpu=cortex-m3",)),
    "cortex_m4": Board("mps2-an386", ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")),
}
START = Path(__file__).with_name("cortex_m")
BOARD_NEEDS = ("arm-none-eabi-gcc", "qemu-system-arm")
SECONDS = 300
"""That an emulator may take."""


@dataclass(frozen=True)
class _Case:
    """A network in C, with what must come out.

    Args:
        files: The program.
        folder: The C.
        inputs: Codes of the inputs.
        expected: By tensor, what the executor gives.
        graph: By tensor, what the integer graph gives.
    """

    files: ProgramFiles
    folder: Mapping[str, bytes]
    inputs: tuple[Array, ...]
    expected: Mapping[str, Array]
    graph: Mapping[str, Array]


def _make(name: str) -> Network:
    return large(name) if name in LARGE else small(name)


def _noise(images: Tensor) -> Tensor:
    """Wider than the images are."""
    low, high = float(images.min()), float(images.max())
    drawn = torch.rand(NOISE, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    return low + (high - low) * (1.5 * drawn - 0.25)


@functools.cache
def _case(target: str, name: str) -> _Case:
    found, network = compiled(partial(_make, name), {**TARGETS, **ON_DIGITS}[target]())
    images = network.images if name in LARGE else torch.cat([network.images, _noise(network.images)])
    files = found.artifact.program
    by_executor: dict[str, Array] = {}
    Executor(files).run([images.numpy()], by_executor.__setitem__)
    by_graph: dict[str, Array] = {}

    def observe(value: Value, tensor: Tensor) -> None:
        if value.name in by_executor:
            by_graph[value.name] = tensor.numpy()

    with torch.no_grad():
        interpret(found.integer.main, [images], found.integer.tensors, observe=observe)
    quantizers = {item.inputs[0]: item.output for item in files.program.instructions if item.op == "quantize"}
    inputs = tuple(by_executor[quantizers[item]] for item in files.program.inputs)
    vectors = record(files, [tuple(codes[i : i + 1] for codes in inputs) for i in range(VECTORS)])
    memory = plan(files.program)
    folder = emit(files, NAME, memory, [] if name in LARGE else vectors)
    return _Case(files, folder, inputs, by_executor, by_graph)


def check(target: str, names: Sequence[str], machine: Machine) -> Tally:
    """Graph, executor and compiled C, every element of every tensor."""
    tally = Tally()
    for name in names:
        case = _case(target, name)
        with tempfile.TemporaryDirectory() as work:
            binary = Binary(
                case.folder,
                Path(work),
                cc=machine.compiler,
                cflags=machine.cflags,
                runner=machine.runner,
                trace=True,
            )
            found = binary.run(case.inputs).codes
        for tensor, expected in case.expected.items():
            if tensor in found:
                tally.compare(f"{name}, C, %{tensor}", found[tensor], expected)
            tally.compare(f"{name}, graph, %{tensor}", case.graph[tensor], expected)
        if set(found) - set(case.expected):
            tally.mismatches += 1
            tally.notes.append(
                f"{name}: C has tensors that the program has not: {sorted(set(found) - set(case.expected))}"
            )
        if not found:
            tally.mismatches += 1
            tally.notes.append(f"{name}: C told of no tensor")
    return tally


def check_board(target: str, name: str, board: Board) -> Tally:
    """The self-test of the folder on a microcontroller; its comparison is written in C, and its counts are printed."""
    case, tally = _case(target, name), Tally()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for file, content in case.folder.items():
            (folder / file).write_bytes(content)
        sources = [str(path) for path in sorted(folder.glob("*.c"))]
        command = ["arm-none-eabi-gcc", "-std=c99", "-ffp-contract=off", "-O2", "-mthumb", *board.cflags]
        command += ["-nostartfiles", "-T", str(START / "mps2.ld"), *sources, str(START / "start.c")]
        _run([*command, "-o", str(folder / "image.elf")])
        console = ["-nographic", "-monitor", "none", "-serial", "none"]
        console += ["-semihosting-config", "enable=on,target=native"]
        emulator = ["qemu-system-arm", "-M", board.machine, *console, "-kernel", str(folder / "image.elf")]
        output = _run(emulator, failures=1)  # 1: codes differ, and it says how many
    found = re.search(rf"{NAME}: (\d+) of (\d+) codes differ in (\d+) vectors", output)
    if found is None:
        raise RuntimeError(f"the self-test said {output.strip()[-500:]!r}")
    tally.mismatches, tally.compared = int(found[1]), int(found[2])
    return tally


def _run(command: Sequence[str], failures: int = 0) -> str:
    """The output of a program; an exit code beyond `failures` is an error."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL
    )
    if not 0 <= done.returncode <= failures:
        raise RuntimeError(
            f"{command[0]} ended with code {done.returncode}: {(done.stderr + done.stdout).strip()[-2000:]}"
        )
    return done.stdout + done.stderr


def lines() -> list[Line]:
    """A line for each arithmetic and machine, for each microcontroller, and for each large network."""
    found = [
        Line(f"c/{target}/{name}", partial(check, target, networks, machine), machine.needs)
        for targets, networks in ((TARGETS, SMALL), (ON_DIGITS, ("digits",)))
        for target in targets
        for name, machine in MACHINES.items()
    ]
    found += [
        Line(f"c/{target}/{name}", partial(check_board, target, "digits", board), BOARD_NEEDS)
        for target in (*TARGETS, *ON_DIGITS)
        for name, board in BOARDS.items()
    ]
    wanted = (("mobilenet_v2", "host"), ("mobilenet_v2", "aarch64"), ("resnet18", "host"))
    for name, machine in (*wanted, ("mobilenet_v2", "native"), ("resnet18", "native")):
        chosen = MACHINES[machine]
        found.append(Line(f"c/single/{name}/{machine}", partial(check, "single", [name], chosen), chosen.needs))
    return found

"""Build the folder with the installed C compiler, and run it on codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from qcompiler.backends.integer.c.ends import CONTRACT
from qcompiler.backends.integer.c.frames import fill
from qcompiler.backends.integer.c.memory import NUMPY, SIZES
from qcompiler.backends.integer.c.shapes import physical_axes
from qcompiler.backends.integer.c.text import parse_elements
from qcompiler.errors import ArtifactError, InputError, ToolchainError
from qcompiler.program.program import Array

Folder: TypeAlias = Mapping[str, bytes] | str | Path

STRICT = ("-std=c99", "-ffp-contract=off")
"""Compiler flags for every build, equal to those in the Makefile of the folder."""
COMPILED_CONSTANTS = 2**18
"""Bytes of constants up to which weights.c itself is compiled. Beyond, gcc takes two seconds and 100 MB for each MiB:
the numbers are read from its text, and loaded when the program starts."""

_CONSTANT = re.compile(r"^const (\w+) (\w+)\[(\d+)\] = \{\n(.*?)\n\};$", re.MULTILINE | re.DOTALL)
_TRIVIAL = '#include <stdio.h>\nint main(void) { return puts("") < 0; }\n'


def find_compiler(cc: str | None = None) -> list[str]:
    """The command of the C compiler: `cc`, else the environment variable CC, else cc, gcc or clang on the path.

    Raises:
        ToolchainError: There is none.
    """
    wanted = cc or os.environ.get("CC")
    for candidate in [wanted] if wanted else ["cc", "gcc", "clang"]:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise ToolchainError(
        f"there is no C compiler{f' {wanted!r}' if wanted else ''}",
        fix="Install gcc or clang, or set the environment variable CC.",
    )


@cache
def why_it_cannot_build(command: tuple[str, ...]) -> str:
    """Why a compiler builds no programs that run here; empty where it does."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "main.c"), Path(folder, "main")
        source.write_text(_TRIVIAL, encoding="utf-8")
        try:
            _compile([*command, str(source), "-o", str(program)])
            subprocess.run([str(program)], check=True, capture_output=True)  # noqa: S603  # what was just built
        except (ToolchainError, OSError, subprocess.CalledProcessError) as error:
            return str(error)
    return ""


def _compile(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # the user's compiler
    if result.returncode:
        message = "\n".join((result.stderr or result.stdout).strip().splitlines()[:12])
        raise ToolchainError(f"{command[0]} failed:\n{message}")


@dataclass(frozen=True)
class Trace:
    """The output of a program.

    Args:
        outputs: Codes, or real numbers, of each output, in the order of the graph.
        codes: With `trace`, the codes of each input and of the result of each step, by tensor.
    """

    outputs: list[Array]
    codes: dict[str, Array] = field(default_factory=dict)


class Binary:
    """A built folder of C.

    Args:
        folder: The files, or where they are.
        work: Folder of the build.
        cc: C compiler; see `find_compiler`.
        cflags: Options of the compiler.
        runner: Command that runs the program: an emulator with its options.
        trace: Whether the result of each step is wanted.
        together: Whether all files are compiled as one, which takes half of the time.

    Raises:
        ToolchainError: There is no compiler, or it failed.
        ArtifactError: The folder is none that `emit` wrote.
    """

    def __init__(
        self,
        folder: Folder,
        work: Path,
        *,
        cc: str | None = None,
        cflags: Sequence[str] = ("-O3",),
        runner: Sequence[str] = (),
        trace: bool = False,
        together: bool = False,
    ) -> None:
        self.files = files = read_folder(folder)
        self.contract: dict[str, Any] = json.loads(files[CONTRACT])
        self.trace, self._runner = trace, tuple(runner)
        name = self.contract["name"]
        bulk = sum(SIZES[item["type"]] * item["elements"] for item in self.contract["constants"])
        loaded = bulk > COMPILED_CONSTANTS
        sources = ["model.c", "kernels.c", f"{name}_float.c", "harness.c"]
        texts = {file: content for file, content in files.items() if file.endswith((".c", ".h"))}
        if not loaded:
            sources.append("weights.c")
        if together:
            texts["together.c"] = "".join(f'#include "{file}"\n' for file in sources).encode()
            sources = ["together.c"]
        texts["harness.c"] = self._harness(loaded=loaded).encode()
        if loaded:
            sources.append("bulk.c")
            texts["bulk.c"] = self._bulk_source().encode()
            (work / "bulk.bin").write_bytes(read_constants(files["weights.c"].decode(), self.contract))
            del texts["weights.c"]
        for file, content in texts.items():
            (work / file).write_bytes(content)
        self._program, self._bulk = work / "program", [str(work / "bulk.bin")] if loaded else []
        options = [*STRICT, *cflags, *([f"-D{name.upper()}_TRACE"] if trace else [])]
        _compile([*find_compiler(cc), *options, *(str(work / file) for file in sources), "-o", str(self._program)])

    def run(self, inputs: Sequence[Array], replace: Mapping[str, Array] | None = None, *, real: bool = False) -> Trace:
        """Run on any number of images, as many at a time as the arena holds.

        Args:
            inputs: For each input of the program, in the order of the graph, its codes, or integers and booleans; with
                `real` real numbers in place of codes.
            replace: Codes by tensor that later steps read in place of the result of a step; needs `trace`.
            real: Exchange real numbers in place of codes.

        Raises:
            InputError: An input does not fit.
            ToolchainError: The program ended with an error.
        """
        given = dict(replace or {}) if self.trace else {}
        names = [step["tensor"] for step in self.contract["steps"]] if self.trace else []
        runs, images = self._runs(inputs, real=real)
        stream = [bytes(name in given for name in names)]
        for run in range(runs):
            ends, steps = self.contract["inputs"], self.contract["steps"]
            stream += [self._bytes(np.asarray(inputs[end["index"]]), end, run, real=real) for end in ends]
            stream += [self._bytes(given[step["tensor"]], step, run) for step in steps if step["tensor"] in given]
        command = [*self._runner, str(self._program), str(runs), str(int(real)), *self._bulk]
        result = subprocess.run(command, input=b"".join(stream), capture_output=True, check=False)  # noqa: S603  # built above
        if result.returncode:
            message = "\n".join(result.stderr.decode(errors="replace").strip().splitlines()[:12])
            raise ToolchainError(f"the program ended with code {result.returncode}:\n{message}")
        return self._parse(result.stdout, runs, images, real=real)

    def _runs(self, inputs: Sequence[Array], *, real: bool) -> tuple[int, int]:
        """How often to run, and the number of images; checks the inputs."""
        if len(inputs) != self.contract["program_inputs"]:
            raise InputError(f"{len(inputs)} inputs were given", expected=str(self.contract["program_inputs"]))
        batch, images = int(self.contract["batch"]), None
        for end in self.contract["inputs"]:
            array, axis = np.asarray(inputs[end["index"]]), end["batch_axis"]
            wanted = list(end["shape"])
            if axis is not None and array.ndim == len(wanted):
                images = array.shape[axis] if images is None else images
                wanted[axis] = images
            numbers = real and end["quantized"]
            dtype = np.dtype("f4" if numbers else NUMPY[end["type"]])
            if array.dtype == np.bool_ and end["type"] == "uint8_t":
                array = array.astype(dtype)
            if list(array.shape) != wanted or array.dtype != dtype:
                raise InputError(
                    f"input {end['index']} is {array.dtype}{list(array.shape)}", expected=f"{dtype}{wanted}"
                )
            low, high = end["codes"]
            if not numbers and array.size and not low <= int(array.min()) <= int(array.max()) <= high:
                raise InputError(
                    f"input {end['index']} has codes from {array.min()} to {array.max()}", expected=f"{low}..{high}"
                )
        images = batch if images is None else images
        return -(-images // batch), images

    def _bytes(self, array: Array, item: Mapping[str, Any], run: int, *, real: bool = False) -> bytes:
        """The part of one run, in the order of memory. What the last run lacks is a repetition of the last image."""
        axis = item["batch_axis"]
        if axis is not None:
            count = item["shape"][axis]
            at = np.minimum(np.arange(run * count, (run + 1) * count), array.shape[axis] - 1)
            array = array.take(at, axis)
        order = physical_axes(array.ndim, self.contract["layout"])
        kind = np.dtype("f4" if real and item["quantized"] else NUMPY[item["type"]]).newbyteorder("<")
        return np.asarray(array.transpose(order), order="C").astype(kind).tobytes()

    def _parse(self, data: bytes, runs: int, images: int, *, real: bool) -> Trace:
        ends, steps = self.contract["outputs"], self.contract["steps"] if self.trace else []
        parts: dict[str, list[Array]] = {}
        inputs = [{**end, "key": end["tensor"], "real": False} for end in self.contract["inputs"] if self.trace]
        results = [{**end, "key": f" {end['index']}", "real": real and end["scale"] != 0} for end in ends]
        items = [*inputs, *({**step, "key": step["tensor"], "real": False} for step in steps), *results]
        at = 0
        for _ in range(runs):
            for item in items:
                kind = np.dtype("f4" if item["real"] else NUMPY[item["type"]]).newbyteorder("<")
                order = physical_axes(len(item["shape"]), self.contract["layout"])
                shape = [item["shape"][axis] for axis in order]
                array = np.frombuffer(data, kind, int(np.prod(shape)), at).reshape(shape)
                at += array.nbytes
                parts.setdefault(item["key"], []).append(array.transpose(np.argsort(order)))
        if at != len(data):
            raise ToolchainError(f"the program returned {len(data)} bytes", expected=str(at))
        whole = {item["key"]: self._joined(parts[item["key"]], item, images) for item in items if runs}
        outputs = [whole.pop(item["key"]) for item in results]
        return Trace(outputs, whole)

    def _joined(self, parts: Sequence[Array], item: Mapping[str, Any], images: int) -> Array:
        axis = item["batch_axis"]
        array = parts[0]
        if axis is not None:
            count = item["shape"][axis] // int(self.contract["batch"]) * images
            array = np.concatenate(parts, axis).take(np.arange(count), axis)
        return np.array(array, array.dtype.newbyteorder("="), order="C")

    def _harness(self, *, loaded: bool) -> str:
        name, steps = self.contract["name"], self.contract["steps"] if self.trace else []
        return fill(
            "harness.c",
            n=name,
            load="    if (argc < 4 || load_constants(argv[3])) {\n        return 4;\n    }\n" if loaded else "",
            steps=len(steps),
            step_sizes="".join(f"{SIZES[step['type']]}, " for step in steps),
            step_elements="".join(f"{int(np.prod(step['shape']))}, " for step in steps),
            inputs="".join(self._take_input(end) for end in self.contract["inputs"]),
            outputs="".join(self._give_output(end) for end in self.contract["outputs"]),
        )

    def _take_input(self, end: Mapping[str, Any]) -> str:
        name, count = self.contract["name"], int(np.prod(end["shape"]))
        label = f"input_{end['index']}"
        codes = f"take(stdin, {name}_{label}(), {SIZES[end['type']]}, {count});"
        text = f"        {codes}\n"
        if end["quantized"]:
            text = (
                f"        if (real) {{\n            static float numbers[{count}];\n"
                f"            take(stdin, numbers, 4, {count});\n            {name}_quantize_{label}(numbers);\n"
                f"        }} else {{\n            {codes}\n        }}\n"
            )
        if self.trace:
            text += f"        give({name}_{label}(), {SIZES[end['type']]}, {count});\n"
        return text

    def _give_output(self, end: Mapping[str, Any]) -> str:
        name, count = self.contract["name"], int(np.prod(end["shape"]))
        label = f"output_{end['index']}"
        codes = f"give({name}_{label}(), {SIZES[end['type']]}, {count});"
        if not end["scale"]:
            return f"        {codes}\n"
        return (
            f"        if (real) {{\n            static float numbers[{count}];\n"
            f"            {name}_dequantize_{label}(numbers);\n            give(numbers, 4, {count});\n"
            f"        }} else {{\n            {codes}\n        }}\n"
        )

    def _bulk_source(self) -> str:
        constants = self.contract["constants"]
        return fill(
            "bulk.c",
            n=self.contract["name"],
            declarations="".join(f"{item['type']} {item['symbol']}[{item['elements']}];\n" for item in constants),
            loads="".join(
                f"    failed = failed || load(file, {item['symbol']}, {SIZES[item['type']]}, {item['elements']});\n"
                for item in constants
            ),
        )


def run(
    folder: Folder,
    codes: Sequence[Array],
    *,
    cc: str | None = None,
    cflags: Sequence[str] = ("-O3",),
    runner: Sequence[str] = (),
) -> list[Array]:
    """Build the folder and run it.

    Args:
        folder: The files that `emit` gave, or where they are.
        codes: For each input of the program its codes in the order of the graph, for any number of images.
        cc: C compiler, with options; the environment variable CC, or cc, gcc or clang on the path when None.
        cflags: Options of the compiler; `-static` for a program that an emulator runs.
        runner: Command that runs the program, such as `("qemu-aarch64",)`.

    Returns:
        The codes of each output in the order of the graph.

    Raises:
        ToolchainError: There is no compiler, or it or the program failed.
        InputError: The codes do not fit.
        ArtifactError: The folder is none that `emit` wrote.
    """
    with tempfile.TemporaryDirectory() as work:
        return Binary(folder, Path(work), cc=cc, cflags=cflags, runner=runner).run(codes).outputs


def read_folder(folder: Folder) -> dict[str, bytes]:
    """The files of a folder.

    Raises:
        ArtifactError: It holds no contract, or one of another version.
    """
    if isinstance(folder, Mapping):
        files = dict(folder)
    else:
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}
    if CONTRACT not in files:
        raise ArtifactError(f"there is no {CONTRACT}", expected="a folder written by emit")
    return files


def read_constants(source: str, contract: Mapping[str, Any]) -> bytes:
    """The numbers of weights.c, read from its text, in the order of the contract, little endian.

    Raises:
        ArtifactError: The contents do not agree with the contract.
    """
    found = {match[2]: (match[1], int(match[3]), match[4]) for match in _CONSTANT.finditer(source)}
    parts = []
    for item in contract["constants"]:
        ctype, count, text = found.get(item["symbol"], ("", 0, ""))
        array = parse_elements(text, NUMPY[item["type"]])
        if ctype != item["type"] or count != item["elements"] or array.size != count:
            raise ArtifactError(f"{item['symbol']} does not agree with the contract", where="weights.c")
        parts.append(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return b"".join(parts)

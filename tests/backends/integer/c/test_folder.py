"""The shipped folder: its own build and test, its symbols, its warnings, two folders in one program."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.backends.integer import Executor, c
from qcompiler.errors import ArtifactError, InputError, UnsupportedError
from qcompiler.program.files import ProgramFiles
from qcompiler.program.program import Instruction
from tests.backends.integer.c.builds import STRICT, random_codes
from tests.backends.integer.c.plans import Plan, separate
from tests.backends.integer.c.test_networks import program

NAMES = {"int8_dsp": "first", "int8_ort": "second_model"}
CORE = ("model.c", "kernels.c", "weights.c")


def written(files: ProgramFiles, name: str, folder: Path, alignment: int = 16) -> Path:
    """The folder of C of a program, with one vector."""
    folder.mkdir(exist_ok=True)
    vectors = c.record(files, [random_codes(files, 1)])
    for file, content in c.emit(files, name, separate(files, alignment=alignment), vectors).items():
        (folder / file).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def models() -> Mapping[str, ProgramFiles]:
    return {target: program("inverted", target) for target in NAMES}


@pytest.fixture(scope="module")
def folders(models: Mapping[str, ProgramFiles], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("c")
    return {target: written(files, NAMES[target], root / target) for target, files in models.items()}


def shell(*command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / folder.name))


@pytest.mark.parametrize("target", NAMES)
def test_make_test_passes_and_honours_cc_and_cflags(target: str, folders: Mapping[str, Path], tmp_path: Path) -> None:
    folder = copied(folders[target], tmp_path)
    result = shell("make", "test", folder=folder, CC="gcc", CFLAGS=" ".join(["-O0", "-DSEEN", *STRICT]))
    assert result.returncode == 0, result.stderr
    assert re.search(rf"{NAMES[target]}: 0 of \d+ codes differ in 1 vectors", result.stdout)
    assert "-DSEEN" in result.stdout
    missing = shell("make", "test", "CC=no-such-compiler", "-B", folder=folder)
    assert missing.returncode != 0
    assert "no-such-compiler" in missing.stderr


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("cflags", ["-O1 -march=native", "-O1 -march=native -D{}_PORTABLE"])
def test_make_test_passes_as_this_processor_has_it(
    target: str, cflags: str, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    folder, name = copied(folders[target], tmp_path), NAMES[target]
    result = shell("make", "test", f"CFLAGS={cflags.format(name.upper())}", folder=folder)
    assert result.returncode == 0, result.stderr
    assert re.search(rf"{name}: 0 of \d+ codes differ", result.stdout)
    vectors = subprocess.run(["nm", str(folder / "kernels.o")], capture_output=True, text=True, check=True).stdout
    has_kernels = target == "int8_dsp"  # the other one has its images as NCHW
    assert ("_vectors" in vectors) == (has_kernels and "PORTABLE" not in cflags and has_vectors())


STALE: dict[str, tuple[dict[str, str], str]] = {
    "options": ({"CFLAGS": "-O0 -DOTHER"}, "-DOTHER -c kernels.c"),
    "options with quotes": ({"CFLAGS": """-O0 -DTEXT='"a b"'"""}, "-c kernels.c"),
    "the compiler": ({"CFLAGS": "-O0", "CC": "./compiler"}, "./compiler -std=c99"),
    "options of the linker": ({"CFLAGS": "-O0", "LDFLAGS": "-Wl,-s"}, "-Wl,-s"),
}
"""Properties that a second build may change, and a text that is printed only after a new build."""


@pytest.mark.parametrize("case", STALE)
def test_nothing_old_is_tested(case: str, folders: Mapping[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["int8_dsp"], tmp_path)
    compiler = folder / "compiler"
    compiler.write_text('#!/bin/sh\nexec cc "$@"\n', encoding="utf-8")
    compiler.chmod(0o755)
    variables, built = STALE[case]

    def make(**given: str) -> subprocess.CompletedProcess[str]:
        return shell("make", "test", *(f"{name}={value}" for name, value in given.items()), folder=folder)

    first, again, other = make(CFLAGS="-O0"), make(CFLAGS="-O0"), make(**variables)
    for result in (first, again, other):
        assert result.returncode == 0, result.stderr
        assert "first: 0 of" in result.stdout
    assert "kernels.c" in first.stdout
    assert "kernels.c" not in again.stdout, "unchanged files are not built again"
    assert built in other.stdout
    broken = make(**{**variables, "CC": "false"})
    assert broken.returncode != 0
    assert "codes differ" not in broken.stdout


def test_sources_with_old_dates_are_built_again(folders: Mapping[str, Path], tmp_path: Path) -> None:
    """As a file system, an archive or a copy of another folder gives them."""
    folder = copied(folders["int8_dsp"], tmp_path)
    assert shell("make", "test", "CFLAGS=-O0", folder=folder).returncode == 0
    source = folder / "weights.c"
    text = source.read_text(encoding="utf-8")
    changed, count = re.subn(
        r"(first_head_weight_q\[24\] = \{\n *)(-?\d+)", lambda m: f"{m[1]}{-int(m[2]) or 99}", text
    )
    assert count == 1
    source.write_text(changed, encoding="utf-8")
    os.utime(source, (1e9, 1e9))
    result = shell("make", "test", "CFLAGS=-O0", folder=folder)
    assert result.returncode != 0
    assert re.search(r"first: [1-9]\d* of \d+ codes differ", result.stdout)


def test_a_build_folder_of_cmake_with_other_options_is_refused(folders: Mapping[str, Path], tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    folder = copied(folders["int8_dsp"], tmp_path)
    assert shell("cmake", "-B", "out", folder=folder, CFLAGS="-O0").returncode == 0
    assert shell("cmake", "-B", "out", folder=folder).returncode == 0, "the build prints nothing"
    assert shell("cmake", "-B", "out", folder=folder, CFLAGS="-O0").returncode == 0
    for name, value in (("CFLAGS", "-O2"), ("CC", "clang"), ("LDFLAGS", "-s")):
        refused = shell("cmake", "-B", "out", folder=folder, **{name: value})
        assert refused.returncode != 0
        assert f"{name} is '{value}', and this build folder" in " ".join(refused.stderr.split())


def test_the_command_of_the_page_for_a_microcontroller(folders: Mapping[str, Path], tmp_path: Path) -> None:
    absent = [name for name in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(name) is None]
    if absent:
        pytest.skip(f"needs {' and '.join(absent)}")
    page = (Path(__file__).parents[4] / "docs" / "howto" / "ship_the_c.md").read_text(encoding="utf-8")
    (board,) = re.findall(r"^```c\n(.*?)^```", page[page.index("## On a microcontroller") :], re.M | re.S)[:1]
    (command,) = [text for text in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S) if "arm-none-eabi" in text]
    folder = copied(folders["int8_dsp"], tmp_path)
    (folder / "board.c").write_text(board, encoding="utf-8")
    result = shell("sh", "-c", command.replace("out/shipped/c", "."), folder=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"first: 0 of \d+ codes differ", result.stdout)
    assert "warning" not in result.stderr


def has_vectors() -> bool:
    """Whether the compiler may use the vectors that kernels are written for."""
    command = ["cc", "-march=native", "-dM", "-E", "-x", "c", "/dev/null"]
    return "__AVX2__" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_make_test_fails_when_a_weight_is_another(folders: Mapping[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["int8_dsp"], tmp_path)
    source = (folder / "weights.c").read_text(encoding="utf-8")
    source, count = re.subn(
        r"(first_head_weight_q\[24\] = \{\n *)(-?\d+)", lambda m: f"{m[1]}{-int(m[2]) or 99}", source
    )
    assert count == 1
    (folder / "weights.c").write_text(source, encoding="utf-8")
    result = shell("make", "test", "CFLAGS=-O0", folder=folder)
    assert result.returncode != 0
    assert re.search(r"first: [1-9]\d* of \d+ codes differ", result.stdout)


def test_cmake_builds_and_tests(folders: Mapping[str, Path], tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    folder, last = copied(folders["int8_dsp"], tmp_path), ""
    for command in (
        ["cmake", "-B", "out", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_C_COMPILER=gcc"],
        ["cmake", "--build", "out"],
        ["ctest", "--test-dir", "out", "--output-on-failure"],
    ):
        result = shell(*command, folder=folder)
        assert result.returncode == 0, result.stdout + result.stderr
        last = result.stdout
    assert "100% tests passed" in last


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("machine", [[], ["-m32", "-msse2", "-mfpmath=sse", "-fno-pic"]], ids=["64 bits", "32 bits"])
def test_needs_no_library_and_warns_of_nothing(
    target: str, machine: list[str], folders: Mapping[str, Path], tmp_path: Path
) -> None:
    """Freestanding: without a single header or symbol of a C library; -m32 has none here."""
    folder, name = folders[target], NAMES[target]
    for source in (*CORE, f"{name}_float.c"):
        command = ["gcc", "-std=c99", "-ffreestanding", "-O2", *STRICT, *machine, "-c", str(folder / source)]
        result = shell(*command, "-o", str(tmp_path / f"{source}.o"), folder=folder)
        assert result.returncode == 0, result.stderr
    listed = shell("nm", *(str(tmp_path / f"{source}.o") for source in (*CORE, f"{name}_float.c")), folder=folder)
    symbols = [line.split()[-2:] for line in listed.stdout.splitlines() if line and not line.endswith(":")]
    defined = {symbol for kind, symbol in symbols if kind.isupper() and kind != "U"}
    assert all(symbol.startswith(f"{name}_") for symbol in defined)
    # Functions that gcc calls itself: copies and fills of memory, and on 32 bits the division of 64-bit integers.
    runtime = {"memcpy", "memset", "memmove", "__divdi3", "__moddi3", "__divmoddi4"}
    called = {symbol for kind, symbol in symbols if kind == "U"} - defined
    assert called <= runtime


def test_integer_arithmetic_holds_no_float(folders: Mapping[str, Path]) -> None:
    core = "".join(
        (folders["int8_dsp"] / file).read_text(encoding="utf-8") for file in (*CORE, "kernels.h", "weights.h")
    )
    assert "float" not in core
    assert "double" not in core
    assert "float" in (folders["int8_ort"] / "kernels.c").read_text(encoding="utf-8")


def test_two_models_in_one_program(
    models: Mapping[str, ProgramFiles], folders: Mapping[str, Path], tmp_path: Path
) -> None:
    main = '#include "first.h"\n#include "second_model.h"\n#include "first_float.h"\n#include "second_model_float.h"\n'
    main += "int main(void) { first_run(); second_model_run(); return 0; }\n"
    (tmp_path / "main.c").write_text(main, encoding="utf-8")
    sources = [str(folders[t] / source) for t, n in NAMES.items() for source in (*CORE, f"{n}_float.c")]
    includes = [f"-I{folders[target]}" for target in NAMES]
    command = ["gcc", "-std=c99", "-O0", *STRICT, *includes, "main.c", *sources, "-o", "main"]
    result = shell(*command, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert shell("./main", folder=tmp_path).returncode == 0


def test_the_public_headers_are_for_cpp_too(folders: Mapping[str, Path], tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    (tmp_path / "main.cpp").write_text('#include "first_float.h"\nint main() { first_run(); }\n', encoding="utf-8")
    folder = folders["int8_dsp"]
    result = shell("g++", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{folder}", "-c", "main.cpp", folder=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("alignment", [1, 64, 4096])
def test_any_alignment(alignment: int, models: Mapping[str, ProgramFiles], tmp_path: Path) -> None:
    files = models["int8_dsp"]
    folder = written(files, "model", tmp_path / "c", alignment)
    assert f"aligned({alignment})" in (folder / "model.c").read_text(encoding="utf-8")
    codes = random_codes(files, 2)
    assert np.array_equal(c.run(folder, codes, cflags=("-O0", *STRICT))[0], Executor(files).run_integer(codes)[0])


def test_the_header_says_what_goes_in_and_comes_out(
    models: Mapping[str, ProgramFiles], folders: Mapping[str, Path]
) -> None:
    text = (folders["int8_dsp"] / "first.h").read_text(encoding="utf-8")
    tensor = models["int8_dsp"].program.tensors[models["int8_dsp"].program.instructions[0].output]
    assert "Input 0, x: [1, 3, 33, 29]" in text
    assert "int8_t[1][33][29][3] in memory, NHWC; codes from -128 to 127" in text
    (scale,) = re.findall(r"#define FIRST_INPUT_0_SCALE (\S+)f\n", text)
    assert np.float32(scale) == np.float32(tensor.scale[0])
    assert re.search(r"#define FIRST_ARENA_BYTES \d+\n#define FIRST_CONSTANT_BYTES \d+\n", text)
    assert "const int8_t *first_output_0(void);" in text


def test_the_same_bytes_twice(models: Mapping[str, ProgramFiles]) -> None:
    first, second = (c.emit(files, "model", separate(files)) for files in [models["int8_dsp"]] * 2)
    assert first == second
    assert all(b"/" + b"tmp" not in content for content in first.values())


@pytest.mark.parametrize("name", ["", "3x3", "a b", "_model", "größe"])
def test_names_that_are_no_identifiers_are_refused(name: str, models: Mapping[str, ProgramFiles]) -> None:
    with pytest.raises(InputError, match="is not a C identifier"):
        c.emit(models["int8_dsp"], name, separate(models["int8_dsp"]))


def test_vectors_that_do_not_fit_are_refused(models: Mapping[str, ProgramFiles]) -> None:
    files = models["int8_dsp"]
    codes = random_codes(files, 2)  # the plan is for one image
    with pytest.raises(InputError, match=r"a vector holds \[2, 3, 33, 29\] for input 0; expected \[1, 3, 33, 29\]"):
        c.emit(files, "model", separate(files), c.record(files, [codes]))


def altered(files: ProgramFiles, position: int, **changes: Any) -> ProgramFiles:
    """The program with another instruction at `position`."""
    items = list(files.program.instructions)
    items[position] = Instruction.model_validate({**items[position].model_dump(), **changes})
    return ProgramFiles(
        files.program.model_copy(update={"instructions": tuple(items), "memory": None}), files.constants
    )


def test_what_has_no_c_is_refused_by_name(models: Mapping[str, ProgramFiles]) -> None:
    files = models["int8_dsp"]
    at = next(i for i, item in enumerate(files.program.instructions) if item.op == "int_conv2d")
    mode = {**files.program.instructions[at].attributes, "mode": "nvdla"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"op": "fft"}, "C has no kernel for 'fft'"),
        ({"attributes": mode}, "no requantization mode 'nvdla'"),
    ]
    for changes, message in cases:
        with pytest.raises(UnsupportedError, match=message):
            c.emit(altered(files, at, **changes), "model", separate(files))


def test_a_float_island_is_refused_by_name(models: Mapping[str, ProgramFiles]) -> None:
    files = models["int8_dsp"]
    with_island = ProgramFiles(
        files.program.model_copy(update={"islands": {"softmax": ""}, "memory": None}), files.constants
    )
    called = altered(with_island, 3, op="call", attributes={"graph": "softmax"})
    with pytest.raises(UnsupportedError, match=f"float island @softmax.*at %{files.program.instructions[3].output}"):
        c.emit(called, "model", separate(files))


def test_real_numbers_are_refused(models: Mapping[str, ProgramFiles]) -> None:
    files = models["int8_dsp"]
    straight = files.program.model_copy(update={"outputs": ("x",), "memory": None})
    with pytest.raises(UnsupportedError, match="the output %x has real numbers"):
        c.emit(ProgramFiles(straight, files.constants), "model", separate(files))
    again = files.program.instructions[0].model_copy(update={"outputs": ("again",)})
    tensors = {**files.program.tensors, "again": files.program.tensors[files.program.instructions[0].output]}
    twice = files.program.model_copy(
        update={"instructions": (again, *files.program.instructions), "tensors": tensors, "memory": None}
    )
    with pytest.raises(UnsupportedError, match="the input %x has 2 quantizers with different grids"):
        c.emit(ProgramFiles(twice, files.constants), "model", separate(files))


class TestPlans:
    """Memory plans under which the program would compute something else."""

    def plan(self, files: ProgramFiles, **places: int) -> Plan:
        good = separate(files)
        return Plan(1, good.bytes, good.alignment, {**good.offsets, **places})

    def refused(self, files: ProgramFiles, plan: Plan, message: str) -> None:
        with pytest.raises(ArtifactError, match=message):
            c.emit(files, "model", plan)

    def test_a_tensor_without_a_place(self, models: Mapping[str, ProgramFiles]) -> None:
        files = models["int8_dsp"]
        good = separate(files)
        name = next(item.output for item in files.program.instructions if item.op == "int_conv2d")
        offsets = {key: at for key, at in good.offsets.items() if key != name}
        self.refused(files, Plan(1, good.bytes, 16, offsets), rf"has no place for a tensor \(at %{name}\)")
        self.refused(files, Plan(1, good.bytes, 16, {**good.offsets, name: good.bytes}), "places a tensor at")

    def test_a_result_over_what_it_is_computed_from(self, models: Mapping[str, ProgramFiles]) -> None:
        files = models["int8_dsp"]
        item = next(item for item in files.program.instructions if item.op == "int_conv2d")
        at = separate(files).offsets[item.inputs[0]]
        self.refused(files, self.plan(files, **{item.output: at}), f"puts %{item.output} over %{item.inputs[0]}")

    def test_a_tensor_that_is_still_needed(self, models: Mapping[str, ProgramFiles]) -> None:
        """The operand of a residual connection lies where a layer inside the block writes."""
        files = models["int8_dsp"]
        add = next(item for item in files.program.instructions if item.op == "int_add")
        at = separate(files).offsets[add.inputs[0]]
        gate = next(item for item in files.program.instructions if item.output == "sigmoid.q")
        message = f"overwrites %{add.inputs[0]} before %{add.output} has read it"
        self.refused(files, self.plan(files, **{gate.output: at}), message)

    def test_an_output_that_is_overwritten(self, models: Mapping[str, ProgramFiles]) -> None:
        files = models["int8_dsp"]
        program = files.program
        outputs = (*program.outputs, "early")
        first = next(item for item in program.instructions if item.op == "int_conv2d")
        real = Instruction(op="dequantize", inputs=(first.output,), outputs=("early",))
        tensors = {**program.tensors, "early": program.tensors[first.output].model_copy(update={"dtype": "f32"})}
        changed = program.model_copy(
            update={
                "outputs": outputs,
                "tensors": tensors,
                "instructions": (*program.instructions, real),
                "memory": None,
            }
        )
        two = ProgramFiles(changed, files.constants)
        last = program.instructions[-2].output
        at = separate(two).offsets[first.output]
        self.refused(two, self.plan(two, **{last: at}), rf"overwrites an output \(at %{first.output}\)")

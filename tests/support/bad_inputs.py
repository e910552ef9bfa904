"""Hundreds of bad inputs: each is accepted, or refused with one of our errors in one line.

    python -m tests.support.bad_inputs --count 500 --seed 1

Seven kinds: artifacts (changed, with their hashes made right again), exported programs, files of arrays and images,
command lines, the text formats: encodings, targets, `.qir` modules, pipelines; and ONNX files, of real numbers and
quantized. Each kind begins with inputs that
must be accepted. Kind, seed and number identify a case.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler import cli
from qcompiler.cli.inputs import ImageFolder, load_tensors
from qcompiler.errors import QCompilerError
from qcompiler.ir.serialize import load_module, save_module
from qcompiler.session.pipeline import default_pipeline, parse_pipeline, print_pipeline
from qcompiler.session.source import load_model
from tests.support.damage import (
    change_json,
    changed_bytes,
    changed_safetensors,
    odd_header,
    special_file,
)

Files = dict[str, bytes]
SECONDS = 120
"""After which a case hangs."""
MANIFEST = "manifest.json"


class Net(nn.Module):
    """Convolution, pooling, addition, a table and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.max_pool2d(self.norm(self.first(x)).relu(), 2)
        z = torch.cat([y + self.second(y), torch.sigmoid(y)], 1)[:, 4:12]
        result: Tensor = self.head(nn.functional.avg_pool2d(z, 2).mean((2, 3)))
        return result


class WithIsland(nn.Module):
    """A part in float, and two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.conv(x)
        return {"max": torch.cumsum(y.relu(), 1), "flat": y.flatten(1).softmax(1)}


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def net_and_inputs() -> tuple[nn.Module, Tensor]:
    """Objects that a command line names."""
    return net(), images()


def raises() -> nn.Module:
    """A function of the user with a mistake in it."""
    raise KeyError("no such\nlayer")


def leaves() -> nn.Module:
    """A function of the user that ends the process."""
    raise SystemExit(3)


def takes(width: int) -> nn.Module:
    """A function of the user that wants an argument."""
    return nn.Linear(width, width)


NUMBER = 7
"""Objects that are not models."""


# --- the kinds ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Args:
        name: Name of the kind.
        bases: Inputs that are taken, by name.
        draw: Makes a bad input of a base, in a folder.
        use: Loads an input and uses all of what was loaded; gives what is worth a second look.
    """

    name: str
    bases: Mapping[str, Any]
    draw: Callable[[Any, random.Random, Path], Any]
    use: Callable[[Any], None]


def artifacts() -> Kind:
    """Folders that `save` wrote."""
    bases: dict[str, Files] = {}
    for name in ("int8_dsp", "w4a8_npu_blocks", "ort_cpu", "hexagon_htp_a16w8"):
        bases[name] = qcompiler.compile(net(), name, calibration_data=[images()], verify="off").artifact.files()
    island = qcompiler.load_target("int8_dsp").override(fallback="float")
    torch.manual_seed(0)
    compiled = qcompiler.compile(WithIsland().eval(), island, calibration_data=[images()], verify="warn")
    bases["island"] = compiled.artifact.files()

    def draw(base: Files, source: random.Random, folder: Path) -> Path:
        files = dict(base)
        names = [MANIFEST, "program.json", "program.json", "program.json", "weights.safetensors", "provenance.json"]
        names += ["encodings.json", "model.onnx", *[name for name in files if name.startswith("c/")][:1]]
        for _ in range(source.choice([1, 1, 2])):
            name = source.choice(names)
            if name.endswith(".json") and files[name].startswith(b"{"):
                with contextlib.suppress(ValueError, RecursionError):  # it has been damaged before
                    files[name] = change_json(files[name].decode(), source)
            elif name.endswith(".safetensors"):
                files[name] = changed_safetensors(files[name], source)
            else:
                files[name] = changed_bytes(files[name], source)
        with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError):
            manifest = json.loads(files[MANIFEST])
            hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != MANIFEST}
            manifest["sha256"] = {name: hashes.get(name, digest) for name, digest in manifest["sha256"].items()}
            files[MANIFEST] = json.dumps(manifest).encode()
        write_files(folder / "artifact", files)
        if source.random() < 0.03:
            special_file(folder / "artifact" / source.choice(names), source)
        return folder / "artifact"

    def use(path: Path) -> None:
        artifact = qcompiler.load(path)
        artifact.files(), artifact.estimate, artifact.memory, artifact.islands
        if artifact.grids is not None:
            artifact.encodings("2.0.0")
        with contextlib.suppress(QCompilerError):
            artifact.run(images())
        artifact.verify()

    return Kind("artifacts", bases, draw, use)


def write_files(folder: Path, files: Files) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


class Thing:
    """Objects that are not tensors."""


def exported() -> Kind:
    """`.pt2` files."""
    program = torch.export.export(net(), (images(),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    stream = io.BytesIO()
    torch.export.save(program, stream)
    with zipfile.ZipFile(stream) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def draw(base: Files, source: random.Random, folder: Path) -> Path:
        files, path = dict(base), folder / "model.pt2"
        graph = next(name for name in files if name.endswith("model.json"))
        tables = [name for name in files if name.endswith("config.json")]
        for _ in range(source.choice([1, 1, 2])):
            match source.randrange(6):
                case 0 | 1 | 2:
                    name = source.choice([graph, graph, *tables])
                    with contextlib.suppress(ValueError, RecursionError, KeyError):  # it has been damaged before
                        files[name] = change_json(files[name].decode(), source)
                case 3:
                    name = source.choice(list(files))
                    files[name] = changed_bytes(files[name], source)
                case 4:
                    del files[source.choice(list(files))]
                    files = files or {"x": b""}
                case _:
                    pickled = io.BytesIO()
                    torch.save(source.choice([Thing(), (Thing(),), {"x": 1}, [images()], "x"]), pickled)
                    files[source.choice([*files, "model/data/weights/model.pt"])] = pickled.getvalue()
            if graph not in files:
                break
        write_zip(path, files, source)
        if source.random() < 0.1:
            path.write_bytes(changed_bytes(path.read_bytes(), source))
        if source.random() < 0.02:
            special_file(path, source)
        return path

    def use(path: Path) -> None:
        model = load_model(path)
        qcompiler.compile(model, calibration_data=[images()], verify="off")

    return Kind("exported programs", {"net": members}, draw, use)


def write_zip(path: Path, files: Files, source: random.Random | None = None) -> None:
    kind = zipfile.ZIP_DEFLATED if source is not None and source.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def arrays() -> Kind:
    """Files of arrays, and folders of images."""
    from PIL import Image

    bases: dict[str, Files] = {}
    for ending in (".npy", ".npz", ".pt", ".safetensors"):
        stream = io.BytesIO()
        save_arrays(stream, ending, images().numpy())
        bases[f"x{ending}"] = {f"x{ending}": stream.getvalue()}
    pictures: Files = {}
    for ending in ("png", "jpg", "gif", "bmp", "tif", "webp"):
        stream = io.BytesIO()
        Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(stream, "jpeg" if ending == "jpg" else ending.replace("tif", "tiff"))  # fmt: skip
        pictures[f"pictures/a.{ending}"] = stream.getvalue()
    bases["pictures"] = pictures

    def draw(base: Files, source: random.Random, folder: Path) -> Path:
        files = dict(base)
        name = source.choice(list(files))
        ending = Path(name).suffix
        match source.randrange(4):
            case 0 if len(files) == 1:
                files[name] = odd_arrays(ending, source)
            case 1 if ending == ".safetensors":
                files[name] = changed_safetensors(files[name], source)
            case 1 if ending == ".npy":
                files[name] = odd_header(source)
            case _:
                files[name] = changed_bytes(files[name], source)
        if source.random() < 0.05:
            files[name] = b""
        write_files(folder, files)
        if source.random() < 0.05:
            special_file(folder / name, source)
        return folder / name.partition("/")[0]

    def use(path: Path) -> None:
        if path.name == "pictures":
            for _ in ImageFolder(path, (3, 8, 8), batch_size=2):
                pass
        else:
            for tensor in load_tensors(path):
                assert tensor.numel() == 0 or float(tensor.flatten()[0].double()) is not None

    return Kind("arrays", bases, draw, use)


def save_arrays(stream: io.BytesIO, ending: str, item: Any) -> None:
    """Write `item` in a format; what a format has no form for goes there pickled."""
    if ending == ".npy":
        np.save(stream, item, allow_pickle=True)
    elif ending == ".npz":
        np.savez_compressed(stream, x=item, allow_pickle=True)
    elif ending == ".pt":
        torch.save(
            torch.from_numpy(item) if isinstance(item, np.ndarray) and item.dtype.kind in "biuf" else item, stream
        )
    else:
        from safetensors.numpy import save

        stream.write(save({"x": item}))


def odd_arrays(ending: str, source: random.Random) -> bytes:
    """Objects, text, structures, dates, complex numbers, other byte orders, no elements, nested tensors."""
    kinds: list[Any] = [
        np.array([Thing(), 1], object), np.array(["a", "bc"]), np.array([b"a"]), np.zeros(3, "i4, f8"),
        np.zeros(2, "M8[s]"), np.zeros(3, np.complex64), np.zeros(3, ">f4"), np.zeros((0, 3)), np.float64(1.0),
        np.zeros(3, np.longdouble), np.array(np.nan), np.zeros(3, np.float16),
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will do without quantized tensors one day
        quantized = torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)
    tensors: list[Any] = [
        Thing(), {"x": Thing()}, [images(), 3], {"x": {"y": images()}}, "x", None, torch.zeros(1).expand(10**15),
        torch.eye(3).to_sparse(), torch.zeros(3, dtype=torch.complex64), torch.zeros(2, device="meta"), net().state_dict(),
        quantized, [], {}, net(),
    ]  # fmt: skip
    stream = io.BytesIO()
    with contextlib.suppress(Exception):  # some formats refuse some of them when they are written
        save_arrays(stream, ending, source.choice(tensors if ending == ".pt" else kinds))
    return stream.getvalue()


def command_lines() -> Kind:
    """Arguments, run in this process."""
    here = "tests.support.bad_inputs"
    folder = Path(tempfile.mkdtemp(prefix="bad-inputs-"))
    target = qcompiler.load_target("int8_dsp")
    compiled = qcompiler.compile(net(), target, calibration_data=[images()], verify="off")
    compiled.save(folder / "artifact")
    np.save(folder / "x.npy", images().numpy())
    (folder / "encodings.json").write_text(compiled.encodings())
    (folder / "folder").mkdir()
    (folder / "folder.npz").mkdir()
    (folder / "file").write_text("text")
    (folder / "bytes.npy").write_bytes(b"\xff\0\xfe")
    os.mkfifo(folder / "pipe.npz")
    (folder / "broken_module.py").write_text("this is no Python")
    bases = {
        "compile": ["compile", f"{here}:net_and_inputs", "--verify", "off", "--calibration", "@x.npy", "--json"],
        "check": ["check", f"{here}:net_and_inputs"],
        "verify": ["verify", "@artifact", "--json"],
        "run": ["run", "@artifact", "@x.npy"],
        "encodings": ["encodings", "@artifact"],
        "estimate": ["estimate", "@artifact"],
        "explain": ["explain", "@artifact", "first"],
        "targets": ["targets", "int8_dsp"],
        "passes": ["passes"],
    }
    values = [
        "", "-1", "0", "1", "²", "٣", "1e9", "9" * 30, "9" * 5000, "nan", "inf", "--", "-", "=", "==", "a=b", "x" * 5000,
        "\udcff\udcfe", "é☃\U0001f600", "a\nb", "%s{}", "int8_dsp", "no_target", "@artifact", "@folder", "@folder.npz",
        "@file", "@bytes.npy", "@pipe.npz", "@gone", "@x.npy", "@encodings.json", "/dev/null", "/dev/full", "/", "..", ".",
        f"{here}:raises", f"{here}:leaves", f"{here}:takes", f"{here}:NUMBER", f"{here}:Net", f"{here}:none", f"{here}:",
        ":", ":x", "..x:y", "no.such:x", "broken_module:x", "weight_bits=²", "weight_bits=-1", "weight_bits=99999999999999",
        "per_channel=maybe", "fallback=float", "*=float", "*=16", "first=a16w²", "[=4", "first=9", "default", "canonicalize,",
        "model.onnx", "x.pt2", "@x.pt2", "error", "best", "fast", "0.6.1", "2.0.0", "true",
    ]  # fmt: skip
    options = [
        "--target", "--base", "--set", "--output", "--calibration", "--normalize", "--batch-size", "--override",
        "--encodings", "--ignore-unmatched", "--effort", "--pipeline", "--verify", "--seed", "--memory", "--json", "--inputs",
        "--version", "--help", "--no-such", "-o", "-t",
    ]  # fmt: skip

    def draw(base: list[str], source: random.Random, work: Path) -> list[str]:
        words = list(base)
        for _ in range(source.choice([1, 1, 2, 3])):
            match source.randrange(5):
                case 0 | 1:
                    words += [source.choice(options), source.choice(values)]
                case 2:
                    words[source.randrange(len(words))] = source.choice(values)
                case 3:
                    del words[source.randrange(len(words))]
                case _:
                    words.insert(source.randrange(len(words) + 1), source.choice([*values, *options]))
            words = words or [""]
        # Written files go to a folder that can be thrown away.
        return [str(work / "out") if old in ("--output", "-o") and word.startswith((".", "/")) else word
                for old, word in zip(["", *words], words, strict=False)]  # fmt: skip

    def use(words: list[str]) -> None:
        arguments = [str(folder / word[1:]) if word.startswith("@") else word for word in words]
        before = Path.cwd()
        out, err = io.StringIO(), io.StringIO()
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = cli.main(arguments)
        finally:
            os.chdir(before)
        lines = [line for line in err.getvalue().splitlines() if not line.startswith(("warning: ", "note: "))]
        text = "\n".join(lines)
        if "Traceback" in text or "defect in qcompiler" in text or code not in (0, 1, 2):
            raise AssertionError(f"exit code {code}: {text}")
        if code == 1 and "verify" not in arguments and lines and (len(lines) > 1 or not lines[0].startswith("error: ")):
            raise AssertionError(f"more than one line: {text}")
        if code:
            raise RefusedError(f"exit code {code}")

    return Kind("command lines", bases, draw, use)


class RefusedError(QCompilerError):
    """A command line that ended with 1 or 2, in one line."""


def texts() -> Kind:
    """Encodings, targets, modules and pipelines."""
    compiled = qcompiler.compile(net(), "int8_dsp", calibration_data=[images()], verify="off")
    with tempfile.TemporaryDirectory() as work:
        home = save_module(compiled.integer, Path(work) / "model.qir", compiled.records)
        module = {path.name: path.read_bytes() for path in sorted(home.iterdir())}
        home = save_module(compiled.quantized, Path(work) / "other.qir", compiled.records)
        quantized = {path.name: path.read_bytes() for path in sorted(home.iterdir())}
    shipped = Path(str(qcompiler.__file__)).parent / "targets"
    bases: dict[str, Files] = {
        **{f"encodings {v}": {"e.json": compiled.encodings(v).encode()} for v in ("0.6.1", "1.0.0", "2.0.0")},
        **{f"target {name}": {"t.toml": (shipped / f"{name}.toml").read_bytes()} for name in ("int8_dsp", "ort_cpu")},
        "integer module": module,
        "quantized module": quantized,
        "pipeline": {"pipeline": print_pipeline(default_pipeline()).encode()},
    }
    words = ["%", "@", "(", ")", "{", "}", "[", "]", ",", ":", "=", '"', "-", "1e999", "nan", "9" * 400, "dim", "spec", "inf",
             "true", "none", "N**99", "i8", "f32", "stride", "()", "(0, 0)", "(-1,)", "q(0.5:0)", "\n", "return", "int_conv2d"]  # fmt: skip

    def change_words(text: str, source: random.Random) -> bytes:
        tokens = text.split(" ")
        for _ in range(source.choice([1, 1, 2, 4])):
            at = source.randrange(len(tokens))
            match source.randrange(4):
                case 0:
                    tokens[at] = source.choice(words)
                case 1:
                    tokens[at] = source.choice(tokens)
                case 2:
                    del tokens[at]
                    tokens = tokens or [""]
                case _:
                    tokens.insert(at, source.choice([*words, tokens[at]]))
        return " ".join(tokens).encode()

    def draw(base: Files, source: random.Random, folder: Path) -> Path:
        files = dict(base)
        name = source.choice([name for name in files if name != "hash"])
        text = files[name]
        if name == "tensors.safetensors":
            files[name] = changed_safetensors(text, source)
        elif name.endswith(".json"):
            files[name] = change_json(text.decode(), source)
        elif source.random() < 0.2:
            files[name] = changed_bytes(text, source)
        else:
            files[name] = change_words(text.decode(), source)
        home = folder / "model.qir" if len(files) > 1 else folder
        write_files(home, files)
        if source.random() < 0.03:
            special_file(home / name, source)
        return home if len(files) > 1 else home / name

    def use(path: Path) -> None:
        if path.suffix == ".qir":
            load_module(path)
        elif path.suffix == ".toml":
            qcompiler.load_target(path).summary()
        elif path.suffix == ".json":
            qcompiler.compile(net(), encodings=path, calibration_data=[images()], verify="off")
        else:
            data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            print_pipeline(parse_pipeline(data.decode("utf-8", "replace")))

    return Kind("texts", bases, draw, use)


def onnx_files() -> Kind:
    """ONNX files of real numbers; see `bad_onnx`."""
    from tests.support import bad_onnx

    return bad_onnx.float_files()


def quantized_onnx_files() -> Kind:
    """ONNX files that are quantized already; see `bad_onnx`."""
    from tests.support import bad_onnx

    return bad_onnx.quantized_files()


MAKERS: dict[str, Callable[[], Kind]] = {
    "artifacts": artifacts,
    "exported": exported,
    "arrays": arrays,
    "commands": command_lines,
    "texts": texts,
    "onnx": onnx_files,
    "quantized-onnx": quantized_onnx_files,
}


# --- running --------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """The outcomes for the inputs of a kind.

    Args:
        counts: `loaded`, `refused` and `untyped`.
        reasons: Kinds of errors.
        failures: For each that was neither taken nor refused by one of our errors in one line: its number and why.
    """

    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)


def _hang(number: int, frame: object) -> None:
    raise TimeoutError(f"it hangs: more than {SECONDS} seconds")


def check_bases(kind: Kind) -> None:
    """Assert that what no change was made to is taken."""
    for base in kind.bases.values():
        with tempfile.TemporaryDirectory() as work:
            kind.use(unchanged(kind, base, Path(work)))


def unchanged(kind: Kind, base: Any, folder: Path) -> Any:
    """A base as `use` takes it."""
    if isinstance(base, list):
        return base
    if isinstance(base, bytes):
        (folder / "model.onnx").write_bytes(base)
        return folder / "model.onnx"
    if kind.name == "exported programs":
        write_zip(folder / "model.pt2", base)
        return folder / "model.pt2"
    if kind.name == "artifacts":
        write_files(folder / "artifact", base)
        return folder / "artifact"
    home = folder / "model.qir" if "hash" in base else folder
    write_files(home, base)
    return home if "hash" in base else folder / next(iter(base)).partition("/")[0]


def run_kind(kind: Kind, seed: int, numbers: Sequence[int]) -> Outcome:
    """Draw and use the inputs with these numbers."""
    outcome = Outcome()
    names = list(kind.bases)
    old = signal.signal(signal.SIGALRM, _hang)
    try:
        for number in numbers:
            source = random.Random(f"{kind.name}/{seed}/{number}")
            folder = Path(tempfile.mkdtemp(prefix="bad-input-"))
            base = names[number % len(names)]
            item: Any = None
            signal.alarm(SECONDS)
            try:
                item = kind.draw(kind.bases[base], source, folder)
                kind.use(item)
                outcome.counts["loaded"] += 1
            except QCompilerError as error:
                lines = str(error).count("\n")
                outcome.reasons[type(error).__name__] += 1
                if lines and type(error).__name__ not in MAY_HAVE_LINES:
                    outcome.counts["untyped"] += 1
                    outcome.failures.append((number, f"{base}: {lines + 1} lines: {error}"))
                else:
                    outcome.counts["refused"] += 1
            except Exception as error:  # noqa: BLE001  # what is looked for
                outcome.counts["untyped"] += 1
                trace = "".join(traceback.format_exception(error, limit=-4))
                outcome.failures.append((number, f"{base}: {item}: {trace}"))
            finally:
                signal.alarm(0)
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        signal.signal(signal.SIGALRM, old)
    return outcome


MAY_HAVE_LINES = ("UnsupportedError", "CaptureError", "VerificationError")
"""Errors about a model, which show the lines of code to write in its place, or a row for each form."""


def main() -> int:
    """Run all kinds, or one; see the text of the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=500, help="inputs of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(MAKERS), help="one kind alone")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each kind")
    options = parser.parse_args()
    chosen = [options.kind] if options.kind else list(MAKERS)
    failed = 0
    for name in chosen:
        kind = MAKERS[name]()
        check_bases(kind)
        outcome = run_kind(kind, options.seed, range(options.first, options.first + options.count // len(chosen)))
        counts = ", ".join(f"{outcome.counts[key]} {key}" for key in ("loaded", "refused", "untyped"))
        sys.stdout.write(f"{name}, seed {options.seed}: {counts}; {dict(outcome.reasons)}\n")
        for number, text in outcome.failures:
            sys.stdout.write(f"  {name} number {number}: {text[:3000]}\n")
        sys.stdout.flush()
        failed += len(outcome.failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

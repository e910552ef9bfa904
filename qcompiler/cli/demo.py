"""The demo: compile the digits network and measure the accuracy of each form.

The demo needs a checkout, because the network and its training are in `examples/digits/`.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import qcompiler
from qcompiler.artifact.artifact import Artifact
from qcompiler.backends import known_backends
from qcompiler.backends.base import Backend
from qcompiler.errors import InputError

ALLOWED_LOSS = 0.005
"""Accepted loss of accuracy: half a percentage point."""

ROOT = Path(__file__).resolve().parents[2]

_RELOAD = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from qcompiler import load
from qcompiler.cli import demo
data = demo.digits("data").load_data()
print(json.dumps(demo.accuracy(load(Path(sys.argv[1])).run, data)))
"""


@dataclass(frozen=True)
class Result:
    """Measurements of the demo.

    Args:
        accuracy: Share of held-out digits classified correctly, by form.
        verification: The report of the compile.
        bytes: Size of each file.
        float_bytes: Size of the parameters in float32.
        memory: Bytes of activations while the program runs.
        seconds: Wall-clock time by step of the compile, seconds.
        output: Path of the artifact.
        passed: Whether the forms agree, and the integer program is within half a point of the float model.
    """

    accuracy: dict[str, float]
    verification: dict[str, Any]
    bytes: dict[str, int]
    float_bytes: int
    memory: dict[str, int]
    seconds: dict[str, float]
    output: str
    passed: bool

    def __str__(self) -> str:
        lines = ["accuracy on held-out digits"]
        lines += [f"  {name:<42}{100 * value:9.2f} %" for name, value in self.accuracy.items()]
        lines.append(f"elements that differ from the {self.verification['reference']}")
        for form in self.verification["forms"]:
            found = f"{form['differing']} of {form['elements']}"
            if form["status"] == "not run":
                found = f"not run: {form['reason']}"
            elif form["differing"]:
                found += f", by {form['largest']} LSB at most"
            lines.append(f"  {form['name']:<42}{found}")
        for name, share in self.verification["integer_macs"].items():
            lines.append(f"  {f'products in integer kernels of {name}':<42}{100 * share:.1f} %")
        lines.append("bytes")
        lines.append(f"  {'parameters in float32':<42}{self.float_bytes:>9}")
        lines += [f"  {name:<42}{size:>9}" for name, size in sorted(self.bytes.items())]
        lines += [f"  {f'activations, {name}':<42}{size:>9}" for name, size in self.memory.items()]
        lines.append("seconds")
        lines += [f"  {name:<42}{value:9.2f}" for name, value in self.seconds.items()]
        lines.append(f"  {'compile, all steps':<42}{sum(self.seconds.values()):9.2f}")
        lines.append(f"artifact in {self.output}")
        lines.append("passed" if self.passed else "FAILED")
        return "\n".join(lines)


def digits(name: str) -> Any:  # noqa: ANN401  # the example is not part of the package, so its types are unknown
    """The module `name` of the example.

    Raises:
        InputError: The package is not in a checkout, or scikit-learn is missing.
    """
    if not (ROOT / "examples" / "digits").is_dir():
        raise InputError("the demo needs the folder examples/digits", fix="Run `make demo` in a checkout.")
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module(f"examples.digits.{name}")
    except ImportError as error:
        raise InputError(f"the demo needs {error.name}", fix="Run `make demo`, which installs it.") from error
    finally:
        sys.path.remove(str(ROOT))


def accuracy(predict: Callable[[Tensor], object], data: Any) -> float:  # noqa: ANN401
    """Share of the held-out digits that `predict` classifies correctly, in [0, 1]."""
    with torch.no_grad():
        logits = predict(data.test_images)
    assert isinstance(logits, Tensor)
    return float((logits.argmax(1) == data.test_labels).double().mean())


def run(output: Path) -> Result:
    """Compile the network into `output`, measure every form, and reload the artifact in a fresh process."""
    data, model = digits("data").load_data(), digits("model").load_digits_net()
    compiled = qcompiler.compile(model, "int8_dsp", calibration_data=[data.calibration_images], output=output)
    assert compiled.verification is not None
    forms = {name: known_backends()[name] for name, form in compiled.artifact.forms.items() if form.files}
    seconds = dict(compiled.seconds)
    reloaded = subprocess.run(  # noqa: S603  # runs this interpreter on the code above
        [sys.executable, "-c", _RELOAD, str(output), str(ROOT)], capture_output=True, text=True, check=True
    )
    measured = {
        "float": accuracy(model, data),
        "exact simulation": accuracy(compiled.simulate, data),
        "integer program": accuracy(compiled.run, data),
        **{name: accuracy(partial(_run_form, backend, compiled.artifact), data) for name, backend in forms.items()},
        "integer program, in a fresh process": json.loads(reloaded.stdout),
    }
    loss = measured["float"] - measured["integer program"]
    same = measured["integer program, in a fresh process"] == measured["integer program"]
    files = {path.name: path.stat().st_size for path in sorted(output.iterdir())}
    return Result(
        measured,
        compiled.verification.to_dict(),
        files,
        sum(4 * p.numel() for p in model.parameters()),
        compiled.artifact.memory,
        seconds,
        str(output),
        compiled.verification.passed and same and loss <= ALLOWED_LOSS,
    )


def _run_form(backend: Backend, artifact: Artifact, x: Tensor) -> Tensor:
    return torch.from_numpy(backend.run(artifact.forms[backend.name].files, [x.numpy()])[0])

"""Arguments that several commands share, and the objects that they name."""

from __future__ import annotations

import difflib
import enum
import importlib
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcompiler.cli.printing import one_line
from qcompiler.errors import InputError, QCompilerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import ModuleType

    from qcompiler.passes.base import Override

app = typer.Typer(
    name="qcompiler",
    help="Compile PyTorch models to verified integer programs.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

LARGEST = 2**31 - 1
"""Largest number accepted on the command line."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.", metavar="")]
Folder = Annotated[Path, typer.Argument(help="Folder of an artifact.")]


OverrideOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--override", help="Bit widths of a layer: PATTERN=BITS, PATTERN=a16w4 or PATTERN=float; may be repeated."
    ),
]
FixedInputs = Annotated[
    list[str] | None,
    typer.Option(
        "--fixed-input", help="Input of an ONNX file that becomes a constant: NAME=VALUE, a number; may be repeated."
    ),
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        help="Sizes of one sample of an input, without the batch: 3,224,224, or with a type 16:int64. Once per input, "
        "in order.",
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change of the target: FIELD=VALUE, such as per_channel=true; may be repeated."),
]


def target_names() -> list[str]:
    """Names of targets, for completion in the shell."""
    import qcompiler

    return list(qcompiler.targets())


TargetName = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        help="Name of a target, path of a .toml file, or with --base path of an AIMET runtime configuration (.json).",
        autocompletion=target_names,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(help="Target that completes an AIMET runtime configuration.", autocompletion=target_names),
]


class Normalization(enum.StrEnum):
    """Normalization of the pixels of calibration images; see `inputs.NORMALIZATIONS`."""

    unit = "unit"
    signed = "signed"
    imagenet = "imagenet"


class Effort(enum.StrEnum):
    """Time that the compiler spends on accuracy."""

    fast = "fast"
    default = "default"
    best = "best"


Calibration = Annotated[Path, typer.Option(help="Calibration data, as for compile.")]
Normalize = Annotated[Normalization, typer.Option(help="Normalization of images, as for compile.")]
BatchSize = Annotated[int, typer.Option(min=1, max=LARGEST, help="Samples per calibration batch.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed for all random number generators.")]


FILES = (".pt2", ".onnx", ".keras", ".h5", ".pb", ".tflite")
"""Suffixes of files of models; those of TensorFlow are refused by name."""


def read_model(text: str, shapes: Iterable[str] | None = None) -> tuple[Any, object]:
    """The model named on the command line, and its example inputs.

    Args:
        text: A function of a module, or a file.
        shapes: Texts of `--input-shape`. Without them, the example inputs are those that the function returns, or None.
    """
    subject, example = _read_model(text)
    if not shapes:
        return subject, example
    from qcompiler.cli.inputs import example_inputs

    return subject, example_inputs(shapes)


def _read_model(text: str) -> tuple[Any, object]:
    if Path(text).suffix in FILES or Path(text).is_dir():
        return text, None
    module, colon, function = text.partition(":")
    if not colon or not module or not function:
        raise InputError(
            f"the model {text!r} cannot be read", expected="package.module:function, a .pt2 file, or an ONNX file"
        )
    item = _imported(module, function)
    try:
        result = item() if callable(item) and not hasattr(item, "forward") else item
    except QCompilerError:
        raise
    except (Exception, SystemExit) as error:  # the user's function may raise any error
        frames = traceback.extract_tb(error.__traceback__)
        place = next((frame for frame in reversed(frames[1:])), None)
        raise InputError(
            f"{text!r} raises {type(error).__name__}: {one_line(error)}",
            where=None if place is None else f"{place.filename}:{place.lineno}, in {place.name}",
            expected="a function without arguments that returns the model",
        ) from error
    return result if isinstance(result, tuple) and len(result) == 2 else (result, None)


def read_function(text: str) -> Any:  # noqa: ANN401  # a function of the user
    """The function named on the command line as package.module:function.

    Raises:
        InputError: It cannot be imported, or is not a function.
    """
    module, colon, function = text.partition(":")
    found = _imported(module, function) if colon and module and function else None
    if not callable(found):
        raise InputError(f"the function {text!r} cannot be read", expected="package.module:function")
    return found


def _imported(module: str, name: str) -> Any:  # noqa: ANN401  # an object of the user
    """An attribute of a module that is found from the current folder.

    Raises:
        InputError: The import fails.
    """
    sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
        if not hasattr(found, name):
            raise InputError(
                f"the module {module!r} has no {name!r}{_alike(name, found)}",
                expected="package.module:function",
            )
        return getattr(found, name)
    except QCompilerError:
        raise
    except (Exception, SystemExit) as error:  # the user's module may raise any error
        raise InputError(
            f"'{module}:{name}' cannot be imported: {one_line(error)}",
            fix="Run the command from the folder that contains the module.",
        ) from error
    finally:
        sys.path.remove("")


def _alike(name: str, module: ModuleType) -> str:
    """A question for the public function of a module that was meant; empty without one."""
    own = [key for key, item in vars(module).items() if callable(item) and not key.startswith("_")]
    found = difflib.get_close_matches(name, own, 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _loaded(subject: object, fixed: Mapping[str, object]) -> Any:  # noqa: ANN401  # a model of any kind
    from qcompiler.session.source import load_model

    return load_model(subject, fixed)  # type: ignore[arg-type]


def read_target(name: str, base: str | None, changes: Iterable[str]) -> Any:  # noqa: ANN401  # a Target, imported late
    """The target `name`, on `base` if it is a runtime configuration, with the changes of `--set`."""
    import qcompiler

    fields: dict[str, object] = {}
    for text in changes:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"--set is {text!r}", expected="FIELD=VALUE, such as per_channel=true")
        fields[key] = int(value) if _NUMBER.fullmatch(value) else _WORDS.get(value.lower(), value)
    target = qcompiler.load_target(name, base)
    return target.override(**fields) if fields else target


_NUMBER = re.compile(r"[0-9]{1,18}")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_WORDS: dict[str, object] = {"true": True, "false": False}
_WIDTHS = re.compile(r"a(?P<a>[0-9]{1,9})w(?P<w>[0-9]{1,9})")


def read_overrides(texts: Iterable[str]) -> dict[str, Override]:
    """The widths of `--override`, by pattern."""
    result: dict[str, Override] = {}
    for text in texts:
        pattern, equals, value = text.rpartition("=")
        if not equals or not pattern:
            raise InputError(
                f"--override is {text!r}",
                expected="PATTERN=BITS, such as features.0=16, features.1=a16w4 or head=float",
            )
        widths = _WIDTHS.fullmatch(value)
        if widths is not None:
            result[pattern] = {"activation_bits": int(widths["a"]), "weight_bits": int(widths["w"])}
        else:
            result[pattern] = int(value) if _NUMBER.fullmatch(value) else value
    return result


def read_fixed_inputs(texts: Iterable[str]) -> dict[str, object]:
    """The values of `--fixed-input`, by name.

    Raises:
        InputError: A text is not a name and a number, true or false.
    """
    result: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals or not name:
            raise InputError(f"--fixed-input is {text!r}", expected="NAME=VALUE, such as sr=16000")
        try:
            result[name] = _WORDS[value.lower()] if value.lower() in _WORDS else _number(value)
        except ValueError:
            raise InputError(
                f"--fixed-input is {text!r}", expected="a number, true or false after the last ="
            ) from None
    return result


def _number(text: str) -> int | float:
    """A whole number if the text is one."""
    return int(text) if _WHOLE.fullmatch(text) else float(text)


def read_calibration(
    path: Path, batch_size: int, normalize: str, subject: object, example: object, fixed: Mapping[str, object]
) -> Iterable[object]:
    """Batches from a file of arrays, or from a folder of images that are resized to the input of the model."""
    from qcompiler.cli.inputs import ImageFolder, batches, load_tensors
    from qcompiler.frontends import find_example_inputs
    from qcompiler.ir import tree

    if not path.is_dir():
        return batches(load_tensors(path), batch_size)
    leaves, _ = tree.flatten(find_example_inputs(_loaded(subject, fixed)) if example is None else example)
    shape = tuple(leaves[0].shape[1:])
    if len(leaves) != 1 or len(shape) != 3:
        raise InputError(
            "--calibration is a folder of images, but the model has no single image input",
            expected="a model with one input [N, channels, height, width]",
        )
    return ImageFolder(path, (shape[0], shape[1], shape[2]), normalize, batch_size)

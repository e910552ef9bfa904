"""Checks of arguments that `analyze`, `autoquant` and `mixed_precision` share."""

from __future__ import annotations

from qcompiler.errors import InputError, UnsupportedError
from qcompiler.frontends import Subject
from qcompiler.session.options import Options
from qcompiler.session.source import Model, check_forward, load_model, prepared

__all__ = ["check_count", "load_float"]


def load_float(caller: str, model: Model, options: Options) -> Subject:
    """Load the float model of a measurement with calibration data.

    Args:
        caller: Name of the public function.
        model: As for `compile`.
        options: Options of the measurement.

    Raises:
        InputError: There is no calibration data, or the path leads to no exported program.
        UnsupportedError: The model was prepared for training.
    """
    if options.calibration_data is None:
        raise InputError(f"{caller} needs calibration_data", fix="Pass batches of inputs, as for compile.")
    if prepared(model) is not None:
        raise UnsupportedError("the model was prepared for training", fix="Pass the float model.")
    source = load_model(model, options.fixed_inputs)
    check_forward(source, options)
    return source


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number of at least `least`.

    Raises:
        InputError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}", expected=f"a whole number of at least {least}")

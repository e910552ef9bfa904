"""Options are checked when they are taken, whether their method is in use or not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest

import qcompiler
from qcompiler.errors import InputError
from qcompiler.passes import Pass
from qcompiler.passes.adaptive_rounding.adaround import AdaRound
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.session.pipeline import PASSES, parse_pipeline
from qcompiler.training.freezing import Tracking
from tests.training.networks import INPUTS, small


def numbers() -> Iterator[tuple[type[Pass], str, float]]:
    """Each option that is a number, with a value that it cannot have."""
    for item in PASSES.values():
        for option in dataclasses.fields(item):
            if isinstance(option.default, float):
                yield item, option.name, math.nan
            if isinstance(option.default, int | float) and not isinstance(option.default, bool):
                yield item, option.name, -1


@pytest.mark.parametrize(("item", "option", "value"), list(numbers()))
def test_a_number_out_of_range_is_refused_by_the_default_method(item: type[Pass], option: str, value: float) -> None:
    given: dict[str, Any] = {option: value}
    with pytest.raises(InputError):
        item(**given)


UNUSED: list[tuple[type[Any], dict[str, Any], str]] = [
    (CalibrateActivations, {"method": "min_max", "percentile": 200.0}, "percentile=200"),
    (CalibrateActivations, {"method": "mse", "momentum": 1.0}, "momentum=1"),
    (CalibrateActivations, {"method": "min_max", "rows": 0}, "rows=0"),
    (CalibrateWeights, {"method": "min_max", "clipping": -1.0}, "clipping=-1"),
    (CalibrateWeights, {"method": "min_max", "bins": 1}, "a histogram of 1 bins"),
    (AdaRound, {"method": "gram", "learning_rate": 0.0}, "learning_rate=0"),
    (AdaRound, {"method": "sgd", "positions": 0}, "positions=0"),
    (Tracking, {"momentum": 0.0}, "momentum=0"),
    (Tracking, {"largest_bits": 0}, "largest_bits=0"),
]


@pytest.mark.parametrize(("item", "options", "message"), UNUSED)
def test_options_of_other_methods_are_checked(item: type[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        item(**options)


def test_a_pipeline_text_is_checked_in_the_same_way() -> None:
    with pytest.raises(InputError, match="percentile=200"):
        parse_pipeline("calibrate-weights{method=min_max, percentile=200}")


def test_the_options_of_a_compile_are_checked_for_a_trained_model_too() -> None:
    module = qcompiler.prepare_qat(small(), calibration_data=[INPUTS])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"effort": "more"}, "effort is 'more'"),
        ({"device": "tape"}, "the device is 'tape'"),
    ]
    for wrong, message in cases:
        with pytest.raises(InputError, match=message):
            qcompiler.compile(module, **wrong)

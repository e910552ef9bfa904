"""Settings and loops that would silently do nothing are told at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import qcompiler
from qcompiler import errors
from qcompiler.training.module import QATModule
from qcompiler.training.regularizers import Dampening
from tests.training.networks import INPUTS, small


def prepare(**keywords: Any) -> QATModule:
    return qcompiler.prepare_qat(small(), "int8_dsp", calibration_data=[INPUTS], **keywords)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"method": {"weight": "lsq"}}, r"entry for 'weight', which no quantizer has.*Did you mean 'weights'\?"),
        ({"method": {"weights": "lsq", "stern*": "ste"}}, r"entry for 'stern\*'"),
        ({"freezing": 0.01}, r"freezing has a float: 0\.01; expected a Freezing.*Freezing\(threshold=0\.01\)"),
        ({"tracking": True}, "tracking has a bool: True; expected a Tracking"),
        ({"regularizers": [Dampening()]}, "regularizers has a Dampening.*expected a Weighted"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        prepare(**keywords)


def test_a_quantized_module_is_not_prepared_again() -> None:
    module = prepare()
    for model in (module, qcompiler.compile(module).module()):
        with pytest.raises(errors.UnsupportedError, match="quantized already"):
            qcompiler.prepare_qat(model, "int8_dsp", calibration_data=[INPUTS])


def test_a_loop_that_never_calls_step_is_warned_once(recwarn: pytest.WarningsRecorder) -> None:
    def train(module: QATModule, *, told: bool) -> list[str]:
        optimizer = torch.optim.SGD(module.parameters(), 1e-4)
        recwarn.clear()
        for _ in range(4):
            module(INPUTS).square().mean().backward()
            module(INPUTS)  # a second forward of the same step is no new one
            optimizer.step()
            if told:
                module.step()
        return [str(item.message) for item in recwarn if "step()" in str(item.message)]

    (warning,) = train(prepare(), told=False)
    assert "Call step() after each optimizer.step()" in warning
    assert train(prepare(), told=True) == []

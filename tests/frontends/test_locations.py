"""Places in the user's code: module, qualified name and line, never a path."""

from __future__ import annotations

import inspect
import sys
from types import FrameType

import pytest
import torch

from qcompiler.frontends.locations import failing_line, source_of_frame, source_of_stack
from tests.support.functions import Function, bound, numbers


class Outer:
    def method(self) -> FrameType:
        def inner() -> FrameType:
            return sys._getframe()

        return inner()


LINE = inspect.getsourcelines(Outer.method)[1]


def test_a_frame_has_its_qualified_name() -> None:
    place = source_of_frame(Outer().method(), None)
    assert place == f"{__name__}:Outer.method.<locals>.inner:{LINE + 2}"


def test_frames_of_torch_and_those_above_the_model_do_not_count() -> None:
    found: list[str] = []

    def call(outermost: FrameType | None) -> None:
        torch._jit_internal.is_scripting()
        found.append(source_of_frame(sys._getframe(), outermost))

    call(sys._getframe())
    call(None)
    assert all(place.startswith(f"{__name__}:") for place in found)
    assert source_of_frame(sys._getframe(), sys._getframe()) == ""


def stack(*lines: int) -> str:
    entries = [f'  File "{torch.nn.modules.linear.__file__}", line 100, in forward', ""]
    return "\n".join([f'  File "{__file__}", line {line}, in x' for line in lines] + entries)


def test_the_innermost_user_line_of_a_stack_of_text() -> None:
    assert source_of_stack(stack(LINE, LINE + 2)) == f"{__name__}:Outer.method.<locals>.inner:{LINE + 2}"
    assert source_of_stack(stack(LINE + 3)) == f"{__name__}:Outer.method:{LINE + 3}"
    assert source_of_stack(stack(3)) == f"{__name__}:<module>:3"
    assert source_of_stack(stack()) == ""
    assert source_of_stack('File "/no/such/file.py", line 3') == ""


def fails() -> None:
    raise ValueError("lost")


def test_the_line_that_failed_lies_below_our_own_frames() -> None:
    def wrong(x: torch.Tensor) -> None:
        fails()

    model = Function(wrong)
    with pytest.raises(ValueError, match="lost") as caught:
        bound(model, numbers(1)).call(model, [numbers(1)])
    place, text = failing_line(caught.value)
    assert place == f"{__name__}:fails:{inspect.getsourcelines(fails)[1] + 1}"
    assert text == 'raise ValueError("lost")'


def test_an_error_from_elsewhere_has_no_line() -> None:
    with pytest.raises(ValueError, match="lost") as caught:
        fails()
    assert failing_line(caught.value) == (None, "")

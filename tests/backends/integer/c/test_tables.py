"""Nothing that a program may hold lacks its C."""

from __future__ import annotations

from qcompiler.backends.integer.c.library import MODES, ROUNDINGS
from qcompiler.backends.integer.c.real import ROUNDED
from qcompiler.backends.integer.c.rules import ENDS, RULES
from qcompiler.backends.integer.kernels import KERNELS
from qcompiler.ir.types import DType
from qcompiler.quant.requant import RequantMode
from qcompiler.quant.rounding import Rounding
from tests.reference.maker import CODES


def test_every_instruction_of_the_executor_has_c() -> None:
    assert {*RULES, *ENDS} == set(KERNELS)


def test_every_mode_and_rounding_has_c() -> None:
    assert set(MODES) == {str(mode) for mode in RequantMode}
    assert set(ROUNDINGS) == set(ROUNDED) == {str(rounding) for rounding in Rounding}


def test_every_element_type_of_codes_has_one_of_c() -> None:
    from qcompiler.backends.integer.c.memory import CTYPES

    assert {DType(name) for name in CTYPES} == set(CODES)

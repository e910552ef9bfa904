"""Nothing that a program may hold lacks its C."""

from __future__ import annotations

from qcompiler.backends.integer.c.library import MODES, RAW, ROUNDINGS
from qcompiler.backends.integer.c.memory import CTYPES, NUMPY
from qcompiler.backends.integer.c.real import ROUNDED
from qcompiler.backends.integer.c.rules import ENDS, RULES, WITHOUT_C
from qcompiler.ir.types import DType
from qcompiler.program.kernels import KERNELS
from qcompiler.quant.requant import RequantMode
from qcompiler.quant.rounding import AverageRounding, Rounding
from tests.reference.maker import CODES


def test_every_instruction_of_the_executor_has_c() -> None:
    assert {*RULES, *ENDS} == set(KERNELS)
    assert not {*RULES, *ENDS} & set(WITHOUT_C)
    assert all(WITHOUT_C.values()), "every hole has a reason"


def test_every_mode_and_rounding_has_c() -> None:
    assert set(MODES) == {str(mode) for mode in RequantMode}
    assert {rounding.rounding for rounding in AverageRounding} == set(ROUNDINGS)
    assert {str(rounding) for rounding in AverageRounding if rounding.is_raw} == {f"rhaz{RAW}"}
    assert set(ROUNDINGS) == set(ROUNDED) == {str(rounding) for rounding in Rounding}


def test_c_holds_the_multipliers_that_a_mode_has() -> None:
    for mode in RequantMode:
        form, ours = mode.form, MODES[str(mode)]
        assert ours.width == form.significand_bits
        held = {"integer": (ours.significand, "int8_t"), "shift": ("int8_t",), "float": ("float",)}[ours.form]
        numpy = {"i8": "i1", "i16": "i2", "i32": "i4", "f32": "f4"}
        assert tuple(NUMPY[ctype] for ctype in held) == tuple(numpy[part] for part in form.parts)


def test_every_element_type_of_codes_and_of_exact_values_has_one_of_c() -> None:
    assert {DType(name) for name in CTYPES} == {*CODES, DType.I32, DType.I64, DType.BOOL}

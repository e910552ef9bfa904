"""The cases of onnx's own backend tests as tests of the front end: graph against expected results."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from types import ModuleType
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from qcompiler.errors import QCompilerError
from qcompiler.frontends import capture
from qcompiler.frontends.onnx import translations  # noqa: F401  # fills the table
from qcompiler.frontends.onnx.source import OnnxModel
from qcompiler.frontends.onnx.table import TRANSLATIONS
from qcompiler.ir.interpret import interpret

FLOAT = 1
NUMBERS = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13})
"""Element types of ONNX that are read, less bfloat16, which NumPy lacks."""
RELATIVE, ABSOLUTE = 1e-3, 1e-6
"""Largest differences from the expected results: of each element, and of the largest element or 1."""


@functools.cache
def every_case() -> tuple[Any, ...]:
    """The cases of the domain of ONNX's own operators with a float32 input, and only numbers, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    return tuple(sorted(filter(_counts, found), key=lambda case: str(case.name)))


def _counts(case: Any) -> bool:
    kinds = [item.type.tensor_type.elem_type for item in inputs_of(case)]
    every = [*inputs_of(case), *case.model.graph.output]
    numbers = all(x.type.HasField("tensor_type") and x.type.tensor_type.elem_type in NUMBERS for x in every)
    own = all(node.domain in ("", "ai.onnx") for node in case.model.graph.node)
    return numbers and own and FLOAT in kinds


def inputs_of(case: Any) -> list[Any]:
    """The declared inputs of a case that are no initializers."""
    held = {item.name for item in case.model.graph.initializer}
    return [item for item in case.model.graph.input if item.name not in held]


def operator_of(case: Any) -> str:
    """The operator that a case tests."""
    return str(case.model.graph.node[-1].op_type)


def operators_of(module: ModuleType) -> set[str]:
    """The operators that a module translates."""
    return {name for name, function in TRANSLATIONS.items() if function.__module__ == module.__name__}


def is_expanded(case: Any) -> bool:
    """Whether a case has an operator as the function that defines it."""
    return "_expanded" in str(case.name)


def outcome(case: Any) -> str:
    """Nothing if the graph gives the expected results; otherwise what is wrong, or why the case is refused.

    Inputs that the graph has to know, such as axes and sizes, are fixed: first none, then all that are not float32,
    then all but the first.
    """
    arrays = dict(zip((item.name for item in inputs_of(case)), map(_array, case.data_sets[0][0]), strict=True))
    found = ""
    for fixed in _fixed(case, arrays):
        try:
            return _difference(case, arrays, fixed)
        except QCompilerError as error:
            found = error.found
    return found


def _array(item: Any) -> Any:
    return np.array(numpy_helper.to_array(item) if isinstance(item, TensorProto) else item)


def _fixed(case: Any, arrays: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {}
    names = [item.name for item in inputs_of(case)]
    kinds = {item.name: item.type.tensor_type.elem_type for item in inputs_of(case)}
    yield {name: arrays[name] for name in names if kinds[name] != FLOAT or not arrays[name].size}
    yield {name: arrays[name] for name in names[1:]}


def _difference(case: Any, arrays: Mapping[str, Any], fixed: Mapping[str, Any]) -> str:
    inputs = tuple(torch.from_numpy(array) for name, array in arrays.items() if name not in fixed)
    module = capture(OnnxModel(case.model, fixed, separates=False), inputs).module
    outputs, _ = interpret(module.main, list(inputs), module.tensors)
    expected = case.data_sets[0][1]
    if len(outputs) != len(expected):
        return f"{len(outputs)} results in place of {len(expected)}"
    return next((text for x, y in zip(outputs, expected, strict=True) if (text := _far(x, _array(y)))), "")


def _far(found: Tensor, expected: Any) -> str:
    wanted = torch.from_numpy(expected)
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{found.dtype}{list(found.shape)} in place of {wanted.dtype}{list(wanted.shape)}"
    x, y = found.to(torch.float64), wanted.to(torch.float64)
    finite = y[y.isfinite()].abs()
    largest = max(1.0, float(finite.max())) if finite.numel() else 1.0
    if torch.allclose(x, y, rtol=RELATIVE, atol=ABSOLUTE * largest, equal_nan=True):
        return ""
    return f"differs by {float((x - y).abs().nan_to_num().max()):.3g}"


def unexpected(operators: set[str], refused: Mapping[str, str], *, expanded: bool = False) -> list[str]:
    """Cases of operators whose outcome is not the expected one; patterns of refused cases that no case needs.

    Args:
        operators: Names of operators.
        refused: Words of the refusal by pattern of names of cases.
        expanded: Whether to take the cases with functions in place of operators, for all operators.
    """
    found, used = [], set()
    for case in every_case():
        if is_expanded(case) != expanded or (not expanded and operator_of(case) not in operators):
            continue
        name = str(case.name).removeprefix("test_")
        pattern = next((item for item in refused if fnmatch(name, item)), "")
        text = outcome(case)
        if text and pattern:
            used.add(pattern)
        if bool(text) != bool(pattern) or (pattern and refused[pattern] not in text):
            found.append(f"{name}: {text or 'passes'}")
    return found + [f"{pattern}: no case needs it" for pattern in refused if pattern not in used]

"""Arguments by position and by name, in tensors and in arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qcompiler.errors import InputError
from qcompiler.ir import calls

X, Y = torch.ones(2, 3), torch.zeros(2, 3)
TWO: Any = ("tuple", [0, 1])


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [((X, Y), {}), ((X,), {"y": Y}), ((), {"x": X, "y": Y}), ((), {"y": Y, "x": X})],
)
def test_by_position_and_by_name(arguments: tuple[object, ...], keywords: dict[str, object]) -> None:
    call = calls.bind(TWO, ["x", "y"], arguments, keywords)
    assert call.tensors == [X, Y]
    assert not call.arrays


def test_any_number_of_arguments() -> None:
    tree: Any = ("tuple", [("tuple", [0, 1]), ("dict", [("mask", 2)])])
    mask = torch.ones(1)
    assert calls.bind(tree, ["*inputs", "**more"], (X, Y), {"mask": mask}).tensors == [X, Y, mask]
    with pytest.raises(InputError, match="have the structure"):
        calls.bind(tree, ["*inputs", "**more"], (X,), {"mask": mask})


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((X,), {}, "the inputs have the structure"),
        ((X,), {"z": Y}, "do not fit: 'z', no 'y'; expected x, y"),
        ((X, Y), {"y": Y}, "do not fit: 'y'; expected x, y"),
        ((X, Y, X), {"y": Y}, "do not fit: 1 more, 'y'"),
        ((X, 2.0), {}, "holds a float"),
        ((X, Y[:0]), {}, r"input 1 is empty: \[0, 3\]; expected at least one sample"),
        ((X, Y.numpy()), {}, "tensors and NumPy arrays"),
        ((X.numpy(), np.array(["a"])), {}, "contains an array of type <U1"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[object, ...], keywords: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        calls.bind(TWO, ["x", "y"], arguments, keywords)


def test_names_that_are_not_known_are_not_guessed() -> None:
    assert calls.bind(TWO, [], (X, Y), {}).tensors == [X, Y]
    with pytest.raises(InputError, match="their names are unknown"):
        calls.bind(TWO, [], (X,), {"y": Y})


def test_arrays_give_arrays() -> None:
    backwards = X.numpy()[::-1]
    frozen = Y.numpy().copy()
    frozen.flags.writeable = False
    call = calls.bind(TWO, ["x", "y"], (backwards, frozen), {})
    assert [type(x) for x in call.tensors] == [torch.Tensor, torch.Tensor]
    found: Any = call.results(("dict", [("a", 0), ("b", None)]), [X])
    assert type(found["a"]) is np.ndarray
    assert found["b"] is None
    assert calls.bind(("tuple", [0]), ["t"], (np.float32(2.0),), {}).tensors[0].shape == (), "a scalar has no axes"

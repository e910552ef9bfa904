"""Codes move as they are; what waits moves with its function."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qcompiler.errors import GraphError
from qcompiler.validation.exact import Codes, Pending
from tests.support.exact import OUT, codes, evaluate, grid

PARAMS = grid(0.1, 9)
X = codes((2, 3, 4), PARAMS, 1)
MOVES: dict[str, tuple[dict[str, Any], torch.Tensor]] = {
    "reshape": ({"shape": (2, 12)}, X.codes.reshape(2, 12)),
    "permute": ({"axes": (0, 2, 1)}, X.codes.transpose(1, 2)),
    "slice": ({"axis": 2, "start": 1, "stop": 4, "step": 2}, X.codes[:, :, 1:4:2]),
}


@pytest.mark.parametrize("op", MOVES)
def test_codes_and_what_waits_move_alike(op: str) -> None:
    attributes, wanted = MOVES[op]
    found = evaluate(op, X, **attributes)
    assert isinstance(found, Codes)
    assert torch.equal(found.codes, wanted)
    assert (found.params, found.qmin, found.qmax, found.bits) == (X.params, -128, 127, 8)
    pending = Pending(lambda params, qmin, qmax: X.codes.clamp(qmin, qmax), -1.0, 2.0)
    later = evaluate(op, pending, shapes=[(2, 3, 4)], **attributes)
    assert isinstance(later, Pending)
    assert (later.low, later.high) == (-1.0, 2.0)
    assert torch.equal(later.requantize(OUT, -50, 50), wanted.clamp(-50, 50))


def test_parts_on_one_grid_are_joined_with_the_wider_limits() -> None:
    other = codes((2, 1, 4), PARAMS, 2, -3, 200)
    found = evaluate("concat", X, other, axis=1)
    assert isinstance(found, Codes)
    assert torch.equal(found.codes, torch.cat([X.codes, other.codes], 1))
    assert (found.qmin, found.qmax) == (-128, 200)


@pytest.mark.parametrize("params", [grid(0.2, 9), grid(0.1, 8)])
def test_parts_on_two_grids_are_refused(params: object) -> None:
    with pytest.raises(GraphError, match="the operands of concat are on different grids"):
        evaluate("concat", X, codes((2, 3, 4), params, 2), axis=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "code"), [(0.0, 9), (1.0, 19), (1000.0, 127)])
def test_a_border_has_the_nearest_code(value: float, code: int) -> None:
    found = evaluate("pad", X, pad=(0, 0, 1, 0, 2, 0), value=value)
    assert isinstance(found, Codes)
    assert tuple(found.codes.shape) == (2, 5, 5)
    assert torch.equal(found.codes[:, :3, 1:], X.codes)
    assert int(found.codes[0, 0, 0]) == int(found.codes[1, 4, 3]) == code


def test_what_cannot_move_before_its_grid_is_known_is_refused() -> None:
    ends = torch.zeros(3), torch.ones(3)
    clamped = Pending(lambda params, qmin, qmax: X.codes, channels=(*ends, 1))
    with pytest.raises(GraphError, match=r"permute moves what is clamped per channel .*; expected a quantizer first"):
        evaluate("permute", clamped, shapes=[(2, 3, 4)], axes=(0, 2, 1))
    with pytest.raises(GraphError, match="pad reads an accumulator"):
        evaluate("pad", Pending(lambda params, qmin, qmax: X.codes), shapes=[(2, 3, 4)], pad=(0, 0, 1, 0, 0, 1))
    with pytest.raises(GraphError, match="concat reads real numbers"):
        evaluate("concat", X, torch.ones(2, 3, 4), axis=1)

"""Each contract holds to its bound and no further, and says which output breaks it by how much."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields

import pytest
import torch
from torch import Tensor

from qcompiler.errors import ContractError
from qcompiler.session.pipeline import known_passes
from qcompiler.validation.contracts import THRESHOLDS, Close, Contract, Exact, IntegerMatch, Lossy, check

X = torch.tensor([1.0, -4.0, 2.0])


def moved(by: float) -> Tensor:
    """`X` with one element changed."""
    return X + torch.tensor([by, 0.0, 0.0])


@pytest.mark.parametrize(
    ("contract", "after", "figures"),
    [
        (Exact(), X.clone(), {"max_difference": 0.0}),
        (Close(rtol=0.1), moved(0.375), {"max_difference": 0.375}),
        (Close(rtol=0.0, atol=0.5), moved(0.5), {"max_difference": 0.5}),
        (IntegerMatch(), X.clone(), {"max_difference": 0.0}),
        (IntegerMatch(lsb=2), moved(-2.0), {"max_difference": 2.0}),
        (Lossy(min_sqnr_db=20.0), X * 1.0625, {"sqnr_db": -20 * math.log10(0.0625)}),
        (Lossy(min_sqnr_db=20.0), X.clone(), {"sqnr_db": math.inf}),
    ],
)
def test_a_contract_holds_to_its_bound(contract: Contract, after: Tensor, figures: dict[str, float]) -> None:
    assert check(contract, [X], [after], "fold") == pytest.approx(figures)


@pytest.mark.parametrize(
    ("contract", "after", "message"),
    [
        (Exact(), moved(2**-20), r"fold changed output 1 by a difference of 9.54e-07; expected the same bits"),
        (Close(rtol=0.1), moved(0.5), r"output 1 by a difference of 0.5; expected at most 0.4"),
        (Close(rtol=0.1, atol=1.0), moved(math.nan), r"by a difference of nan; expected at most 1.4"),
        (IntegerMatch(), moved(1.0), r"by a difference of 1 steps; expected at most 0 steps"),
        (Lossy(min_sqnr_db=20.0), X * 1.125, r"a signal-to-noise ratio of 18.06 dB; expected 20.0 dB"),
        (Lossy(min_sqnr_db=-20.0), X * math.nan, r"a signal-to-noise ratio of nan dB; expected -20.0 dB"),
        (Exact(), X[:2], r"fold changed the shape of output 1 from torch.Size\(\[3\]\) to torch.Size\(\[2\]\)"),
    ],
)
def test_beyond_its_bound_it_names_output_figure_and_bound(contract: Contract, after: Tensor, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check(contract, [X, X], [X, after], "fold")


def test_another_number_of_outputs_breaks_every_contract() -> None:
    with pytest.raises(ContractError, match="fold changed the number of outputs from 1 to 2"):
        check(Exact(), [X], [X, X], "fold")


def test_the_worst_output_is_recorded_and_empty_ones_are_left_out() -> None:
    empty = torch.ones(0, 3)
    assert check(Close(1.0), [X, X, empty], [moved(0.5), moved(0.25), empty], "p") == {"max_difference": 0.5}
    assert check(Exact(), [X * math.nan], [X * math.nan], "p") == {"max_difference": 0.0}


def test_each_threshold_is_that_of_a_pass() -> None:
    used = [
        kind().contract
        for kind in known_passes().values()
        if all(f.default is not MISSING or f.default_factory is not MISSING for f in fields(kind))
    ]
    assert all(any(contract is threshold for contract in used) for threshold in THRESHOLDS.values())

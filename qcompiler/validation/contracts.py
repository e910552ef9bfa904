"""Numerical contracts of passes and their checks.

    Exact            the same bits
    Close            |after - before| <= atol + rtol * max|before|, per output
    Lossy            signal-to-quantization-noise ratio of each output at least `min_sqnr_db` dB
    IntegerMatch     codes differ by at most `lsb` steps of the output

The table `THRESHOLDS` in this file holds all thresholds of passes, each with the measured margin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from qcompiler.errors import ContractError
from qcompiler.validation.metrics import sqnr_db


@dataclass(frozen=True)
class Exact:
    """Every bit of every output is the same."""


@dataclass(frozen=True)
class Close:
    """Equal up to the rounding of float32 sums in another order.

    Args:
        rtol: Allowed difference relative to the largest magnitude of the output.
        atol: Allowed absolute difference.
    """

    rtol: float
    atol: float = 0.0


@dataclass(frozen=True)
class Lossy:
    """Information is lost, within a bound.

    Args:
        min_sqnr_db: Smallest signal-to-noise ratio of any output, in dB.
    """

    min_sqnr_db: float


@dataclass(frozen=True)
class IntegerMatch:
    """Codes agree.

    Args:
        lsb: Largest difference in steps of the grid; 0 means every code is the same.
    """

    lsb: int = 0


Contract: TypeAlias = Exact | Close | Lossy | IntegerMatch

THRESHOLDS: Mapping[str, Contract] = MappingProxyType(
    {
        # A product with a transposed matrix stored anew: 1e-7 of the largest output was measured.
        "fold-constants": Close(rtol=1e-5),
        # Sums and products of float32 in another order: 1e-6 of the largest was measured on ResNet-18, depth 20, and
        # 1.2e-4 on a MobileNetV2 whose batch norms differ by three decades from channel to channel.
        "fold-batch-norm": Close(rtol=1e-3),
        # Sums of kernels: 1e-5 of the largest output on RepVGG, 3e-4 on MobileOne, with batch norms of random data.
        "merge-branches": Close(rtol=1e-3),
        # Sums of products with inputs that are not centered: 3e-6 of the largest was measured.
        "fold-normalization": Close(rtol=1e-3),
        # Factors over six decades on MobileNetV2 gave 4e-6.
        "cross-layer-equalization": Close(rtol=1e-3),
        # Factors over two decades on a transformer block gave 2e-7.
        "smooth-activations": Close(rtol=1e-3),
        # Products of a transposed matrix in another order: 1e-7 of the largest was measured on an attention layer.
        "partition": Close(rtol=1e-5),
        # Noise is a property of the model and of the requested width: 8 bits per tensor give 20 to 40 dB on
        # the networks of the tests, 4 bits per tensor -1.3 dB on the digits. The bound catches broken results: a result
        # with ten times the amplitude of the signal, or NaN.
        "calibrate": Lossy(min_sqnr_db=-20.0),
        # Values below c, and borders, change: 25 dB and more on the networks of the tests.
        "absorb-bias": Lossy(min_sqnr_db=10.0),
        # Activations above the cap pass unchanged; their number is a property of the model. The bound is as above.
        "replace-relu6": Lossy(min_sqnr_db=-20.0),
        "lower-to-integer": IntegerMatch(lsb=0),
    }
)


def check(contract: Contract, before: Sequence[Tensor], after: Sequence[Tensor], what: str) -> dict[str, float]:
    """Compare outputs against a contract.

    Args:
        contract: Contract of the pass.
        before: Outputs of the graph before the pass, flat. Codes for IntegerMatch.
        after: Outputs of the graph after the pass.
        what: Name of the pass, for the message.

    Returns:
        The measured figures, for the record: `max_difference` or `sqnr_db`.

    Raises:
        ContractError: An output violates the contract; the message gives its index, the figure and the bound.
    """
    if len(before) != len(after):
        raise ContractError(f"{what} changed the number of outputs from {len(before)} to {len(after)}")
    worst = 0.0
    lowest = float("inf")
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if old.shape != new.shape:
            raise ContractError(f"{what} changed the shape of output {index} from {old.shape} to {new.shape}")
        if not old.numel():
            continue
        if isinstance(contract, Lossy):
            ratio = sqnr_db(old, new)
            lowest = min(lowest, ratio)
            if not ratio >= contract.min_sqnr_db:
                raise _broken(what, index, f"a signal-to-noise ratio of {ratio:.2f} dB", f"{contract.min_sqnr_db} dB")
            continue
        if isinstance(contract, Exact):
            same = torch.equal(old, new) or torch.equal(torch.nan_to_num(old), torch.nan_to_num(new))
            if not same:
                raise _broken(what, index, f"a difference of {_difference(old, new):.3g}", "the same bits")
            continue
        difference = _difference(old, new)
        worst = max(worst, difference)
        bound = contract.lsb if isinstance(contract, IntegerMatch) else _bound(contract, old)
        if not difference <= bound:
            unit = " steps" if isinstance(contract, IntegerMatch) else ""
            raise _broken(what, index, f"a difference of {difference:.6g}{unit}", f"at most {bound:.6g}{unit}")
    if isinstance(contract, Lossy):
        return {"sqnr_db": lowest}
    return {"max_difference": worst}


def _difference(old: Tensor, new: Tensor) -> float:
    return float((old.to(torch.float64) - new.to(torch.float64)).abs().max())


def _bound(contract: Close, old: Tensor) -> float:
    return contract.atol + contract.rtol * float(old.to(torch.float64).abs().max())


def _broken(what: str, index: int, found: str, expected: str) -> ContractError:
    return ContractError(
        f"{what} changed output {index} by {found}",
        expected=expected,
        fix="The pass has a defect: compare the graph before and after it on one input.",
    )

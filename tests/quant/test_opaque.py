"""Operators into which torch.compile does not look."""

from __future__ import annotations

import torch

from qcompiler.quant.opaque import known, widened


def test_they_change_no_number_and_are_whole_operators() -> None:
    x, y = torch.randn(7, generator=torch.Generator().manual_seed(0)), torch.tensor(3.0, dtype=torch.float64)
    for copy, own in zip(known(x, y), (x, y), strict=True):
        assert torch.equal(copy, own)
        assert copy.data_ptr() != own.data_ptr()
    drawn = torch.tensor([-32768, -1, 0, 32767], dtype=torch.int16)
    assert torch.equal(widened(drawn), drawn.to(torch.float32))
    torch.library.opcheck(known, (x, y))
    torch.library.opcheck(widened, (drawn,))

"""Numbers as JSON has them."""

from __future__ import annotations

import math

__all__ = ["finite"]


def finite(value: float) -> float | None:
    """The number, or None for NaN and infinities, which JSON lacks."""
    return value if math.isfinite(value) else None

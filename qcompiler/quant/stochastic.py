"""Stochastic rounding with noise from a counter.

    round_stochastic(x) = floor(x + u),     u uniform in [0, 1)

so that the mean of the result is x. The noise u of an element is a hash of its index and of a key; no generator has a
state. The same key gives the same noise on every device, for any number of threads, in eager mode and in a compiled
graph.

Source: Gupta et al. 2015, arXiv:1502.02551, section 3 (the rounding); the hash is of the family xor-shift, multiply of
MurmurHash3's finalizer.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from qcompiler.quant.opaque import is_compiled_for_a_processor, widened

__all__ = ["Key", "Word", "noise", "noise_key", "round_stochastic"]

Word: TypeAlias = "int | Tensor"
"""An integer of at least 0, or an int64 tensor [] with one."""
Key: TypeAlias = tuple[Word, Word]
"""Two words of 32 bits."""

_WORD = 0xFFFFFFFF
_FACTORS = (0x7FEB352D, 0x2C1B3C6D)
"""Odd, and below 2^31: products with 32-bit words are exact in int64."""
_STEP = 0x1E3779B9
"""Distance between the hashes of neighbouring indices before mixing; odd, so that no two indices collide."""
NOISE_BITS = 16
"""Bits of one u. One hash of 32 bits serves two elements: the hash takes longer than the rounding. For codes of up to 8
bits float32 holds x + u exactly, and a whole number keeps its value."""


def noise_key(*words: Word) -> Key:
    """The key of one use of noise.

    Args:
        words: Numbers that tell this use from all others, such as seed, rank, layer and step; each counts with its
            lowest 64 bits.
    """
    state: Word = 0
    for word in words:
        for part in (word & _WORD, (word >> 32) & _WORD):
            state = _mixed((state ^ part) + _STEP)
    return state, _mixed(state + _STEP)


def _mixed(word: Word) -> Word:
    """A one-to-one function of 32 bits in which each bit of the result depends on all bits of `word`."""
    word = word & _WORD
    word = word ^ (word >> 16)
    word = (word * _FACTORS[0]) & _WORD
    word = word ^ (word >> 15)
    word = (word * _FACTORS[1]) & _WORD
    return word ^ (word >> 16)


def noise(count: int, key: Key, device: torch.device | None = None) -> Tensor:
    """Uniform noise, int16 [count]: u = n / 2^16 + 1 / 2.

    Args:
        count: Number of elements.
        key: Key of `noise_key`.
        device: Device of the result.
    """
    words = torch.arange((count + 1) // 2, dtype=torch.int32, device=device).mul_(_STEP).add_(_signed(key[0]))
    # Shifts of int32 copy the sign, which the masks remove; products wrap.
    words = words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF)).mul_(_FACTORS[0])
    words = words.bitwise_xor_(_signed(key[1]))
    words = words.bitwise_xor_((words >> 15).bitwise_and_(0x1FFFF)).mul_(_FACTORS[1])
    words = words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF))
    return words.view(torch.int16)[:count]


def _signed(word: Word) -> Word:
    """The int32 with the bits of a 32-bit word."""
    signed = ((word + 0x80000000) & _WORD) - 0x80000000
    return signed.to(torch.int32) if isinstance(signed, Tensor) else signed


def round_stochastic(x: Tensor, key: Key) -> Tensor:
    """Round each element down or up, with the mean of the element.

    Args:
        x: float32 tensor of any shape.
        key: Key of `noise_key`; element i in row-major order always has the same noise with the same key.

    Returns:
        Integral values in new memory.
    """
    drawn = noise(x.numel(), key, x.device).reshape(x.shape)
    if is_compiled_for_a_processor(x):
        drawn = widened(drawn)
    return torch.add(x, drawn, alpha=2.0**-NOISE_BITS).add_(0.5).floor_()

"""Accumulators and multipliers on which requantization is compared: edges, ties, and random ones.

Two correct implementations of different arithmetics agree nearly everywhere, so what is compared is mostly what
separates them: products that lie on a tie, on either side of one and on both sides of zero, and the ends of all
ranges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Codes", "Products", "codes", "products"]

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Products:
    """Triples x, M, e whose product x * M * 2^(e - P) is rounded to an integer.

    Args:
        x: int64 accumulators.
        significand: int64 M of P bits; where P is 0 there is none, and all are 1.
        exponent: int64 e.
    """

    x: Int
    significand: Int
    exponent: Int

    def where(self, mask: Mask) -> Products:
        """The cases inside `mask`."""
        return Products(self.x[mask], self.significand[mask], self.exponent[mask])

    def __len__(self) -> int:
        return len(self.x)

    def describe(self, index: int) -> str:
        """One of them in words."""
        return f"x={self.x[index]}, M={self.significand[index]}, e={self.exponent[index]}"


@dataclass(frozen=True)
class Codes:
    """Accumulators x with scales, whose product x * s_x * s_w / s_y becomes a code.

    Args:
        x: int64 accumulators.
        weight_scale: float32 s_w, one for each x.
        input_scale: float32 s_x.
        output_scale: float32 s_y.
        zero_point: Zero point of the codes.
    """

    x: Int
    weight_scale: Float
    input_scale: float = 1.0
    output_scale: float = 1.0
    zero_point: int = 0

    @property
    def multiplier(self) -> npt.NDArray[np.float64]:
        """The real multipliers."""
        return self.weight_scale.astype(np.float64) * self.input_scale / self.output_scale

    def where(self, mask: Mask) -> Codes:
        """The cases inside `mask`."""
        return dataclasses.replace(self, x=self.x[mask], weight_scale=self.weight_scale[mask])

    def describe(self, index: int) -> str:
        """One of them in words."""
        scales = f"{self.input_scale!r} * {float(self.weight_scale[index])!r} / {self.output_scale!r}"
        return f"x={self.x[index]}, m={scales}, z={self.zero_point}"


def _edges(bits: int) -> Int:
    """0, +-1, +-2^k, +-(2^k +- 1), and both ends of an integer of `bits` bits."""
    powers = [1 << k for k in range(bits - 1)]
    near = sorted({0, *powers, *(p + 1 for p in powers), *(p - 1 for p in powers), (1 << (bits - 1)) - 1})
    return np.array(sorted({*near, *(-x for x in near), -(1 << (bits - 1))}), np.int64)


def _significands(bits: int, generator: np.random.Generator) -> Int:
    if not bits:
        return np.ones(1, np.int64)
    low, high = 1 << (bits - 1), (1 << bits) - 1
    return np.array([low, low + 1, high - 1, high, *generator.integers(low, high, 2)], np.int64)


def _grid(*axes: Int) -> list[Int]:
    return [axis.reshape(-1) for axis in np.meshgrid(*axes, indexing="ij")]


def _significands_of(zeros: Int, bits: int, generator: np.random.Generator) -> Int:
    """Significands of `bits` bits that end in `zeros` zeros."""
    if not bits:
        return np.ones(len(zeros), np.int64)
    drawn = generator.integers(1 << (bits - 1), 1 << bits, len(zeros))
    return ((drawn >> zeros) | 1) << zeros


def _odd(bits: Int, generator: np.random.Generator) -> Int:
    """Odd numbers of at most `bits` bits, one at least, of either sign."""
    drawn = generator.integers(0, 1 << 62, len(bits)) & ((1 << np.clip(bits, 1, 62)) - 1)
    result: Int = (drawn | 1) * generator.choice([-1, 1], len(bits))
    return result


def _ties(bits: int, x_bits: int, exponents: Int, count: int, generator: np.random.Generator) -> Iterator[Products]:
    """Products that end in exactly one half, and their neighbours.

    x * M = 2^(t - 1) * odd with t = P - e: M = odd * 2^k, x = odd * 2^(t - 1 - k).
    """
    exponent, zeros = generator.choice(exponents, count), generator.integers(0, max(bits, 1), count)
    significand = _significands_of(zeros, bits, generator)
    power = bits - exponent - 1 - zeros
    x = _odd(x_bits - 1 - power, generator) << np.clip(power, 0, 62)
    exact = Products(x, significand, exponent).where((power >= 0) & (power < x_bits - 1))
    low, high = (1 << (bits - 1), (1 << bits) - 1) if bits else (1, 1)
    for delta_x, delta_m in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        moved = Products(exact.x + delta_x, exact.significand + delta_m, exact.exponent)
        yield moved.where((moved.significand >= low) & (moved.significand <= high))


def _second_ties(bits: int, x_bits: int, exponents: Int, count: int, generator: np.random.Generator) -> Products:
    """Products whose high word, once rounded, ends in one half: the ties of a second rounding.

    The high word is to be v = odd * 2^(r - 1) with r = -e, so x = v * 2^P / M, to one side or the other.
    """
    exponent = generator.choice(exponents[exponents < 0], count)
    significand = _significands_of(np.zeros(count, np.int64), bits, generator)
    high = _odd(x_bits - 1 + exponent, generator) * 2.0 ** (-exponent - 1)
    x = np.floor(high * 2.0**bits / significand + generator.choice([0.0, 0.5, 1.0], count))
    fits = np.abs(x) < 2.0 ** (x_bits - 1)
    return Products(np.where(fits, x, 0).astype(np.int64), significand, exponent).where(fits)


def products(
    significand_bits: int, x_bits: int, min_exponent: int, max_exponent: int, *, count: int, seed: int
) -> Products:
    """The edge set, ties of one and of two roundings, and random triples.

    Args:
        significand_bits: P; 0 for multipliers that are powers of two.
        x_bits: Width of the accumulators, up to 48.
        min_exponent: Smallest e.
        max_exponent: Largest e.
        count: Random triples, and ties of each kind before their neighbours.
        seed: Seed for the random numbers.

    Returns:
        All of them, each within the widths that are given.
    """
    generator = np.random.default_rng(seed)
    exponents = np.arange(min_exponent, max_exponent + 1)
    x, significand, exponent = _grid(_edges(x_bits), _significands(significand_bits, generator), exponents)
    parts = [Products(x, significand, exponent)]
    parts += _ties(significand_bits, x_bits, exponents, count, generator)
    parts.append(_second_ties(significand_bits, x_bits, exponents, count, generator))
    # All sizes alike: a number drawn from the whole range has all its bits nearly always.
    size = generator.integers(1, x_bits, count)
    drawn = generator.integers(-(1 << (x_bits - 1)), 1 << (x_bits - 1), count) >> (x_bits - 1 - size)
    low = 1 << max(significand_bits - 1, 0)
    multipliers = generator.integers(low, 2 * low, count) if significand_bits else np.ones(count, np.int64)
    parts.append(Products(drawn, multipliers, generator.choice(exponents, count)))
    together = Products(
        np.concatenate([p.x for p in parts]),
        np.concatenate([p.significand for p in parts]),
        np.concatenate([p.exponent for p in parts]),
    )
    limit = 1 << (x_bits - 1)
    return together.where((together.x >= -limit) & (together.x < limit))


def _odd_divisors(limit: int) -> list[tuple[int, int]]:
    """Pairs of odd numbers whose product is at most `limit`."""
    return [(a, b) for a in range(1, limit + 1, 2) for b in range(1, limit // a + 1, 2)]


def codes(qmin: int, qmax: int, *, x_bits: int, largest: float, count: int, seed: int) -> list[Codes]:
    """Accumulators whose codes lie within the grid and shortly outside, most of them on ties or next to one.

    Args:
        qmin: Lowest code.
        qmax: Highest code; zero points of 16-bit codes are 0.
        x_bits: Width of the accumulators, up to 48.
        largest: Multipliers stay below.
        count: Accumulators of each kind.
        seed: Seed for the random numbers.

    Returns:
        Groups with scales of their own, for an oracle takes the scales of activations once per tensor.
    """
    generator = np.random.default_rng(seed)
    reach = (qmax - qmin + 1) // 2 + 12
    # (2 q + 1) = a b, m = a 2^-s, x = b 2^(s - 1): x m = q + 1/2 exactly, and m is a float32.
    pairs = np.array(_odd_divisors(min(2 * reach + 1, 1001)), np.int64)
    chosen = pairs[generator.integers(0, len(pairs), count)]
    shift = generator.integers(1, x_bits - 1, count)
    x = chosen[:, 1] << (shift - 1)
    fits = x < 1 << (x_bits - 2)
    x, tie = x[fits] * generator.choice([-1, 1], int(fits.sum())), chosen[fits, 0] * 2.0 ** -shift[fits].astype(float)
    parts = [(x + delta, tie) for delta in (0, 1, -1, 2, -3)]
    # The float32 on either side of the multiplier.
    parts += [(x, np.nextafter(tie.astype(np.float32), np.float32(end)).astype(float)) for end in (-np.inf, np.inf)]
    edges, powers = _grid(_edges(x_bits), np.arange(-31, int(np.floor(np.log2(largest))) + 1))
    parts.append((edges, generator.uniform(1.0, 2.0, len(edges)) * 2.0 ** (powers - 1.0)))
    drawn = generator.integers(1, 1 << generator.integers(1, x_bits - 1, count)) * generator.choice([-1, 1], count)
    parts.append((drawn, generator.uniform(0.2, reach, count) / np.abs(drawn)))
    accumulators, multipliers = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    input_scale, output_scale = (float(np.float32(generator.uniform(0.01, 0.1))) for _ in range(2))
    zero_points = (0, 0) if qmax > 255 else ((qmin + qmax + 1) // 2, int(generator.integers(qmin, qmax + 1)))
    groups = []
    for scale, out, zero_point in ((1.0, 1.0, zero_points[0]), (input_scale, output_scale, zero_points[1])):
        weight_scale = (multipliers * out / scale).astype(np.float32)
        allowed = (multipliers > 2.0**-31) & (multipliers < largest) & (weight_scale < largest)
        groups.append(Codes(accumulators[allowed], weight_scale[allowed], scale, out, zero_point))
    return groups

"""Stochastic rounding is unbiased, and its noise depends on the key and the index alone."""

from __future__ import annotations

import math

import pytest
import torch

from qcompiler.quant.stochastic import NOISE_BITS, noise, noise_key, round_stochastic

STEP, FIRST, SECOND, WORD = 0x1E3779B9, 0x7FEB352D, 0x2C1B3C6D, 2**32 - 1


def mixed(word: int) -> int:
    word &= WORD
    word ^= word >> 16
    word = word * FIRST & WORD
    word ^= word >> 15
    word = word * SECOND & WORD
    return word ^ word >> 16


def test_noise_is_the_hash_written_with_python_integers() -> None:
    state = 0
    for word in (5, 0, 3, 0, 2**33 + 1):
        for part in (word & WORD, word >> 32):
            state = mixed((state ^ part) + STEP)
    keys = noise_key(5, 0, 3, 0, 2**33 + 1)
    assert keys == (state, mixed(state + STEP))
    expected = []
    for pair in range(6):
        word = (pair * STEP + keys[0]) & WORD
        word ^= word >> 16
        word = word * FIRST & WORD ^ keys[1]
        word ^= word >> 15
        word = word * SECOND & WORD
        word ^= word >> 16
        expected += [word & 0xFFFF, word >> 16]
    found = noise(11, keys).to(torch.int32) & 0xFFFF
    assert found.tolist() == expected[:11]


def test_a_counter_in_a_tensor_gives_the_key_of_the_number() -> None:
    numbers = noise_key(7, 2**40 + 5, 3)
    tensors = noise_key(7, torch.tensor(2**40 + 5), 3)
    assert tuple(map(int, tensors)) == numbers
    assert torch.equal(noise(9, tensors), noise(9, numbers))


def test_noise_is_uniform_and_independent() -> None:
    count = 2**18
    drawn = [noise(count, noise_key(0, 0, layer, step)).double() for layer in range(3) for step in range(3)]
    deviation = 2.0**NOISE_BITS / math.sqrt(12)
    for one in drawn:
        # Five standard deviations of the mean, of the share of a bin, and of a correlation.
        assert abs(float(one.mean()) + 0.5) < 5 * deviation / math.sqrt(count)
        bins = torch.histc(one, 64, -(2**15), 2**15)
        assert float((bins - count / 64).abs().max()) < 5 * math.sqrt(count / 64)
        for lag in (1, 2, 3, 64):
            assert abs(float((one[lag:] * one[:-lag]).mean())) / deviation**2 < 5 / math.sqrt(count)
    for left in range(9):
        for right in range(left):
            assert abs(float((drawn[left] * drawn[right]).mean())) / deviation**2 < 5 / math.sqrt(count)


@pytest.mark.parametrize("value", [0.25, -3.7, 126.0, -128.0, 0.999])
def test_the_mean_is_the_value_and_whole_numbers_stay(value: float) -> None:
    count = 2**16
    rounded = round_stochastic(torch.full((count,), value), noise_key(1, 2, 3))
    low = math.floor(torch.tensor(value).item())
    assert set(rounded.tolist()) <= {float(low), float(low + 1)}
    share = torch.tensor(value).item() - low
    bound = 5 * math.sqrt(share * (1 - share) / count) + 2.0**-NOISE_BITS
    assert abs(float(rounded.mean()) - value) <= bound
    if not share:
        assert bool((rounded == value).all())


def test_an_element_has_its_noise_in_any_memory_format() -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    key = noise_key(4)
    last = round_stochastic(x.contiguous(memory_format=torch.channels_last), key)
    assert torch.equal(round_stochastic(x, key), last)
    assert torch.equal(round_stochastic(x.flatten()[:17], key), last.flatten()[:17])


@pytest.mark.gpu
def test_the_noise_of_a_gpu_is_that_of_the_processor() -> None:
    x = torch.randn(1001, generator=torch.Generator().manual_seed(0)) * 50
    key = noise_key(9, torch.tensor(3), 1)
    on_gpu = noise_key(9, torch.tensor(3, device="cuda"), 1)
    assert torch.equal(round_stochastic(x.cuda(), on_gpu).cpu(), round_stochastic(x, key))

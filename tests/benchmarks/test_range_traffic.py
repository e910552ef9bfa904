"""The benchmark of static and dynamic ranges: its C, its page, and the pictures of the documentation."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks.pages import PERFORMANCE
from benchmarks.range_traffic import HEAD, NETWORKS, SHAPES, Row, Shape, image, measured, plot, predicted, section
from qcompiler.backends.integer.c import find_compiler

SMALL = [Shape("small", 8, 40, 3, 6), Shape("small", 16, 144, 1, 7), Shape("small", 96, 96, 3, 5, depthwise=True)]


def has_vectors() -> bool:
    command = [*find_compiler(), "-march=native", "-dM", "-E", "-x", "c", "/dev/null"]
    return "__AVX2__" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_both_ranges_give_the_same_codes(shape: Shape) -> None:
    if not has_vectors():
        pytest.skip("needs AVX2 or AVX-512")
    seconds = measured(shape, rounds=2)  # the program compares the codes and the range
    assert len(seconds) == 2
    assert all(static > 0 and dynamic > 0 for static, dynamic in seconds)


def test_a_row_is_medians_and_the_ratio_of_rounds() -> None:
    row = Row(SHAPES[8], predicted(SHAPES[8]), [(1e-4, 3e-4), (2e-4, 4e-4), (1e-4, 2e-4)])
    assert row.cells()[2:] == ["100", "468", "4.66", "100", "300", "2.00", "1.9"]
    text = section([row], "cc 1", "a processor")
    assert f"| {' | '.join(HEAD)} |" in text
    assert "3 rounds" in text


def test_the_page_has_a_row_for_each_layer() -> None:
    page = PERFORMANCE.read_text(encoding="utf-8")
    assert all(f"| {shape.network} | {shape} |" in page for shape in SHAPES)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_the_committed_picture_is_the_one_that_the_program_draws(network: str) -> None:
    assert image(network).read_text(encoding="utf-8") == plot(network)

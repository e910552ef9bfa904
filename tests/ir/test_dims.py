"""Sizes: arithmetic, evaluation, binding to concrete sizes, and text."""

from __future__ import annotations

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import InputError, ParseError
from qcompiler.ir.dims import Dim, as_dim, bind, evaluate_dim, format_dim, parse_dim, product, symbol, symbols_of

N, H = symbol("N"), symbol("H")


def expressions() -> st.SearchStrategy[sympy.Expr]:
    """Expressions in the shapes of pooled, strided, concatenated and flattened tensors."""
    leaves = st.sampled_from([N, H, sympy.Integer(3)])
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(lambda a, b: a + b, inner, inner),
            st.builds(lambda a, b: a * b, inner, inner),
            st.builds(lambda a, k: a - k, inner, st.integers(0, 4)),
            st.builds(lambda a, k: a // k + 1, inner, st.integers(1, 4)),
            st.builds(lambda a, k: -(-a // k), inner, st.integers(2, 3)),
        ),
        max_leaves=5,
    )


@given(expressions(), st.integers(1, 50), st.integers(1, 50))
def test_what_is_printed_is_read_and_means_the_same(expression: sympy.Expr, n: int, h: int) -> None:
    dim = as_dim(expression)
    parsed = parse_dim(format_dim(dim))
    assert parsed == dim
    assert type(parsed) is type(dim)
    assert evaluate_dim(parsed, {"N": n, "H": h}) == int(expression.subs({N: n, H: h}))


@pytest.mark.parametrize(
    ("text", "dim"),
    [
        ("64", 64),
        ("-3", -3),
        (" 4*N ", 4 * N),
        ("floor(N/2) + 1", N // 2 + 1),
        ("N//2", N // 2),
        ("N**2", N**2),
        ("2*N/2", N),
        ("(N + 1) - N", 1),
    ],
)
def test_dimensions_are_read_as_written(text: str, dim: Dim) -> None:
    found = parse_dim(text)
    assert found == dim
    assert isinstance(found, int) == isinstance(dim, int), "constants are plain integers"


@pytest.mark.parametrize(
    "text",
    ["", "N +", "1/2", "N/2", "N/0", "1.5", "True", "None", "lambda", "²", "größe", "N % 2", "ceil(N)", "floor(N, 2)", "N.x",
     "f(N)", "__import__('os')", "9**9**9**9", "N**-1", "N**H", "a b", "\0", "9" * 5000, "(" * 5000 + "N" + ")" * 5000, "1+" * 50000 + "N"],
    ids=lambda text: text[:20].replace("\0", "zero byte") or "nothing",
)  # fmt: skip
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ParseError, match="is not a dimension") as caught:
        parse_dim(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["", "a-b", "2N", "lambda", "floor", "größe", "a b"])
def test_a_symbol_has_a_name_that_can_be_read(name: str) -> None:
    with pytest.raises(InputError, match="letters, digits and underscores"):
        symbol(name)


def test_symbols_of_one_name_are_one() -> None:
    assert symbol("N") == N
    assert symbol("N") != H
    assert [str(s) for s in symbols_of(N * H + N)] == ["H", "N"]
    assert symbols_of(3) == []


def test_constants_are_plain_integers() -> None:
    assert type(as_dim(sympy.Integer(3))) is int
    assert type(product([N, 0])) is int
    assert product([]) == 1
    assert product([2, N, 3]) == 6 * N


def test_a_size_needs_the_value_of_each_symbol() -> None:
    assert evaluate_dim(7, {}) == 7
    assert evaluate_dim(N * H, {"N": 2, "H": 5}) == 10
    with pytest.raises(InputError, match=r"H\*N cannot be computed: H has no value"):
        evaluate_dim(N * H, {"N": 2})


@pytest.mark.parametrize(
    ("shape", "sizes", "bindings", "difference"),
    [
        ((3, N), (3, 5), {"N": 5}, None),
        ((N, N), (5, 5), {"N": 5}, None),
        ((N, N), (5, 4), {"N": 5}, "dimension 1 is 4, not 5"),
        ((2 * N + 1, N), (7, 3), {"N": 3}, None),
        ((2 * N + 1,), (8,), None, r"dimension 0 is 8, which 2*N + 1 never is"),
        ((H, H * N), (2, 6), {"H": 2, "N": 3}, None),
        ((H, H * N + H), (2, 6), {"H": 2, "N": 2}, None),
        ((N, N // 2), (5, 2), {"N": 5}, None),
        ((N, N // 2), (5, 3), {"N": 5}, "dimension 1 is 3, not 2"),
        ((3,), (4,), {}, "dimension 0 is 4, not 3"),
        ((3, 3), (3,), {}, "the shape has 1 dimensions, not 2"),
    ],
)
def test_sizes_are_matched_and_symbols_found(
    shape: tuple[Dim, ...], sizes: tuple[int, ...], bindings: dict[str, int] | None, difference: str | None
) -> None:
    found: dict[str, int] = {}
    assert bind(shape, sizes, found) == difference
    if bindings is not None:
        assert found == bindings


def test_what_cannot_be_solved_is_said() -> None:
    with pytest.raises(InputError, match="N has no value"):
        bind((N // 2,), (3,), {})

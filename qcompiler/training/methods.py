"""Methods by name, and which quantizer learns by which.

A method is an estimator of gradients and what of the grid learns; any two of them go together.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from qcompiler.errors import InputError
from qcompiler.training.estimators import (
    EWGS,
    PSG,
    DifferentiableSoftQuantization,
    Estimator,
    StackedSigmoid,
    StochasticRounding,
    StraightThrough,
)
from qcompiler.training.ranges import (
    FixedRange,
    LearnedClip,
    LearnedEnds,
    LearnedOffset,
    LearnedScale,
    Ranges,
    RecomputedRange,
)

__all__ = ["METHODS", "Method", "Methods", "Role", "Wish", "is_named", "resolve"]

Role: TypeAlias = Literal["weights", "activations"]


@dataclass(frozen=True)
class Method:
    """How a quantizer learns.

    Args:
        estimator: Gradients through rounding.
        ranges: What of the grid learns.
        gradient_scale: Divide the gradients of the grid by sqrt(N p): N elements of one sample, or weights, share a
            scale, and p = qmax - zero point steps of it are above 0. Source: Esser et al. 2020, section 2.2.
    """

    estimator: Estimator = field(default_factory=StraightThrough)
    ranges: Ranges = field(default_factory=LearnedScale)
    gradient_scale: bool = False


Wish: TypeAlias = "str | Method"
Methods: TypeAlias = "Wish | Mapping[str, Wish]"

_LSQ = Method(gradient_scale=True)


def _learning(estimator: Estimator, ranges: Ranges | None = None) -> Method:
    return Method(estimator, ranges or LearnedScale(), gradient_scale=True)


METHODS: dict[str, dict[Role, Method]] = {
    "ste": {"weights": Method(ranges=FixedRange()), "activations": Method(ranges=FixedRange())},
    "recomputed": {"weights": Method(ranges=RecomputedRange()), "activations": Method(ranges=FixedRange())},
    "lsq": {"weights": _LSQ, "activations": _LSQ},
    "lsq_unscaled": {"weights": Method(), "activations": Method()},
    "lsq+": {"weights": _LSQ, "activations": _learning(StraightThrough(), LearnedOffset())},
    "min_max": {"weights": Method(ranges=LearnedEnds()), "activations": Method(ranges=LearnedEnds())},
    "pact": {"weights": Method(ranges=RecomputedRange()), "activations": Method(ranges=LearnedClip())},
    "ewgs": {"weights": _learning(EWGS()), "activations": _LSQ},
    "psg": {"weights": _learning(PSG()), "activations": _LSQ},
    "dsq": {
        "weights": _learning(DifferentiableSoftQuantization()),
        "activations": _learning(DifferentiableSoftQuantization()),
    },
    "stacked_sigmoid": {"weights": _learning(StackedSigmoid()), "activations": _learning(StackedSigmoid())},
    "stochastic": {"weights": _learning(StochasticRounding()), "activations": _LSQ},
}
"""By name, for weights and for activations.

Estimators other than straight-through learn their ranges as LSQ does; what a paper defines for weights alone has LSQ
for activations, and so has EWGS, whose default is that of the code of Nagel et al. 2022 for weights: activations are of
one sign mostly, and with 3 bits the sign of the gradient then pulls their scales one way, until nothing learns.
PACT, which is for activations, has weights whose range is that of their values. LSQ divides the gradients of scales as
its paper says, so that one learning rate serves weights and scales; the code of Nagel et al. 2022 does not,
`lsq_unscaled`, and gives scales to Adam, for which it makes no difference.
"""


def resolve(methods: Methods, role: Role, names: Sequence[str]) -> Method:
    """The method of one quantizer.

    Args:
        methods: One for all, or by `weights`, by `activations`, and by name: of the node, module path, or glob. Names
            win over roles, later ones over earlier ones; without a word on a quantizer it is `lsq`.
        role: Whether it quantizes a weight.
        names: Under which the quantizer is known.

    Raises:
        InputError: There is no such method.
    """
    if not isinstance(methods, Mapping):
        return _method(methods, role)
    chosen: Wish = methods.get(role, "lsq")
    for pattern, wish in methods.items():
        if pattern not in ("weights", "activations") and matches(pattern, names):
            chosen = wish
    return _method(chosen, role)


def is_named(methods: Methods, names: Sequence[str]) -> bool:
    """Whether one of these names, not just the role, was given a method.

    Args:
        methods: See `resolve`.
        names: The same.
    """
    if not isinstance(methods, Mapping):
        return False
    return any(name not in ("weights", "activations") and matches(name, names) for name in methods)


def matches(pattern: str, names: Sequence[str]) -> bool:
    """Whether a pattern means something of these names: as it is, as a glob, or as the module that holds it."""
    return any(fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.") for name in names)


def _method(wish: Wish, role: Role) -> Method:
    if isinstance(wish, Method):
        return wish
    if wish not in METHODS:
        near = difflib.get_close_matches(str(wish), METHODS, n=1)
        raise InputError(
            f"there is no method {wish!r}",
            expected="a Method, or one of " + ", ".join(METHODS),
            fix=f"Did you mean {near[0]!r}?" if near else None,
        )
    return METHODS[wish][role]

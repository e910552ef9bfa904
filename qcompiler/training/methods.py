"""Training methods by name, and the choice of a method for each quantizer.

A method combines a gradient estimator with the learned parameters of a range; all combinations are allowed.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
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

__all__ = ["METHODS", "Choice", "Method", "Methods", "Role", "check_names", "is_named", "resolve"]

Role: TypeAlias = Literal["weights", "activations"]
ROLES = ("weights", "activations")


@dataclass(frozen=True)
class Method:
    """A training method of a quantizer.

    Args:
        estimator: Estimator of gradients through rounding.
        ranges: Learned parameters of the range.
        gradient_scale: Whether gradients of scale and zero point are divided by sqrt(N p): N elements of one sample, or
            weights, share a scale, and p = qmax - zero point. Source: Esser et al. 2020, section 2.2.
    """

    estimator: Estimator = field(default_factory=StraightThrough)
    ranges: Ranges = field(default_factory=LearnedScale)
    gradient_scale: bool = False


Choice: TypeAlias = "str | Method"
Methods: TypeAlias = "Choice | Mapping[str, Choice]"

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
"""Methods by name, for weights and for activations.

Estimators other than straight-through learn their ranges as LSQ does. Methods defined for weights only use LSQ for
activations. So does EWGS, whose default is taken from the code of Nagel et al. 2022 for weights: activations mostly
have one sign, and with 3 bits the sign of the gradient then drives their scales in one direction until training stalls.
PACT is for activations; its weights use the range of their values. `lsq` divides the gradients of scales as in the
paper, so that one learning rate serves weights and scales. `lsq_unscaled` does not, as in the code of Nagel et al.
2022, where Adam trains the scales and a constant factor has no effect.
"""


def resolve(methods: Methods, role: Role, names: Sequence[str]) -> Method:
    """The method of one quantizer.

    Args:
        methods: One method for all quantizers, or a mapping by `weights`, `activations`, node name, module path or
            glob. Names take precedence over roles, later entries over earlier ones; the default is `lsq`.
        role: Role of the quantizer.
        names: Names of the quantizer.

    Raises:
        InputError: There is no such method.
    """
    if not isinstance(methods, Mapping):
        return _method(methods, role)
    chosen: Choice = methods.get(role, "lsq")
    for pattern, choice in methods.items():
        if pattern not in ROLES and matches(pattern, names):
            chosen = choice
    return _method(chosen, role)


def check_names(methods: Methods, quantizers: Iterable[Sequence[str]]) -> None:
    """Refuse an entry of `methods` that chooses nothing.

    Args:
        methods: See `resolve`.
        quantizers: The names of each quantizer.

    Raises:
        InputError: A key is no role and matches no quantizer.
    """
    if not isinstance(methods, Mapping):
        return
    known = [tuple(names) for names in quantizers]
    for pattern in methods:
        if pattern in ROLES or any(matches(pattern, names) for names in known):
            continue
        near = difflib.get_close_matches(pattern, [*ROLES, *(name for names in known for name in names)], n=1)
        raise InputError(
            f"method has an entry for {pattern!r}, which no quantizer has as its name",
            expected="weights, activations, the name of a node, the path of a module, or a glob of these",
            fix=f"Did you mean {near[0]!r}?" if near else None,
        )


def is_named(methods: Methods, names: Sequence[str]) -> bool:
    """Whether `methods` has an entry for one of these names, not just for the role.

    Args:
        methods: See `resolve`.
        names: See `resolve`.
    """
    if not isinstance(methods, Mapping):
        return False
    return any(name not in ROLES and matches(name, names) for name in methods)


def matches(pattern: str, names: Sequence[str]) -> bool:
    """Whether a pattern matches one of these names: as a glob, or as the path of an enclosing module."""
    return any(fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.") for name in names)


def _method(choice: Choice, role: Role) -> Method:
    if isinstance(choice, Method):
        return choice
    if choice not in METHODS:
        near = difflib.get_close_matches(str(choice), METHODS, n=1)
        raise InputError(
            f"there is no method {choice!r}",
            expected="a Method, or one of " + ", ".join(METHODS),
            fix=f"Did you mean {near[0]!r}?" if near else None,
        )
    return METHODS[choice][role]

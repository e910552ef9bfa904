"""Roles and physical orders of the constants of a program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from qcompiler.errors import ArtifactError
from qcompiler.ir.registry import known_ops
from qcompiler.program.program import ISLAND_TENSOR, Constant, Instruction, Program, Tensor

__all__ = ["constants_of", "roles_of", "stored_shape"]

ROLES = ("weight", "bias", "multiplier", "exponent", "divisor", "table", "rows", "columns", "mask")
"""Operands of instructions whose names are roles."""
FACTORS, ISLAND, VALUE = "factors", "island", "value"
"""Roles of other constants: factors of the blocks of a weight, tensors of float islands, and values that are read like
activations."""
LAST = (0, 2, 3, 1)
"""Order O, H, W, I of a weight O, I, H, W."""


def roles_of(names: Iterable[str], instructions: Iterable[Instruction]) -> dict[str, str]:
    """The role of each constant: the name of the operand that it is, in the first instruction that names one."""
    found = {name: ISLAND if ISLAND_TENSOR in name else VALUE for name in names}
    operators = known_ops()
    for item in instructions:
        definition = operators.get(item.op)
        operands = [] if definition is None else [operand.rstrip("?") for operand in definition.operands]
        if "block" in item.attributes:
            operands = [*operands[: len(item.inputs) - 1], FACTORS]
        for name, operand in zip(item.inputs, operands, strict=False):
            if found.get(name) == VALUE and operand in (*ROLES, FACTORS):
                found[name] = operand
    return found


def constants_of(
    names: Iterable[str],
    tensors: Mapping[str, Tensor],
    instructions: Iterable[Instruction],
    weight_layout: Literal["OHWI", "OIHW"],
) -> dict[str, Constant]:
    """The constants of a program whose weights of two-dimensional convolutions are stored in `weight_layout`."""
    items, names = list(instructions), list(names)
    kernels = {item.inputs[1] for item in items if item.op == "int_conv2d" and len(item.inputs) > 1}
    found = {}
    for name, role in roles_of(names, items).items():
        rank = len(tensors[name].shape) if name in tensors else 0
        last = weight_layout == "OHWI" and name in kernels and rank == len(LAST)
        found[name] = Constant(role=role, order=LAST if last else tuple(range(rank)))
    return found


def stored_shape(program: Program, name: str) -> tuple[int, ...]:
    """The shape of a constant in its physical order.

    Raises:
        ArtifactError: The order is not a permutation of the axes.
    """
    shape, order = program.tensors[name].shape, program.constants[name].order
    if sorted(order) != list(range(len(shape))):
        raise ArtifactError(
            f"the order is {list(order)}",
            where=f"program.json, constants.{name}",
            expected=f"a permutation of {len(shape)} axes",
        )
    return tuple(shape[axis] for axis in order)

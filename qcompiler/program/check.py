"""The check of a program read from disk: a program that passes can run in the executor and in C.

    tensors        a known element type, sizes and bytes that a machine can have, scales finite and above 0, zero
                   points within the type
    constants      the declared type and sizes, and codes within the type
    instructions   attributes of the required kind; operands written before; the result type that the rules of the
                   graph's operator of the same name infer; lookup tables as long as the range of the indexing codes

Operators have one definition, in the graph: attributes, defaults and result types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qcompiler.errors import ArtifactError, QCompilerError, UnsupportedError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.registry import REQUIRED, OpDef, Trait, known_ops, op
from qcompiler.ir.types import DType, QuantParams, TensorType
from qcompiler.program.constants import roles_of, stored_shape
from qcompiler.program.kernels import KERNELS
from qcompiler.program.liveness import NUMPY_TYPES, Tensors
from qcompiler.quant.rounding import MAX_SHIFT

if TYPE_CHECKING:
    from qcompiler.program.program import Instruction, Program, Tensor

Array = npt.NDArray[np.generic]
Limits = tuple[int, int]

MOST_BYTES = 2**40
"""Most bytes of one tensor for one image: large machines have this much memory, but no tensor needs it."""
LARGEST_SIZE = 2**31
"""Largest size of an axis, a step or an amount of padding."""
MOST_AXES = 8
LARGEST_BATCH = 64
"""Largest batch tried for a program without a memory plan."""

RESTORED = {"dtype", "shape", "function", "parameters", "scales", "results"}
"""Attributes that a program does not hold: they follow from the result, or only the compiler needs them."""

_Test = Callable[[object], bool]


def _integer(low: int, high: int) -> _Test:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _integers(low: int, high: int) -> _Test:
    one = _integer(low, high)
    return lambda value: isinstance(value, tuple) and len(value) <= 2 * MOST_AXES and all(map(one, value))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2.0**127


def _positive(value: object) -> bool:
    return _number(value) and isinstance(value, int | float) and value > 0


def _boolean(value: object) -> bool:
    return isinstance(value, bool)


def _codes(value: object) -> bool:
    one = _integer(-(2**63), 2**63 - 1)
    return one(value) or (isinstance(value, tuple) and bool(value) and all(map(one, value)))


def _indices(value: object) -> bool:
    one = _integer(0, LARGEST_SIZE)
    return isinstance(value, tuple) and bool(value) and all(map(one, value))


_AXIS, _STEPS = _integer(0, MOST_AXES - 1), _integers(1, LARGEST_SIZE)
_AMOUNTS, _COUNT = _integers(0, LARGEST_SIZE), _integer(1, 2**53)
_EXPONENT = _integer(-128, 127)
KINDS: Mapping[str, tuple[_Test, str]] = {
    # Which of them there are, the rules of the operators say.
    **dict.fromkeys(("mode", "rounding", "compute"), (lambda value: isinstance(value, str), "the name of a mode")),
    **dict.fromkeys(("qmin", "qmax"), (_codes, "a code, or one per channel")),
    **dict.fromkeys(("stride", "dilation", "kernel"), (_STEPS, f"integers from 1 to {LARGEST_SIZE}")),
    **dict.fromkeys(("padding", "output_padding"), (_AMOUNTS, f"integers from 0 to {LARGEST_SIZE}")),
    "pad": (_integers(-LARGEST_SIZE, LARGEST_SIZE), "integers"),
    "axes": (_integers(0, MOST_AXES - 1), f"axes from 0 to {MOST_AXES - 1}"),
    "indices": (_indices, f"indices from 0 to {LARGEST_SIZE}"),
    "axis": (_AXIS, f"an axis from 0 to {MOST_AXES - 1}"),
    **dict.fromkeys(
        ("groups", "block", "step", "divisor", "divisor_override", "numerator", "multiplier", "count"),
        (_COUNT, "a count of at least 1"),
    ),
    **dict.fromkeys(("start", "stop"), (_integer(0, LARGEST_SIZE), f"an integer from 0 to {LARGEST_SIZE}")),
    **dict.fromkeys(
        ("centered", "keepdim", "subtract", "ceil_mode", "count_include_pad", "inside", "largest"),
        (_boolean, "true or false"),
    ),
    **dict.fromkeys(("shift", "rise"), (_integer(0, MAX_SHIFT), f"a shift from 0 to {MAX_SHIFT} bits")),
    **dict.fromkeys(("left_multiplier", "right_multiplier", "out_multiplier"), (_number, "a number")),
    **dict.fromkeys(("left_exponent", "right_exponent", "out_exponent"), (_EXPONENT, "an integer from -128 to 127")),
    "product_multiplier": (_number, "a number"),
    "product_exponent": (_EXPONENT, "an integer from -128 to 127"),
    **dict.fromkeys(("offset", "scalar_left_offset", "value"), (_number, "a number")),
    "epsilon": (_integer(0, 2**60), "an integer from 0 to 2^60"),
    "dims": (_integer(1, MOST_AXES), f"a number of axes from 1 to {MOST_AXES}"),
    "fraction": (_integer(0, 15), "an integer from 0 to 15"),
    "factor": (_positive, "a number above 0"),
    "graph": (lambda value: isinstance(value, str), "the name of an island"),
}
"""Test and description of each attribute by name; a name has the same meaning in all instructions."""


def check_program(program: Program, constants: Mapping[str, Array]) -> None:
    """Check a program except its memory plan.

    Args:
        program: The program, with every value written before it is read.
        constants: Constants of the program.

    Raises:
        ArtifactError: The first error, with its key.
    """
    for name, tensor in program.tensors.items():
        _check_tensor(name, tensor)
    for name in program.constants:
        _check_constant(program, name, constants[name])
    extra = next((name for name in constants if name not in program.constants), None)
    if extra is not None:
        raise ArtifactError(f"{extra!r} is not a constant of the program", where="weights.safetensors")
    for index, instruction in enumerate(program.instructions):
        _check_attributes(instruction, f"program.json, instructions.{index}")
    tensors = _tensors(program)
    limits: dict[str, Limits] = {}
    for index, instruction in enumerate(program.instructions):
        where = f"program.json, instructions.{index} ({instruction.op} {instruction.output})"
        try:
            _check_instruction(program, tensors, instruction, where)
            _check_codes(program, constants, instruction, limits, where)
        except ArtifactError:
            raise
        except QCompilerError as error:
            raise ArtifactError(error.found, where=where, expected=error.expected) from None
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # The rules of operators assume attributes of valid kinds, such as one step per axis.
            raise ArtifactError(f"its attributes do not fit its operands: {error}", where=where) from None
    for name, role in roles_of(program.constants, program.instructions).items():
        if program.constants[name].role != role:
            found, where = program.constants[name].role, f"program.json, constants.{name}"
            raise ArtifactError(f"its role is {found!r}", where=where, expected=repr(role))


def _check_tensor(name: str, tensor: Tensor) -> None:
    where = f"program.json, tensors.{name}"
    if tensor.dtype not in NUMPY_TYPES:
        raise ArtifactError(f"the element type {tensor.dtype!r} is unknown", where=where)
    if len(tensor.shape) > MOST_AXES or not all(size == -1 or 0 < size <= LARGEST_SIZE for size in tensor.shape):
        expected = f"at most {MOST_AXES} sizes from 1 to {LARGEST_SIZE}, or -1 for the batch"
        raise ArtifactError(f"its sizes are {list(tensor.shape)}", where=where, expected=expected)
    size = math.prod(abs(size) for size in tensor.shape) * np.dtype(NUMPY_TYPES[tensor.dtype]).itemsize
    if size > MOST_BYTES:
        raise ArtifactError(f"the tensor {name!r} needs {size} bytes", where=where, expected=f"at most {MOST_BYTES}")
    if not all(0 < scale < math.inf and 0 < np.float32(scale) < np.inf for scale in tensor.scale):
        bad = next(scale for scale in tensor.scale if not (0 < np.float32(scale) < np.inf))
        raise ArtifactError(f"a scale is {bad}", where=where, expected="float32 numbers above 0")
    if len(tensor.scale) != len(tensor.zero_point):
        found = f"there are {len(tensor.scale)} scales and {len(tensor.zero_point)} zero points"
        raise ArtifactError(found, where=where, expected="equal numbers of both")
    if tensor.axis is not None and not 0 <= tensor.axis < len(tensor.shape):
        raise ArtifactError(f"its axis is {tensor.axis}", where=where, expected=f"0 to {len(tensor.shape) - 1}")
    count = 1 if tensor.axis is None else tensor.shape[tensor.axis]
    if tensor.scale and (tensor.dtype[0] in "fb" or len(tensor.scale) != count):
        raise ArtifactError(f"{len(tensor.scale)} scales for {tensor.dtype}", where=where, expected=f"{count} of codes")
    if tensor.scale:
        low, high = DType(tensor.dtype).limits
        outside = next((point for point in tensor.zero_point if not low <= point <= high), None)
        if outside is not None:
            raise ArtifactError(f"a zero point is {outside}", where=where, expected=f"{low} to {high}")


def _check_constant(program: Program, name: str, array: Array) -> None:
    where = f"weights.safetensors, {name}"
    tensor = program.tensors[name]
    stored = stored_shape(program, name)
    wanted = np.dtype(NUMPY_TYPES[tensor.dtype])
    if array.dtype != wanted or array.shape != stored:
        found = f"it is {array.dtype} {list(array.shape)}"
        raise ArtifactError(found, where=where, expected=f"{wanted} {list(stored)}, as program.json declares")
    if tensor.dtype in ("i4", "u4") and array.size:
        low, high = DType(tensor.dtype).limits
        codes = array.astype(np.int64)
        if codes.min() < low or codes.max() > high:
            raise ArtifactError(f"it has codes from {codes.min()} to {codes.max()}", where=where, expected=tensor.dtype)


def _definition(instruction: Instruction, where: str) -> OpDef:
    if instruction.op != "call" and instruction.op not in KERNELS:
        raise ArtifactError(f"the instruction {instruction.op!r} is unknown", where=where)
    return known_ops()[instruction.op]


def _check_attributes(instruction: Instruction, where: str) -> None:
    definition = _definition(instruction, where)
    given = instruction.attributes
    allowed = {name: default for name, default in definition.attributes.items() if name not in RESTORED}
    if "weight" in definition.operands:
        allowed["block"] = None
    for name, default in allowed.items():
        if name not in given:
            # None is not written to files, even for required attributes.
            if default is REQUIRED and name not in _MAY_BE_NONE:
                raise ArtifactError(f"the attribute {name!r} is missing", where=f"{where} ({instruction.op})")
            continue
        test, words = KINDS[name]
        value = given[name]
        fits = test(value) and not (isinstance(default, tuple) and len(value) != len(default))  # type: ignore[arg-type]
        if not fits:
            expected = f"{len(default)} {words}" if isinstance(default, tuple) else words
            raise ArtifactError(f"{name} is {value!r}", where=f"{where}.attributes.{name}", expected=expected)
    unknown = next((name for name in given if name not in allowed), None)
    if unknown is not None:
        raise ArtifactError(f"{instruction.op} has no attribute {unknown!r}", where=f"{where}.attributes")


_MAY_BE_NONE = frozenset(
    {f"{side}_{part}" for side in ("left", "right", "out", "product") for part in ("multiplier", "exponent")}
    | {"offset", "scalar_left_offset"}
)
"""Required attributes that may be None."""


def _tensors(program: Program) -> Tensors:
    """The sizes of all tensors for the batch of the plan, or for the smallest valid batch.

    Raises:
        ArtifactError: No valid batch exists.
    """
    reason = ""
    for batch in range(1, LARGEST_BATCH + 1) if program.memory is None else (program.memory.batch,):
        try:
            found = Tensors(program, batch)
            # Only the codes of an output lie in the array; its batch may differ from the batch of the inputs.
            found.shapes.update({item.output: found.shape(item.inputs[0]) for item in found.core.exit})
            return found
        except UnsupportedError as error:
            reason = reason or str(error)
        except QCompilerError as error:
            raise ArtifactError(error.found, where="program.json, instructions", expected=error.expected) from None
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ArtifactError(f"sizes do not fit together: {error}", where="program.json, instructions") from None
    raise ArtifactError(f"the sizes are valid for no batch size: {reason}", where="program.json, tensors")


def _type(tensors: Tensors, name: str) -> TensorType:
    """The type of a tensor, with sizes for the batch."""
    declared = tensors.program.tensors[name]
    shape = tensors.shape(name)
    # Real numbers after the core have the sizes of their codes, which may be a multiple of the batch.
    codes = next((tensors.shape(item.inputs[0]) for item in tensors.core.exit if item.output == name), ())
    if len(codes) == len(shape):
        shape = tuple(known if size == -1 else size for size, known in zip(shape, codes, strict=True))
    shape = tuple(tensors.batch if size == -1 else size for size in shape)
    quant = QuantParams(declared.scale, declared.zero_point, declared.axis) if declared.scale else None
    return TensorType(DType(declared.dtype), shape, quant)


def _check_instruction(program: Program, tensors: Tensors, instruction: Instruction, where: str) -> None:
    """Check that the result type is the inferred one, and that instructions with zero points have them."""
    definition = _definition(instruction, where)
    if instruction.op == "call":
        _check_call(program, tensors, instruction, where)
        return
    if len(instruction.outputs) != 1:
        raise ArtifactError(f"there are {len(instruction.outputs)} results", where=where, expected="one")
    # Factors of blocks are an operand of the program alone; the graph's operator has none.
    operands = [_type(tensors, name) for name in instruction.inputs]
    block = instruction.attributes.get("block")
    if block is not None:
        factors = operands.pop() if operands else None
        weight = operands[1].shape if len(operands) > 1 else ()
        channels, inputs = (weight[1], weight[0]) if definition.has(Trait.TRANSPOSED) else (*weight[:2], 0, 0)[:2]
        blocks = -(-int(inputs) // block) if isinstance(block, int) else 0
        if factors is None or factors.shape != (channels, blocks):
            found = f"the factors are {factors}"
            raise ArtifactError(found, where=where, expected=f"[{channels}, {blocks}], for blocks of {block}")
    if not definition.accepts(len(operands)):
        expected = " ".join(definition.operands)
        raise ArtifactError(f"there are {len(operands)} operands", where=where, expected=expected)
    # The declared result must have the type that the operator infers from operands and attributes.
    result = _type(tensors, instruction.output)
    restored: dict[str, Attribute] = {"dtype": str(result.dtype), "shape": result.shape, "function": ""}
    given = {name: restored[name] for name in definition.attributes if name in restored}
    given |= dict.fromkeys(name for name, default in definition.attributes.items() if default is REQUIRED) | given
    own = {name: value for name, value in instruction.attributes.items() if name != "block"}
    (expected_type,) = definition.infer(operands, definition.complete({**given, **own}))
    if (expected_type.dtype, expected_type.shape) != (result.dtype, result.shape):
        raise ArtifactError(f"the result is {result}", where=where, expected=f"{expected_type}, as follows")
    # Operands that are counted in steps, and requantized results, need exactly one scale.
    kernel = KERNELS[instruction.op]
    names = [instruction.inputs[index] for index in kernel.steps] + [instruction.output] * kernel.requantizes
    without = next((name for name in names if len(program.tensors[name].scale) != 1), None)
    if without is not None:
        raise ArtifactError(
            f"{without!r} has {len(program.tensors[without].scale)} scales", where=where, expected="one"
        )
    if "weight" in definition.operands and not program.tensors[instruction.inputs[1]].scale:
        raise ArtifactError(f"the weight {instruction.inputs[1]!r} has no scale", where=where)


def _check_call(program: Program, tensors: Tensors, instruction: Instruction, where: str) -> None:
    from qcompiler.program import islands  # which needs torch

    name = instruction.text("graph")
    if name not in program.islands:
        raise ArtifactError(f"the island {name!r} is missing", where=where)
    found = islands.result_types(program, name, [_type(tensors, item) for item in instruction.inputs])
    declared = [_type(tensors, item) for item in instruction.outputs]
    if [(item.dtype, item.shape) for item in found] != [(item.dtype, item.shape) for item in declared]:
        texts = (", ".join(map(str, items)) for items in (declared, found))
        raise ArtifactError(
            f"the results are {next(texts)}", where=where, expected=f"{next(texts)}, as the island gives"
        )


def _check_codes(
    program: Program,
    constants: Mapping[str, Array],
    instruction: Instruction,
    limits: dict[str, Limits],
    where: str,
) -> None:
    """Check that tables cover all indexing codes, because C reads them without bounds checks.

    Args:
        program: The program.
        constants: Constants of the program.
        instruction: The instruction, whose attributes and result are checked.
        limits: Lowest and highest code of the values written so far; the entry of the result is added.
        where: Place for messages.
    """

    def range_of(name: str) -> Limits:
        declared = program.tensors[name].dtype
        return limits.get(name, DType(declared).limits if declared[0] in "iu" else (0, 0))

    result = instruction.output
    low, high = range_of(result)
    if instruction.op == "lookup":
        table = constants.get(instruction.inputs[1])
        if table is None:
            raise ArtifactError(f"the table {instruction.inputs[1]!r} is not a constant", where=where)
        first, last = (code - int(instruction.attributes["offset"]) for code in range_of(instruction.inputs[0]))  # type: ignore[arg-type]
        if first < 0 or last >= table.shape[-1]:
            found = f"codes from {first} to {last} index a table of {table.shape[-1]}"
            raise ArtifactError(found, where=where, expected="an entry for each code")
        if len(instruction.inputs) > 2:
            rows = constants.get(instruction.inputs[2])
            if rows is None or (rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < table.shape[0]):
                raise ArtifactError(f"{instruction.inputs[2]!r} refers to rows that the table lacks", where=where)
        low, high = (int(table.min()), int(table.max())) if table.size else (low, high)
    elif instruction.op == "int_log_softmax":  # C finds a logarithm by the bits of a sum from 2^30 on
        entries = constants.get(instruction.inputs[1])
        if entries is None or not entries.size or entries[0] != 2**30 or entries.min() < 0 or entries.max() > 2**30:
            found = f"{instruction.inputs[1]!r} is no table of exponentials"
            raise ArtifactError(found, where=where, expected="a constant from 0 to 2^30 that begins with 2^30")
    elif instruction.op != "call" and KERNELS[instruction.op].moves:
        given = instruction.inputs[:1] if op(instruction.op).has(Trait.GUIDED) else instruction.inputs
        found_limits = [range_of(name) for name in given]
        low, high = min(item[0] for item in found_limits), max(item[1] for item in found_limits)
        zero_point = program.tensors[result].zero_point
        if instruction.op == "masked" and zero_point:
            low, high = min(low, zero_point[0]), max(high, zero_point[0])
        if instruction.op == "pad" and program.tensors[result].dtype[0] in "iu":
            value = instruction.attributes.get("value", 0.0)
            bottom, top = DType(program.tensors[result].dtype).limits
            if not isinstance(value, int | float) or value != int(value) or not bottom <= value <= top:
                raise ArtifactError(f"the border has the code {value}", where=where, expected=f"{bottom} to {top}")
            low, high = min(low, int(value)), max(high, int(value))
    elif instruction.op not in ("dequantize", "call"):
        ends = [instruction.attributes.get(name) for name in ("qmin", "qmax")]
        low = _end(ends[0], min, low)
        high = _end(ends[1], max, high)
    limits[result] = (low, high)


def _end(value: object, choose: Callable[[tuple[int, ...]], int], default: int) -> int:
    if isinstance(value, tuple):
        return choose(value)
    return value if isinstance(value, int) else default

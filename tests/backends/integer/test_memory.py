"""Memory plans: what lives lies apart, nothing smaller is possible where the plan says so, and wrong plans show."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.backends.integer import Executor, plan, plan_program, sum_of_tensors
from qcompiler.backends.integer.memory import ALIGNMENT
from qcompiler.errors import ArtifactError, InputError, UnsupportedError
from qcompiler.program.aliases import MOST_VIEWS, check_memory, find_homes
from qcompiler.program.files import ProgramFiles
from qcompiler.program.kernels import KERNELS
from qcompiler.program.liveness import Tensors, core_of
from qcompiler.program.program import Memory, Program
from tests.backends.integer.programs import HALF_OF_SUM, Builder, inputs_of, runnable


def bytes_alive(program: Program, memory: Memory) -> int:
    """The most bytes that hold what is still read, counted byte by byte where the plan puts them."""
    tensors = Tensors(program, memory.batch)
    lives = tensors.core.lives()
    most = 0
    for time in range(-1, len(tensors.core.instructions) + 1):
        taken = np.zeros(memory.bytes, np.bool_)
        for name, (first, last) in lives.items():
            if first <= time <= last:
                room = -(-tensors.bytes(name) // memory.alignment) * memory.alignment
                taken[memory.offsets[name] : memory.offsets[name] + room] = True
        most = max(most, int(taken.sum()))
    return most


def outcome(files: ProgramFiles, memory: Memory | None, batch: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """Every result of a run by its name, and the outputs."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    outputs = Executor(files, memory).run(inputs_of(files, batch), found.__setitem__)
    return {**found, **{f"output {index}": array for index, array in enumerate(outputs)}}


def differing(files: ProgramFiles, memory: Memory) -> list[str]:
    """Results of which the array of the plan holds others."""
    expected, found = outcome(files, None, memory.batch), outcome(files, memory, memory.batch)
    return [name for name in expected if not np.array_equal(expected[name], found[name])]


@settings(max_examples=150)
@given(files=runnable(), batch=st.sampled_from((1, 1, 3)), alignment=st.sampled_from((1, 4, 16)))
def test_plan_keeps_what_lives_apart_and_codes_as_they_are(files: ProgramFiles, batch: int, alignment: int) -> None:
    program = plan_program(files.program, batch, alignment)
    memory = program.memory
    assert memory is not None
    planned = ProgramFiles(program, files.constants)  # which checks the plan
    assert memory.alignment % alignment == 0
    assert memory.lower_bound <= memory.bytes
    assert bytes_alive(program, memory) == memory.lower_bound
    assert sorted(map(str, program.instructions)) == sorted(map(str, files.program.instructions))
    assert memory.lower_bound <= plan(files.program, batch, alignment).lower_bound
    assert not differing(planned, memory)


@settings(max_examples=60)
@given(files=runnable())
def test_the_order_of_instructions_changes_no_code(files: ProgramFiles) -> None:
    ordered = ProgramFiles(plan_program(files.program), files.constants)
    before, after = outcome(files, None), outcome(ordered, None)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@settings(max_examples=60)
@given(files=runnable(most=20), data=st.data())
def test_a_damaged_plan_is_caught_by_the_check_or_changes_nothing(files: ProgramFiles, data: st.DataObject) -> None:
    program = plan_program(files.program)
    memory = program.memory
    assert memory is not None
    name = data.draw(st.sampled_from(sorted(memory.offsets)))
    places = sorted({*memory.offsets.values(), *range(0, memory.bytes, ALIGNMENT)})
    damaged = memory.model_copy(update={"offsets": {**memory.offsets, name: data.draw(st.sampled_from(places))}})
    try:
        check_memory(program, damaged)
    except ArtifactError:
        return
    assert not differing(ProgramFiles(program, files.constants), damaged)


def chain(*sizes: int) -> Program:
    """Layers one after the other with so many features."""
    builder = Builder()
    x = builder.input((sizes[0],))
    for size in sizes[1:]:
        x = builder.add("int_linear", [x], (size,))
    return builder.program(x)


@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_chains_need_what_two_neighbours_need(sizes: list[int]) -> None:
    memory = plan(chain(*sizes))
    room = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
    assert memory.bytes == memory.lower_bound == max([*map(sum, itertools.pairwise(room)), *room])


@given(sizes=st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=30))
def test_chains_with_activations_in_place_are_exact(sizes: list[tuple[int, bool]]) -> None:
    builder = Builder()
    x = builder.input((16,))
    for size, activated in sizes:
        x = builder.add("int_linear", [x], (16 * size,))
        x = builder.add("lookup", [x], (16 * size,)) if activated else x
    memory = plan(builder.program(x))
    room = [16, *(16 * size for size, _ in sizes)]
    assert memory.bytes == memory.lower_bound == max(map(sum, itertools.pairwise(room)))


def residual() -> Builder:
    """x -> a -> b = lookup(a) -> c, and c + x."""
    builder = Builder()
    x = builder.input((64,))
    a = builder.add("int_linear", [x], (128,))
    b = builder.add("lookup", [a, builder.constant(np.arange(-128, 128).astype(np.int8), "i8")], (128,), offset=-128)
    c = builder.add("slice", [b], (64,), axis=1, start=3, stop=67, step=1)
    builder.add("int_add", [c, x], (64,), **HALF_OF_SUM)
    return builder


def test_elementwise_results_lie_on_operands_that_die() -> None:
    builder = residual()
    x, a, b, c, s = (name for name in builder.tensors if name not in builder.constants)
    memory = plan(builder.program(s))
    assert memory.offsets[a] == memory.offsets[b], "lookup"
    assert memory.offsets[s] in (memory.offsets[c], memory.offsets[x]), "add"
    assert memory.bytes == memory.lower_bound == 64 + 128 + 64
    builder.add("int_linear", [a], (16,))  # after the lookup, which then cannot write over it
    memory = plan(builder.program(s, list(builder.tensors)[-1]))
    assert memory.offsets[a] != memory.offsets[b]


@pytest.mark.parametrize("op", ["max_pool2d", "int_linear", "pad", "int_layer_norm"])
def test_what_reads_its_neighbours_never_lies_on_its_operand(op: str) -> None:
    assert not KERNELS[op].in_place
    builder = Builder()
    x = builder.input((64,))
    y = builder.add(op, [x], (64,), pad=(0, 1, 0, -1))
    memory = plan(builder.program(builder.add("int_linear", [y], (16,))))
    assert memory.offsets[x] != memory.offsets[y]


def test_wider_elements_do_not_lie_on_narrower_ones() -> None:
    builder = Builder()
    x = builder.add("int_linear", [builder.input((64,))], (64,))
    wide = builder.add("rescale", [x], (64,), "i16")
    narrow = builder.add("rescale", [wide], (64,))
    memory = plan(builder.program(builder.add("int_linear", [narrow], (16,))))
    assert memory.offsets[narrow] == memory.offsets[wide]
    assert memory.lower_bound == 64 + 128, "both tensors are alive while the first rescale runs"


def test_an_operand_that_is_read_in_two_orders_is_kept() -> None:
    builder = Builder("NCHW")
    x = builder.add("int_linear", [builder.input((2, 16, 1))], (2, 16, 1))
    half = builder.add("slice", [x], (1, 16, 1), axis=1, start=0, stop=1, step=1)
    y = builder.add("int_mul", [x, half], (2, 16, 1))
    memory = plan(builder.program(builder.add("int_linear", [y], (16, 1, 1))))
    assert memory.offsets[half] == memory.offsets[x], "the slice is a view"
    assert memory.offsets[y] not in (memory.offsets[x], memory.offsets[x] + 16), "each half is multiplied by the first"


@pytest.mark.parametrize(
    ("layout", "op", "old", "new", "attributes", "begin"),
    [
        ("NHWC", "reshape", (16, 1, 1), (16,), {}, 0),
        ("NHWC", "reshape", (1, 4, 4), (16,), {}, 0),
        ("NHWC", "reshape", (2, 4, 2), (16,), {}, None),
        ("NCHW", "reshape", (2, 4, 2), (16,), {}, 0),
        ("NHWC", "reshape", (2, 4, 2), (2, 8, 1), {}, 0),
        ("NHWC", "permute", (16, 1, 1), (1, 1, 16), {"axes": (0, 2, 3, 1)}, 0),
        ("NHWC", "permute", (2, 4, 2), (4, 2, 2), {"axes": (0, 2, 3, 1)}, None),
        ("NCHW", "permute", (1, 4, 4), (4, 4, 1), {"axes": (0, 2, 3, 1)}, 0),
        ("NHWC", "slice", (16, 4, 2), (16, 2, 2), {"axis": 2, "start": 1, "stop": 3, "step": 1}, 32),
        ("NHWC", "slice", (16, 4, 2), (16, 2, 2), {"axis": 2, "start": 1, "stop": 4, "step": 2}, None),
        ("NHWC", "slice", (16, 4, 2), (16, 1, 2), {"axis": 2, "start": 3, "stop": 4, "step": 2}, 96),
        ("NHWC", "slice", (16, 4, 2), (8, 4, 2), {"axis": 1, "start": 0, "stop": 8, "step": 1}, None),
        ("NCHW", "slice", (16, 4, 2), (8, 4, 2), {"axis": 1, "start": 2, "stop": 10, "step": 1}, 16),
        ("NCHW", "slice", (16, 4, 2), (8, 4, 2), {"axis": 1, "start": 1, "stop": 9, "step": 1}, None),
        ("NHWC", "slice", (64,), (16,), {"axis": 1, "start": 32, "stop": 48, "step": 1}, 32),
    ],
)  # fmt: skip
def test_views_where_no_byte_moves(
    layout: Literal["NHWC", "NCHW"],
    op: str,
    old: tuple[int, ...],
    new: tuple[int, ...],
    attributes: dict[str, Any],
    begin: int | None,
) -> None:
    builder = Builder(layout)
    x = builder.input(old)
    y = builder.add(op, [x], new, **attributes)
    files = builder.files(x, y)
    memory = plan(files.program)
    distance = memory.offsets[y] - memory.offsets[x]
    if begin is None:
        assert distance >= np.prod(old) or -distance >= np.prod(new), "a copy at another place"
    else:
        assert distance == begin
    assert not differing(files, memory)


def test_operands_of_concat_are_written_to_their_place() -> None:
    builder = Builder("NCHW")
    x = builder.input((2, 4, 4))
    a, b = (
        builder.add("max_pool2d", [x], (2, 4, 4), kernel=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1))
        for _ in range(2)
    )
    c = builder.add("concat", [a, b, a], (6, 4, 4), axis=1)
    files = builder.files(c)
    memory = plan(files.program)
    offsets = memory.offsets
    assert (offsets[a] - offsets[c], offsets[b] - offsets[c]) == (0, 32)
    assert memory.lower_bound == 32 + 64, "the third operand is copied after the first two"
    assert not differing(files, memory)


def test_more_views_of_one_tensor_are_copies() -> None:
    builder = Builder()
    count = MOST_VIEWS + 10
    x = builder.input((16 * count,))
    for index in range(count):
        builder.add("slice", [x], (16,), axis=1, start=16 * index, stop=16 * index + 16, step=1)
    program = builder.program(*list(builder.tensors)[1:])
    homes = find_homes(Tensors(program, 1), 16)
    assert sum(root == x for root, _ in homes.values()) == MOST_VIEWS + 1
    check_memory(program, plan(program))


def test_core_is_between_the_codes() -> None:
    builder = Builder()
    x, z = builder.input((16,), "f32"), builder.input((16,), "f32")
    q = builder.add("quantize", [x], (16,), rounding="rne")
    first, second = (builder.add("quantize", [z], (16,), rounding="rne") for _ in range(2))
    y = builder.add("int_add", [q, first], (16,))
    real = builder.add("dequantize", [y], (16,), "f32")
    core = core_of(builder.program(real, second))
    assert core.given == (q, z), "the operand of two quantizers is passed unchanged"
    assert core.taken == (y, second)
    assert [item.output for item in core.instructions] == [first, second, y]
    lives = core.lives()
    assert (lives[q], lives[z], lives[y], lives[second]) == ((-1, 2), (-1, 1), (2, 3), (1, 3))
    memory = plan(builder.program(real, second))
    assert sorted(memory.offsets) == sorted((q, z, first, second, y))
    assert sum_of_tensors(builder.program(real, second)) == 4 * 16 + 64


def test_run_integer_gives_and_takes_what_the_core_does() -> None:
    builder = Builder()
    x = builder.input((16,), "f32")
    a, b = (builder.add("quantize", [x], (16,), rounding=way) for way in ("rne", "floor"))
    real = builder.add("dequantize", [a], (16,), "f32")
    files = builder.files(real, b)
    numbers = inputs_of(files, 2)
    codes, floors = Executor(files).run_integer(numbers)
    expected = Executor(files).run(numbers)
    assert np.array_equal(codes.astype(np.float32) * np.float32(0.5), expected[0])
    assert np.array_equal(floors, expected[1])
    assert not np.array_equal(codes, floors)


def test_sizes_follow_the_batch() -> None:
    builder = Builder()
    x = builder.input((8, 4, 2))
    rows = builder.add("reshape", [x], (2,))  # [N * 32, 2]
    cut = builder.add("permute", [rows], (2,), axes=(1, 0))
    builder.tensors[cut] = builder.tensors[cut].model_copy(update={"shape": (2, -1)})
    both = builder.add("concat", [rows, rows], (2,), axis=0)
    wide = builder.add("pad", [both], (2,), pad=(1, 0, 2, 0), value=0)
    tensors = Tensors(builder.program(cut, wide), 3)
    assert [tensors.shapes[name] for name in (x, rows, cut, both, wide)] == [
        (3, 8, 4, 2),
        (96, 2),
        (2, 96),
        (192, 2),
        (195, 2),
    ]
    builder = Builder()
    pairs = builder.add("reshape", [builder.input((8,))], (16,))
    program = builder.program(pairs)
    assert Tensors(program, 2).shapes[pairs] == (1, 16)
    with pytest.raises(UnsupportedError, match="a batch of 1"):
        plan(program)


def _planned() -> ProgramFiles:
    """A residual block that runs, with its plan."""
    builder = residual()
    linear = builder.instructions[0]
    far = {"pad": (0, 0, 0, 64), "value": 7}
    builder.instructions[0] = linear.model_copy(update={"op": "pad", "attributes": far})
    files = builder.files(list(builder.tensors)[-1])
    return ProgramFiles(plan_program(files.program), files.constants)


def _names(files: ProgramFiles) -> list[str]:
    return [files.program.inputs[0], *(item.output for item in files.program.instructions)]


def _at(name: int, other: int, distance: int = 0) -> Callable[[ProgramFiles, Memory], Memory]:
    """Put a tensor at a distance from another one."""

    def damage(files: ProgramFiles, memory: Memory) -> Memory:
        names = _names(files)
        offsets = {**memory.offsets, names[name]: memory.offsets[names[other]] + distance}
        return memory.model_copy(update={"offsets": offsets})

    return damage


X, A, B, C, S = range(5)


@pytest.mark.parametrize(
    ("damage", "pair"),
    [
        pytest.param(_at(A, X), (X, A), id="a result on an operand that is read again"),
        pytest.param(_at(A, X, 16), (X, A), id="a shifted offset"),
        pytest.param(_at(C, B), (B, C), id="a result on an operand whose elements move"),
        pytest.param(_at(C, X), (X, C), id="a place given away while the shortcut waits"),
        pytest.param(_at(B, A, 16), (A, B), id="in place, but not at the same byte"),
    ],
)  # fmt: skip
def test_faults_give_wrong_codes_and_are_named(
    damage: Callable[[ProgramFiles, Memory], Memory], pair: tuple[int, int]
) -> None:
    files = _planned()
    memory = files.program.memory
    assert memory is not None
    assert not differing(files, memory)
    room = memory.model_copy(update={"bytes": memory.bytes + 256})
    wrong = damage(files, room)
    with pytest.raises(ArtifactError, match="overlap and are alive") as caught:
        ProgramFiles(files.program.model_copy(update={"memory": wrong}), files.constants)
    assert all(repr(_names(files)[index]) in str(caught.value) for index in pair)
    assert differing(files, wrong)


def test_lives_that_end_too_early_give_wrong_codes() -> None:
    """The plan of a program whose last instruction does not read the shortcut, which others then may overwrite."""
    files = _planned()
    last = files.program.instructions[-1]
    shorter = last.model_copy(update={"op": "lookup", "inputs": (last.inputs[0], last.inputs[0])})
    wrong = plan(files.program.model_copy(update={"instructions": (*files.program.instructions[:-1], shorter)}))
    with pytest.raises(ArtifactError, match="overlap and are alive"):
        check_memory(files.program, wrong)
    assert files.program.memory is not None
    assert wrong.bytes < files.program.memory.bytes
    assert last.output in differing(files, wrong)


def test_plans_that_do_not_fit_the_program_are_refused() -> None:
    files = _planned()
    program, memory = files.program, files.program.memory
    assert memory is not None
    name = _names(files)[A]

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(ArtifactError, match=match):
            check_memory(program, memory.model_copy(update=changes))

    refused(f"'{name}' has no place", offsets={key: at for key, at in memory.offsets.items() if key != name})
    refused("'nothing' has a place but is not a tensor", offsets={**memory.offsets, "nothing": 0})
    refused(f"'{name}' is at bytes 8 to", offsets={**memory.offsets, name: 8})
    refused(f"'{name}' is at bytes -16 to", offsets={**memory.offsets, name: -16})
    refused("is at bytes", bytes=memory.bytes - 16)
    data = json.loads(files.program_json())
    data["memory"]["offsets"][name] = data["memory"]["offsets"][_names(files)[X]]
    with pytest.raises(ArtifactError, match=r"overlap.*program\.json, memory"):
        ProgramFiles.parse(json.dumps(data), files.weights())


def test_a_planned_executor_takes_the_batch_of_its_plan() -> None:
    files = _planned()
    with pytest.raises(InputError, match=r"has shape \[2, 64\].*as planned"):
        Executor(files, files.program.memory).run(inputs_of(files, 2))


def test_a_program_without_a_plan_is_read() -> None:
    files = _planned()
    text = files.program_json()
    data = json.loads(text)
    assert ProgramFiles.parse(text, files.weights()).program == files.program
    del data["memory"]
    assert ProgramFiles.parse(json.dumps(data), files.weights()).program.memory is None


@pytest.mark.parametrize("op", [op for op, kernel in KERNELS.items() if kernel.in_place])
def test_what_may_lie_on_its_operand_works_element_by_element(op: str) -> None:
    """Element i of the result follows from element i of the operand: changing one changes no other."""
    builder = Builder()
    shape = (4, 2, 3)
    table = builder.constant(np.roll(np.arange(-128, 128), 5).astype(np.int8), "i8")
    one = [builder.constant(np.array([2**30], np.int32), "i32"), builder.constant(np.array([1], np.int8), "i8")]
    x = builder.input(shape, "f32" if op == "quantize" else "i8")
    operands: dict[str, list[str]] = {"lookup": [table], "rescale": one}
    attributes: dict[str, dict[str, Any]] = {
        "int_add": HALF_OF_SUM,
        "int_mul": {"mode": "single", "product_multiplier": 2**30, "product_exponent": 1},
        "lookup": {"offset": -128},
        "int_clamp": {"axis": 1, "qmin": (-100, -90, -80, -70), "qmax": (100, 90, 80, 70)},
        "rescale": {"mode": "single"},
        "quantize": {"rounding": "rne"},
        "dequantize": {},
    }
    others = [builder.input(shape)] if len(KERNELS[op].in_place) > 1 else operands.get(op, [])
    y = builder.add(op, [x, *others], shape, "f32" if op == "dequantize" else "i8", **attributes.get(op, {}))
    executor = Executor(builder.files(y))
    inputs = [
        np.full((1, *shape), 3, np.float32 if name == x and op == "quantize" else np.int8) for name in builder.inputs
    ]
    (before,) = executor.run(inputs)
    for position in KERNELS[op].in_place:
        for index in np.ndindex(1, *shape):
            changed = [array.copy() for array in inputs]
            changed[position][index] -= 20 if op == "minimum" else -20
            (after,) = executor.run(changed)
            assert [tuple(place) for place in np.argwhere(before != after)] == [index]

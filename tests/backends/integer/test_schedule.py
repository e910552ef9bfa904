"""The order of instructions: never worse than the given one, and the best there is where that can be known."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qcompiler.backends.integer.bound import Regions
from qcompiler.backends.integer.schedule import schedule
from qcompiler.program.files import ProgramFiles
from qcompiler.program.liveness import Tensors
from qcompiler.program.program import Program
from tests.backends.integer.programs import Builder, runnable


def regions_of(program: Program) -> Regions:
    return Regions(Tensors(program, 1), 16)


def orders(program: Program) -> Iterator[tuple[int, ...]]:
    """All orders in which everything is written before it is read."""
    instructions = Tensors(program, 1).core.instructions
    writers = {name: time for time, item in enumerate(instructions) for name in item.outputs}
    before = [{writers[name] for name in item.inputs if name in writers} for item in instructions]

    def extended(done: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(done) == len(instructions):
            yield done
        for time in range(len(instructions)):
            if time not in done and before[time] <= set(done):
                yield from extended((*done, time))

    return extended(())


@settings(max_examples=120)
@given(files=runnable(most=7))
def test_no_order_is_better_than_the_exact_one(files: ProgramFiles) -> None:
    regions = regions_of(files.program)
    assume(len(regions.tensors.core.instructions) <= 7)
    found = schedule(regions)
    assert found.exact
    assert found.lower_bound == min(map(regions.lower_bound, orders(files.program)))
    assert found.order in set(orders(files.program))


@settings(max_examples=60)
@given(files=runnable(most=30), work=st.sampled_from((0, 20, 300, 300_000)))
def test_never_worse_than_the_order_given(files: ProgramFiles, work: int) -> None:
    regions = regions_of(files.program)
    given_order = range(len(regions.tensors.core.instructions))
    found = schedule(regions, work)
    assert sorted(found.order) == list(given_order)
    assert found.lower_bound == regions.lower_bound(found.order) <= regions.lower_bound(given_order)
    written = set(regions.tensors.core.given) | regions.tensors.constants
    for time in found.order:
        instruction = regions.tensors.core.instructions[time]
        assert written >= set(instruction.inputs)
        written |= set(instruction.outputs)


def random_layers(seed: int, count: int) -> Program:
    """Layers that read any of the last few results, and one that reads what nothing else does."""
    generator = random.Random(seed)
    builder = Builder()
    names = [builder.input((16,))]
    for _ in range(count):
        operands = [generator.choice(names[-5:]) for _ in range(generator.choice((1, 1, 2)))]
        names.append(builder.add("int_linear", operands, (16 * generator.randint(1, 40),)))
    read = {name for item in builder.instructions for name in item.inputs}
    return builder.program(builder.add("int_linear", [name for name in names if name not in read], (16,)))


@given(seed=st.integers(0, 2**32), count=st.integers(1, 6))
def test_layers_of_any_size_in_the_best_order(seed: int, count: int) -> None:
    program = random_layers(seed, count)
    regions = regions_of(program)
    found = schedule(regions)
    assert (found.lower_bound, found.exact) == (min(map(regions.lower_bound, orders(program))), True)


def test_what_is_said_to_be_exact_is_what_more_work_finds() -> None:
    proven = 0
    for seed in range(25):
        regions = regions_of(random_layers(seed, 16))
        little, much = schedule(regions, 100), schedule(regions)
        assert much.exact
        assert little.lower_bound >= much.lower_bound
        assert not little.exact or little.lower_bound == much.lower_bound
        proven += little.exact
    assert 0 < proven < 25, "both ends of the search are reached"


def branches(widths: list[int]) -> Builder:
    """Each branch grows and shrinks again; the order given runs all first halves before the second ones."""
    builder = Builder()
    x = builder.input((16,))
    wide = [builder.add("int_linear", [x], (width,)) for width in widths]
    narrow = [builder.add("int_linear", [name], (16,)) for name in wide]
    builder.add("concat", narrow, (16 * len(widths),), axis=1)
    return builder


def test_branches_run_one_after_the_other() -> None:
    widths = [320, 480, 160, 640]
    builder = branches(widths)
    program = builder.program(builder.instructions[-1].output)
    regions = regions_of(program)
    assert regions.lower_bound(range(9)) == sum(widths) + 16
    found = schedule(regions)
    # The widest while nothing is there but the input, which all read, and the place of what is finished.
    assert found.exact
    assert found.lower_bound == 16 + 640 + 16
    pairs = [(time, time + 4) for time in found.order if time < 4]
    assert [time for pair in pairs for time in pair] == list(found.order[:8])


def test_the_order_given_stays_where_no_other_is_better() -> None:
    builder = branches([64, 64])
    y = builder.instructions[-1].output
    for _ in range(3):
        y = builder.add("int_linear", [y], (2000,))
    regions = regions_of(builder.program(y))
    assert schedule(regions).order == tuple(range(len(builder.instructions)))


def test_hundreds_of_branches_run_depth_first() -> None:
    """Far too many for the search: branches are joined by pairs, and the order given leaves all of them waiting."""
    builder = Builder()
    x = builder.input((16,))
    ends = [builder.add("int_linear", [builder.add("int_linear", [x], (320,))], (160,)) for _ in range(256)]
    while len(ends) > 1:
        ends = [builder.add("int_linear", list(pair), (160,)) for pair in zip(ends[::2], ends[1::2], strict=True)]
    regions = regions_of(builder.program(*ends))
    found = schedule(regions)
    assert regions.lower_bound(range(len(builder.instructions))) > 256 * 160
    assert found.lower_bound <= 16 + 8 * 160 + 320 + 160, "one result for each level of the tree"

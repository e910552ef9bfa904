"""Places of the largest and smallest elements, and elements at computed places, in C."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qcompiler.backends.integer.c.shapes import check_rank, merged
from qcompiler.backends.integer.c.text import Value
from qcompiler.backends.integer.c.writer import Rule, Step, Writer
from qcompiler.ir.table import Table

emits: Table[Rule] = Table()


@emits("top_places")
def top_places(writer: Writer, step: Step) -> None:
    """`top_places`: one walk over a row for each place."""
    item, axis = step.item, int(writer.call_of(step.item)["axis"])
    source = item.inputs[0]
    members = _rows(writer, step, axis, {"x": writer.steps(source), "y": writer.steps(item.output)})
    members |= {
        "size_of_row": writer.shapes[source][axis],
        "count": writer.shapes[item.output][axis],
        "largest": int(bool(writer.call_of(item)["largest"])),
    }
    writer.emit(step, "top_places", {"X": writer.ctype(source)}, [source], members)


@emits("take_along")
def take_along(writer: Writer, step: Step) -> None:
    """`take_along`: the elements of a row at its places."""
    item, axis = step.item, int(writer.call_of(step.item)["axis"])
    source, places = item.inputs
    distances = {"x": writer.steps(source), "place": writer.steps(places), "y": writer.steps(item.output)}
    members = _rows(writer, step, axis, distances)
    members |= {"size_of_row": writer.shapes[source][axis], "count": writer.shapes[item.output][axis]}
    types = {"X": writer.ctype(source), "PLACES": writer.ctype(places)}
    writer.emit(step, "take_along", types, [source, places], members)


def _rows(writer: Writer, step: Step, axis: int, distances: Mapping[str, Sequence[int]]) -> dict[str, Value]:
    """Members for the rows along `axis` of tensors with equal other axes, by the prefix of their members."""
    shape = writer.shapes[step.item.output]
    outer = [a for a in range(len(shape)) if a != axis]
    box = merged(*([values[a] for a in outer] for values in (shape, *distances.values())))
    check_rank(box, step.item)
    members: dict[str, Value] = {
        "rows": math.prod(shape[a] for a in outer),
        "rank": len(box),
        "size": [size for size, *_ in box] or [0],
    }
    for index, (prefix, steps) in enumerate(distances.items(), 1):
        members[f"{prefix}_step"] = [entry[index] for entry in box] or [0]
        members[f"{prefix}_next"] = steps[axis]
    return members

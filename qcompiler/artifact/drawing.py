"""SVG drawing of the integer program: one box per instruction, in rows from the inputs down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING

from qcompiler.pages.markup import anchor
from qcompiler.program.program import Program

if TYPE_CHECKING:
    import networkx as nx

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 190, 38, 24, 26, 16
"""Size of a box, gaps between boxes, and margin of the drawing, pixels."""

LEAST_BEND, LONGEST_BEND = 10, 70
"""Distance from the boxes of a line that passes other boxes, pixels."""

BOX = "box"
"""Kind of the places of boxes; see `pages.markup.anchor`."""

GOOD_DB, BAD_DB = 40.0, 10.0
"""Signal-to-noise ratios at the green and at the red end of the colours."""


def draw(program: Program, sqnr: Mapping[str, float], target: Callable[[str], str]) -> str:
    """The drawing of `program`.

    Args:
        program: Program to draw, without its constants.
        sqnr: Signal-to-noise ratio of tensors, dB; it determines the colour of a box.
        target: Id of the place in the page that the box of a tensor leads to.

    Returns:
        An `svg` element.
    """
    places = _places(program)
    right = max((x for x, _ in places.values()), default=0) + WIDTH + LONGEST_BEND + MARGIN
    bottom = max((y for _, y in places.values()), default=0) + HEIGHT + MARGIN
    makers = {name: item.output for item in program.instructions for name in item.outputs}
    makers |= {name: name for name in program.inputs}
    edges = []
    boxes = [_box(name, "input", program.tensors[name].dtype, places[name], None) for name in program.inputs]
    for item in program.instructions:
        sources = dict.fromkeys(makers[name] for name in item.inputs if name in makers)
        edges += [_edge(places[source], places[item.output]) for source in sources]
        tensor = program.tensors[item.output]
        shape = "×".join("N" if size == -1 else str(size) for size in tensor.shape)
        box = _box(item.output, item.op, f"{tensor.dtype} {shape}", places[item.output], sqnr.get(item.output))
        boxes.append(f'<a href="#{target(item.output)}">{box}</a>')
    return (
        f'<svg width="{right}" height="{bottom}" role="img" '
        f'aria-label="the integer program">{"".join(edges)}{"".join(boxes)}</svg>'
    )


def _places(program: Program) -> dict[str, tuple[int, int]]:
    """Upper left corner of each box: one row per distance from the inputs, sorted by the position of the operands."""
    import networkx as nx  # its import takes longer than most compiles

    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(program.inputs)
    makers = {name: item.output for item in program.instructions for name in item.outputs}
    for item in program.instructions:
        graph.add_node(item.output)
        sources = (makers.get(name, name) for name in item.inputs)
        graph.add_edges_from((source, item.output) for source in sources if source in graph)
    columns: dict[str, float] = {}
    places: dict[str, tuple[int, int]] = {}
    for row, names in enumerate(_rows(graph)):
        taken = -1.0
        for name in sorted(names, key=lambda name: _wanted_column(graph, name, columns)):
            taken = columns[name] = max(taken + 1, _wanted_column(graph, name, columns))
            places[name] = (int(MARGIN + taken * (WIDTH + GAP_X)), MARGIN + row * (HEIGHT + GAP_Y))
    return places


def _rows(graph: nx.DiGraph[str]) -> list[list[str]]:
    import networkx as nx

    order = {name: index for index, name in enumerate(graph)}
    return [sorted(names, key=order.__getitem__) for names in nx.topological_generations(graph)]


def _wanted_column(graph: nx.DiGraph[str], name: str, columns: Mapping[str, float]) -> float:
    """Preferred column of a box: the mean column of its operands."""
    sources = [columns[source] for source in graph.predecessors(name)]
    return sum(sources) / len(sources) if sources else 0.0


def _box(name: str, op: str, type: str, place: tuple[int, int], ratio: float | None) -> str:
    x, y = place
    colour = "var(--box)" if ratio is None else _colour(ratio)
    note = "" if ratio is None else f", {ratio:.1f} dB"
    short = name if len(name) < 27 else f"…{name[-25:]}"
    return (
        f'<g id="{anchor(BOX, name)}"><title>'
        f"{escape(name)}: {escape(op)}, {escape(type)}{note}</title>"
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="4" fill="{colour}"/>'
        f'<text x="{x + 8}" y="{y + 16}" class="name">{escape(short)}</text>'
        f'<text x="{x + 8}" y="{y + 31}">{escape(op)} {escape(type)}</text></g>'
    )


def _colour(ratio: float) -> str:
    """Colour of a ratio, from red at `BAD_DB` to green at `GOOD_DB`."""
    share = min(max((ratio - BAD_DB) / (GOOD_DB - BAD_DB), 0.0), 1.0)
    return f"hsl({int(130 * share)} 60% var(--light))"


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    """A line from the bottom of one box to the top of another; long lines bend around the boxes between."""
    x1, y1, x2, y2 = start[0] + WIDTH // 2, start[1] + HEIGHT, end[0] + WIDTH // 2, end[1]
    span = (y2 - y1) // (HEIGHT + GAP_Y)
    reach = max((y2 - y1) // 2, 12)
    if span == 0:
        return f'<path class="edge" d="M{x1},{y1} C{x1},{y1 + reach} {x2},{y2 - reach} {x2},{y2}"/>'
    aside = max(x1, x2) + WIDTH // 2 + min(LEAST_BEND + 3 * span, LONGEST_BEND)
    middle = f"C{x1},{y1 + 14} {aside},{y1 + 4} {aside},{y1 + 24} L{aside},{y2 - 24}"
    return f'<path class="edge" d="M{x1},{y1} {middle} C{aside},{y2 - 4} {x2},{y2 - 14} {x2},{y2}"/>'

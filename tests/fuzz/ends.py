"""Inputs and outputs of random models."""

from __future__ import annotations

from tests.fuzz.draw import Drawing
from tests.fuzz.table import listed

INDICES = 5
"""Above the largest index in an input."""


def draw_input(d: Drawing) -> None:
    """A tensor that the model takes."""
    if d.inputs and d.chance(0.7):
        shape = list(d.shape("x0"))
        for axis in range(1, len(shape)):
            if d.chance(0.25):
                shape[axis] = 1
    else:
        first = d.shape("x0")[0] if d.inputs else d.pick([1, 2, 2, 2, 2, 3, 4])
        rank = d.random.choices([0, 1, 2, 3], [16, 22, 54, 8])[0]
        largest = (8, 9, 8, 5)[rank]
        channels = d.pick([1, 2, 3, 3, 4, 4, 6, 8])
        shape = [first, channels, *(1 if d.chance(0.06) else d.number(2, largest) for _ in range(rank))]
    drawn = f"torch.randn({listed(shape)})"
    text = d.random.choices(
        [drawn, drawn.replace("randn", "rand"), f"{drawn}.abs()", *(f"{drawn} {by}" for by in ("* 1e-3", "* 100", "+ 5", "* 1e-12"))],
        [70, 8, 5, 5, 6, 6, 2],
    )[0]  # fmt: skip
    if d.chance(0.01):
        text = f"torch.zeros({listed(shape)})"
    if d.wild and d.chance(0.3):
        sizes = f"({listed(shape[: d.pick([1, 2, 2]) if d.inputs else 2])},)"
        text = d.pick(
            [f"torch.randint(0, 3, {sizes})", f"torch.rand({sizes}) > 0.5", f"torch.randint(0, {INDICES}, {sizes})"]
        )
    name = f"x{len(d.inputs)}"
    d.inputs[name] = text
    d.samples[name] = eval(text, d.namespace())  # noqa: S307  # text that was drawn here


ODD_OUTPUTS = [
    "({0}.mean(), {0})", "({0}, F.cross_entropy({0}.flatten(1), {0}.flatten(1).argmax(1)))", "F.mse_loss({0}, x0)", "({0} > 0, {0})", "{0}.argmax(-1)",
    "torch.max({0}, 1)", "({0}, {0}.max())", '{{"loss": F.l1_loss({0}, {0}.detach() * 0.5), "logits": {0}}}', "{0}.double()", "({0}.bfloat16(), {0})", "({0} * 0.5).half()",
    "({0}, {0}.flatten(1).topk(1).indices)", "({0}, {0}.shape[0] * {0}.new_ones(()))",
]  # fmt: skip
"""Results without axes, of other types, in classes of torch, and indices next to what they were computed from."""


def draw_output(d: Drawing) -> str:
    """The results of the model: the last tensor, and sometimes several tensors, nested."""
    names = [name for name in d.samples if name.startswith("v")]
    if not names or d.chance(0.01):
        return "x0"
    last = names[-1]
    if d.wild and d.chance(0.15):
        d.odd = True
        form = d.pick(ODD_OUTPUTS).format(last)
        if d.gives_numbers(form):
            return form
    read = {name for statement in d.statements for name in statement.reads}
    unread = [name for name in names if name not in read][-4:]
    if len(unread) > 1 and d.chance(0.4):
        return f"({listed(unread)})"
    if d.chance(0.75):
        return last
    second, third = d.pick(list(d.samples)), d.pick(names)
    forms = ["({0}, {1})", "[{1}, {0}]", '{{"a": {0}, "b": {1}}}', '{{"a": {0}, "b": ({1}, [{2}])}}', "({0},)"]
    return d.pick([*forms, "({0}, {0})"]).format(last, second, third)
